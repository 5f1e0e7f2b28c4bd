"""The table of metrics: every name with its unit, formula, meaning, and how it is computed.

`docs/metrics.md` is generated from this table. A metric's full name is ``kl/{pair}/{name}``.
To add a metric, add one line here (and, if it needs a new sum, one line in `summary.layout`).

In formulas: sums run over the N counted tokens, d = log p - log q, r = e^d, S_i and T_i are the
sum of values and the number of tokens of cluster i, B the number of clusters.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np

from klmonitor.dominance import LISTED, Dominance, dominance_k1, dominance_k3
from klmonitor.statistics import GAP, K1, K2, K2_BIAS, K3, PairTotals, group_values, ratio
from klmonitor.summary.layout import CORE_RADIUS

NAN = float("nan")
OUTLIER_THRESHOLD = 2.0
"""Nats: a token is an outlier of k1 at d <= -2, of k3 at d >= 2 (a ratio of 7.4)."""
COUNT_THRESHOLDS = (1, 2, 5, 10)
"""Nats: ratios of 2.7, 7.4, 148 and 22,026."""
QUANTILES = ((0.001, "p0.1"), (0.01, "p1"), (0.5, "p50"), (0.99, "p99"), (0.999, "p99.9"))


@dataclass(frozen=True)
class Context:
    """What a metric may look at.

    Attributes:
        totals: the pair's sums.
        k1: dominance of k1 by its extreme tokens.
        k3: dominance of k3.
        running: running means, variances and excluded tokens, by metric name.
    """

    totals: PairTotals
    k1: Dominance
    k3: Dominance
    running: dict[str, float]

    @cached_property
    def quantiles(self) -> list[float]:
        """Of d, in the order of `QUANTILES`."""
        return self.totals.quantiles([probability for probability, _ in QUANTILES])


@dataclass(frozen=True)
class Metric:
    """One row of the table.

    Attributes:
        name: without the ``kl/{pair}/`` prefix.
        unit: nats are per token unless said otherwise.
        formula: in the notation of the module docstring.
        text: one line of meaning.
        value: how to compute it; None: another module adds it (a rule's score).
        core: whether it is sent to trackers by default.
    """

    name: str
    unit: str
    formula: str
    text: str
    value: Callable[[Context], float] | None
    core: bool = False


def _estimator(name: str, formula: str, weights: tuple[float, ...], text: str) -> list[Metric]:
    """Mean, error, variance and running numbers of one estimator."""
    variance: Callable[[Context], float] = lambda c: getattr(c.totals, f"var_{name}")  # noqa: E731  # one of five parallel one-liners
    return [
        Metric(
            f"{name}/mean",
            "nats",
            f"sum({formula}) / N",
            text,
            lambda c: c.totals.mean(weights),
            core=True,
        ),
        Metric(
            f"{name}/se",
            "nats",
            "sqrt(B/(B-1) sum (S_i - mean T_i)^2) / N",
            f"cluster standard error of {name}/mean; clusters are prompts where known, "
            "else sequences",
            lambda c: c.totals.se(weights),
            core=name != "k2",
        ),
        Metric(
            f"{name}/var",
            "nats^2",
            f"sum ({name} - mean)^2 / (N - 1)",
            f"sample variance of {name} over this step's tokens",
            variance,
        ),
        Metric(
            f"{name}/running_mean",
            "nats",
            "S1 / n, decayed by 2^(-1/h) a step",
            f"{name} over recent steps (half-life h = 100 steps), pooled over tokens",
            lambda c: c.running.get(f"{name}/running_mean", NAN),
        ),
        Metric(
            f"{name}/running_var",
            "nats^2",
            "S2 / n - (S1 / n)^2, decayed by 2^(-1/h) a step",
            f"variance of {name} over recent steps' tokens, drift between steps included",
            lambda c: c.running.get(f"{name}/running_var", NAN),
            core=True,
        ),
    ]


def _count(threshold: int) -> list[Metric]:
    more, less = f"{np.exp(threshold):.3g} times more", f"{np.exp(threshold):.3g} times less"
    return [
        Metric(
            f"log_ratio/le_{-threshold}",
            "tokens",
            f"#(d <= {-threshold})",
            f"tokens that p finds {less} likely than q",
            partial(_beyond, threshold=-threshold),
        ),
        Metric(
            f"log_ratio/ge_{threshold}",
            "tokens",
            f"#(d >= {threshold})",
            f"tokens that p finds {more} likely than q",
            partial(_beyond, threshold=threshold),
        ),
    ]


def _beyond(context: Context, threshold: float) -> float:
    return context.totals.beyond(threshold)


def _quantile(context: Context, number: int) -> float:
    return context.quantiles[number]


def _dominance(name: str) -> list[Metric]:
    of: Callable[[Context], Dominance] = lambda c: getattr(c, name)  # noqa: E731  # shared by the rows
    return [
        Metric(
            f"dominance/{name}/level",
            "0, 1, 2",
            "docs/dominance.md",
            f"is {name} dominated by its largest tokens: 0 no, 1 warn, 2 severe",
            lambda c: of(c).level,
        ),
        Metric(
            f"dominance/{name}/tokens",
            "tokens",
            "#o",
            f"how many of the largest tokens the rule for {name} takes together",
            lambda c: of(c).tokens,
        ),
        Metric(
            f"dominance/{name}/v",
            "share",
            "sum_o (x - mean)^2 / sum (x - mean)^2",
            f"share of {name}'s variance that its largest tokens o hold",
            lambda c: of(c).v,
        ),
        Metric(
            f"dominance/{name}/j",
            "standard errors",
            "(mean - mean without o) / SE without o",
            f"how far the largest tokens move {name}/mean",
            lambda c: of(c).j,
        ),
        Metric(
            f"dominance/{name}/top_share",
            "share",
            "sum_o |x| / sum |x|",
            f"share of sum |{name}| that the largest tokens hold",
            lambda c: of(c).top_share,
        ),
        Metric(
            f"{name}/mean_without_top",
            "nats",
            "mean of the tokens outside o",
            f"{name}/mean without its largest tokens",
            lambda c: of(c).mean_without_top,
        ),
    ]


# fmt: off
METRICS: tuple[Metric, ...] = (
    *_estimator("k1", "-d", K1, "unbiased, heavy-tailed, of both signs"),
    *_estimator("k2", "d^2 / 2", K2, "biased, never negative"),
    *_estimator("k3", "expm1(d) - d", K3, "unbiased, never negative, explodes when p >> q"),
    Metric("k1/negative_share", "share", "#(d > 0) / N", "tokens with negative k1",
           lambda c: ratio(c.totals.positive_d, c.totals.n)),
    Metric("k1/cancellation", "share", "1 - |sum d| / sum |d|",
           "how much of k1 cancels between tokens of both signs: near 1 the mean is mostly noise",
           lambda c: 1 - ratio(abs(c.totals["d"]), c.totals["abs"])),
    Metric("k2/bias", "nats", "mean(k2 - k1)", "measured difference of k2 and the unbiased k1",
           lambda c: c.totals.mean(K2_BIAS)),
    Metric("k2/bias_z", "standard errors", "z of mean(k2 - k1) / SE, paired, clustered",
           "a t with B - 1 degrees of freedom as a normal deviate: beyond +-3, k2 is biased here",
           lambda c: c.totals.z(K2_BIAS)),
    Metric("gap", "nats", "mean(k3) - mean(k1) = mean(r) - 1",
           "0 in expectation if q drew the tokens; only where it did",
           lambda c: c.totals.mean(GAP) if c.totals.on_policy else NAN),
    Metric("gap_z", "standard errors", "z of gap / SE, clustered",
           "a t with B - 1 degrees of freedom as a normal deviate: beyond +-5 the tokens were "
           "hardly drawn from q (collapse, top-p, a stale sampler)",
           lambda c: c.totals.gap_z if c.totals.on_policy else NAN, core=True),
    Metric("cv/lambda", "share", "-Cov(k1, r - 1) / Var(r - 1), clamped to [0, 1]",
           "best weight of r - 1 in -d + lambda (r - 1): 0 is k1, 1 is k3; below 1/2 k1 is "
           "the less noisy one", lambda c: c.totals.cv_lambda),
    Metric("cv/corr", "correlation", "Corr(-d, r - 1)", "how well r - 1 cancels k1's noise",
           lambda c: c.totals.cv_corr),
    Metric("cv/variance_ratio", "ratio", "Var(k3) / Var(k1)", "above 1, k3 is noisier than k1",
           lambda c: ratio(c.totals.var_k3, c.totals.var_k1)),
    Metric("best", "1 or 3", "1 if lambda < 1/2 or the gap test fails, else 3",
           "which of k1 and k3 to read here; only where q drew the tokens",
           lambda c: best(c.totals)),
    Metric("tokens", "tokens", "N", "tokens counted", lambda c: c.totals.n),
    Metric("sequences", "sequences", "#(T_i > 0)", "sequences with a counted token",
           lambda c: c.totals["sequences"]),
    Metric("clusters", "clusters", "B",
           "what the standard errors count as independent: prompts if at least 2 are known, "
           "else sequences", lambda c: c.totals.clusters.count),
    Metric("prompts", "prompts", "#(prompts with tokens)", "where every sequence has a prompt id",
           lambda c: c.totals.n_prompts),
    Metric("on_policy", "0 or 1", "whether q is the sampler",
           "0: tokens were drawn from another policy; read iw/*",
           lambda c: float(c.totals.on_policy)),
    Metric("ess", "share", "(sum r)^2 / (N sum r^2)",
           "effective share of tokens if they were reweighted to p, unclamped",
           lambda c: c.totals.ess),
    Metric("iw/k1/mean", "nats", "sum w k1 / sum w, w = q(x) / sampler(x)",
           "k1 corrected for the token draw (not for the prefixes); only off-policy",
           lambda c: c.totals.weighted("wd", -1.0)),
    Metric("iw/k3/mean", "nats", "sum w k3 / sum w", "k3 corrected alike",
           lambda c: c.totals.weighted("wk3")),
    Metric("iw/ess", "share", "(sum w)^2 / (N sum w^2)", "effective share of tokens under w",
           lambda c: c.totals.weight_ess),
    Metric("nonfinite", "tokens", "#(d is nan or inf)", "excluded from every other number",
           lambda c: c.totals["nan"] + c.totals["inf"]),
    Metric("positive_logp", "tokens", "#(log q > 0.001) + #(log p > 0.001)",
           "no log-prob is positive: wrong tensor or scale",
           lambda c: c.totals.policy_count("positive")),
    Metric("zero_logp", "tokens", "#(log q = 0) + #(log p = 0)",
           "many: a placeholder instead of log-probs",
           lambda c: c.totals.policy_count("n") - c.totals.policy_count("nonzero")),
    Metric("identical", "share", "#(d = 0) / N", "1: both policies gave the very same numbers",
           lambda c: ratio(c.totals["zero"], c.totals.n)),
    Metric("clamped", "tokens", "#(d > 350)", "e^d was evaluated at 350",
           lambda c: c.totals["clamped"]),
    Metric("low_precision", "0 or 1", ">= 99 % of log-probs below -1/64 are bf16 or fp16 values",
           "k2 and k3 below 1e-4 cannot be resolved", lambda c: c.totals.low_precision),
    Metric("outliers/k1", "tokens", "#(d <= -2)", "tokens on k1's heavy side",
           lambda c: c.totals.beyond(-OUTLIER_THRESHOLD), core=True),
    Metric("outliers/k3", "tokens", "#(d >= 2)", "tokens on k3's heavy side",
           lambda c: c.totals.beyond(OUTLIER_THRESHOLD), core=True),
    Metric("outliers/rate", "per 10,000 tokens", "10^4 #(|d| >= 2) / N", "both sides together",
           lambda c: 1e4 * ratio(c.totals.beyond(OUTLIER_THRESHOLD)
                                 + c.totals.beyond(-OUTLIER_THRESHOLD), c.totals.n)),
    *(metric for threshold in COUNT_THRESHOLDS for metric in _count(threshold)),
    *(Metric(f"log_ratio/{label}", "nats", f"{probability:.1%} quantile of d", "to 0.8 %",
             partial(_quantile, number=number))
      for number, (probability, label) in enumerate(QUANTILES)),
    Metric("log_ratio/min", "nats", "min d", "exact", lambda c: c.totals.smallest),
    Metric("log_ratio/max", "nats", "max d", "exact", lambda c: c.totals.largest),
    Metric("log_ratio/excluded", "tokens", f"#(|d| > {CORE_RADIUS:g})",
           "left out of the running numbers, which one of them would swamp",
           lambda c: c.totals["tail/n"]),
    *_dominance("k1"),
    *_dominance("k3"),
    Metric("dominance/level", "0, 1, 2", "the larger of k1's and k3's", "0 none, 1 warn, 2 severe",
           lambda c: max(c.k1.level, c.k3.level), core=True),
    Metric("dominance/top_sequence_share", "share", "max_i (S_i - mean T_i)^2 / sum (...)^2, of k1",
           "share of k1's error that one sequence holds, of the 16 furthest from the recent mean",
           lambda c: c.totals.top_sequence_share),
    Metric("sequence/k1", "nats per sequence", "sum of token k1 / sequences",
           "mean over sequences of the sums of token values",
           lambda c: ratio(-c.totals["d"], c.totals["sequences"])),
    Metric("sequence/k3", "nats per sequence", "sum of token k3 / sequences", "likewise",
           lambda c: ratio(c.totals["k3"], c.totals["sequences"])),
    Metric("spike/z", "scales", "(log k3 - level) / scale, docs/alerts.md",
           "how far above its recent level k3 is, without the current step", None),
    Metric("penalty/mean", "nats", "beta mean(k)",
           "what the trainer's objective pays a token: k is the estimator that it penalises with, "
           "a mean over tokens; from adapters that know beta", None),
    Metric("penalty/se", "nats", "beta SE(k)", "cluster standard error of penalty/mean", None),
    Metric("clip/low", "share", "#(r < 1 - epsilon) / N",
           "raw importance ratios below the range that the trainer clips to, whatever the sign of "
           "the advantage; the edge to 0.8 %", None),
    Metric("clip/high", "share", "#(r > 1 + epsilon) / N", "above it, likewise", None),
)
# fmt: on

NAMES = tuple(metric.name for metric in METRICS)
CORE = frozenset(metric.name for metric in METRICS if metric.core)


def best(totals: PairTotals) -> float:
    """1.0 or 3.0: the estimator to read; nan off-policy, where neither is unbiased."""
    if not totals.on_policy or math.isnan(totals.cv_lambda):
        return NAN
    return 1.0 if totals.cv_lambda < 0.5 or gap_failed(totals) else 3.0


def gap_failed(totals: PairTotals) -> bool:
    """|z| > 5 and |gap| > 10 % of k3: q hardly drew these tokens (docs/estimators.md)."""
    gap, z = totals.mean(GAP), totals.gap_z
    return abs(z) > 5 and abs(gap) > 0.1 * totals.mean(K3)


def pair_values(totals: PairTotals, running: dict[str, float]) -> dict[str, float]:
    """Every metric of one pair at one step, by name."""
    n, (left, right) = totals.n, (tail[:LISTED].tolist() for tail in totals.tails)
    context = Context(
        totals,
        k1=dominance_k1(n, totals.mean(K1), totals.var_k1, totals["abs"], left, right),
        k3=dominance_k3(
            n,
            totals.mean(K3),
            totals.var_k3,
            left,
            right,
            core=(totals["core/n"], totals["core/k3"]),
        ),
        running=running,
    )
    values = {
        metric.name: float(metric.value(context)) for metric in METRICS if metric.value is not None
    }
    if len(totals.groups) > 1:
        for group in totals.groups:
            values |= group_values(totals, group)
    return values
