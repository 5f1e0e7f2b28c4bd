"""The table of metrics: every name with its unit, formula and meaning.

`docs/metrics.md` is generated from this table. A metric's full name is ``kl/{pair}/{name}``.
To add a metric, add one row here and one line to `statistics.pair_numbers` (and, if it needs a new
sum, one line to `summary.fields`).

In formulas: sums run over the N counted tokens, d = log p - log q, r = e^d, S_i and T_i are the
sum of values and the number of tokens of cluster i, B the number of clusters.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from klmonitor.summary.fields import CORE_RADIUS

COUNT_THRESHOLDS = (1, 2, 5, 10)
"""Nats: ratios of 2.7, 7.4, 148 and 22,026."""
QUANTILES = ((0.001, "p0.1"), (0.01, "p1"), (0.5, "p50"), (0.99, "p99"), (0.999, "p99.9"))


@dataclass(frozen=True)
class Metric:
    """One row of the table.

    Attributes:
        name: without the ``kl/{pair}/`` prefix.
        unit: nats are per token unless said otherwise.
        formula: in the notation of the module docstring.
        text: one line of meaning.
        core: whether it is sent to trackers by default.
        computed: whether it follows from a step's sums; else another module adds it (a rule's
            score).
    """

    name: str
    unit: str
    formula: str
    text: str
    core: bool = False
    computed: bool = True

    @property
    def field(self) -> str:
        """Its name as an attribute of `statistics.AT`."""
        return re.sub("[^a-z0-9]+", "_", self.name)


def _estimator(name: str, formula: str, text: str) -> list[Metric]:
    """Mean, error, variance and running numbers of one estimator."""
    return [
        Metric(
            f"{name}/mean",
            "nats",
            f"sum({formula}) / N",
            text,
            core=True,
        ),
        Metric(
            f"{name}/se",
            "nats",
            "sqrt(B/(B-1) sum (S_i - mean T_i)^2) / N",
            f"cluster standard error of {name}/mean; clusters are prompts where known, "
            "else sequences",
            core=name != "k2",
        ),
        Metric(
            f"{name}/var",
            "nats^2",
            f"sum ({name} - mean)^2 / (N - 1)",
            f"sample variance of {name} over this step's tokens",
        ),
        Metric(
            f"{name}/running_mean",
            "nats",
            "S1 / n, decayed by 2^(-1/h) a step",
            f"{name} over recent steps (half-life h = 100 steps), pooled over tokens",
        ),
        Metric(
            f"{name}/running_var",
            "nats^2",
            "S2 / n - (S1 / n)^2, decayed by 2^(-1/h) a step",
            f"variance of {name} over recent steps' tokens, drift between steps included",
            core=True,
        ),
    ]


def _count(threshold: int) -> list[Metric]:
    more, less = f"{math.exp(threshold):.3g} times more", f"{math.exp(threshold):.3g} times less"
    return [
        Metric(
            f"log_ratio/le_{-threshold}",
            "tokens",
            f"#(d <= {-threshold})",
            f"tokens that p finds {less} likely than q",
        ),
        Metric(
            f"log_ratio/ge_{threshold}",
            "tokens",
            f"#(d >= {threshold})",
            f"tokens that p finds {more} likely than q",
        ),
    ]


def _dominance(name: str) -> list[Metric]:
    return [
        Metric(
            f"dominance/{name}/level",
            "0, 1, 2",
            "docs/dominance.md",
            f"is {name} dominated by its largest tokens: 0 no, 1 warn, 2 severe",
        ),
        Metric(
            f"dominance/{name}/tokens",
            "tokens",
            "#o",
            f"how many of the largest tokens the rule for {name} takes together",
        ),
        Metric(
            f"dominance/{name}/v",
            "share",
            "sum_o (x - mean)^2 / sum (x - mean)^2",
            f"share of {name}'s variance that its largest tokens o hold",
        ),
        Metric(
            f"dominance/{name}/j",
            "standard errors",
            "(mean - mean without o) / SE without o",
            f"how far the largest tokens move {name}/mean",
        ),
        Metric(
            f"dominance/{name}/top_share",
            "share",
            "sum_o |x| / sum |x|",
            f"share of sum |{name}| that the largest tokens hold",
        ),
        Metric(
            f"{name}/mean_without_top",
            "nats",
            "mean of the tokens outside o",
            f"{name}/mean without its largest tokens",
        ),
    ]


# fmt: off
METRICS: tuple[Metric, ...] = (
    *_estimator("k1", "-d", "unbiased, heavy-tailed, of both signs"),
    *_estimator("k2", "d^2 / 2", "biased, never negative"),
    *_estimator("k3", "expm1(d) - d", "unbiased, never negative, explodes when p >> q"),
    Metric("k1/negative_share", "share", "#(d > 0) / N", "tokens with negative k1"),
    Metric("k1/cancellation", "share", "1 - |sum d| / sum |d|",
           "how much of k1 cancels between tokens of both signs: near 1 the mean is mostly noise"),
    Metric("k2/bias", "nats", "mean(k2 - k1)", "measured difference of k2 and the unbiased k1"),
    Metric("k2/bias_z", "standard errors", "z of mean(k2 - k1) / SE, paired, clustered",
           "a t with B - 1 degrees of freedom as a normal deviate: beyond +-3, k2 is biased here"),
    Metric("gap", "nats", "mean(k3) - mean(k1) = mean(r) - 1",
           "0 in expectation if q drew the tokens; only where it did"),
    Metric("gap_z", "standard errors", "z of gap / SE, clustered",
           "a t with B - 1 degrees of freedom as a normal deviate: beyond +-5 the tokens were "
           "hardly drawn from q (collapse, top-p, a stale sampler)", core=True),
    Metric("cv/lambda", "share", "-Cov(k1, r - 1) / Var(r - 1), clamped to [0, 1]",
           "best weight of r - 1 in -d + lambda (r - 1): 0 is k1, 1 is k3; below 1/2 k1 is "
           "the less noisy one"),
    Metric("cv/corr", "correlation", "Corr(-d, r - 1)", "how well r - 1 cancels k1's noise"),
    Metric("cv/variance_ratio", "ratio", "Var(k3) / Var(k1)", "above 1, k3 is noisier than k1"),
    Metric("best", "1 or 3", "1 if lambda < 1/2 or the gap test fails, else 3",
           "which of k1 and k3 to read here; only where q drew the tokens"),
    Metric("tokens", "tokens", "N", "tokens counted"),
    Metric("sequences", "sequences", "#(T_i > 0)", "sequences with a counted token"),
    Metric("clusters", "clusters", "B",
           "what the standard errors count as independent: prompts if at least 2 are known, "
           "else sequences"),
    Metric("prompts", "prompts", "#(prompts with tokens)", "where every sequence has a prompt id"),
    Metric("on_policy", "0 or 1", "whether q is the sampler",
           "0: tokens were drawn from another policy; read iw/*"),
    Metric("ess", "share", "(sum r)^2 / (N sum r^2)",
           "effective share of tokens if they were reweighted to p, unclamped"),
    Metric("iw/k1/mean", "nats", "sum w k1 / sum w, w = q(x) / sampler(x)",
           "k1 corrected for the token draw (not for the prefixes); only off-policy"),
    Metric("iw/k3/mean", "nats", "sum w k3 / sum w", "k3 corrected alike"),
    Metric("iw/ess", "share", "(sum w)^2 / (N sum w^2)", "effective share of tokens under w"),
    Metric("nonfinite", "tokens", "#(d is nan or inf)", "excluded from every other number"),
    Metric("positive_logp", "tokens", "#(log q > 0.001) + #(log p > 0.001)",
           "no log-prob is positive: wrong tensor or scale"),
    Metric("zero_logp", "tokens", "#(log q = 0) + #(log p = 0)",
           "many: a placeholder instead of log-probs"),
    Metric("identical", "share", "#(d = 0) / N", "1: both policies gave the very same numbers"),
    Metric("clamped", "tokens", "#(d > 350)", "e^d was evaluated at 350"),
    Metric("low_precision", "0 or 1", ">= 99 % of log-probs below -1/64 are bf16 or fp16 values",
           "k2 and k3 below 1e-4 cannot be resolved"),
    Metric("outliers/k1", "tokens", "#(d <= -2)", "tokens on k1's heavy side", core=True),
    Metric("outliers/k3", "tokens", "#(d >= 2)", "tokens on k3's heavy side", core=True),
    Metric("outliers/rate", "per 10,000 tokens", "10^4 #(|d| >= 2) / N", "both sides together"),
    *(metric for threshold in COUNT_THRESHOLDS for metric in _count(threshold)),
    *(Metric(f"log_ratio/{label}", "nats", f"{probability:.1%} quantile of d", "to 0.8 %")
      for probability, label in QUANTILES),
    Metric("log_ratio/min", "nats", "min d", "exact"),
    Metric("log_ratio/max", "nats", "max d", "exact"),
    Metric("log_ratio/excluded", "tokens", f"#(|d| > {CORE_RADIUS:g})",
           "left out of the running numbers, which one of them would swamp"),
    *_dominance("k1"),
    *_dominance("k3"),
    Metric("dominance/level", "0, 1, 2", "the larger of k1's and k3's", "0 none, 1 warn, 2 severe",
           core=True),
    Metric("dominance/top_sequence_share", "share", "max_i (S_i - mean T_i)^2 / sum (...)^2, of k1",
           "share of k1's error that one sequence holds, of the 16 furthest from the recent mean"),
    Metric("sequence/k1", "nats per sequence", "sum of token k1 / sequences",
           "mean over sequences of the sums of token values"),
    Metric("sequence/k3", "nats per sequence", "sum of token k3 / sequences", "likewise"),
    Metric("spike/z", "scales", "(log k3 - level) / scale, docs/alerts.md",
           "how far above its recent level k3 is, without the current step", computed=False),
    Metric("penalty/mean", "nats", "beta mean(k)",
           "what the trainer's objective pays a token: k is the estimator that it penalises with, "
           "a mean over tokens; from adapters that know beta", computed=False),
    Metric("penalty/se", "nats", "beta SE(k)", "cluster standard error of penalty/mean",
           computed=False),
    Metric("clip/low", "share", "#(r < 1 - epsilon) / N",
           "raw importance ratios below the range that the trainer clips to, whatever the sign of "
           "the advantage; the edge to 0.8 %", computed=False),
    Metric("clip/high", "share", "#(r > 1 + epsilon) / N", "above it, likewise", computed=False),
)
# fmt: on

NAMES = tuple(metric.name for metric in METRICS)
CORE = frozenset(metric.name for metric in METRICS if metric.core)
COMPUTED = tuple(metric.name for metric in METRICS if metric.computed)
FIELDS = tuple(metric.field for metric in METRICS if metric.computed)
