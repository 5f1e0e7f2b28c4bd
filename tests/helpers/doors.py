"""What the tests of doors compare with: sums in float64, and a trainer's own metrics."""

from __future__ import annotations

import math

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


def differences(pair, expected):
    """The largest difference between a pair of a report and `estimates`."""
    assert pair["tokens"] == expected["tokens"]
    return max(abs(pair[f"{name}/mean"] - expected[name]) for name in ("k1", "k2", "k3"))


def own(row):
    """A trainer's row without ours and without clocks."""
    return {
        name: value
        for name, value in row.items()
        if not name.startswith(OURS) and not any(word in name for word in CLOCKS)
    }
