"""The receipt from sums over rows: where a ratio, a return or an advantage enters; and audits.

The sums are those of `summary.pulls`, over at most `fields.SAMPLED` tokens a step, and of audits
(`klmonitor.hooks.audit`). Torch-free.
"""

from __future__ import annotations

import math

from klmonitor.numbers.clusters import Floats
from klmonitor.summary.fields import AUDITED, PULL, PULL_GRAM, PULL_TERMS


class RowSums:
    """The sums of a pair.

    Args:
        sums: `fields.PULLS`; nan: a part came without them.
    """

    def __init__(self, sums: Floats) -> None:
        self._sums = sums

    def __getitem__(self, name: str) -> float:
        return self._sums[PULL[name]]

    def share(self, part: str, whole: str) -> float:
        """Of two sums, nan where the second is 0."""
        return self[part] / self[whole] if self[whole] > 0 else math.nan

    def beta(self, given: float) -> float:
        """The weight of the term as it was observed, else as given with it."""
        return self.share("beta", "weighed") if self["weighed"] > 0 else given


def of_rows(sums: RowSums, beta: float) -> dict[str, float]:
    """The receipt's values as far as rows tell them; empty where there are none.

    Args:
        sums: of the pair.
        beta: the term's weight.
    """
    if not sums["tokens"] > 0:
        return {}
    slope, error = _slope(sums)
    found = {
        "penalty/effective_beta": beta * slope,
        "penalty/effective_beta_se": abs(beta) * error,
        "penalty/pull": beta * sums["c"] / sums["tokens"],
        "penalty/dead_share": sums.share("dead", "tokens"),
        "penalty/dead_pull": sums.share("lost", "far"),
        "penalty/opposite_share": sums.share("opposite", "tokens"),
    }
    if sums["rewarded"] > 0:
        found |= {
            "penalty/overruled": sums.share("overruled", "rewarded"),
            "penalty/overruled_lost": sums.share("given_up", "overruled"),
            "penalty/paid": sums.share("paid", "rewarded"),
            "penalty/reward": sums.share("reward", "rewarded"),
        }
    return found


def slope_of(sums: RowSums) -> float:
    """cov(c / rho, t) / var(t), weighted with rho; nan: there is none."""
    w, wt, wtt, c, ct = (sums[name] for name in PULL_TERMS)
    squares = wtt - wt * wt / w if w > 0 else 0.0
    return (ct - c * wt / w) / squares if squares > 0 else math.nan


def _slope(sums: RowSums) -> tuple[float, float]:
    """cov(c / rho, t) / var(t), weighted with rho, and its cluster error (sequences).

    With m the weighted mean of t, a that of c / rho - slope t, the influence of a sequence is
    sum over its tokens of (c - rho (a + slope t)) (t - m): linear in its sums of rho, rho t,
    rho t^2, c and c t, whose products are kept (White, Econometrica 48, 1980, by cluster).
    """
    w, wt, wtt, c, _ = (sums[name] for name in PULL_TERMS)
    slope = slope_of(sums)
    if math.isnan(slope):
        return math.nan, math.nan
    squares = wtt - wt * wt / w
    mean, base = wt / w, (c - slope * wt) / w
    weights = {
        "w": base * mean,
        "wt": slope * mean - base,
        "wtt": -slope,
        "c": -mean,
        "ct": 1.0,
    }
    square = 0.0
    for name in PULL_GRAM:
        a, b = name.split(".")
        square += (1 if a == b else 2) * weights[a] * weights[b] * sums[name]
    count = sums["sequences"]
    if not count > 1:
        return slope, math.nan
    return slope, math.sqrt(count / (count - 1) * max(square, 0.0)) / squares


def of_audit(sums: RowSums, beta: float) -> dict[str, float]:
    """``audit/*``: what logits at sampled positions told; empty where there were none.

    Args:
        sums: of the pair.
        beta: the weight of the term on it, nan if there is none.
    """
    n, sequences = sums["audit/positions"], sums["audit/sequences"]
    if not n > 0:
        return {}
    found = {"audit/positions": n, "audit/entropy": sums["audit/entropy"] / n}
    for name in AUDITED:
        mean = sums[f"audit/{name}"] / n
        square = (
            sums[f"audit/{name}^2"]
            - 2 * mean * sums[f"audit/{name}.t"]
            + mean * mean * sums["audit/t.t"]
        )
        found[f"audit/{name}"] = mean
        if sequences > 1:
            error = math.sqrt(sequences / (sequences - 1) * max(square, 0.0)) / n
            found[f"audit/{name}_se"] = error
    pulled, along, true = (sums[f"audit/{name}"] for name in ("pulled", "along", "true"))
    if true > 0 and not math.isnan(beta):
        found["audit/length"] = math.sqrt(pulled / true)
        found["audit/effective_beta"] = beta * along / true
        if pulled > 0:
            found["audit/cosine"] = along / math.sqrt(pulled * true)
    return found
