"""Theirs, ours and the truth of a real run, step by step, from tensors that were written down."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from klmonitor.record import read_run

try:
    from .runs import LAB, Done, run
except ImportError:  # as a program
    from runs import LAB, Done, run


@dataclass(frozen=True)
class Line:
    """One number of one step.

    Attributes:
        step: verl's.
        metric: ours, ``pair/estimator``.
        ours, truth: nats a token.
        tokens: that were counted, by us and in truth.
        theirs: name and value of verl's metric that is meant to be this; None: it has none.
    """

    step: int
    metric: str
    ours: float
    truth: float
    tokens: tuple[float, int]
    theirs: tuple[str, float] | None = None

    @property
    def error(self):
        """Of ours, relative."""
        return abs(self.ours - self.truth) / max(abs(self.truth), 1e-300)


NATIVE = {
    "rollout_old/k1": "rollout_corr/kl",
    "rollout_old/k3": "rollout_corr/k3_kl",
    "old_policy/k1": "actor/ppo_kl",
    "policy_ref/k3": "actor/kl_loss",
    "rollout_policy/k1": "actor/ppo_kl",
}
"""Ours -> verl's metric of the same name and meaning."""


def estimates(q, p, mask):
    """k1, k3, tokens."""
    d = (p.double() - q.double())[mask.bool()].numpy()
    return -d.mean(), (np.expm1(d) - d).mean(), d.size


def joined(parts):
    """Tensors of several dumps as one row each: q, p, mask of all tokens."""
    return tuple(
        torch.cat([part.reshape(-1) for part in some]) for some in zip(*parts, strict=True)
    )


def lines(done: Done, bypass: bool = False) -> list[Line]:
    """Of every step, pair and estimator."""
    reports = {
        report.step: report for report in read_run(done.folder / "checkpoints/klmonitor").reports
    }
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
        for pair, tensors in pieces.items():
            k1, k3, tokens = estimates(*tensors)
            report = reports[step].pairs[pair]
            for name, value in (("k1", k1), ("k3", k3)):
                key = NATIVE.get(f"{pair}/{name}")
                theirs = (key, rows[step][key]) if key in rows[step] else None
                ours = report[f"{name}/mean"]
                found.append(
                    Line(
                        step, f"{pair}/{name}", ours, float(value), (report.tokens, tokens), theirs
                    )
                )
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


if __name__ == "__main__":
    for wanted in sys.argv[1:]:
        table = lines(run(wanted, LAB), "bypass" in wanted)
        print(wanted, "worst error of ours", max(line.error for line in table))
        for line in table:
            theirs = "" if line.theirs is None else f"{line.theirs[0]} {line.theirs[1]:+.6e}"
            print(
                f"  {line.step} {line.metric:18} ours {line.ours:+.9e} truth {line.truth:+.9e} "
                f"tokens {line.tokens[0]:.0f} {line.tokens[1]}  {theirs}"
            )
