"""What is known of a pair when its cause is asked for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from klmonitor.numbers.carriers import Carriers
from klmonitor.numbers.clusters import Array, ratio
from klmonitor.numbers.signatures import Signatures
from klmonitor.numbers.student import normal_deviate
from klmonitor.summary.fields import LAGS, SIGNATURE, SIGNATURE_RATIOS

Z = 8.0
"""Errors from which a signature is not chance: it is judged at every step of a run."""
FEW = 1.6
"""Z errors of sixteen sequences are Z / 1.6 = 5 normal deviates: fewer need more errors."""
CORRELATIONS = ("qp", "before", "after")
"""Of log q and log p within sequences; ``before`` is of log q(t) with log p(t - 1)."""
SHARES = {"up": "tokens", "down": "tokens", "entropy": "entropic"}
"""Sum -> that of which it is a share."""
COUNTS = ("tokens", "sequences", "sure", "sure_other", "first_off", "last_off", "lone_off")


@dataclass(frozen=True)
class Evidence:
    """What is known of one pair.

    Attributes:
        q, p: names of its policies.
        signs: signatures by name; means also as ``{name}_z`` and ``{name}_se``.
        numbers: the step's metrics.
        carriers: the sequences or prompts that carry the estimate.
        turned: mean(e^-d) - 1 of the step; nan: not asked for.
    """

    q: str
    p: str
    signs: Mapping[str, float]
    numbers: Mapping[str, float]
    carriers: Carriers
    turned: float = math.nan

    def __getitem__(self, name: str) -> float:
        return self.signs.get(name, math.nan)

    def significant(self, name: str, least: float) -> bool:
        """Whether a mean is at least so far from 0, and that is no chance."""
        return abs(self[name]) >= least and abs(self[f"{name}_z"]) >= Z

    @property
    def mismatch(self) -> bool:
        """Whether this is trainer against engine, which should be the same policy."""
        return self.q == "rollout"


def signs_of(signatures: Signatures) -> list[dict[str, float]]:
    """What `Evidence` has of signatures, pair by pair.

    Args:
        signatures: of all pairs, over the last steps.
    """
    with np.errstate(all="ignore"):
        value, se = signatures.means()
        z = _z(value, se, signatures.sum("sequences")[:, None])
        variance = np.sqrt(signatures.sum("qq") * signatures.sum("pp"))[:, None]
        correlations = ratio(signatures.sums[:, _CORRELATIONS], variance)
        shares = ratio(signatures.sums[:, _SHARES], signatures.sums[:, _OF])
    numbers = (value, se, z, correlations, shares, signatures.sums[:, _COUNTS])
    table = np.concatenate(numbers, axis=1).tolist()
    return [dict(zip(_NAMES, row, strict=True)) for row in table]


_CORRELATIONS, _SHARES, _OF, _COUNTS = (
    np.array([SIGNATURE[name] for name in names])
    for names in (CORRELATIONS, SHARES.keys(), SHARES.values(), COUNTS)
)
_NAMES = (
    *(f"{name}{what}" for what in ("", "_se", "_z") for name in SIGNATURE_RATIOS),
    *(*CORRELATIONS, *SHARES, *COUNTS),
)


def _z(mean: Array, error: Array, sequences: Array) -> Array:
    """Errors from 0; of few sequences `FEW` times the normal deviate, where that is less."""
    z = np.where(error > 0, mean / error, np.nan)
    deviate = FEW * normal_deviate(z, sequences - 1)
    found: Array = np.where(np.abs(deviate) < np.abs(z), deviate, z)
    return found


def oldest(e: Evidence) -> str:
    """The largest lag that was seen."""
    return next((name for name in reversed(LAGS[1:]) if not math.isnan(e[name])), "")
