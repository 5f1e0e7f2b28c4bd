"""A summary as bytes: what a worker sends to the driver that merges.

    magic, length of the head (4 bytes), head (JSON), body (places, then values), and behind it, if
    the head names pairs, the neighbours of their extreme tokens (float32)

All numbers of a summary make one long row, in an order that its configuration decides; only those
that tokens have changed travel, with their places. The head names the worker, its health, the
policies that it has not seen and the sections that came along. A section that is absent counts as
unknown, not as zero: what follows from it is nan, with whatever it is merged. The layout's version
and a digest of what decides the row say whether a part fits.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from klmonitor.pairs import PAIRS, POLICIES
from klmonitor.report import Health
from klmonitor.summary import around, fields
from klmonitor.summary.around import Around
from klmonitor.summary.fields import N_ORDER, N_SEQUENCE_ORDER, SummaryConfig
from klmonitor.summary.partcode import coded, decoded
from klmonitor.summary.state import ORDERED, Summary, first_of, sections

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
    "around",
)
NEEDED = ("sums", "maxima")
"""Without these nothing can be told of a pair; the others are optional."""
PHASES = ("train", "eval")


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
        around: pair -> [tails, top, WHAT, WIDTH] float32, what stood around its extreme tokens.
    """

    places: NDArray[np.int64]
    values: Floats
    worker: str = ""
    phase: str = "train"
    health: Health = field(default_factory=Health)
    missing: tuple[str, ...] = ()
    sections: tuple[str, ...] = SECTIONS
    around: Mapping[int, NDArray[np.float32]] = field(default_factory=dict)


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
    found = None if summary.around is None else summary.around.tensor
    beside = {} if found is None else _known(found.numpy())
    row = _row(summary)
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
        "around": list(beside),
    }
    text = json.dumps(head, separators=(",", ":")).encode()
    data = MAGIC + len(text).to_bytes(4, "big") + text + coded(places, row[places])
    return data + b"".join(values.astype("<f4").tobytes() for values in beside.values())


def _known(beside: NDArray[np.float32]) -> dict[int, NDArray[np.float32]]:
    """By pair what stood around its extreme tokens, of those of which anything is known."""
    return {pair: found for pair, found in enumerate(beside) if found.any()}


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
    places, values, length = decoded(data[end:], n)
    if n and (places[-1] >= size or not np.diff(places).all() or np.isnan(values).any()):
        raise ValueError("the part's numbers do not fit")
    sections = tuple(name for name in SECTIONS if name in head["sections"])
    if n and not set(NEEDED) <= set(sections):
        raise ValueError(f"the part has no {' or no '.join(NEEDED)}")
    beside = _around(data[end + length :], head.get("around", []), config)
    if not beside:
        sections = tuple(name for name in sections if name != "around")
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
        beside,
    )


def _around(
    data: bytes, named: Sequence[Any], config: SummaryConfig
) -> dict[int, NDArray[np.float32]]:
    """What stood around extreme tokens, by pair.

    Raises:
        ValueError: these are not the pairs that are named.
    """
    pairs, size = [int(pair) for pair in named], around.shape(config.top)
    if len(set(pairs)) != len(pairs) or not set(pairs) <= set(range(size[0])):
        raise ValueError("the part names neighbours of pairs that there are not")
    if len(data) != 4 * len(pairs) * math.prod(size[1:]):
        raise ValueError("the part is cut off, or there is more behind it")
    found = np.frombuffer(data, "<f4").reshape(len(pairs), *size[1:])
    return dict(zip(pairs, found, strict=True))


class MergedParts:
    """The parts of a step, merged in place as they come."""

    def __init__(self, config: SummaryConfig) -> None:
        """Nothing merged."""
        self._summary = Summary.empty(config)
        self._whole = self._summary.whole()
        self._tokens: list[Floats] = []
        self._sequences: list[Floats] = []
        self._around: list[Mapping[int, NDArray[np.float32]]] = []

    def add(self, part: Part, rank: int) -> None:
        """Merge a part.

        Args:
            part: of the same configuration.
            rank: takes the place of the worker's own in its tokens and sequences.
        """
        summary, whole = self._summary, self._whole
        cut = int(part.places.searchsorted(whole.size))
        whole[part.places[:cut]] += part.values[:cut]
        rest = _blank(summary.config)[whole.size :].copy()
        rest[part.places[cut:] - whole.size] = part.values[cut:]
        maxima, tokens, sequences = _split(rest, summary)
        largest = summary.arrays["maxima"]
        np.maximum(largest, maxima, out=largest)
        tokens[..., fields.TOKEN_FIELDS.index("rank")] = rank
        sequences[..., fields.SEQUENCE_FIELDS.index("rank")] = rank
        self._tokens.append(tokens)
        self._sequences.append(sequences)
        self._around.append(part.around)
        if len(part.sections) < len(SECTIONS) and part.places.size:
            self._leave_unknown(part, maxima)

    def _leave_unknown(self, part: Part, maxima: Floats) -> None:
        """Mark what did not come along, of the pairs that the part has tokens of."""
        arrays, came = sections(self._summary.config, self._whole), set(part.sections)
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
        held, top = self._summary, self._summary.config.top
        ordered = (held.arrays[name] for name in ORDERED)
        summary = Summary.of_whole(held.config, self._whole, *ordered)
        seen = np.flatnonzero(~(summary.arrays["maxima"] == -np.inf).all(axis=1))
        at = torch.from_numpy(seen)
        sequences = first_of(_every(self._sequences, seen), top, N_SEQUENCE_ORDER)
        summary.sequences[at] = sequences
        tokens = _every(self._tokens, seen)
        origin = torch.arange(tokens.shape[-2], dtype=tokens.dtype, device="cpu").expand(
            tokens.shape[:-1]
        )
        found = first_of(torch.cat((tokens, origin.unsqueeze(-1)), dim=-1), top, N_ORDER)
        summary.tokens[at] = found[..., :-1]
        if any(self._around):
            kept = found[..., -1].long().numpy()
            summary.around = Around(partial(self._neighbours, seen, kept))
        return summary

    def _neighbours(self, seen: NDArray[np.int64], origin: NDArray[np.int64]) -> Tensor:
        """What stood around the tokens that were kept, as `around.shape`.

        Args:
            seen: [n] pairs with tokens.
            origin: [n, tails, top] index of each kept token among those of all parts.
        """
        top = self._summary.config.top
        found = np.zeros(around.shape(top), np.float32)
        none = np.zeros_like(found[0])
        tails = np.arange(found.shape[1])[:, None]
        for pair, kept in zip(seen.tolist(), origin, strict=True):
            every = np.stack([known.get(pair, none) for known in self._around])
            found[pair] = every[kept // top, tails, kept % top]
        return torch.from_numpy(found)


def _every(rows: list[Floats], seen: NDArray[np.int64]) -> Tensor:
    """The records of all parts behind each other, of some pairs."""
    return torch.from_numpy(np.concatenate([some[seen] for some in rows], axis=-2))


def _row(summary: Summary) -> Floats:
    """All numbers of a summary on the CPU, [n]."""
    ordered = (summary.arrays[name].ravel() for name in ORDERED)
    return np.concatenate([summary.whole(), *ordered])


@lru_cache(16)
def _blank(config: SummaryConfig) -> Floats:
    """The row of a summary of no tokens."""
    row = _row(Summary.empty(config))
    row.setflags(write=False)
    return row


def _split(rest: Floats, like: Summary) -> list[Floats]:
    """`ORDERED` from their part of a row."""
    found, end = [], 0
    for name in ORDERED:
        shape, begin = like.arrays[name].shape, end
        end += like.arrays[name].size
        found.append(rest[begin:end].reshape(shape))
    return found
