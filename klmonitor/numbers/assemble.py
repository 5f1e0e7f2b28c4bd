"""From a summary on the host to the numbers of a step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache, partial
from types import MappingProxyType

import numpy as np

from klmonitor.numbers import receipt as receipts
from klmonitor.numbers.buckets import coarse_histogram
from klmonitor.numbers.clusters import Array, Clustered, divided
from klmonitor.numbers.metrics import AT_ONCE, LATER, Of
from klmonitor.numbers.receiptrows import RowSums, of_audit
from klmonitor.numbers.sums import KEY, StepSums
from klmonitor.penalty import Penalty
from klmonitor.report import ExtremeToken, ExtremeTokens, Later, PairReport, Part, Values
from klmonitor.summary.fields import TAILS

ExtraValues = Callable[[str, Mapping[str, float], Array], Mapping[str, float]]
"""Called with a pair's name, its values so far and its histogram, [HISTOGRAM] counts of d."""


def pair_reports(
    step: StepSums,
    extra: ExtraValues | None = None,
    workers: Sequence[str] = (),
    penalties: Mapping[str, Penalty] = MappingProxyType({}),
) -> dict[str, PairReport]:
    """Every metric of every pair that follows from a step's sums.

    Args:
        step: the sums; not looked at any more once all that is made later was.
        extra: adds values of an adapter's own.
        workers: names of those whose parts were merged: token fields have -1 - index as rank.
        penalties: pair -> the KL term that the objective has on it.
    """
    if not step.pairs:
        return {}
    at_once, later = _computed(AT_ONCE, step), Later(partial(_computed, LATER, step))
    groups = list(_group_values(step))
    found = {}
    for i, pair in enumerate(step.pairs):
        values = Values(at_once[i] | groups[i], [Part(LATER, partial(later.__getitem__, i))])
        more = {} if extra is None else dict(extra(pair, values, step.histogram[i]))
        parts, penalty, rows = [], penalties.get(pair), RowSums(step.pulls[i])
        if penalty is not None:
            penalty = receipts.weighing(penalty, rows.beta(penalty.beta))
            more |= receipts.at_once(penalty, step, i)
            parts.append(Part(receipts.NAMES, partial(receipts.receipt, penalty, step, i)))
        more |= of_audit(rows, math.nan if penalty is None else penalty.beta)
        found[pair] = PairReport(
            pair,
            values.joined(more, *parts),
            ExtremeTokens(partial(extreme_tokens, pair, step.tokens[i], workers)),
            Later(partial(coarse_histogram, step.histogram[i])),
            penalty="" if penalty is None else _said(penalty),
        )
    return found


_said = lru_cache(64)(str)
"""A penalty in words."""


def _computed(table: Mapping[str, Of], step: StepSums) -> list[dict[str, float]]:
    """Some rows of the table of metrics: a dictionary a pair."""
    with np.errstate(all="ignore"):
        found = divided([of(step) for of in table.values()], len(step.pairs))
    return [dict(zip(table, column, strict=True)) for column in found.T.tolist()]


def _group_values(step: StepSums) -> Iterator[dict[str, float]]:
    """k1 and k3 of each group that has tokens, with their errors, pair by pair."""
    if len(step.groups) == 1:
        yield from ({} for _ in step.pairs)
        return
    with np.errstate(all="ignore"):
        by_group = Clustered(step.by_group, step.prompts)
        numbers = {
            f"{name}/{what}": of(name).tolist()
            for name in ("k1", "k3")
            for what, of in (("mean", by_group.mean), ("se", by_group.se))
        }
    seen = by_group.totals[..., 0] > 0
    for i in range(len(step.pairs)):
        yield {
            f"group/{group}/{name}": values[i][g]
            for g, group in enumerate(step.groups)
            if seen[i, g]
            for name, values in numbers.items()
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
