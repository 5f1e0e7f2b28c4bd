"""From a summary on the host to the report of a step."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from klmonitor.metrics import pair_values
from klmonitor.pairs import PAIR_INDEX, PAIRS, POLICIES
from klmonitor.report import ExtremeToken, PairReport
from klmonitor.statistics import Array, PairTotals, coarse_histogram, from_arrays
from klmonitor.summary.layout import COLUMN, MAXIMA, SEQUENCE_FIELDS, TAILS, TOKEN_FIELDS
from klmonitor.summary.state import Summary

SEEN = [COLUMN[name] for name in ("core/n", "tail/n", "nan", "inf")]
"""Columns of which one is positive where a pair had tokens."""


def pair_totals(summary: Summary) -> dict[str, PairTotals]:
    """The sums of each pair that has counted tokens or non-finite ones, by pair name."""
    seen = summary.sums[:, :, SEEN].sum((1, 2)).tolist()
    return {
        pair.name: _totals(summary, pair.name)
        for pair, tokens in zip(PAIRS, seen, strict=True)
        if tokens > 0
    }


def _totals(summary: Summary, pair: str) -> PairTotals:
    index, config = PAIR_INDEX[pair], summary.config
    names = config.all_groups
    sums, prompts = _array(summary.sums[index]), _array(summary.prompts[index])
    keys = _array(summary.tokens[index, :, :, TOKEN_FIELDS.index("key")])
    sequences = _array(summary.sequences[index])
    known = sequences[:, SEQUENCE_FIELDS.index("key")] >= 0
    q, p = PAIRS[index].q, PAIRS[index].p
    policies = _array(summary.policies)
    high, low = (float(summary.maxima[index, i]) for i in range(len(MAXIMA)))
    return from_arrays(
        {
            "groups": dict(zip(names, sums, strict=True)),
            "histogram": _array(summary.histogram[index]),
            "prompts": dict(zip(names, prompts, strict=True)) if config.buckets_per_group else {},
            "policy_counts": (policies[POLICIES.index(q)], policies[POLICIES.index(p)]),
            "maxima": (high, low),
            "tails": tuple(tail[tail > 0] for tail in keys),
            "top_sequences": sequences[known][
                :, [SEQUENCE_FIELDS.index("t"), SEQUENCE_FIELDS.index("k1")]
            ],
        }
    )


def pair_report(
    name: str, totals: PairTotals, summary: Summary, running: Mapping[str, float]
) -> PairReport:
    """All numbers of a pair at one step."""
    return PairReport(
        name=name,
        values=pair_values(totals, dict(running)),
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


def _array(tensor: Tensor) -> Array:
    array: Array = tensor.numpy()
    return array
