"""The table of metrics: every name with its unit, formula, meaning, and how it is computed.

`docs/metrics.md` is generated from this table. A metric's full name is ``kl/{pair}/{name}``.
To add a metric, add one row here (and, if it needs a new sum, one line to `summary.fields`), and
its plain formula to the tests' reference.

In formulas: sums run over the N counted tokens, d = log p - log q, r = e^d, S_i and T_i are the
sum of values and the number of tokens of cluster i, B the number of clusters.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from operator import attrgetter

from klmonitor.numbers.clusters import ratio
from klmonitor.numbers.receiptmetrics import DRAWN, RECEIPT, SENT
from klmonitor.numbers.signatures import BINS
from klmonitor.numbers.sums import COUNTED_FROM, QUANTILES, StepSums
from klmonitor.numbers.without import Dominance
from klmonitor.report import KNOWN
from klmonitor.summary.fields import CLAMP, CORE_RADIUS, PROBABILITIES

Of = Callable[[StepSums], float]
"""The metric of a pair, from its sums at a step."""

VARIANCE, OUTLIERS = "Variance, and running variance", "Outlier tokens"
"""Panels of several metrics."""
OUTLIER = 2.0
"""Nats: |d| from which a token is an outlier."""


@dataclass(frozen=True)
class Metric:
    """One row of the table.

    Attributes:
        name: without the ``kl/{pair}/`` prefix.
        unit: nats are per token unless said otherwise.
        formula: in the notation of the module docstring.
        text: one line of meaning.
        of: how it follows from a pair's sums; None: another module adds it (a rule's score).
        core: whether it is sent to trackers by default.
        judged: whether rules, causes or the verdict read it at a step where nothing is wrong: such
            ones and the core are computed at once, the others when somebody looks.
        panel: the title of the panel in which trackers draw it; empty: none.
    """

    name: str
    unit: str
    formula: str
    text: str
    of: Of | None = None
    core: bool = False
    judged: bool = False
    panel: str = ""


def _mean(name: str, t: StepSums) -> float:
    return t.clustered.mean(name)


def _se(name: str, t: StepSums) -> float:
    return t.clustered.se(name)


def _running_mean(estimator: int, t: StepSums) -> float:
    return ratio(t.running[estimator], t.running[0])


def _estimator(number: int, formula: str, text: str) -> list[Metric]:
    """Mean, error, variance and running numbers of one estimator."""
    name = f"k{number}"
    return [
        Metric(f"{name}/mean", "nats", f"sum({formula}) / N", text,
               partial(_mean, name), core=True, panel="Estimators"),
        Metric(f"{name}/se", "nats", "sqrt(B/(B-1) sum (S_i - mean T_i)^2) / N",
               f"cluster standard error of {name}/mean; clusters are prompts where known, "
               "else sequences",
               partial(_se, name), core=name != "k2", panel="Standard errors"),
        Metric(f"{name}/var", "nats^2", f"sum ({name} - mean)^2 / (N - 1)",
               f"sample variance of {name} over this step's tokens",
               lambda t: t.variances[number - 1], panel=VARIANCE),
        Metric(f"{name}/running_mean", "nats", "S1 / n, decayed by 2^(-1/h) a step",
               f"{name} over recent steps (half-life h = 100 steps), pooled over tokens",
               partial(_running_mean, number)),
        Metric(f"{name}/running_var", "nats^2", "S2 / n - (S1 / n)^2, decayed by 2^(-1/h) a step",
               f"variance of {name} over recent steps' tokens, drift between steps included",
               lambda t: t.running_variance(number), core=True, panel=VARIANCE),
    ]  # fmt: skip


def _count(threshold: int) -> list[Metric]:
    more, less = f"{math.exp(threshold):.3g} times more", f"{math.exp(threshold):.3g} times less"
    return [
        Metric(f"log_ratio/le_-{threshold}", "tokens", f"#(d <= -{threshold})",
               f"tokens that p finds {less} likely than q",
               lambda t: t.at_most(float(threshold)), judged=True),
        Metric(f"log_ratio/ge_{threshold}", "tokens", f"#(d >= {threshold})",
               f"tokens that p finds {more} likely than q",
               lambda t: t.at_least(float(threshold)), judged=True),
    ]  # fmt: skip


def _quantile(number: int) -> Metric:
    percent = 100 * QUANTILES[number]
    return Metric(f"log_ratio/p{percent:g}", "nats", f"{percent:.1f}% quantile of d", "to 0.8 %",
                  lambda t: t.quantiles[number], panel="Quantiles of d = -k1")  # fmt: skip


def _dominance(name: str) -> list[Metric]:
    def of(field: str) -> Of:
        get: Callable[[Dominance], float] = attrgetter(field)
        return lambda t: get(t.dominance[name])

    return [
        Metric(f"dominance/{name}/level", "0, 1, 2", "docs/dominance.md",
               f"is {name} dominated by its largest tokens: 0 no, 1 warn, 2 severe", of("level"),
               judged=True),
        Metric(f"dominance/{name}/tokens", "tokens", "#o",
               f"how many of the largest tokens the rule for {name} takes together", of("tokens")),
        Metric(f"dominance/{name}/v", "share", "sum_o (x - mean)^2 / sum (x - mean)^2",
               f"share of {name}'s variance that its largest tokens o hold", of("v")),
        Metric(f"dominance/{name}/j", "standard errors", "(mean - mean without o) / SE without o",
               f"how far the largest tokens move {name}/mean", of("j"), judged=True),
        Metric(f"dominance/{name}/top_share", "share", "sum_o |x| / sum |x|",
               f"share of sum |{name}| that the largest tokens hold", of("top_share"),
               panel="Share of the largest tokens"),
        Metric(f"{name}/mean_without_top", "nats", "mean of the tokens outside o",
               f"{name}/mean without its largest tokens", of("mean_without_top"), judged=True),
    ]  # fmt: skip


def _where(holds: bool, value: float) -> float:
    """A value, nan where it has no meaning."""
    return value if holds else math.nan


def _weighted(name: str, t: StepSums) -> float:
    """A mean under importance weights, of tokens that another policy drew."""
    return _where(not t.on_policy, ratio(t.column(name), t.column("w")))


def _share(name: str, of: str, t: StepSums) -> float:
    """A signature as a share of another."""
    return t.signs.share(name, of)


def _sequence_ess(t: StepSums) -> float:
    of = t.signs.sum
    return ratio(of("ratio") * of("ratio"), of("sequences") * of("ratio2"))


def _by_probability(number: int) -> list[Metric]:
    edges = ("0", *(f"{edge:g}" for edge in PROBABILITIES), "1")
    inside = f"{edges[number]} <= q(x) < {edges[number + 1]}"
    name = f"by_probability/below_{edges[number + 1]}"
    return [
        Metric(f"{name}/abs", "nats", f"mean |d| where {inside}",
               "grows as 1 - q(x) where numeric noise makes it; of rollout's pair, else the first",
               partial(_share, f"abs_{number}", f"n_{number}")),
        Metric(f"{name}/left", "probability", f"mean 1 - q(x) where {inside}", "beside it",
               partial(_share, f"left_{number}", f"n_{number}")),
    ]  # fmt: skip


# fmt: off
METRICS: tuple[Metric, ...] = (
    *_estimator(1, "-d", "unbiased, heavy-tailed, of both signs"),
    *_estimator(2, "d^2 / 2", "biased, never negative"),
    *_estimator(3, "expm1(d) - d", "unbiased, never negative, explodes when p >> q"),
    Metric("k1/negative_share", "share", "#(d > 0) / N", "tokens with negative k1",
           lambda t: ratio(t.positive_d, t.n)),
    Metric("k1/cancellation", "share", "1 - |sum d| / sum |d|",
           "how much of k1 cancels between tokens of both signs: near 1 the mean is mostly noise",
           lambda t: ratio(t.absolute - abs(t.d), t.absolute)),
    Metric("k2/bias", "nats", "mean(k2 - k1)", "measured difference of k2 and the unbiased k1",
           partial(_mean, "k2_bias")),
    Metric("k2/bias_z", "standard errors", "z of mean(k2 - k1) / SE, paired, clustered",
           "a t with B - 1 degrees of freedom as a normal deviate: beyond +-3, k2 is biased here",
           lambda t: t.k2_bias_z),
    Metric("gap", "nats", "mean(k3) - mean(k1) = mean(r) - 1",
           "0 in expectation if q drew the tokens; where it did, or where iw/ess is .98 and more "
           "(not of old_policy): sum w (r - 1) / sum w or sum w r / N - 1, the nearer to 0",
           lambda t: t.gap, judged=True),
    Metric("gap_z", "standard errors", "z of gap / SE, clustered",
           "a t with B - 1 degrees of freedom as a normal deviate: beyond +-5 the tokens were "
           "hardly drawn from q (collapse, top-p, a stale sampler)", lambda t: t.gap_z,
           core=True, panel="Gap of k3 and k1"),
    Metric("gap_se", "nats", "sqrt(n/(n-1) sum (G_i - gap T_i)^2) / N, over n sequences",
           "error of the gap by sequence: its expectation is 0 for every prompt, so few prompts "
           "are no reason to wait",
           lambda t: _where(t.as_drawn, t.clustered.sequence_se("gap")), judged=True),
    Metric("k1/sequence_se", "nats", "sqrt(n/(n-1) sum (S_i - mean T_i)^2) / N, over n sequences",
           "error of k1/mean by sequence: no prompt's KL is below 0",
           lambda t: t.clustered.sequence_se("k1"), judged=True),
    Metric("cv/lambda", "share",
           "-Cov(k1, r - 1) / Var(r - 1), clamped to [0, 1], times (ess - c) / c likewise",
           "best weight of r - 1 in -d + lambda (r - 1): 0 is k1, 1 is k3; below 1/2 k1 is "
           "the less noisy one", lambda t: t.weight),
    Metric("cv/mean", "nats", "sum(-d + lambda' (r - 1)) / N, lambda' without the token itself",
           "the estimate at lambda, which is 0 where the gap test fails or q is not the sampler",
           lambda t: t.mixture),
    Metric("cv/se", "nats", "cluster standard error of cv/mean, lambda taken as given",
           "clusters as of k1/se", lambda t: t.mixture_se),
    Metric("cv/corr", "correlation", "Corr(-d, r - 1)", "how well r - 1 cancels k1's noise",
           lambda t: ratio(t.cov_ratio, math.sqrt(t.var_k1 * t.var_ratio))),
    Metric("cv/variance_ratio", "ratio", "Var(k3) / Var(k1)", "above 1, k3 is noisier than k1",
           lambda t: ratio(t.var_k3, t.var_k1)),
    Metric("best", "1, 3 or 0", "the verdict's (docs/estimators.md)",
           "what to believe here: k1, k3, or 0 for cv/mean; nan: none, or it is not judged"),
    Metric("tokens", "tokens", "N", "tokens counted", lambda t: t.n, judged=True),
    Metric("sequences", "sequences", "#(T_i > 0)", "sequences with a counted token",
           lambda t: t.column("sequences"), judged=True),
    Metric("clusters", "clusters", "B",
           "what the standard errors count as independent: prompts if at least 2 are known, "
           "else sequences", lambda t: t.clustered.count, judged=True),
    Metric("prompts", "prompts", "#(prompts with tokens)", "where every sequence has a prompt id",
           lambda t: _where(t.clustered.prompts > 0, t.clustered.prompts)),
    Metric("on_policy", "0 or 1", "whether q is the sampler",
           "0: tokens were drawn from another policy; read iw/*",
           lambda t: float(t.on_policy), judged=True),
    Metric("ess", "share", "(sum r)^2 / (N sum r^2)",
           "effective share of tokens if they were reweighted to p, unclamped",
           lambda t: ratio(t.sum_r * t.sum_r, t.n * t.sum_r2)),
    Metric("iw/k1/mean", "nats", "sum w k1 / sum w, w = q(x) / sampler(x)",
           "k1 corrected for the token draw (not for the prefixes); only off-policy",
           lambda t: -_weighted("wd", t), judged=True),
    Metric("iw/k3/mean", "nats", "sum w k3 / sum w", "k3 corrected alike",
           partial(_weighted, "wk3")),
    Metric("iw/ess", "share", "(sum w)^2 / (N sum w^2)", "effective share of tokens under w",
           lambda t: _where(not t.on_policy, t.iw_ess), judged=True),
    Metric("nonfinite", "tokens", "#(d is nan or inf)", "excluded from every other number",
           lambda t: t.column("nan") + t.column("inf"), judged=True),
    Metric("positive_logp", "tokens", "#(log q > 0.001) + #(log p > 0.001)",
           "no log-prob is positive: wrong tensor or scale",
           lambda t: t.policy_count("positive")),
    Metric("zero_logp", "tokens", "#(log q = 0) + #(log p = 0)",
           "many: a placeholder instead of log-probs",
           lambda t: t.policy_count("n") - t.policy_count("nonzero")),
    Metric("identical", "share", "#(d = 0) / N", "1: both policies gave the very same numbers",
           lambda t: ratio(t.column("zero"), t.n), judged=True),
    Metric("clamped", "tokens", "#(d > 350)", "e^d was evaluated at 350",
           lambda t: t.column("clamped")),
    Metric("low_precision", "0 or 1", ">= 99 % of log-probs below -1/64 are bf16 or fp16 values",
           "k2 and k3 below 1e-4 cannot be resolved", lambda t: t.low_precision, judged=True),
    Metric("outliers/k1", "tokens", "#(d <= -2)", "tokens on k1's heavy side",
           lambda t: t.at_most(OUTLIER), core=True, panel=OUTLIERS),
    Metric("outliers/k3", "tokens", "#(d >= 2)", "tokens on k3's heavy side",
           lambda t: t.at_least(OUTLIER), core=True, panel=OUTLIERS),
    Metric("outliers/rate", "per 10,000 tokens", "10^4 #(|d| >= 2) / N", "both sides together",
           lambda t: ratio(1e4 * (t.at_most(OUTLIER) + t.at_least(OUTLIER)), t.n),
           panel=OUTLIERS, judged=True),
    *(metric for threshold in map(int, COUNTED_FROM) for metric in _count(threshold)),
    *(_quantile(number) for number in range(len(QUANTILES))),
    Metric("log_ratio/min", "nats", "min d", "exact",
           lambda t: _where(t.n > 0, -t.smallest)),
    Metric("log_ratio/max", "nats", "max d", "exact",
           lambda t: _where(t.n > 0, t.largest), judged=True),
    Metric("log_ratio/excluded", "tokens", f"#(|d| > {CORE_RADIUS:g})",
           "left out of the running numbers, which one of them would swamp",
           lambda t: t.column("tail/n")),
    *_dominance("k1"),
    *_dominance("k3"),
    Metric("dominance/level", "0, 1, 2", "the larger of k1's and k3's", "0 none, 1 warn, 2 severe",
           lambda t: max(t.dominance["k1"].level, t.dominance["k3"].level),
           core=True, panel="Dominance: 0 none, 1 warn, 2 severe"),
    Metric("dominance/top_sequence_share", "share", "max_i (S_i - mean T_i)^2 / sum (...)^2, of k1",
           "share of k1's error that one sequence holds, of the 16 with the largest sum of k1",
           lambda t: t.top_sequence_share),
    Metric("sequence/k1", "nats per sequence", "sum of token k1 / sequences",
           "mean over sequences of the sums of token values",
           lambda t: ratio(-t.d, t.column("sequences"))),
    Metric("sequence/k3", "nats per sequence", "sum of token k3 / sequences", "likewise",
           lambda t: ratio(t.k3, t.column("sequences"))),
    Metric("sequence/ratio_beyond_3", "share", "#(exp(sum_t d) > 3) / sequences",
           "sequences whose whole ratio is beyond 3; of the rows that signatures are taken of",
           partial(_share, "ratio_above", "sequences"), core=True,
           panel="Sequences beyond a ratio of 3"),
    Metric("sequence/ratio_below_third", "share", "#(exp(sum_t d) < 1/3) / sequences",
           "and below 1/3", partial(_share, "ratio_below", "sequences")),
    Metric("sequence/ess", "share", "(sum R)^2 / (n sum R^2), R = exp(sum_t d), |sum_t d| <= 300",
           "effective share of sequences if they were reweighted to p", _sequence_ess),
    Metric("sequence/largest_k3", "nats", "mean over sequences of max_t k3",
           "how large the largest token KL of a sequence is",
           partial(_share, "largest", "sequences")),
    *(metric for number in range(BINS) for metric in _by_probability(number)),
    Metric("entropy", "nats", "mean H", "of the trainer's policy, where observe(entropy=) gave it",
           partial(_share, "entropy", "entropic")),
    Metric("entropy/k3_share", "ratio", "k3/mean / mean H", "how large KL is beside the entropy",
           lambda t: ratio(ratio(t.k3, t.n), t.signs.entropy)),
    Metric("spike/z", "scales", "(log k3 - level) / scale, docs/alerts.md",
           "how far above its recent level k3 is, without the current step",
           panel="Spike score"),
    Metric("penalty/mean", "nats", "beta mean(k)",
           "what the trainer's objective pays a token: k is the estimator that it penalises with, "
           "a mean over tokens; from adapters that know beta"),
    Metric("penalty/se", "nats", "beta SE(k)", "cluster standard error of penalty/mean"),
    *(Metric(*row, core=row[0] in SENT, panel=DRAWN.get(row[0], "")) for row in RECEIPT),
    Metric("clip/low", "share", "#(r < 1 - epsilon) / N",
           "raw importance ratios below the range that the trainer clips to, whatever the sign of "
           "the advantage; the edge to 0.8 %"),
    Metric("clip/high", "share", "#(r > 1 + epsilon) / N", "above it, likewise"),
    Metric("unclipped/tokens", "tokens", "#(A < 0, r >= 10)",
           "tokens of old_policy whose ratio no clipping of PPO's kind bounds, where "
           "observe(advantages=) gave A",
           lambda t: _where(t.signs.sum("weighed") > 0, t.signs.sum("unclipped")), judged=True),
    Metric("unclipped/share", "share", "sum of their |A| r / sum |A| r",
           "how much of the loss's weight they hold; r is 10 at most where A > 0",
           partial(_share, "unclipped_loss", "loss"), judged=True),
    Metric("unclipped/ratio", "ratio", "exp(mean d) of these", "how far they are from old",
           lambda t: math.exp(min(t.signs.share("unclipped_d", "unclipped"), CLAMP)), judged=True),
)
# fmt: on

NAMES = tuple(metric.name for metric in METRICS)
KNOWN.update(NAMES)
CORE = frozenset(metric.name for metric in METRICS if metric.core)
AT_ONCE, LATER = (
    {metric.name: metric.of for metric in METRICS
     if metric.of is not None and (metric.core or metric.judged) == at_once}
    for at_once in (True, False)
)  # fmt: skip
"""Those that follow from a step's sums, by name: those that every step needs, and the others."""
