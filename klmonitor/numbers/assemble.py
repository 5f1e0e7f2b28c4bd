"""From a summary on the host to the numbers of a step."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from types import MappingProxyType

import numpy as np

from klmonitor.numbers import receipt as receipts
from klmonitor.numbers.buckets import coarse_histogram
from klmonitor.numbers.clusters import Array
from klmonitor.numbers.metrics import AT_ONCE, LATER, Of
from klmonitor.numbers.receiptrows import RowSums, of_audit
from klmonitor.numbers.sums import KEY, StepSums
from klmonitor.penalty import Penalty
from klmonitor.report import ExtremeToken, ExtremeTokens, Later, PairReport, Part, Values
from klmonitor.summary.fields import TAILS

ExtraValues = Callable[[str, Mapping[str, float], Array], Mapping[str, float]]
"""Called with a pair's name, its values so far and its histogram, [HISTOGRAM] counts of d."""


def pair_reports(
    steps: Mapping[str, StepSums],
    extra: ExtraValues | None = None,
    workers: Sequence[str] = (),
    penalties: Mapping[str, Penalty] = MappingProxyType({}),
) -> dict[str, PairReport]:
    """Every metric of every pair that follows from a step's sums.

    Args:
        steps: pair -> its sums; not looked at from here any more once all that is made later was.
        extra: adds values of an adapter's own.
        workers: names of those whose parts were merged: token fields have -1 - index as rank.
        penalties: pair -> the KL term that the objective has on it.
    """
    return {
        pair: _report(sums, extra, workers, penalties.get(pair)) for pair, sums in steps.items()
    }


def _report(
    sums: StepSums, extra: ExtraValues | None, workers: Sequence[str], penalty: Penalty | None
) -> PairReport:
    pair, rows = sums.pair, RowSums(sums.pulls)
    values = Values(
        _computed(AT_ONCE, sums) | _group_values(sums),
        [Part(LATER, partial(_computed, LATER, sums))],
    )
    more = {} if extra is None else dict(extra(pair, values, sums.histogram))
    parts = []
    if penalty is not None:
        penalty = receipts.weighing(penalty, rows.beta(penalty.beta))
        more |= receipts.at_once(penalty, sums)
        parts.append(Part(receipts.NAMES, partial(receipts.receipt, penalty, sums)))
    more |= of_audit(rows, math.nan if penalty is None else penalty.beta)
    return PairReport(
        pair,
        values.joined(more, *parts),
        ExtremeTokens(partial(extreme_tokens, pair, sums.tokens, workers)),
        Later(partial(coarse_histogram, sums.histogram)),
        penalty="" if penalty is None else _said(penalty),
    )


_said = lru_cache(64)(str)
"""A penalty in words."""


def _computed(table: Mapping[str, Of], sums: StepSums) -> dict[str, float]:
    """Some rows of the table of metrics."""
    with np.errstate(all="ignore"):
        return {name: of(sums) for name, of in table.items()}


def _group_values(sums: StepSums) -> dict[str, float]:
    """k1 and k3 of each group that has tokens, with their errors."""
    if len(sums.groups) == 1:
        return {}
    with np.errstate(all="ignore"):
        groups = sums.by_groups()
    return {
        f"group/{group}/{name}/{what}": of(name)
        for group, one in groups.items()
        for name in ("k1", "k3")
        for what, of in (("mean", one.mean), ("se", one.se))
    }


def extreme_tokens(
    pair: str, tokens: Array, workers: Sequence[str] = (), number: int | None = None
) -> list[ExtremeToken]:
    """The kept tokens of both tails as host data, most extreme first, left tail first.

    Args:
        pair: its name.
        tokens: [2, top, TOKEN_FIELDS].
        workers: see `pair_reports`.
        number: of each tail at most.
    """
    return [
        _token(pair, tail, row, workers)
        for tail, rows in zip(TAILS, tokens[:, :number].tolist(), strict=True)
        for row in rows
        if row[KEY] > 0
    ]


def _token(pair: str, tail: str, row: Sequence[float], workers: Sequence[str]) -> ExtremeToken:
    """A token from its row, whose fields are `TOKEN_FIELDS` in order."""
    key, rank, micro_batch, sequence, position, log_q, log_p, token_id, prompt_id = row
    return ExtremeToken(
        pair,
        tail,
        key if tail == "right" else -key,
        log_q,
        log_p,
        max(int(rank), 0),
        int(micro_batch),
        int(sequence),
        int(position),
        int(token_id) if token_id >= 0 else None,
        int(prompt_id) if prompt_id >= 0 else None,
        worker=workers[-1 - int(rank)] if rank < 0 else None,
    )
