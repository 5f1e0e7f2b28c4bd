"""What a step's summary holds of its pairs, on the host, and what the table of metrics asks of it.

Everything is computed for all pairs at once: a field is an array [P, ...], one row a pair. Torch-
free: a summary's memory as numpy arrays goes in.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from klmonitor.numbers.buckets import MIDDLES, edge_index
from klmonitor.numbers.clusters import (
    TOKEN_SUMS,
    Array,
    Clustered,
    positive,
    ratio,
    token_sums,
)
from klmonitor.numbers.dominance import MOST, dominance_k1, dominance_k3
from klmonitor.numbers.mixture import best_weight, leaving_one_out, unseen
from klmonitor.numbers.once import once
from klmonitor.numbers.signatures import Signatures
from klmonitor.numbers.without import Dominance
from klmonitor.pairs import PAIRS, POLICY_INDEX
from klmonitor.summary.fields import (
    CENTRE,
    COLUMN,
    POLICY_COUNTS,
    SEQUENCE_FIELDS,
    TOKEN_FIELDS,
)

Bools = NDArray[np.bool_]
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
_CHECKED = POLICY_COUNTS.index("checked")
_FORMATS = slice(POLICY_COUNTS.index("bf16"), POLICY_COUNTS.index("fp16") + 1)
_T, _K1 = SEQUENCE_FIELDS.index("t"), SEQUENCE_FIELDS.index("k1")


def _token_sum(name: str) -> once[Array]:
    """[P] one of `TOKEN_SUMS`."""

    def found(step: StepSums) -> Array:
        column: Array = step._token_sums[:, TOKEN_SUMS[name]]
        return column

    return once(found)


class StepSums:
    """The sums of the pairs that have counted tokens, or non-finite ones, at a step.

    Args:
        arrays: a summary's memory by attribute (`summary.state.Summary.arrays`).
        groups: names of its groups.

    Attributes:
        pairs: names of the P pairs, in the order of every array.
        groups: names of the G groups.
        by_group: [P, G, COLUMNS] sums.
        sums: [P, COLUMNS], over the groups.
        histogram: [P, HISTOGRAM] counts of d by bucket.
        prompts: [P, G, buckets, 4] sums by prompt.
        maxima: [P, 2] the largest d and the largest -d.
        tokens: [P, 2, top, TOKEN_FIELDS], the extreme tokens of both tails, largest first.
        sequences: [P, top, SEQUENCE_FIELDS], those of largest |S1|.
        q, p: [P, POLICY_COUNTS] of the pairs' policies.
        signatures: [P, SIGNATURES] sums over whole sequences, of `fields.SAMPLED` tokens at most.
        pulls: [P, PULLS] sums of what a KL term pulls, of the same tokens.
        running: [P, N_RUNNING] running sums (`numbers.running`), this step's tokens among them
            where they belong there; zeros: there are none.
    """

    def __init__(self, arrays: Mapping[str, Array], groups: Sequence[str]) -> None:
        chosen = np.flatnonzero(arrays["sums"].any(axis=(1, 2)))
        pairs = [PAIRS[i] for i in chosen]
        self.pairs = [pair.name for pair in pairs]
        self.groups = tuple(groups)
        self.by_group = arrays["sums"][chosen]
        self.sums: Array = self.by_group.sum(axis=1)
        self.histogram = arrays["histogram"][chosen]
        self.prompts = arrays["prompts"][chosen]
        self.maxima = arrays["maxima"][chosen]
        self.tokens = arrays["tokens"][chosen]
        self.sequences = arrays["sequences"][chosen]
        self.q = arrays["policies"][[POLICY_INDEX[pair.q] for pair in pairs]]
        self.p = arrays["policies"][[POLICY_INDEX[pair.p] for pair in pairs]]
        self.signatures = arrays["signatures"][chosen]
        self.pulls = arrays["pulls"][chosen]
        self.running: Array = np.zeros((len(pairs), N_RUNNING))

    def column(self, name: str) -> Array:
        """[P] one of `fields.COLUMNS`."""
        found: Array = self.sums[:, COLUMN[name]]
        return found

    # --- sums over tokens --------------------------------------------------------------------
    @once
    def _token_sums(self) -> Array:
        return token_sums(self.sums)

    n = _token_sum("n")
    """[P] tokens counted."""
    d = _token_sum("d")
    absolute = _token_sum("abs")
    """[P] sum of |d|."""
    d2 = _token_sum("d2")
    d4 = _token_sum("d4")
    k3 = _token_sum("k3")
    k3k3 = _token_sum("k3k3")
    dk3 = _token_sum("dk3")
    """[P] sum of d k3; the others likewise."""

    # --- means, errors, variances ------------------------------------------------------------
    @once
    def clustered(self) -> Clustered:
        """Means over tokens and their errors, all groups together."""
        pairs, groups, buckets, size = self.prompts.shape
        return Clustered(self.sums, self.prompts.reshape(pairs, groups * buckets, size))

    @once
    def variances(self) -> Array:
        """[3, P] sample variances of k1, k2 and k3 over tokens, nats^2."""
        first = np.array((self.d, 0.5 * self.d2, self.k3))
        squares = np.array((self.d2, 0.25 * self.d4, self.k3k3))
        mean = ratio(first, self.n)
        return positive(ratio(squares - self.n * mean * mean, self.n - 1))

    @property
    def var_k1(self) -> Array:
        """[P] nats^2."""
        found: Array = self.variances[0]
        return found

    @property
    def var_k3(self) -> Array:
        """[P] nats^2."""
        found: Array = self.variances[2]
        return found

    @once
    def running_variances(self) -> Array:
        """[3, P] of k1, k2 and k3 over recent steps' tokens, nats^2."""
        n, first, squares = self.running[:, 0], self.running[:, 1:4].T, self.running[:, 4:].T
        mean = ratio(first, n)
        return positive(ratio(squares, n) - mean * mean)

    @once
    def _cov_d_k3(self) -> Array:
        return ratio(self.dk3 - self.d * ratio(self.k3, self.n), self.n - 1)

    @once
    def var_ratio(self) -> Array:
        """[P] sample variance of r - 1 = d + k3."""
        return positive(self.var_k1 + self.var_k3 + 2 * self._cov_d_k3)

    @once
    def cov_ratio(self) -> Array:
        """[P] sample covariance of k1 = -d and r - 1."""
        found: Array = -self.var_k1 - self._cov_d_k3
        return found

    @once
    def weight(self) -> Array:
        """[P] lambda, the weight of r - 1 in the mixture (`numbers.mixture`)."""
        g, gg = self.d + self.k3, self.d2 + self.k3k3 + 2 * self.dk3
        return best_weight(self.n, self.d, g, gg, self.d2 + self.dk3) * self._seen

    @once
    def _seen(self) -> Array:
        """[P] 1 - u of `numbers.mixture`."""
        k1k1, k1k3, k3k3 = (self.column(name) for name in ("k1.k1", "k1.k3", "k3.k3"))
        return 1.0 - unseen(self.sequences, k1k1 - 2 * k1k3 + k3k3)

    @once
    def iw_ess(self) -> Array:
        """[P] effective share of the tokens under w = q / sampler; nan where q is it."""
        return ratio(self.column("w") ** 2, self.n * self.column("ww"))

    @once
    def as_drawn(self) -> Bools:
        """[P] whether q drew the tokens, or a policy whose tokens weights hardly change.

        Not where p is `policy`: it has learned from these very tokens, and likes them better, or
        worse, than other draws.
        """
        if self.on_policy.all():  # as most are: without weights there is nothing to compute
            return self.on_policy
        learned = np.array([name.endswith("_policy") for name in self.pairs], dtype=np.bool_)
        found: Bools = self.on_policy | (~learned & (self.iw_ess >= NEARLY_ALL))
        return found

    @once
    def gap(self) -> Array:
        """[P] mean(k3) - mean(k1); nan: not `as_drawn`.

        Where another policy drew, sum w (r - 1) / sum w or sum w r / N - 1, which is nearer to 0,
        and 0 between them: if q has learned from these tokens the first alone is off, since w r is
        p / sampler.
        """
        plain = self.clustered.mean("gap")
        if self.on_policy.all():
            return plain
        w, wr = self.column("w"), self.column("w") + self.column("wd") + self.column("wk3")
        first, second = ratio(wr - w, w), ratio(wr, self.n) - 1
        nearer = np.sign(first) * np.minimum(np.abs(first), np.abs(second))
        weighted = np.where(first * second > 0, nearer, 0.0)
        mean = np.where(self.on_policy, plain, weighted)
        return self.where(self.as_drawn, mean)

    @property
    def gap_z(self) -> Array:
        """[P] gap over the error of the plain one, as a normal deviate."""
        found: Array = self._z[:, 0]
        return found

    @property
    def k2_bias_z(self) -> Array:
        """[P] bias of k2 over its error, likewise, whoever drew the tokens."""
        found: Array = self._z[:, 1]
        return found

    @once
    def _z(self) -> Array:
        sizes = np.array((self.absolute + self.k3, self.absolute + 0.5 * self.d2))
        means = np.array((self.gap, self.clustered.mean("k2_bias")))
        return self.clustered.z(("gap", "k2_bias"), means.T, ratio(sizes, self.n).T)

    @once
    def _mixed(self) -> Bools:
        """[P] whether k1 and k3 are: not where the gap test fails or q is not the sampler."""
        gap = np.abs(self.clustered.mean("gap"))
        missed = (np.abs(self.gap_z) > GAP_Z) & (gap > GAP_SHARE * self.clustered.mean("k3"))
        found: Bools = ~missed & self.on_policy & ~np.isnan(self.weight)
        return found

    @once
    def _mixing(self) -> Array:
        """[P] lambda, 0 where nothing is mixed."""
        found: Array = np.where(self._mixed, self.weight, 0.0)
        return found

    @property
    def mixture(self) -> Array:
        """[P] the mixture of k1 and k3, each token at the lambda of the others, nats."""
        k1, k3, weight = self.clustered.mean("k1"), self.clustered.mean("k3"), self._mixing
        mean = (1 - weight) * k1 + weight * k3
        for i in np.flatnonzero(self._mixed).tolist():
            others = leaving_one_out(self.histogram[i], *self.maxima[i].tolist())
            mean[i] += self._seen[i] * others
        return mean

    @property
    def mixture_se(self) -> Array:
        """[P] its error, lambda taken as given."""
        return self.clustered.combined_se({"k1": 1 - self._mixing, "k3": self._mixing})

    @once
    def signs(self) -> Signatures:
        """The signatures of causes."""
        return Signatures(self.signatures)

    @once
    def on_policy(self) -> Bools:
        """[P] whether every token was drawn from q."""
        found: Bools = self.column("on_policy") == self.n
        return found

    def where(self, condition: Bools, values: Array) -> Array:
        """[P] the values, nan elsewhere."""
        found: Array = np.where(condition, values, np.nan)
        return found

    @once
    def sum_r(self) -> Array:
        """[P] sum of r = 1 + d + k3."""
        found: Array = self.n + self.d + self.k3
        return found

    @once
    def sum_r2(self) -> Array:
        """[P] sum of r^2."""
        found: Array = self.n + self.d2 + self.k3k3 + 2 * (self.d + self.k3 + self.dk3)
        return found

    # --- the histogram -----------------------------------------------------------------------
    @once
    def cumulative(self) -> Array:
        """[P, HISTOGRAM] tokens up to each bucket."""
        found: Array = self.histogram.cumsum(axis=1)
        return found

    @property
    def positive_d(self) -> Array:
        """[P] tokens with d > 0."""
        found: Array = self.cumulative[:, -1] - self.cumulative[:, CENTRE - 1] - self.column("zero")
        return found

    def at_most(self, edge: float) -> Array:
        """[P] tokens with d <= -edge; the edge is one of a bucket."""
        found: Array = self.cumulative[:, CENTRE - edge_index(edge) - 1]
        return found

    def at_least(self, edge: float) -> Array:
        """[P] tokens with d >= edge."""
        found: Array = self.cumulative[:, -1] - self.cumulative[:, CENTRE + edge_index(edge) - 1]
        return found

    @once
    def quantiles(self) -> Array:
        """[`QUANTILES`, P] d at rank ceil(probability x N), to 0.8 % (numpy's ``inverted_cdf``)."""
        ranks = np.maximum(np.ceil(np.multiply.outer(self.n, QUANTILES)), 1) - 0.5
        pairs = zip(self.cumulative, ranks, strict=True)
        places = np.array([row.searchsorted(some) for row, some in pairs])
        middles = MIDDLES[np.minimum(places, len(MIDDLES) - 1)]
        known = (self.n > 0) & ~np.isnan(self.cumulative[:, -1])
        inside = np.clip(middles, -self.maxima[:, 1:], self.maxima[:, :1])
        return self.where(known, inside.T)

    # --- the rest ----------------------------------------------------------------------------
    def policy_count(self, name: str) -> Array:
        """[P] one of `fields.POLICY_COUNTS`, of both policies together."""
        column = POLICY_COUNTS.index(name)
        found: Array = self.q[:, column] + self.p[:, column]
        return found

    @once
    def low_precision(self) -> Array:
        """[P] whether a policy's log-probs are bfloat16 or float16 numbers."""
        counts = np.array((self.q, self.p))
        checked, formats = counts[..., _CHECKED, None], counts[..., _FORMATS]
        found = (checked > 0) & (formats >= LOW_PRECISION * checked)
        return np.asarray(found.any(axis=(0, 2)), dtype=np.float64)

    @once
    def dominance(self) -> Mapping[str, Dominances]:
        """What `numbers.dominance` finds, for k1 and for k3."""
        k1, k3 = [], []
        means = {name: self.clustered.mean(name).tolist() for name in ("k1", "k3")}
        core = {name: self.column(f"core/{name}").tolist() for name in ("n", "k3")}
        numbers = zip(
            self.n.tolist(), self.var_k1.tolist(), self.var_k3.tolist(), self.absolute.tolist(),
            strict=True,
        )  # fmt: skip
        for i, (n, var_k1, var_k3, absolute) in enumerate(numbers):
            keys = self.tokens[i, :, :MOST, KEY].tolist()
            if any(math.isnan(tail[0]) for tail in keys):  # a part came without its tokens
                n = math.nan
            left, right = ([key for key in tail if key > 0] for tail in keys)
            next_d = self._next_d(i, len(left), len(right)) if n > 0 else ()
            k1.append(dominance_k1(n, means["k1"][i], var_k1, absolute, left, right, next_d))
            k3.append(
                dominance_k3(
                    n, means["k3"][i], var_k3, left, right, core["n"][i], core["k3"][i], next_d
                )
            )
        return {"k1": Dominances.of(k1), "k3": Dominances.of(k3)}

    def _next_d(self, pair: int, left: int, right: int) -> tuple[float, float]:
        """D of the first token of each tail after so many, to 0.8 %; infinite: unknown."""
        upto = self.cumulative[pair]
        if math.isnan(upto[-1]):
            return -math.inf, math.inf  # a part came without its histogram
        places = upto.searchsorted((left + 0.5, upto[-1] - right - 0.5))
        low, high = MIDDLES[np.minimum(places, len(MIDDLES) - 1)].tolist()
        return min(low, 0.0), max(high, 0.0)

    @once
    def top_sequence_share(self) -> Array:
        """[P] largest share of sum_i (S1_i - mean T_i)^2 that one of `sequences` holds."""
        mean = self.clustered.mean("k1")
        whole = (
            self.column("k1.k1") - 2 * mean * self.column("t.k1") + mean * mean * self.column("t.t")
        )
        off = np.abs(self.sequences[..., _K1] - mean[:, None] * self.sequences[..., _T])
        keys = self.sequences[..., KEY]
        largest = np.where(keys >= 0, off, -1.0).max(axis=1)
        largest[np.isnan(keys).any(axis=1)] = -1.0  # a part came without its sequences
        share = np.minimum(largest * largest / whole, 1.0)
        return self.where((whole > 0) & (largest >= 0), share)


class Dominances(NamedTuple):
    """`Dominance` of every pair: each field [P]."""

    level: Array
    tokens: Array
    v: Array
    j: Array
    top_share: Array
    mean_without_top: Array

    @classmethod
    def of(cls, found: Sequence[Dominance]) -> Dominances:
        """By field."""
        table = np.array([one[: len(cls._fields)] for one in found], dtype=np.float64)
        return cls(*table.reshape(-1, len(cls._fields)).T)
