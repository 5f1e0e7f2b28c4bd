"""k1, k2 and k3: per-token estimates of KL(q || p) from d = log p(x) - log q(x), with x ~ q.

    k1 = -d              unbiased, heavy-tailed on the left of d, of both signs
    k2 = d^2 / 2         biased, never negative
    k3 = expm1(d) - d    unbiased, never negative, explodes on the right of d

Source: J. Schulman, "Approximating KL Divergence" (2020), with r = p(x)/q(x) = e^d. Nothing is
clamped: k3 overflows to inf where the input's dtype cannot hold it (d > 88.7 in float32).
"""

from __future__ import annotations

import torch
from torch import Tensor

SERIES_TERMS = 9
SERIES_RADIUS = {torch.float64: 0.0625, torch.float32: 0.5}
"""Below this |d| the series is used: expm1(d) - d would cancel. With `SERIES_TERMS` terms the
truncation error at the radius is below 1e-18 and 1e-9 of the value; `expm1(d) - d` at the radius
is off by 2 eps / radius."""


def k1(d: Tensor) -> Tensor:
    """k1 = -d, nats, elementwise.

    Args:
        d: log p - log q, nats, any shape and float dtype (half precisions are upcast to float32).

    Returns:
        A tensor of the same shape.
    """
    return -_floating(d)


def k2(d: Tensor) -> Tensor:
    """k2 = d^2 / 2, nats, elementwise; arguments as for `k1`."""
    d = _floating(d)
    return 0.5 * d * d


def k3(d: Tensor) -> Tensor:
    """k3 = expm1(d) - d, nats, elementwise; arguments as for `k1`.

    Relative error <= 1e-12 in float64 for |d| in [1e-8, 30] and <= 1e-6 in float32 for |d| in
    [1e-18, 88]: where expm1(d) - d would cancel, the series d^2/2! + d^3/3! + ... is summed.
    """
    d = _floating(d)
    small = d.abs() < SERIES_RADIUS[d.dtype]
    large = torch.expm1(d) - d.clamp(max=torch.finfo(d.dtype).max)  # inf at inf, not inf - inf
    return torch.where(small, _series(torch.where(small, d, 0.0)), large)


def _series(d: Tensor) -> Tensor:
    """d^2/2! + d^3/3! + ..., by Horner's rule: d^2/2 (1 + d/3 (1 + d/4 (1 + ...)))."""
    total = torch.ones_like(d)
    for n in range(SERIES_TERMS + 1, 2, -1):
        total = 1.0 + total * d / n
    return 0.5 * d * d * total


def _floating(d: Tensor) -> Tensor:
    """Half precisions go to float32; integers are an error, as a log-ratio of integers is a bug."""
    if not d.is_floating_point():
        raise TypeError(f"a log-ratio must be a float tensor, got {d.dtype}: pass log p - log q")
    return d if d.dtype in SERIES_RADIUS else d.float()
