"""What the tests of doors compare with: sums in float64, and a trainer's own metrics."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

OURS = ("kl/", "eval_kl/", "klmonitor/")
CLOCKS = ("time", "timing", "runtime", "per_second", "speed", "memory", "tps", "elapsed")
"""Parts of the names of metrics that no two runs share."""


def estimates(q, p, mask):
    """k1, k2 and k3 of KL(q || p), means over the tokens of a mask, exactly summed.

    Args:
        q: log-probs, one tensor or a list of them.
        p: the same.
        mask: the same.
    """
    parts = zip(*([x] if torch.is_tensor(x) else x for x in (q, p, mask)), strict=True)
    d = [
        (float(b) - float(a))
        for one, other, counted in parts
        for a, b, c in zip(
            one.flatten().tolist(),
            other.flatten().tolist(),
            counted.flatten().tolist(),
            strict=True,
        )
        if c
    ]
    n = len(d)
    return {
        "k1": -math.fsum(d) / n,
        "k2": math.fsum(x * x / 2 for x in d) / n,
        "k3": math.fsum(math.expm1(x) - x for x in d) / n,
        "tokens": n,
    }


def assert_exact(row, kept, pair, expected):
    """A pair's means in a trainer's row and in the record are `expected`, to 1e-9.

    Args:
        row: the trainer's metrics of a step.
        kept: pair -> metric of the record at that step.
        pair: its name.
        expected: of `estimates`.

    Returns:
        The largest difference.
    """
    largest = 0.0
    for name in ("k1", "k2", "k3"):
        found = row[f"kl/{pair}/{name}/mean"]
        assert found == pytest.approx(expected[name], rel=0, abs=1e-9)
        assert found == kept[pair][f"{name}/mean"]
        largest = max(largest, abs(found - expected[name]))
    return largest


def recorded(run_dir):
    """Step -> pair -> metric of the record in a run directory, read as plain JSON lines."""
    lines = Path(run_dir, "steps.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return {
        row["step"]: {name: pair["values"] for name, pair in row["pairs"].items()} for row in rows
    }


def own(row):
    """A trainer's row without ours and without clocks."""
    return {
        name: value
        for name, value in row.items()
        if not name.startswith(OURS) and not any(word in name for word in CLOCKS)
    }
