"""Which sequences or prompts carry a pair's estimate, as dominance says which tokens do.

The same question as for few tokens (`numbers.dominance`): the fewest that hold half of sum k3, or of
the spread of k1 over sequences, that stand apart from the next and pull the mean by errors of the
rest. Only the sixteen sequences of largest |S1| are known one by one; of prompts all are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from klmonitor.numbers.clusters import Array
from klmonitor.numbers.sums import KEY, StepSums
from klmonitor.summary.fields import SEQUENCE_FIELDS

HALF = 0.5
APART, PULL = 2.5, 6.0
"""Smallest sqrt(j) ln(w_j / w_(j+1)), and smallest pull in standard errors of the rest."""
MOST_SHARE = 4
"""At most one in so many sequences, or prompts, is few."""
SMALLEST = 1e-3
"""Nats: of a smaller mean k3 nobody asks who carries it."""
SAME = 1e-6
"""Relative difference of two sums over the same tokens."""
_FIELD = {name: i for i, name in enumerate(SEQUENCE_FIELDS)}
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


def few(
    t: Array, s: Array, totals: tuple[float, float, float, float, float], name: str
) -> Few | None:
    """The few of some clusters that carry ``"k1"`` or ``"k3"``; None: none do.

    Args:
        t: [n] tokens of those known one by one.
        s: [n] their sums of the estimator, nats.
        totals: over all: clusters B, sum T, sum S, and sum of T T, T S, S S as (B, T, S, ..)
            where the last two are given as sum (S - m T)^2 about the mean and sum T^2.
        name: of the estimator.
    """
    count, tokens, total, spread, squares_t = totals
    most = min(int(count // MOST_SHARE), len(t) - 1)
    if most < 1 or not tokens > 0:
        return None
    mean = total / tokens
    off = s - mean * t
    weights, whole = (off * off, spread) if name == "k1" else (s, total)
    order = np.argsort(-weights)
    if not whole > 0 or not weights[order[:most]].sum() >= HALF * whole:
        return None
    best: tuple[float, Few] | None = None
    for j in range(1, most + 1):
        chosen, following = order[:j], order[j]
        share = float(weights[chosen].sum() / whole)
        if share < HALF or not weights[order[j - 1]] > 0:
            continue
        nothing = not weights[following] > 0
        apart = (
            math.inf
            if nothing
            else math.sqrt(j) * math.log(weights[order[j - 1]] / weights[following])
        )
        rest_t, rest_s = tokens - t[chosen].sum(), total - s[chosen].sum()
        rest_mean = rest_s / rest_t
        # sum over the rest of (S - m T)^2 about its own mean, from that about the common one
        left = spread - (off[chosen] ** 2).sum()
        squares = left - 2 * (rest_mean - mean) * (rest_s - mean * rest_t)
        squares += (rest_mean - mean) ** 2 * (squares_t - (t[chosen] ** 2).sum())
        error = math.sqrt(max(squares, 0.0)) / rest_t
        if apart >= APART and abs(mean - rest_mean) >= PULL * error:
            found = apart, Few(tuple(chosen.tolist()), min(share, 1.0))
            best = found if best is None or apart > best[0] else best
    return None if best is None else best[1]


def carriers(step: StepSums, i: int) -> str:
    """What carries pair i's estimate: "4 of 32 sequences, all of one prompt, ..."; empty: nothing."""
    if not step.k3[i] > SMALLEST * step.n[i]:
        return ""
    known = step.sequences[i][step.sequences[i][:, KEY] > 0]
    dominated = {name: step.dominance[name].level[i] >= 1 for name in ("k1", "k3")}
    for name in ("k3", "k1"):
        of_prompts = _prompts(step, i, name)
        found = few(known[:, _FIELD["t"]], known[:, _FIELD[name]], _totals(step, i, name), name)
        if found is not None and not (dominated[name] and len(found.places) == 1):
            rows = known[list(found.places)]
            return _said(step, i, name, found, rows)
        if of_prompts is not None and not dominated[name]:
            count = step.clustered.prompts[i]
            return (
                f"{len(of_prompts.places)} of {count:.0f} prompts hold {of_prompts.share:.0%} of "
                f"{_WHOLE[name]}"
            )
    return ""


_WHOLE = {"k1": "the spread of k1", "k3": "sum k3"}


def _totals(step: StepSums, i: int, name: str) -> tuple[float, float, float, float, float]:
    """Of all sequences, as `few` wants them."""
    tokens, total = float(step.n[i]), float(step.k3[i] if name == "k3" else -step.d[i])
    mean = total / tokens
    tt = float(step.column("t.t")[i])
    spread = float(
        step.column(f"{name}.{name}")[i] - 2 * mean * step.column(f"t.{name}")[i] + mean * mean * tt
    )
    return float(step.column("sequences")[i]), tokens, total, max(spread, 0.0), tt


def _buckets(step: StepSums, i: int) -> Array:
    """[prompts, 4] sums of the prompts that have tokens; empty where not all are known."""
    rows = step.prompts[i].reshape(-1, step.prompts.shape[-1])
    found: Array = rows[rows[:, 0] > 0] if step.clustered.prompts[i] > 0 else rows[:0]
    return found


def _prompts(step: StepSums, i: int, name: str) -> Few | None:
    rows = _buckets(step, i)
    if not len(rows):
        return None
    t, s = rows[:, 0], rows[:, _SUMS[name]]
    mean = s.sum() / t.sum()
    spread = float(((s - mean * t) ** 2).sum())
    totals = (float(len(t)), float(t.sum()), float(s.sum()), spread, float((t * t).sum()))
    return few(t, s, totals, name)


def _said(step: StepSums, i: int, name: str, found: Few, rows: Array) -> str:
    count = step.column("sequences")[i]
    one = _one_prompt(_buckets(step, i), rows)
    verb = "holds" if len(rows) == 1 else "hold"
    return (
        f"{len(rows)} of {count:.0f} sequences{', all of one prompt,' if one else ''} {verb} "
        f"{found.share:.0%} of {_WHOLE[name]} ({_places(rows.tolist())})"
    )


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


def _places(rows: Sequence[Sequence[float]], most: int = 4) -> str:
    named = [
        f"{row[_FIELD['sequence']]:.0f} of micro-batch {row[_FIELD['micro_batch']]:.0f}"
        for row in rows[:most]
    ]
    more = f" and {len(rows) - most} more" if len(rows) > most else ""
    return "sequence " + ", ".join(named) + more
