"""The rules, in the order in which they are judged, and the presets.

Of equals in one story the first of the table is told first.
"""

from __future__ import annotations

from collections.abc import Mapping

from klmonitor.rules.causes import CAUSE, IMPOSSIBLE
from klmonitor.rules.dominance import DOMINANCE_K1, DOMINANCE_K3
from klmonitor.rules.falls import FALL, TOKEN_DROP
from klmonitor.rules.growth import DRIFT, RUNAWAY
from klmonitor.rules.health import INACTIVE
from klmonitor.rules.integrity import GAP, LOW_PRECISION, NONFINITE, OUTLIER_RATE
from klmonitor.rules.norm import LIMIT
from klmonitor.rules.pull import PULL_DEAD, PULL_DOMINATED, PULL_REVERSED
from klmonitor.rules.rule import Rule
from klmonitor.rules.signed import K1_EXCURSION, K1_NEGATIVE
from klmonitor.rules.silence import NO_DATA
from klmonitor.rules.spikes import SHIFT, SPIKE, SURGE
from klmonitor.rules.start import IDENTICAL, NEGATIVE_PENALTY, NONZERO_START
from klmonitor.rules.unclipped import UNCLIPPED

RULES: tuple[Rule, ...] = (
    IMPOSSIBLE,
    NONFINITE,
    UNCLIPPED,
    NEGATIVE_PENALTY,
    NONZERO_START,
    IDENTICAL,
    SPIKE,
    SURGE,
    LIMIT,
    SHIFT,
    RUNAWAY,
    DRIFT,
    FALL,
    TOKEN_DROP,
    DOMINANCE_K1,
    DOMINANCE_K3,
    PULL_DOMINATED,
    PULL_REVERSED,
    PULL_DEAD,
    GAP,
    K1_EXCURSION,
    K1_NEGATIVE,
    OUTLIER_RATE,
    LOW_PRECISION,
    CAUSE,
    NO_DATA,
    INACTIVE,
)

PRESETS: Mapping[str, Mapping[str, Mapping[str, float]]] = {
    "default": {},
    "quiet": {
        "spike": {"z": 7.0},
        "shift": {"z": 5.5},
        "drift": {"z": 8.0},
        "dominance_k1": {"j": 8.0, "own": 2.0},
        "dominance_k3": {"j": 30.0, "own": 5.0},
        "k1_excursion": {"z": 10.0},
        "outlier_rate": {"z": 8.0},
    },
    "sensitive": {
        "spike": {"z": 4.0},
        "shift": {"z": 3.8},
        "drift": {"z": 4.0},
        "dominance_k1": {"level": 1, "j": 2.0, "own": 1.0},
        "dominance_k3": {"level": 1, "j": 2.0, "own": 1.0},
        "k1_excursion": {"z": 6.0},
        "outlier_rate": {"z": 5.0},
    },
}
"""What each preset changes: kind -> threshold -> value."""
