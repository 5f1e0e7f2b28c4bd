"""A loop around a `Monitor` with everything on, and what must hold of it whatever fails inside."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from klmonitor import Monitor, Penalty
from tests.faults.sites import Faults

STEPS = 30
QUIET = 30
"""Steps before the faults, so that the rules have a baseline."""


def tokens(step: int) -> dict[str, Any]:
    """Micro-batches of a step: ordinary, and from the last three steps on far away."""
    generator = torch.Generator().manual_seed(step)
    q = -torch.rand(8, 16, generator=generator)
    scale = 0.05 if step < QUIET + STEPS - 3 else 2.0
    ref, old = (q + scale * torch.randn(8, 16, generator=generator) for _ in range(2))
    return {
        "policy": q,
        "ref": ref,
        "old": old,
        "mask": torch.rand(8, 16, generator=generator) < 0.8,
        "token_ids": torch.arange(128).view(8, 16),
        "prompt_ids": torch.arange(8) // 2,
        "group": ["a", "b"] * 4,
        "advantages": torch.randn(8, generator=generator),
    }


def run(directory: Path, faults: Faults, targets: Sequence[Any] = ()) -> list[dict[str, float]]:
    """The numbers of every step after the quiet ones; the faults are made among these."""
    monitor = Monitor(
        directory,
        sinks=["tensorboard", lambda report: None],
        groups=["a", "b"],
        merge_rows=True,
        penalty=Penalty("k3", ratio="detached", beta=0.1),
    )
    for step in range(QUIET):
        monitor.observe(**tokens(step))
        monitor.step(step)
    found = []
    faults.arm(*targets)
    for step in range(QUIET, QUIET + STEPS):
        for micro_batch in range(2):
            monitor.observe(**tokens(1000 * micro_batch + step))
        report = monitor.step(step, wait=step % 3 > 0, run={"beta": 0.1, "updates": step})
        if step % 4 == 0:
            monitor.take_logged()
        if report.step is not None:
            found.append({"step": report.step, **report.scalars(), "pairs": len(report.pairs)})
    monitor.state_dict()
    monitor.flush(1.0)
    monitor.close()
    faults.disarm()
    return found


def compared(found: list[dict[str, float]], clean: list[dict[str, float]]) -> list[str]:
    """What is wrong with a run: numbers that differ in a step of which no failure was counted."""
    expected = {row["step"]: row for row in clean}
    wrong, errors = [], 0.0
    for row in found:
        counted = row["klmonitor/errors"] > errors or row["klmonitor/active"] < 1
        errors = row["klmonitor/errors"]
        due = expected.get(row["step"])
        if due is None or not row["pairs"] or counted:
            continue
        both = ("tokens", "k1/mean", "k3/mean", "k3/se", "log_ratio/max")
        names = {
            "policy_ref": (*both, "penalty/effective_beta", "penalty/opposite_share"),
            "old_policy": (*both, "unclipped/tokens"),
        }
        for pair, some in names.items():
            for name in some:
                key = f"kl/{pair}/{name}"
                if not abs(row.get(key, float("nan")) - due[key]) <= 1e-9 * abs(due[key]):
                    wrong.append(f"step {row['step']}: {key} is {row[key]}, not {due[key]}")
    return wrong
