"""From a summary on the host to the report of a step."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from klmonitor.buckets import Array, coarse_histogram
from klmonitor.compiled import Compiled
from klmonitor.metrics import COMPUTED
from klmonitor.pairs import PAIRS, POLICIES
from klmonitor.report import ExtremeToken, ExtremeTokens, PairReport
from klmonitor.statistics import HELPERS, N_RUNNING, group_values, pair_numbers
from klmonitor.summary.layout import (
    COLUMN,
    HISTOGRAM,
    PER_SEQUENCE,
    POLICY_COUNTS,
    SEQUENCE_FIELDS,
    TAILS,
    TOKEN_FIELDS,
)
from klmonitor.summary.state import Summary

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
    return *map(np.zeros, shapes.values()), 1.0, np.empty(len(COMPUTED))


numbers = Compiled(pair_numbers, HELPERS, _nothing)


@dataclass(frozen=True)
class PairTotals:
    """What a summary on the host holds of one pair, as views of its memory.

    Attributes:
        groups: names of the groups.
        sums: [groups, COLUMNS].
        histogram: [HISTOGRAM] counts of d by bucket.
        prompts: [groups, buckets, 4] sums by prompt.
        policies: [POLICY_COUNTS] of q and of p.
        maxima: the largest d and the largest -d.
        tokens: [2, top, TOKEN_FIELDS], the extreme tokens of both tails, largest first.
        sequences: [top, SEQUENCE_FIELDS], the most influential ones.
    """

    groups: tuple[str, ...]
    sums: Array
    histogram: Array
    prompts: Array
    policies: tuple[Array, Array]
    maxima: Array
    tokens: Array
    sequences: Array

    def values(self, running: Array, decay: float = math.nan) -> dict[str, float]:
        """Every metric that follows from these and the running sums, by name.

        Args:
            running: running sums, to which these are added.
            decay: of the running sums before; nan: these are not added.
        """
        found = np.empty(len(COMPUTED))
        numbers(
            self.sums,
            self.histogram,
            self.prompts,
            *self.policies,
            self.maxima,
            self.tokens,
            self.sequences,
            running,
            decay,
            found,
        )
        values = dict(zip(COMPUTED, found.tolist(), strict=True))
        if len(self.groups) > 1:
            for i, group in enumerate(self.groups):
                values |= group_values(group, self.sums[i], self.prompts[i : i + 1])
        return values


def pair_totals(summary: Summary) -> dict[str, PairTotals]:
    """The sums of each pair that has counted tokens or non-finite ones, by pair name."""
    policies, found = summary.arrays["policies"], {}
    seen = [any(map(any, rows)) for rows in summary.arrays["sums"].tolist()]
    for pair, part, has_tokens in zip(PAIRS, summary.by_pair, seen, strict=True):
        if has_tokens:
            found[pair.name] = PairTotals(
                groups=summary.config.all_groups,
                policies=(policies[POLICIES.index(pair.q)], policies[POLICIES.index(pair.p)]),
                **part,
            )
    return found


def pair_report(name: str, totals: PairTotals, values: Mapping[str, float]) -> PairReport:
    """The report of a pair at one step, with these values."""
    return PairReport(
        name=name,
        values=values,
        extremes=extreme_tokens(totals, name),
        histogram=coarse_histogram(totals.histogram),
    )


def extreme_tokens(totals: PairTotals, pair: str) -> ExtremeTokens:
    """The kept tokens of both tails as host data, most extreme first, left tail first."""
    tails = zip(TAILS, totals.tokens.tolist(), strict=True)
    return ExtremeTokens(
        partial(_token, pair),
        {tail: [record for record in kept if record[KEY] > 0] for tail, kept in tails},
    )


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
