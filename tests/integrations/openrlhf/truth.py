"""Theirs, ours and the truth of a real run of OpenRLHF, step by step."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import torch

from klmonitor.record import read_run
from tests.integrations.raylab.runs import Done
from tests.integrations.raylab.truth import Line, compared

from .runs import RUNS

POLICIES = {
    "rollout": "rollout_log_probs",
    "old": "action_log_probs",
    "ref": "base_action_log_probs",
    "policy": "policy",
}
DRIVERS, WORKERS = ("rollout_old", "old_ref"), ("old_policy", "policy_ref")


def native(name):
    """Ours -> OpenRLHF's metric of the same meaning, in a run's mode."""
    in_loss = RUNS[name].in_loss
    return {
        "rollout_old/k1": "vllm_kl",
        "old_policy/k1": "ppo_kl",
        "policy_ref/k3" if in_loss else "old_ref/k1": "kl",
        **({"policy_ref/k1": "logprobs_diff"} if in_loss else {}),
    }


def log_ratios(dumps, pair):
    """d of the tokens of dumps that hold both policies; None: they do not."""
    q, p = (POLICIES[name] for name in pair.split("_"))
    if not dumps or not {p, q} <= set(dumps[0]):
        return None
    d = [(x[p].double() - x[q].double())[x["action_mask"].bool()] for x in dumps]
    return torch.cat(d).numpy()


def dumps_of(folder: Path, kind: str, steps: int) -> list[list[dict]]:
    """What the driver or the workers were given in each step."""
    if kind == "driver":
        paths = [sorted(folder.glob(f"driver_{step:03d}_*.pt")) for step in range(steps)]
        return [[torch.load(path) for path in some] for some in paths]
    ranks: dict[str, list[Path]] = {}
    for path in sorted(folder.glob("worker_*.pt")):
        ranks.setdefault(path.name.split("_")[1], []).append(path)
    found: list[list[dict]] = [[] for _ in range(steps)]
    for paths in ranks.values():
        each, share = iter(paths), len(paths) // steps
        for step in found:
            step += [torch.load(path) for path in islice(each, share)]
    return found


def lines(name: str, done: Done) -> list[Line]:
    """Of every step, pair and estimator."""
    reports = {report.step: report for report in read_run(done.run_dir).reports}
    rows = {row["step"]: row["data"] for row in done.rows}
    kinds = {kind: dumps_of(done.folder / "dump", kind, len(rows)) for kind in ("driver", "worker")}
    found = []
    for number, step in enumerate(sorted(rows)):
        for kind, pairs in (("driver", DRIVERS), ("worker", WORKERS)):
            for pair in pairs:
                d = log_ratios(kinds[kind][number], pair)
                if d is not None:
                    found += compared(reports[step], pair, d, native(name), rows[step])
    return found
