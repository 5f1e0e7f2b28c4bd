"""Theirs, ours and the truth of a real run of verl, step by step."""

from __future__ import annotations

from pathlib import Path

import torch

from klmonitor.record import read_run
from tests.integrations.raylab.runs import Done
from tests.integrations.raylab.truth import Line, compared

NATIVE = {
    "rollout_old/k1": "rollout_corr/kl",
    "rollout_old/k3": "rollout_corr/k3_kl",
    "old_policy/k1": "actor/ppo_kl",
    "policy_ref/k3": "actor/kl_loss",
    "rollout_policy/k1": "actor/ppo_kl",
}
"""Ours -> verl's metric of the same name and meaning."""


def joined(parts):
    """Tensors of several dumps as one row each: q, p, mask of all tokens."""
    return tuple(
        torch.cat([part.reshape(-1) for part in some]) for some in zip(*parts, strict=True)
    )


def lines(name: str, done: Done) -> list[Line]:
    """Of every step, pair and estimator."""
    bypass = "bypass" in name
    reports = {report.step: report for report in read_run(done.run_dir).reports}
    rows = {row["step"]: row["data"] for row in done.rows}
    drivers = sorted((done.folder / "dump").glob("driver_*.pt"))
    workers: dict[str, list[Path]] = {}
    for path in sorted((done.folder / "dump").glob("worker_*.pt")):
        workers.setdefault(path.name.split("_")[1], []).append(path)
    found = []
    for number, step in enumerate(sorted(rows)):
        pieces = driver_pairs(torch.load(drivers[number]), bypass)
        mine = []
        for paths in workers.values():
            share = len(paths) // len(rows)
            mine += [torch.load(path) for path in paths[number * share : (number + 1) * share]]
        pieces |= worker_pairs(mine, bypass)
        for pair, (q, p, mask) in pieces.items():
            d = (p.double() - q.double())[mask.bool()].numpy()
            found += compared(reports[step], pair, d, NATIVE, rows[step])
    return found


def driver_pairs(dump, bypass):
    """What the driver compared."""
    found = {}
    if "rollout_log_probs" in dump and not bypass:
        found["rollout_old"] = dump["rollout_log_probs"], dump["old_log_probs"], dump["before"]
    if "ref_log_prob" in dump:
        found["old_ref"] = dump["old_log_probs"], dump["ref_log_prob"], dump["response_mask"]
    return found


def worker_pairs(dumps, bypass):
    """What the workers compared."""
    name = "rollout_policy" if bypass else "old_policy"
    sets = [(d["old_log_probs"], d["policy"], d["response_mask"]) for d in dumps]
    found = {name: joined(sets)}
    if "ref_log_prob" in dumps[0]:
        found["policy_ref"] = joined(
            [(d["policy"], d["ref_log_prob"], d["response_mask"]) for d in dumps]
        )
    return found
