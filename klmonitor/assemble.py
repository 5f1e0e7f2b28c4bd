"""From a summary on the host to the report of a step."""

from __future__ import annotations

from collections.abc import Mapping

from klmonitor.buckets import coarse_histogram
from klmonitor.metrics import pair_values
from klmonitor.pairs import PAIR_INDEX, PAIRS, POLICIES
from klmonitor.report import ExtremeToken, PairReport
from klmonitor.statistics import PairTotals
from klmonitor.summary.layout import COLUMN, SEQUENCE_FIELDS, TAILS
from klmonitor.summary.state import Summary

SEEN = [COLUMN[name] for name in ("core/n", "tail/n", "nan", "inf")]
"""Columns of which one is positive where a pair had tokens."""
KEY = 0
"""The field that orders tokens and sequences; -inf: there is none."""
T_AND_S1 = [SEQUENCE_FIELDS.index("t"), SEQUENCE_FIELDS.index("k1")]


def pair_totals(summary: Summary) -> dict[str, PairTotals]:
    """The sums of each pair that has counted tokens or non-finite ones, by pair name."""
    seen = summary.arrays["sums"][:, :, SEEN].sum((1, 2)).tolist()
    return {
        pair.name: _totals(summary, pair.name)
        for pair, tokens in zip(PAIRS, seen, strict=True)
        if tokens > 0
    }


def _totals(summary: Summary, pair: str) -> PairTotals:
    index, config = PAIR_INDEX[pair], summary.config
    names, policies = config.all_groups, summary.arrays["policies"]
    arrays = {name: array[index] for name, array in summary.arrays.items() if name != "policies"}
    prompts = arrays["prompts"] if config.buckets_per_group else ()
    sequences = arrays["sequences"]
    high, low = arrays["maxima"].tolist()
    return PairTotals(
        sums=arrays["sums"].sum(0),
        groups=dict(zip(names, arrays["sums"], strict=True)),
        histogram=arrays["histogram"],
        prompts=dict(zip(names, prompts, strict=False)),
        policy_counts=(
            policies[POLICIES.index(PAIRS[index].q)],
            policies[POLICIES.index(PAIRS[index].p)],
        ),
        maxima=(high, low),
        tails=tuple(keys[keys > 0] for keys in arrays["tokens"][:, :, KEY]),
        top_sequences=sequences[sequences[:, KEY] >= 0][:, T_AND_S1],
    )


def pair_report(
    name: str,
    totals: PairTotals,
    summary: Summary,
    running: Mapping[str, float],
    more: Mapping[str, float] | None = None,
) -> PairReport:
    """All numbers of a pair at one step, with those that an adapter adds."""
    return PairReport(
        name=name,
        values=pair_values(totals, dict(running)) | dict(more or {}),
        extremes=extreme_tokens(summary, name),
        histogram=coarse_histogram(totals.histogram),
    )


def extreme_tokens(summary: Summary, pair: str) -> tuple[ExtremeToken, ...]:
    """The kept tokens of both tails as host data, most extreme first, left tail first."""
    records = summary.tokens[PAIR_INDEX[pair]].tolist()
    return tuple(
        _token(pair, tail, *record)
        for tail, kept in zip(TAILS, records, strict=True)
        for record in kept
        if record[0] > 0
    )


def _token(
    pair: str,
    tail: str,
    key: float,
    rank: float,
    micro_batch: float,
    sequence: float,
    position: float,
    log_q: float,
    log_p: float,
    token_id: float,
    prompt_id: float,
) -> ExtremeToken:
    """A token from its record, whose fields are `TOKEN_FIELDS` in order."""
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
