"""What a step's summary holds of its pairs, on the host, and what the table of metrics asks of it.

A pair's numbers are plain floats: of one pair, or five, an operation of Python's on numbers costs a
twentieth of numpy's on arrays of so few. What has a length of its own, the histogram, the prompts
and the extreme tokens, are arrays. Torch-free: a summary's memory as numpy arrays goes in.

No sum makes any of it raise: a division is a `ratio`, a root is taken of what is `positive`.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import accumulate
from typing import Any

import numpy as np

from klmonitor.numbers.buckets import MIDDLES, edge_index
from klmonitor.numbers.clusters import Array, Clustered, Floats, positive, ratio, token_sums
from klmonitor.numbers.dominance import MOST, dominance_k1, dominance_k3
from klmonitor.numbers.mixture import best_weight, leaving_one_out, unseen
from klmonitor.numbers.signatures import Signatures
from klmonitor.numbers.without import Dominance
from klmonitor.pairs import PAIRS, POLICY_INDEX, Pair
from klmonitor.report import Later
from klmonitor.summary.fields import (
    CENTRE,
    COLUMN,
    POLICY_COUNTS,
    SEQUENCE_FIELDS,
    TOKEN_FIELDS,
)
from klmonitor.summary.once import once

GAP_Z, GAP_SHARE = 5.0, 0.1
"""The gap test fails where mean(k3) - mean(k1) is further from 0, in standard errors, and a larger
share of k3."""
NEARLY_ALL = 0.98
"""Effective share of importance-weighted tokens from which another policy's are nearly q's own: the
weights vary by a seventh at most, so that a weighted mean has nearly the error of the plain one."""
LOW_PRECISION = 0.99
"""Share of the values below -1/64 that a policy of low precision has in its format."""
N_RUNNING = 7
"""Of running sums: n, then S1 and S2 of k1, k2, k3."""
KEY = TOKEN_FIELDS.index("key")
"""The field that orders tokens and sequences; -inf: there is none."""
QUANTILES = (0.001, 0.01, 0.25, 0.5, 0.75, 0.99, 0.999)
COUNTED_FROM = (1.0, 2.0, 5.0, 10.0)
"""Nats beyond which tokens are counted: ratios of 2.7, 7.4, 148 and 22,026."""
_BOUNDS = (*(-x for x in reversed(COUNTED_FROM)), 0.0, *COUNTED_FROM)
_BELOW = {bound: number for number, bound in enumerate(_BOUNDS)}
_CUTS = np.array(
    [0, *(CENTRE + int(math.copysign(edge_index(abs(x)), x)) if x else CENTRE for x in _BOUNDS)]
)
"""Where the histogram is cut: at its begin, at d = -10, ... 0, ... 10."""
_CHECKED = POLICY_COUNTS.index("checked")
_FORMATS = slice(POLICY_COUNTS.index("bf16"), POLICY_COUNTS.index("fp16") + 1)
_T, _K1 = SEQUENCE_FIELDS.index("t"), SEQUENCE_FIELDS.index("k1")


def sums_of(arrays: Mapping[str, Any], groups: Sequence[str]) -> dict[str, StepSums]:
    """The sums of the pairs that have counted tokens, or non-finite ones, at a step.

    Args:
        arrays: a summary's memory by attribute (`summary.state.Summary.arrays`).
        groups: names of its groups.
    """
    by_pair: list[list[list[float]]] = arrays["sums"].tolist()
    return {
        pair.name: StepSums(pair, i, arrays, groups)
        for i, (pair, by_group) in enumerate(zip(PAIRS, by_pair, strict=True))
        if any(map(any, by_group))
    }


class StepSums:
    """The sums of one pair at a step.

    Args:
        pair: the pair.
        place: its place in the arrays.
        arrays: a summary's memory by attribute; what is kept of it is copied.
        groups: names of its groups.

    Attributes:
        pair: its name.
        groups: names of the G groups.
        by_group: `fields.COLUMNS` of each group.
        columns: their sums over the groups.
        n, d, absolute, d2, d4, k3, k3k3, dk3: tokens counted, and sums over them: of d, |d|, d^2,
            d^4, k3, k3^2, d k3.
        histogram: [HISTOGRAM] counts of d by bucket.
        prompts: of each group the sums by prompt, [prompts, 4], of those with tokens.
        largest, smallest: the largest d and the largest -d.
        tokens: [2, top, TOKEN_FIELDS], the extreme tokens of both tails, largest first.
        sequences: [top, SEQUENCE_FIELDS], those of largest |S1|.
        q, p: `fields.POLICY_COUNTS` of the pair's policies.
        signatures: [SIGNATURES] sums over whole sequences, of `fields.SAMPLED` tokens at most.
        pulls: `fields.PULLS`, sums of what a KL term pulls, of the same tokens.
        running: running sums (`numbers.running`), this step's tokens among them where they belong
            there; zeros: there are none.
    """

    def __init__(
        self, pair: Pair, place: int, arrays: Mapping[str, Any], groups: Sequence[str]
    ) -> None:
        self.pair, self.groups = pair.name, tuple(groups)
        sums, policies = arrays["sums"][place], arrays["policies"]
        self.by_group: list[list[float]] = sums.tolist()
        alone = len(sums) == 1
        self.columns = self.by_group[0] if alone else [*map(sum, zip(*self.by_group, strict=True))]
        found = token_sums(self.columns)
        self.n, self.d, self.absolute, self.d2, self.d4, self.k3, self.k3k3, self.dk3 = found
        self.histogram = arrays["histogram"][place].copy()
        by_group = arrays["prompts"][place]
        self.prompts = [rows.take(rows[:, 0].nonzero()[0], axis=0) for rows in by_group]
        self.largest, self.smallest = arrays["maxima"][place].tolist()
        self.tokens = arrays["tokens"][place].copy()
        self.sequences = arrays["sequences"][place].copy()
        self.q: list[float] = policies[POLICY_INDEX[pair.q]].tolist()
        self.p: list[float] = policies[POLICY_INDEX[pair.p]].tolist()
        self.signatures = arrays["signatures"][place].copy()
        self.pulls: list[float] = arrays["pulls"][place].tolist()
        self.running: Floats = (0.0,) * N_RUNNING

    def copied(self) -> StepSums:
        """The same sums, with what was found of them so far; `copy.copy` without its detours."""
        other = object.__new__(StepSums)
        vars(other).update(vars(self))
        return other

    def column(self, name: str) -> float:
        """One of `fields.COLUMNS`."""
        return self.columns[COLUMN[name]]

    # --- means, errors, variances ------------------------------------------------------------
    @once
    def clustered(self) -> Clustered:
        """Means over tokens and their errors, all groups together."""
        return Clustered(self.columns, self.all_prompts)

    @property
    def all_prompts(self) -> Array:
        """[prompts, 4] sums by prompt, of all groups: a prompt of two counts twice."""
        return self.prompts[0] if len(self.prompts) == 1 else np.concatenate(self.prompts)

    def by_groups(self) -> dict[str, Clustered]:
        """The same of each group that has tokens."""
        parts = zip(self.groups, self.by_group, self.prompts, strict=True)
        found = {group: Clustered(columns, prompts) for group, columns, prompts in parts}
        return {group: one for group, one in found.items() if one.totals[0] > 0}

    @once
    def variances(self) -> tuple[float, float, float]:
        """Sample variances of k1, k2 and k3 over tokens, nats^2."""
        n = self.n

        def variance(first: float, squares: float) -> float:
            mean = ratio(first, n)
            return positive(ratio(squares - n * mean * mean, n - 1))

        return (
            variance(self.d, self.d2),
            variance(0.5 * self.d2, 0.25 * self.d4),
            variance(self.k3, self.k3k3),
        )

    @property
    def var_k1(self) -> float:
        """Nats^2."""
        return self.variances[0]

    @property
    def var_k3(self) -> float:
        """Nats^2."""
        return self.variances[2]

    def running_variance(self, number: int) -> float:
        """Of k1, k2 or k3 over recent steps' tokens, nats^2."""
        n, first, squares = (self.running[i] for i in (0, number, number + 3))
        mean = ratio(first, n)
        return positive(ratio(squares, n) - mean * mean)

    @once
    def _cov_d_k3(self) -> float:
        return ratio(self.dk3 - self.d * ratio(self.k3, self.n), self.n - 1)

    @once
    def var_ratio(self) -> float:
        """Sample variance of r - 1 = d + k3."""
        return positive(self.var_k1 + self.var_k3 + 2 * self._cov_d_k3)

    @once
    def cov_ratio(self) -> float:
        """Sample covariance of k1 = -d and r - 1."""
        return -self.var_k1 - self._cov_d_k3

    @once
    def weight(self) -> float:
        """Lambda, the weight of r - 1 in the mixture (`numbers.mixture`)."""
        g, gg = self.d + self.k3, self.d2 + self.k3k3 + 2 * self.dk3
        return float(best_weight(self.n, self.d, g, gg, self.d2 + self.dk3)) * self._seen

    @once
    def _seen(self) -> float:
        """1 - u of `numbers.mixture`."""
        k1k1, k1k3, k3k3 = (self.column(name) for name in ("k1.k1", "k1.k3", "k3.k3"))
        return 1.0 - unseen(self.sequences, k1k1 - 2 * k1k3 + k3k3)

    @once
    def iw_ess(self) -> float:
        """Effective share of the tokens under w = q / sampler; nan where q is it."""
        w = self.column("w")
        return ratio(w * w, self.n * self.column("ww"))

    @once
    def as_drawn(self) -> bool:
        """Whether q drew the tokens, or a policy whose tokens weights hardly change.

        Not where p is `policy`: it has learned from these very tokens, and likes them better, or
        worse, than other draws.
        """
        if self.on_policy:
            return True
        return not self.pair.endswith("_policy") and self.iw_ess >= NEARLY_ALL

    @once
    def gap(self) -> float:
        """mean(k3) - mean(k1); nan: not `as_drawn`.

        Where another policy drew, sum w (r - 1) / sum w or sum w r / N - 1, which is nearer to 0,
        and 0 between them: if q has learned from these tokens the first alone is off, since w r is
        p / sampler.
        """
        if self.on_policy:
            return self.clustered.mean("gap")
        if not self.as_drawn:
            return math.nan
        w, wr = self.column("w"), self.column("w") + self.column("wd") + self.column("wk3")
        first, second = ratio(wr - w, w), ratio(wr, self.n) - 1
        if not first * second > 0:
            return 0.0
        return math.copysign(min(abs(first), abs(second)), first)

    @once
    def gap_z(self) -> float:
        """Gap over the error of the plain one, as a normal deviate."""
        return self.clustered.z("gap", self.gap, ratio(self.absolute + self.k3, self.n))

    @once
    def k2_bias_z(self) -> float:
        """Bias of k2 over its error, likewise, whoever drew the tokens."""
        mean, size = self.clustered.mean("k2_bias"), self.absolute + 0.5 * self.d2
        return self.clustered.z("k2_bias", mean, ratio(size, self.n))

    @once
    def _mixed(self) -> bool:
        """Whether k1 and k3 are: not where the gap test fails or q is not the sampler."""
        gap = abs(self.clustered.mean("gap"))
        missed = abs(self.gap_z) > GAP_Z and gap > GAP_SHARE * self.clustered.mean("k3")
        return not missed and self.on_policy and not math.isnan(self.weight)

    @property
    def _mixing(self) -> float:
        """Lambda, 0 where nothing is mixed."""
        return self.weight if self._mixed else 0.0

    @property
    def mixture(self) -> float:
        """The mixture of k1 and k3, each token at the lambda of the others, nats."""
        k1, k3, weight = self.clustered.mean("k1"), self.clustered.mean("k3"), self._mixing
        mean = (1 - weight) * k1 + weight * k3
        if self._mixed:
            mean += self._seen * leaving_one_out(self.histogram, self.largest, self.smallest)
        return mean

    @property
    def mixture_se(self) -> float:
        """Its error, lambda taken as given."""
        return self.clustered.combined_se({"k1": 1 - self._mixing, "k3": self._mixing})

    @once
    def signs(self) -> Signatures:
        """The signatures of causes."""
        return Signatures(self.signatures.tolist())

    @once
    def on_policy(self) -> bool:
        """Whether every token was drawn from q."""
        return self.column("on_policy") == self.n

    @once
    def sum_r(self) -> float:
        """Sum of r = 1 + d + k3."""
        return self.n + self.d + self.k3

    @once
    def sum_r2(self) -> float:
        """Sum of r^2."""
        return self.n + self.d2 + self.k3k3 + 2 * (self.d + self.k3 + self.dk3)

    # --- the histogram -----------------------------------------------------------------------
    @once
    def _filled(self) -> tuple[list[int], list[float]]:
        """The buckets that have tokens; how many tokens are below each, and at last in all."""
        places = (self.histogram != 0).nonzero()[0]
        return places.tolist(), [0.0, *accumulate(self.histogram[places].tolist())]

    @once
    def _below(self) -> list[float]:
        """Tokens below each of `_BOUNDS`, and all."""
        return list(accumulate(np.add.reduceat(self.histogram, _CUTS).tolist()))

    @property
    def counted(self) -> float:
        """Tokens in the histogram; nan: a part came without it."""
        return self._below[-1]

    def _bucket_at(self, rank: float) -> int:
        """The bucket of the token that so many are below, or the last; there are tokens."""
        places, below = self._filled
        return places[min(bisect_left(below, rank, lo=1), len(places)) - 1]

    @property
    def positive_d(self) -> float:
        """Tokens with d > 0."""
        return self.counted - self._below[_BELOW[0.0]] - self.column("zero")

    def at_most(self, edge: float) -> float:
        """Tokens with d <= -edge, one of `COUNTED_FROM`."""
        return self._below[_BELOW[-edge]]

    def at_least(self, edge: float) -> float:
        """Tokens with d >= edge, likewise."""
        return self.counted - self._below[_BELOW[edge]]

    @once
    def quantiles(self) -> list[float]:
        """D at rank ceil(probability x N), of `QUANTILES`, to 0.8 % (numpy's ``inverted_cdf``)."""
        if not (self.n > 0 and self.counted > 0):
            return [math.nan] * len(QUANTILES)
        ranks = [max(-(-self.n * share // 1), 1.0) - 0.5 for share in QUANTILES]  # ceil
        found = MIDDLES[[self._bucket_at(rank) for rank in ranks]]
        bounded: list[float] = np.clip(found, -self.smallest, self.largest).tolist()
        return bounded

    # --- the rest ----------------------------------------------------------------------------
    def policy_count(self, name: str) -> float:
        """One of `fields.POLICY_COUNTS`, of both policies together."""
        column = POLICY_COUNTS.index(name)
        return self.q[column] + self.p[column]

    @once
    def low_precision(self) -> float:
        """Whether a policy's log-probs are bfloat16 or float16 numbers."""
        return float(
            any(
                counts[_CHECKED] > 0 and max(counts[_FORMATS]) >= LOW_PRECISION * counts[_CHECKED]
                for counts in (self.q, self.p)
            )
        )

    @once
    def dominance(self) -> Mapping[str, Dominance]:
        """What `numbers.dominance` finds, for k1 and for k3."""
        keys: list[list[float]] = self.tokens[:, :MOST, KEY].tolist()
        unlisted = any(math.isnan(tail[0]) for tail in keys)  # a part came without its tokens
        n, mean = math.nan if unlisted else self.n, self.clustered.mean
        left, right = ([key for key in tail if key > 0] for tail in keys)
        next_d = Later(partial(self._next_d, len(left), len(right))) if n > 0 else ()
        core = (self.column("core/n"), self.column("core/k3"))
        return {
            "k1": dominance_k1(n, mean("k1"), self.var_k1, self.absolute, left, right, next_d),
            "k3": dominance_k3(n, mean("k3"), self.var_k3, left, right, *core, next_d),
        }

    def _next_d(self, left: int, right: int) -> tuple[float, float]:
        """D of the first token of each tail after so many, to 0.8 %; infinite: unknown."""
        whole = self.counted
        if math.isnan(whole):
            return -math.inf, math.inf  # a part came without its histogram
        if not max(left, right) < whole:
            return 0.0, 0.0  # there is none
        ranks = (left + 0.5, whole - right - 0.5)
        low, high = (float(MIDDLES[self._bucket_at(rank)]) for rank in ranks)
        return min(low, 0.0), max(high, 0.0)

    @once
    def top_sequence_share(self) -> float:
        """Largest share of sum_i (S1_i - mean T_i)^2 that one of `sequences` holds."""
        mean = self.clustered.mean("k1")
        of = self.column
        whole = of("k1.k1") - 2 * mean * of("t.k1") + mean * mean * of("t.t")
        rows: list[list[float]] = self.sequences.tolist()
        known = [abs(row[_K1] - mean * row[_T]) for row in rows if row[KEY] >= 0]
        if any(math.isnan(row[KEY]) for row in rows):
            return math.nan  # a part came without its sequences
        if not (whole > 0 and known):
            return math.nan
        largest = max(known)
        return min(largest * largest / whole, 1.0)
