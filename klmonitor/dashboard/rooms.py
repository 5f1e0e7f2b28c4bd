"""What the page's rooms beside the charts are told of a step: plain numbers and words."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from klmonitor.numbers.metrics import METRICS
from klmonitor.numbers.places import TURNS
from klmonitor.record.around import AROUND
from klmonitor.record.rows import finite_or_none
from klmonitor.report import PairReport, Row
from klmonitor.summary.fields import PROBABILITIES

EVIDENCE = (
    "gap_z",
    "gap",
    "k2/bias_z",
    "cv/corr",
    "ess",
    "sequence/ess",
    "sequence/ratio_beyond_3",
    "sequence/ratio_below_third",
    "dominance/top_sequence_share",
    "k1/cancellation",
    "identical",
    "zero_logp",
    "positive_logp",
    "nonfinite",
    "low_precision",
    "entropy/k3_share",
    "unclipped/share",
)
"""Metrics that bear on why two policies disagree, in the order in which they are shown."""
NEVER_WORTH = frozenset(("identical", "zero_logp", "positive_logp", "nonfinite", "low_precision"))
"""Of these 0 is what one expects: they are shown where they are not."""
_WHAT = {metric.name: (metric.text, metric.formula) for metric in METRICS}


def rooms(pair: PairReport, places: Row | None) -> Row:
    """The cause with its evidence, and where |d| sits, of one pair at one step.

    Args:
        pair: its numbers.
        places: mean |d| by place; None: not kept.
    """
    cause = vars(pair.cause) if pair.cause.name else None
    return {"cause": cause, "evidence": _evidence(pair), **_places(pair.values, places)}


def _evidence(pair: PairReport) -> list[list[Any]]:
    found = ((name, pair.values.get(name, math.nan)) for name in EVIDENCE)
    return [
        [name, finite_or_none(value), *_WHAT[name]]
        for name, value in found
        if not math.isnan(value) and (value or name not in NEVER_WORTH)
    ]


def _places(values: Mapping[str, float], places: Row | None) -> Row:
    edges = (0.0, *PROBABILITIES, 1.0)
    by_probability = [
        {
            "low": f"{low:g}",
            "high": f"{high:g}",
            "abs": finite_or_none(values[f"by_probability/below_{high:g}/abs"]),
            "left": finite_or_none(values.get(f"by_probability/below_{high:g}/left", math.nan)),
        }
        for low, high in pairwise(edges)
        if f"by_probability/below_{high:g}/abs" in values
    ]
    return {
        "by_probability": by_probability,
        "by_position": (places or {}).get("position", []),
        "by_turn": (places or {}).get("turn", []),
        "turns": TURNS,
        "why_no_places": "it is told of steps that open or worsen an alert of the pair, "
        "in a run of one process whose tensors were still at hand",
    }


def around_shown(row: Row, text: bool) -> list[Row]:
    """What stood around tokens, as a page may show it.

    Args:
        row: of ``tokens.jsonl``.
        text: whether the text of tokens may be shown; without it ids are left out too, since ids in
            a row are the text, to whom has the vocabulary.
    """
    kept = ("token", "first", "log_q", "log_p", *(("ids", "text") if text else ()))
    found: Sequence[Row] = row.get(AROUND, ())
    return [{name: one[name] for name in kept if name in one} for one in found]


def health_of(run: Mapping[str, float | None]) -> Row | None:
    """How klmonitor fared, of a row's values of the run; None: it does not say."""
    if "klmonitor/errors" not in run:
        return None
    of = {name: run.get(f"klmonitor/{name}") for name in ("errors", "dropped", "active")}
    return {
        "errors": int(of["errors"] or 0),
        "dropped": int(of["dropped"] or 0),
        "active": of["active"] != 0,
    }
