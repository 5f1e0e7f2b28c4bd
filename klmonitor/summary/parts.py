"""A summary as bytes: what a worker sends to the driver that merges.

    magic, length of the head (4 bytes), head (JSON), body (places, then values)

All numbers of a summary make one long row, in an order that its configuration decides; only those
that tokens have changed travel, with their places. The head names the worker, its health, the
policies that it has not seen and the sections that came along. A section that is absent counts as
unknown, not as zero: what follows from it is nan, with whatever it is merged. The layout's version
and a digest of what decides the row say whether a part fits.

The body is read in a dozen calls, whatever it holds: a driver may have hundreds of them a step.

    from each place to the next, a byte each (255: one of the wide ones)
    the smallest of `KINDS` that holds each value exactly, two bits each: low ones, then high ones
    wide steps, 4 bytes each; the values of each kind
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

from klmonitor.pairs import PAIRS, POLICIES
from klmonitor.report import Health
from klmonitor.summary import fields
from klmonitor.summary.fields import N_ORDER, N_SEQUENCE_ORDER, SummaryConfig
from klmonitor.summary.state import Summary, first_of

Floats = NDArray[np.float64]

MAGIC = b"KLM\x01"
LAYOUT = 2
"""The version of what a part is made of."""
SECTIONS = (
    "sums",
    "histogram",
    "prompts",
    "policies",
    "signatures",
    "pulls",
    "maxima",
    "tokens",
    "sequences",
)
NEEDED = ("sums", "maxima")
"""Without these nothing can be told of a pair; the others are optional."""
PHASES = ("train", "eval")
WIDE = 255
"""Steps from which they take more than a byte."""
KINDS = ("u1", "<u2", "<f4", "<f8")
"""Most values are counts of a histogram, and log-probs are float32."""


@dataclass(frozen=True)
class Part:
    """What a worker sent.

    Attributes:
        places: int64 [n], ascending, in the row that all numbers of a summary make.
        values: float64 [n], what stands there.
        worker: its name.
        phase: ``"train"`` or ``"eval"``.
        health: how it fares.
        missing: policies that it has not seen so far.
        sections: those of `SECTIONS` that came along.
    """

    places: NDArray[np.int64]
    values: Floats
    worker: str = ""
    phase: str = "train"
    health: Health = field(default_factory=Health)
    missing: tuple[str, ...] = ()
    sections: tuple[str, ...] = SECTIONS


@lru_cache(16)
def digest_of(config: SummaryConfig) -> str:
    """Of everything that decides the row and the meaning of its numbers."""
    meaning = (
        config.groups,
        config.prompt_buckets,
        config.top,
        [pair.name for pair in PAIRS],
        POLICIES,
        fields.COLUMNS,
        fields.POLICY_COUNTS,
        fields.HISTOGRAM,
        fields.SIGNATURES,
        fields.PULLS,
        fields.TOKEN_FIELDS,
        fields.SEQUENCE_FIELDS,
    )
    return hashlib.sha256(repr(meaning).encode()).hexdigest()[:16]


def pack(
    summary: Summary,
    worker: str = "",
    phase: str = "train",
    health: Health | None = None,
    missing: tuple[str, ...] = (),
) -> bytes:
    """A summary as a part; arguments as in `Part`."""
    row = _row(summary.to("cpu"))
    places = np.flatnonzero(row != _blank(summary.config))
    head = {
        "layout": LAYOUT,
        "digest": digest_of(summary.config),
        "worker": worker,
        "phase": phase,
        "health": vars(health or Health()),
        "missing": list(missing),
        "sections": list(SECTIONS),
        "n": int(places.size),
    }
    text = json.dumps(head, separators=(",", ":")).encode()
    return MAGIC + len(text).to_bytes(4, "big") + text + _coded(places, row[places])


def _coded(places: NDArray[np.int64], values: Floats) -> bytes:
    """The body of a part."""
    steps = np.diff(places, prepend=0)
    wide = steps >= WIDE
    with np.errstate(all="ignore"):
        kinds = np.select([_same(values, kind) for kind in KINDS[:-1]], range(3), 3).astype("u1")
    parts = (
        np.minimum(steps, WIDE).astype("u1"),
        np.packbits(np.concatenate((kinds & 1, kinds >> 1))),
        steps[wide].astype("<u4"),
        *(values[kinds == i].astype(kind) for i, kind in enumerate(KINDS)),
    )
    return b"".join(part.tobytes() for part in parts)


def _same(values: Floats, kind: str) -> NDArray[np.bool_]:
    """Which values a kind of number holds to the last bit."""
    bits = values.astype(kind).astype("<f8").view("<i8")
    found: NDArray[np.bool_] = bits == values.astype("<f8").view("<i8")
    return found


def _decoded(body: bytes, n: int) -> tuple[NDArray[np.int64], Floats, int]:
    """Places and values from a body, and its length.

    Raises:
        ValueError: there is less of it.
    """
    at = n + (2 * n + 7) // 8
    steps = np.frombuffer(body, "u1", n).astype(np.int64)
    low, high = np.unpackbits(np.frombuffer(body, "u1", at - n, n), count=2 * n).reshape(2, n)
    wide = np.flatnonzero(steps == WIDE)
    steps[wide] = np.frombuffer(body, "<u4", wide.size, at)
    at += 4 * wide.size
    values, kinds = np.empty(n), low + 2 * high
    for i, kind in enumerate(KINDS):
        which = np.flatnonzero(kinds == i)
        some = np.frombuffer(body, kind, which.size, at)
        values[which] = some
        at += some.nbytes
    return steps.cumsum(), values, at


def unpack(data: bytes, config: SummaryConfig) -> Part:
    """The part in some bytes.

    Args:
        data: as `pack` makes them.
        config: of the summaries that it is to be merged with.

    Raises:
        ValueError: they are no part, or one of other settings or of another version; the message
            says which.
    """
    try:
        return _unpack(bytes(data), config)
    except (TypeError, KeyError, IndexError, AttributeError, OverflowError) as error:
        raise ValueError(f"these bytes are no part ({type(error).__name__})") from error


def _unpack(data: bytes, config: SummaryConfig) -> Part:
    if data[:4] != MAGIC:
        raise ValueError("these bytes are no part: give what Collector.take returned")
    end = 8 + int.from_bytes(data[4:8], "big")
    head = json.loads(data[8:end])
    if head["layout"] != LAYOUT:
        raise ValueError(
            f"the part has layout {head['layout']!r}, this is {LAYOUT}: install the same klmonitor "
            "on driver and workers"
        )
    if head["digest"] != digest_of(config):
        raise ValueError(
            "the part was summed with other groups or settings: give Collector and Monitor the "
            f"same groups and prompts (here groups {list(config.groups)}, prompts "
            f"{config.prompt_buckets > 0})"
        )
    n, size = int(head["n"]), _blank(config).size
    if not 0 <= n <= size or head["phase"] not in PHASES:
        raise ValueError(f"the part holds {n} numbers of phase {head['phase']!r}")
    places, values, length = _decoded(data[end:], n)
    if end + length != len(data):
        raise ValueError("there is more than the part")
    if n and (places[-1] >= size or not np.diff(places).all() or np.isnan(values).any()):
        raise ValueError("the part's numbers do not fit")
    sections = tuple(name for name in SECTIONS if name in head["sections"])
    if n and not set(NEEDED) <= set(sections):
        raise ValueError(f"the part has no {' or no '.join(NEEDED)}")
    health = head["health"]
    return Part(
        places,
        values,
        str(head["worker"]),
        head["phase"],
        Health(
            int(health["errors"]),
            int(health["dropped"]),
            bool(health["active"]),
            str(health["why"]),
        ),
        tuple(str(name) for name in head["missing"]),
        sections,
    )


class MergedParts:
    """The parts of a step, merged in place as they come."""

    def __init__(self, config: SummaryConfig) -> None:
        """Nothing merged."""
        with torch.inference_mode(False):
            self._summary = Summary.empty(config, "cpu")
        self._tokens: list[Floats] = []
        self._sequences: list[Floats] = []

    def add(self, part: Part, rank: int) -> None:
        """Merge a part.

        Args:
            part: of the same configuration.
            rank: takes the place of the worker's own in its tokens and sequences.
        """
        summary = self._summary
        arrays, blank = summary.arrays, _blank(summary.config)
        flat = summary.flat.numpy()
        cut = int(part.places.searchsorted(flat.size))
        flat[part.places[:cut]] += part.values[:cut]
        rest = blank[flat.size :].copy()
        rest[part.places[cut:] - flat.size] = part.values[cut:]
        maxima, tokens, sequences = _split(rest, summary)
        np.maximum(arrays["maxima"], maxima, out=arrays["maxima"])
        tokens[..., fields.TOKEN_FIELDS.index("rank")] = rank
        sequences[..., fields.SEQUENCE_FIELDS.index("rank")] = rank
        self._tokens.append(tokens)
        self._sequences.append(sequences)
        if len(part.sections) < len(SECTIONS) and part.places.size:
            self._leave_unknown(part, maxima)

    def _leave_unknown(self, part: Part, maxima: Floats) -> None:
        """Mark what did not come along, of the pairs that the part has tokens of."""
        arrays, came = self._summary.arrays, set(part.sections)
        pairs = np.isfinite(maxima).any(axis=1)
        if "histogram" not in came:
            arrays["histogram"][pairs] = np.nan
        if "tokens" not in came:
            self._tokens[-1][pairs, :, 0, fields.TOKEN_FIELDS.index("key")] = np.nan
        if "sequences" not in came:
            self._sequences[-1][pairs, 0, fields.SEQUENCE_FIELDS.index("key")] = np.nan
        if "prompts" not in came:
            arrays["sums"][pairs, :, fields.COLUMN["prompted"]] = -np.inf  # never all of them
        if "signatures" not in came:
            arrays["signatures"][pairs] = np.nan
        if "pulls" not in came:
            arrays["pulls"][pairs] = np.nan
        if "policies" not in came:
            arrays["policies"][:] = np.nan

    def take(self) -> Summary:
        """All of them as one summary; nothing may be added any more."""
        summary = self._summary
        top = summary.config.top
        seen = np.flatnonzero(~(summary.arrays["maxima"] == -np.inf).all(axis=1))
        for target, rows, order in (
            (summary.tokens, self._tokens, N_ORDER),
            (summary.sequences, self._sequences, N_SEQUENCE_ORDER),
        ):
            every = torch.from_numpy(np.concatenate([some[seen] for some in rows], axis=-2))
            target[torch.from_numpy(seen)] = first_of(every, top, order)
        return summary


def _row(summary: Summary) -> Floats:
    """All numbers of a summary on the CPU, [n]."""
    parts = (summary.flat, summary.maxima, summary.tokens, summary.sequences)
    return np.concatenate([part.numpy().ravel() for part in parts])


@lru_cache(16)
def _blank(config: SummaryConfig) -> Floats:
    """The row of a summary of no tokens."""
    row = _row(Summary.empty(config, "cpu"))
    row.setflags(write=False)
    return row


def _split(rest: Floats, like: Summary) -> tuple[Floats, Floats, Floats]:
    """Maxima, tokens and sequences from their part of a row."""
    tokens = like.maxima.numel()
    sequences = tokens + like.tokens.numel()
    return (
        rest[:tokens].reshape(like.maxima.shape),
        rest[tokens:sequences].reshape(like.tokens.shape),
        rest[sequences:].reshape(like.sequences.shape),
    )
