"""Which sequences, prompts or groups carry a pair's estimate, as dominance says for tokens.

The question asked of few tokens (`numbers.dominance`): the fewest that hold half of sum k3, or of
the spread of k1 over sequences, that stand apart from the next and pull the mean by errors of the
rest. Only the sixteen sequences of largest |S1| are known one by one; of prompts all are.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from klmonitor.boundary import inert
from klmonitor.numbers.buckets import MIDDLES
from klmonitor.numbers.clusters import Array, Floats
from klmonitor.numbers.student import deviate_of_t
from klmonitor.numbers.sums import KEY, StepSums
from klmonitor.report.values import of_groups
from klmonitor.summary.fields import CLAMP, COLUMN, SEQUENCE_FIELDS

HALF = 0.5
APART, PULL = 2.5, 6.0
"""Smallest sqrt(j) ln(w_j / w_(j+1)), and smallest pull in standard errors of the rest."""
OWN = 0.85
"""Of what few sequences hold: if few tokens hold as much, it is these tokens, not the sequences."""
CHANCE = 1e-4
"""Odd tokens that fall here and there fall into few sequences by chance: judged at every step of a
run, a smaller chance is none."""
MOST_SHARE = 4
"""At most one in so many sequences, or prompts, is few."""
SMALLEST = 1e-3
"""Nats: of a smaller mean k3 nobody asks who carries it."""
SAME = 1e-6
"""Relative difference of two sums over the same tokens."""
FAR, ERRORS, SURE = 4.0, 5.0, 3.0
"""Times every other group's mean (several, as `surge` has it), standard errors above it, and as a
deviate by Student's t, whose clusters are few in a group, from which a group is apart."""
_FIELD = {name: i for i, name in enumerate(SEQUENCE_FIELDS)}
_T, _RANK = _FIELD["t"], _FIELD["rank"]
_SUMS = {"k1": 1, "k3": 3}
"""Place of an estimator in the sums of a prompt, (T, S1, S2, S3)."""


@dataclass(frozen=True)
class Few:
    """The few that carry an estimator.

    Attributes:
        places: indices into what was asked about.
        share: of sum k3, or of the spread of k1, that they hold.
    """

    places: tuple[int, ...]
    share: float


class Totals(NamedTuple):
    """Over all clusters, also those that are not known one by one.

    Attributes:
        clusters: B.
        t, s: sum T and sum S.
        tt, ts, ss: sums over clusters of T T, T S and S S.
    """

    clusters: float
    t: float
    s: float
    tt: float
    ts: float
    ss: float

    @classmethod
    def of(cls, t: Floats, s: Floats) -> Totals:
        """Of clusters that are all known."""
        tt, ss = sum(x * x for x in t), sum(y * y for y in s)
        return cls(len(t), sum(t), sum(s), tt, sum(x * y for x, y in zip(t, s, strict=True)), ss)

    def about(self, mean: float) -> float:
        """Sum (S - mean T)^2."""
        return max(self.ss - 2 * mean * self.ts + mean * mean * self.tt, 0.0)

    def without(self, t: float, s: float) -> Totals:
        """Without one cluster."""
        return Totals(
            self.clusters - 1,
            self.t - t,
            self.s - s,
            self.tt - t * t,
            self.ts - t * s,
            self.ss - s * s,
        )


def few(t: Floats, s: Floats, totals: Totals, name: str) -> Few | None:
    """The few of some clusters that carry ``"k1"`` or ``"k3"``; None: none do.

    Args:
        t: tokens of those known one by one.
        s: their sums of the estimator, nats.
        totals: over all.
        name: of the estimator.
    """
    most = min(int(totals.clusters // MOST_SHARE), len(t) - 1)
    if most < 1 or not totals.t > 0:
        return None
    mean = totals.s / totals.t
    weights, whole = s, totals.s
    if name == "k1":
        off = [y - mean * x for x, y in zip(t, s, strict=True)]
        weights, whole = [x * x for x in off], totals.about(mean)
    order = sorted(range(len(t)), key=weights.__getitem__, reverse=True)
    if not (whole > 0 and sum(weights[i] for i in order[:most]) >= HALF * whole):
        return None
    best, found, held, rest = APART, None, 0.0, totals
    for j, place in enumerate(order[:most], 1):
        last, following = weights[place], weights[order[j]]
        held, rest = held + last, rest.without(t[place], s[place])
        if held < HALF * whole or not last > 0:
            continue
        apart = math.sqrt(j) * math.log(last / following) if following > 0 else math.inf
        rest_mean = rest.s / rest.t
        error = math.sqrt(rest.about(rest_mean)) / rest.t
        if apart > best and abs(mean - rest_mean) >= PULL * error:
            best, found = apart, Few(tuple(order[:j]), min(held / whole, 1.0))
    return found


@dataclass(frozen=True)
class Carriers:
    """What carries a pair's estimate.

    Attributes:
        text: "4 of 32 sequences, all of one prompt, hold ..."; empty: nothing does.
        tokens: of these sequences or prompts.
    """

    text: str = ""
    tokens: float = 0.0


def carriers(sums: StepSums) -> Carriers:
    """What carries a pair of a step."""
    if not sums.k3 > SMALLEST * sums.n:
        return Carriers()
    count = sums.clustered.prompts
    known: list[list[float]] = [row for row in sums.sequences.tolist() if row[KEY] > 0]
    prompts = _buckets(sums).tolist() if count >= MOST_SHARE else []
    t = [row[_T] for row in known]
    for name in ("k3", "k1"):
        by_tokens = _by_tokens(sums, name)
        s = [row[_FIELD[name]] for row in known]
        found = few(t, s, _totals(sums, name), name)
        if found is not None and not by_tokens >= OWN * found.share:
            tokens, every = sum(t[i] for i in found.places), sums.column("sequences")
            if not _by_chance(sums, name, found, tokens, every):
                ranks = {row[_RANK] for row in known}
                return _said(sums, name, found, [known[i] for i in found.places], tokens, ranks)
        of_prompts = _prompts(prompts, name)
        if of_prompts is not None and not by_tokens >= HALF:
            tokens = sum(prompts[i][0] for i in of_prompts.places)
            if not _by_chance(sums, name, of_prompts, tokens, count):
                few_of = f"{len(of_prompts.places)} of {count:.0f} prompts"
                text = f"{few_of} hold {of_prompts.share:.0%} of {_WHOLE[name]}"
                return Carriers(text, tokens)
    return Carriers()


def _by_tokens(sums: StepSums, name: str) -> float:
    """The share that a few tokens hold already; 0 where they do not carry it."""
    found = sums.dominance[name]
    share = found.v if name == "k1" else found.top_share
    return share if found.level >= 1 and share >= HALF else 0.0


def _by_chance(sums: StepSums, name: str, found: Few, tokens: float, clusters: float) -> bool:
    """Whether odd tokens that lie anywhere would put as much into some j of the clusters.

    m tokens, the fewest that hold `OWN` of the whole, each in the j with the share f of all tokens:
    of `found.share` of them the chance is exp(-m KL(share, f)) at most (Chernoff), for any j of B
    clusters times B over j.

    Args:
        sums: the pair's.
        name: ``"k1"`` or ``"k3"``.
        found: the j clusters.
        tokens: that they have.
        clusters: B.
    """
    share, f, j = min(found.share, 1.0), tokens / sums.n, len(found.places)
    if not f < share:
        return True
    d = np.clip(MIDDLES, -min(sums.smallest, CLAMP), min(sums.largest, CLAMP))
    odd = np.expm1(d) - d if name == "k3" else (d - sums.d / sums.n) ** 2
    order = np.argsort(-odd)
    counts = sums.histogram[order]
    held = (counts * odd[order]).cumsum()
    enough = int(np.searchsorted(held, OWN * held[-1]))
    others = counts[:enough].sum()
    m = others + (OWN * held[-1] - (held[enough - 1] if enough else 0.0)) / odd[order[enough]]
    far = share * math.log(share / f)
    far += (1 - share) * math.log((1 - share) / (1 - f)) if share < 1 else 0.0
    ways = math.lgamma(clusters + 1) - math.lgamma(j + 1) - math.lgamma(clusters - j + 1)
    return bool(ways - m * far > math.log(CHANCE))


_COLUMNS = {
    name: [COLUMN[one] for one in ("sequences", "t.t", f"t.{name}", f"{name}.{name}")]
    for name in _SUMS
}
_WHOLE = {"k1": "the spread of k1", "k3": "sum k3"}


def _totals(sums: StepSums, name: str) -> Totals:
    """Of all sequences."""
    total = sums.k3 if name == "k3" else -sums.d
    count, tt, ts, ss = (sums.columns[i] for i in _COLUMNS[name])
    return Totals(count, sums.n, total, tt, ts, ss)


def _buckets(sums: StepSums) -> Array:
    """[prompts, 4] sums of the prompts that have tokens; empty where not all are known."""
    return sums.all_prompts if sums.clustered.prompts > 0 else sums.all_prompts[:0]


def _prompts(rows: Sequence[Floats], name: str) -> Few | None:
    if len(rows) < MOST_SHARE:
        return None
    t, s = ([row[i] for row in rows] for i in (0, _SUMS[name]))
    return few(t, s, Totals.of(t, s), name)


def _said(
    sums: StepSums,
    name: str,
    found: Few,
    rows: Sequence[Floats],
    tokens: float,
    ranks: Collection[float],
) -> Carriers:
    count = sums.column("sequences")
    alike = ["one prompt"] if _one_prompt(_buckets(sums), np.array(rows)) else []
    if len(ranks) > 1 and len({row[_RANK] for row in rows}) == 1 < len(rows):
        rank = rows[0][_RANK]
        alike.append("one worker" if rank < 0 else f"rank {rank:.0f}")
    verb = "holds" if len(rows) == 1 else "hold"
    shared = f", all of {' and '.join(alike)}," if alike else ""
    text = (
        f"{len(rows)} of {count:.0f} sequences{shared} {verb} "
        f"{found.share:.0%} of {_WHOLE[name]} ({_places(rows)})"
    )
    return Carriers(text, tokens)


def _one_prompt(prompts: Array, rows: Array) -> bool:
    """Whether the tokens of some sequences are all that one prompt has."""
    if len(rows) < 2 or not len(prompts):
        return False
    mine = rows[:, [_FIELD["t"], _FIELD["k1"], _FIELD["k3"]]].sum(axis=0)
    near = np.abs(prompts[:, [0, 1, 3]] - mine) <= SAME * (np.abs(mine) + 1)
    if near.all(axis=1).any():
        return True
    # fewer than all completions of the prompt: it has as many tokens, and nearly all of the sum
    within = (prompts[:, 0] >= mine[0]) & (np.abs(prompts[:, 3] - mine[2]) <= 0.1 * abs(mine[2]))
    return bool(within.any() and prompts[within, 0].min() < 2 * mine[0])


def _places(rows: Sequence[Floats], most: int = 4) -> str:
    named = [
        f"{row[_FIELD['sequence']]:.0f} of micro-batch {row[_FIELD['micro_batch']]:.0f}"
        for row in rows[:most]
    ]
    more = f" and {len(rows) - most} more" if len(rows) > most else ""
    return "sequence " + ", ".join(named) + more


def group_apart(values: Mapping[str, float]) -> str:
    """In words, the one declared group that is far above all others and makes most of the KL.

    By k3, else by k1, which alone tells of a group that has collapsed. How many tokens a group has
    is in no metric: its share of the sum is at least what it would be if all other groups were at
    the largest of theirs, and that must be half. Nor may a few tokens make it, which are named
    themselves. Empty: there is no such group.

    Args:
        values: the pair's metrics.
    """
    known = [
        name.removeprefix("group/").removesuffix("/k3/mean")
        for name in of_groups(values)
        if name.endswith("/k3/mean")
    ]
    if len(known) < 2:
        return ""
    return _apart(values, known, "k3") or _apart(values, known, "k1")


def _apart(values: Mapping[str, float], groups: Sequence[str], estimator: str) -> str:
    means = {group: values[f"group/{group}/{estimator}/mean"] for group in groups}
    second, first = sorted(means, key=means.__getitem__)[-2:]
    high, low = means[first], means[second]
    errors = (values.get(f"group/{group}/{estimator}/se", math.nan) for group in (first, second))
    t = (high - low) / error if (error := math.hypot(*errors)) > 0 else math.nan
    clusters = values.get("clusters", math.nan) / len(groups)
    if not (high > FAR * low and t > ERRORS and deviate_of_t(t, clusters - 1) > SURE):
        return ""
    mean = values.get(f"{estimator}/mean", math.nan)
    if not (mean - low) / (high - low) * high >= HALF * mean > 0:
        return ""
    rest = values.get(f"{estimator}/mean_without_top", math.nan)
    carried = values.get(f"dominance/{estimator}/level", math.nan) >= 1
    if carried and not rest - low >= HALF * (mean - low):
        return ""
    others = f"{inert(second)}'s" if len(groups) == 2 else "the others'"
    most = "" if len(groups) == 2 else " at most"
    return f"{estimator} of group {inert(first)} is {high:.3g} nats, {others} {low:.3g}{most}"
