"""What is known of a pair when its cause is asked for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from klmonitor.numbers.carriers import Carriers
from klmonitor.numbers.signatures import Signatures
from klmonitor.numbers.student import normal_deviate
from klmonitor.summary.fields import LAGS, SIGNATURE_RATIOS

Z = 8.0
"""Errors from which a signature is not chance: it is judged at every step of a run."""
FEW = 1.6
"""Z errors of sixteen sequences are Z / 1.6 = 5 normal deviates: fewer need more errors."""
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


def evidence_of(
    signatures: Signatures, pair: str, numbers: Mapping[str, float], carriers: Carriers
) -> Evidence:
    """The evidence on one pair.

    Args:
        signatures: of this pair alone, over the last steps.
        pair: its name.
        numbers: its metrics.
        carriers: what carries its estimate.
    """
    signs: dict[str, float] = {}
    with np.errstate(all="ignore"):
        value, se = signatures.means()
        table = zip(SIGNATURE_RATIOS, value[0].tolist(), se[0].tolist(), strict=True)
        sequences = float(signatures.sum("sequences")[0])
        for name, mean, error in table:
            signs |= {name: mean, f"{name}_se": error, f"{name}_z": _z(mean, error, sequences)}
        for name in ("qp", "before", "after"):
            signs[name] = float(signatures.correlation(name)[0])
        for name in ("up", "down"):
            signs[name] = float(signatures.share(name)[0])
        signs["entropy"] = float(signatures.entropy[0])
    for name in COUNTS:
        signs[name] = float(signatures.sum(name)[0])
    q, p = pair.split("_")
    return Evidence(q, p, signs, numbers, carriers)


def _z(mean: float, error: float, sequences: float) -> float:
    """Errors from 0; of few sequences `FEW` times the normal deviate, where that is less."""
    if not error > 0:
        return math.nan
    z = mean / error
    deviate = FEW * float(normal_deviate(z, sequences - 1))
    return min(z, deviate, key=abs)


def oldest(e: Evidence) -> str:
    """The largest lag that was seen."""
    return next((name for name in reversed(LAGS[1:]) if not math.isnan(e[name])), "")
