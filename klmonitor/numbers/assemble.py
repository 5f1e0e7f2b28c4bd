"""From a summary on the host to the report of a step."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from klmonitor.compiled import Compiled
from klmonitor.numbers.buckets import N_DRAWN, Array, coarse_histogram
from klmonitor.numbers.metrics import COMPUTED
from klmonitor.numbers.statistics import HELPERS, N_RUNNING, group_values, pair_numbers
from klmonitor.pairs import PAIRS, POLICY_INDEX
from klmonitor.report import ExtremeToken, ExtremeTokens, Later, PairReport
from klmonitor.summary.fields import (
    COLUMN,
    HISTOGRAM,
    PER_SEQUENCE,
    POLICY_COUNTS,
    SEQUENCE_FIELDS,
    TAILS,
    TOKEN_FIELDS,
)
from klmonitor.summary.state import Summary

ExtraValues = Callable[[str, Mapping[str, float], Array], Mapping[str, float]]
"""Called with a pair's name, its values so far and its histogram, [HISTOGRAM] counts of d."""
KEY = 0
"""The field that orders tokens; -inf: there is none."""


def _nothing() -> tuple[Any, ...]:
    """Arguments of `pair_numbers` for a pair without tokens."""
    shapes = {
        "sums": (1, len(COLUMN)),
        "histogram": (HISTOGRAM,),
        "prompts": (1, 0, len(PER_SEQUENCE)),
        "q": (len(POLICY_COUNTS),),
        "p": (len(POLICY_COUNTS),),
        "maxima": (2,),
        "tokens": (len(TAILS), 1, len(TOKEN_FIELDS)),
        "sequences": (1, len(SEQUENCE_FIELDS)),
        "running": (N_RUNNING,),
    }
    return *map(np.zeros, shapes.values()), 1.0, np.empty(len(COMPUTED)), np.empty(N_DRAWN)


numbers = Compiled(pair_numbers, HELPERS, _nothing)


def _nonzero(sums: Array) -> list[int]:
    """Which rows of [rows, ...] are not all 0."""
    return [i for i in range(len(sums)) if sums[i].any()]


nonzero = Compiled(_nonzero, (), lambda: (np.ones((1, 1, 1)),))


class PairTotals(NamedTuple):
    """What a summary on the host holds of one pair, as views of its memory.

    Attributes:
        groups: names of the groups.
        policies: [POLICY_COUNTS] of q and of p.
        sums: [groups, COLUMNS].
        histogram: [HISTOGRAM] counts of d by bucket.
        prompts: [groups, buckets, 4] sums by prompt.
        maxima: the largest d and the largest -d.
        tokens: [2, top, TOKEN_FIELDS], the extreme tokens of both tails, largest first.
        sequences: [top, SEQUENCE_FIELDS], the most influential ones.
    """

    groups: tuple[str, ...]
    policies: tuple[Array, Array]
    sums: Array
    histogram: Array
    prompts: Array
    maxima: Array
    tokens: Array
    sequences: Array


def pair_totals(summary: Summary) -> dict[str, PairTotals]:
    """The sums of each pair that has counted tokens or non-finite ones, by pair name."""
    policies, found = summary.arrays["policies"], {}
    for i in nonzero(summary.arrays["sums"]):
        pair = PAIRS[i]
        both = policies[POLICY_INDEX[pair.q]], policies[POLICY_INDEX[pair.p]]
        found[pair.name] = PairTotals(summary.config.all_groups, both, **summary.by_pair[i])
    return found


def pair_report(
    name: str,
    totals: PairTotals,
    running: Array,
    decay: float = math.nan,
    extra: ExtraValues | None = None,
) -> PairReport:
    """The report of a pair at one step: every metric that follows from its sums.

    Args:
        name: the pair's.
        totals: of the step; not looked at any more once this returns.
        running: running sums, to which these are added.
        decay: of the running sums before; nan: these are not added.
        extra: adds values of an adapter's own.
    """
    found, drawn, tokens = np.empty(len(COMPUTED)), np.empty(N_DRAWN), totals.tokens.copy()
    numbers(
        totals.sums,
        totals.histogram,
        totals.prompts,
        *totals.policies,
        totals.maxima,
        tokens,
        totals.sequences,
        running,
        decay,
        found,
        drawn,
    )
    values = dict(zip(COMPUTED, found.tolist(), strict=True))
    if len(totals.groups) > 1:
        for i, group in enumerate(totals.groups):
            values |= group_values(group, totals.sums[i], totals.prompts[i : i + 1])
    if extra is not None:
        values |= extra(name, values, totals.histogram)
    extremes = ExtremeTokens(partial(extreme_tokens, name, tokens))
    return PairReport(name, values, extremes, Later(partial(coarse_histogram, drawn)))


def extreme_tokens(pair: str, tokens: Array, number: int | None = None) -> list[ExtremeToken]:
    """The kept tokens of both tails as host data, most extreme first, left tail first.

    Args:
        pair: its name.
        tokens: [2, top, TOKEN_FIELDS].
        number: of each tail at most.
    """
    return [
        _token(pair, tail, record)
        for tail, records in zip(TAILS, tokens[:, :number].tolist(), strict=True)
        for record in records
        if record[KEY] > 0
    ]


def _token(pair: str, tail: str, record: Sequence[float]) -> ExtremeToken:
    """A token from its record, whose fields are `TOKEN_FIELDS` in order."""
    key, rank, micro_batch, sequence, position, log_q, log_p, token_id, prompt_id = record
    return ExtremeToken(
        pair,
        tail,
        key if tail == "right" else -key,
        log_q,
        log_p,
        int(rank),
        int(micro_batch),
        int(sequence),
        int(position),
        int(token_id) if token_id >= 0 else None,
        int(prompt_id) if prompt_id >= 0 else None,
    )
