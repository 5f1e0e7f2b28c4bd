"""What is known of a pair when its cause is asked for."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from klmonitor.numbers.carriers import Carriers
from klmonitor.numbers.clusters import ratio
from klmonitor.numbers.signatures import Signatures
from klmonitor.numbers.student import deviate_of_t
from klmonitor.summary.fields import LAGS, SIGNATURE_RATIOS
from klmonitor.summary.once import once

Z = 8.0
"""Errors from which a signature is not chance: it is judged at every step of a run."""
FEW = 1.6
"""Z errors of sixteen sequences are Z / 1.6 = 5 normal deviates: fewer need more errors."""
CORRELATIONS = ("qp", "before", "after")
"""Of log q and log p within sequences; ``before`` is of log q(t) with log p(t - 1)."""
SHARES = {"up": "tokens", "down": "tokens", "entropy": "entropic"}
"""Sum -> that of which it is a share."""
TILT = ("tilt", "fit")
"""What `Signatures.tilt` gives."""
COUNTS = ("tokens", "sequences", "sure", "sure_other", "first_off", "last_off", "lone_off")


def _unknown() -> float:
    return math.nan


@dataclass(frozen=True)
class Evidence:
    """What is known of one pair.

    Attributes:
        q, p: names of its policies.
        signs: signatures by name, with the errors of means as ``{name}_se``; ``{name}_z`` follows
            from these where it is asked for.
        numbers: the step's metrics.
        carrying: gives the sequences or prompts that carry the estimate, `carriers`.
        turning: gives mean(e^-d) - 1 of the step, `turned`; nan: unknown.
    """

    q: str
    p: str
    signs: Mapping[str, float]
    numbers: Mapping[str, float]
    carrying: Callable[[], Carriers] = Carriers
    turning: Callable[[], float] = _unknown

    @once
    def carriers(self) -> Carriers:
        """Made when a rule asks for it."""
        return self.carrying()

    @once
    def turned(self) -> float:
        """Likewise."""
        return self.turning()

    def __getitem__(self, name: str) -> float:
        try:
            return self.signs[name]
        except KeyError:
            mean, is_z, _ = name.rpartition("_z")
        return _z(self[mean], self[f"{mean}_se"], self["sequences"]) if is_z else math.nan

    def significant(self, name: str, least: float) -> bool:
        """Whether a mean is at least so far from 0, and that is no chance."""
        return abs(self[name]) >= least and abs(self[f"{name}_z"]) >= Z

    @property
    def mismatch(self) -> bool:
        """Whether this is trainer against engine, which should be the same policy."""
        return self.q == "rollout"


class Signs(dict[str, float]):
    """What `Evidence` has of a pair's signatures; made when it is asked for, as most are not.

    By `[]` alone: what was not asked for is not in it.

    Args:
        signatures: over the last steps.
    """

    def __init__(self, signatures: Signatures) -> None:
        super().__init__()
        self._of = signatures

    def __missing__(self, name: str) -> float:
        """Make one, and what is made with it.

        Raises:
            KeyError: there is none of that name.
        """
        of, mean = self._of, name.removesuffix("_se")
        if mean in SIGNATURE_RATIOS:
            self[mean], self[f"{mean}_se"] = of.mean(mean)
        elif name in SHARES:
            self[name] = of.share(name, SHARES[name])
        elif name in COUNTS:
            self[name] = of.sum(name)
        elif name in CORRELATIONS:
            variance = of.sum("qq") * of.sum("pp")
            self[name] = ratio(of.sum(name), math.sqrt(variance) if variance > 0 else math.nan)
        elif name in TILT:
            self.update(zip(TILT, of.tilt(), strict=True))
        else:
            raise KeyError(name)
        return self[name]


def _z(mean: float, error: float, sequences: float) -> float:
    """Errors from 0; of few sequences `FEW` times the normal deviate, where that is less."""
    z = ratio(mean, error)
    deviate = FEW * deviate_of_t(z, sequences - 1)
    return deviate if abs(deviate) < abs(z) else z


def oldest(e: Evidence) -> str:
    """The largest lag that was seen."""
    return next((name for name in reversed(LAGS[1:]) if not math.isnan(e[name])), "")
