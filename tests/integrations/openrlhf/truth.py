"""Theirs, ours and the truth of a real run, step by step, from tensors that were written down."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from klmonitor.record import read_run

try:
    from .runs import LAB, RUNS, Done, run
except ImportError:  # as a program
    from runs import LAB, RUNS, Done, run


@dataclass(frozen=True)
class Line:
    """One number of one step.

    Attributes:
        step: OpenRLHF's.
        metric: ours, ``pair/estimator``.
        ours, truth: nats a token.
        tokens: that were counted, by us and in truth.
        theirs: name and value of OpenRLHF's metric that is meant to be this; None: it has none.
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


def estimates(dumps, pair):
    """k1, k3, tokens of dumps that hold both policies; None: they do not."""
    q, p = (POLICIES[name] for name in pair.split("_"))
    if not dumps or not {p, q} <= set(dumps[0]):
        return None
    d = [(x[p].double() - x[q].double())[x["action_mask"].bool()] for x in dumps]
    d = torch.cat(d).numpy()
    return float(-d.mean()), float((np.expm1(d) - d).mean()), d.size


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
                truth = estimates(kinds[kind][number], pair)
                if truth is None:
                    continue
                report = reports[step].pairs[pair]
                for estimator, value in (("k1", truth[0]), ("k3", truth[1])):
                    key = native(name).get(f"{pair}/{estimator}")
                    theirs = (key, rows[step][key]) if key in rows[step] else None
                    found.append(
                        Line(
                            step,
                            f"{pair}/{estimator}",
                            report[f"{estimator}/mean"],
                            value,
                            (report.tokens, truth[2]),
                            theirs,
                        )
                    )
    return found


if __name__ == "__main__":
    for wanted in sys.argv[1:]:
        table = lines(wanted, run(wanted, LAB))
        print(wanted, "worst error of ours", max(line.error for line in table))
        for line in table:
            theirs = "" if line.theirs is None else f"{line.theirs[0]} {line.theirs[1]:+.6e}"
            print(
                f"  {line.step} {line.metric:18} ours {line.ours:+.9e} truth {line.truth:+.9e} "
                f"tokens {line.tokens[0]:.0f} {line.tokens[1]}  {theirs}"
            )
