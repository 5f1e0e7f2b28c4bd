"""Numbers that cannot be right, whatever the level of KL."""

from __future__ import annotations

import math

from klmonitor.rules.rule import CRITICAL, WARN, Finding, Rule, Thresholds
from klmonitor.rules.track import LARGE, Reading


def nonfinite(reading: Reading, limits: Thresholds) -> Finding | None:
    """NaN or infinite log-ratios, or an estimate that is itself not finite.

    Thresholds: `critical_share`, the share of tokens from which it is critical.
    """
    pair = reading.pair
    bad = pair["nonfinite"]
    seen = pair.tokens if pair.tokens > 0 else 0.0
    broken = [name for name in ("k1/mean", "k3/mean") if abs(pair[name]) >= LARGE]
    if seen and math.isnan(pair["k3/mean"]):
        broken.append("k3/mean")
    if not bad > 0 and not broken:
        return None
    share = bad / (seen + bad) if bad > 0 else math.nan
    critical = bool(broken) or share >= limits["critical_share"]
    parts = []
    if bad > 0:
        parts.append(f"{bad:.0f} of {seen + bad:.0f} log-ratios are NaN or infinite")
    if broken:
        parts.append(f"{' and '.join(broken)} not finite")
    return Finding(
        level=CRITICAL if critical else WARN,
        severity="critical" if critical else "warn",
        message="; ".join(parts),
        believe="none for those tokens: the means are over the finite ones",
        values={"nonfinite": bad, "share": share},
    )


NONFINITE = Rule(
    kind="nonfinite",
    judge=nonfinite,
    thresholds={"critical_share": 0.01},
    action=(
        "find which of the two log-probs is not finite (loss, gradient norm and the sampler's "
        "log-probs of that batch), and stop before the optimizer spreads it; a masked-out token "
        "is harmless, so check the mask too"
    ),
    source="docs/alerts.md#nonfinite: counted on the device, never averaged in",
    calm_for=5,
)
