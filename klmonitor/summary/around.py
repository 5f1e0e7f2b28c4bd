"""What stood around the extreme tokens: ids and log-probs of their neighbours, exact.

Nothing is gathered while tokens are summed. A step's batches are held, up to `MOST_HELD` tokens,
and looked at once its extreme tokens are known and somebody asks: where this process is alone, only
at a step with an alert; where summaries are merged over ranks or sent in parts, once a step. What
would not be the same any more by then (memory that is the caller's own) is looked at at once; a
tensor that was written to meanwhile makes its tokens' neighbours unknown, never wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from klmonitor.boundary import Boundary
from klmonitor.pairs import PAIR_INDEX, PAIRS, Pair
from klmonitor.summary.batch import TokenBatch
from klmonitor.summary.fields import TAILS, TOKEN_FIELDS
from klmonitor.summary.places import place_sums

REACH = 16
"""Neighbours on each side."""
WIDTH = 2 * REACH + 1
WHAT = ("log_q", "log_p", "token")
"""Of each place: log-probs, nats, and what token: 0 none, 1 one of unknown id, 2 + its id."""
NONE, UNKNOWN_ID = 0, 1
MOST_HELD = 2**21
"""Tokens of a step whose batches are held, about 50 MB; beyond, they are looked at early."""
MOST_COPIED = 2**14
"""Tokens of two batches that are copied together."""
MUCH = 4
"""A view of memory that is so many times its own size is not held: the rest would be too."""
_KEY, _MICRO_BATCH, _SEQUENCE, _POSITION = (
    TOKEN_FIELDS.index(name) for name in ("key", "micro_batch", "sequence", "position")
)


def shape(top: int) -> tuple[int, ...]:
    """[pairs, tails, top, WHAT, WIDTH], float32: 12,672 bytes a pair for a `top` of 16."""
    return (len(PAIRS), len(TAILS), top, len(WHAT), WIDTH)


class Around:
    """The neighbours of a summary's extreme tokens, gathered when they are first asked for.

    Args:
        make: gathers them, as `shape`; zeros where nothing is known. None: nothing ever is.
        boundary: counts what fails; then nothing is known.
        places: sums of |d| by place of a pair (`klmonitor.summary.places`); None: unknown, as of
            what was merged.
    """

    def __init__(
        self,
        make: Callable[[], Tensor] | None,
        boundary: Boundary | None = None,
        places: Callable[[Pair, int, int], Tensor | None] | None = None,
    ) -> None:
        self._make, self._places = make, places
        self._boundary = boundary
        self._found: Tensor | None = None

    @classmethod
    def of(cls, found: Tensor) -> Around:
        """What is gathered already."""
        around = cls(None)
        around._found = found
        return around

    @property
    def tensor(self) -> Tensor | None:
        """As `shape`; None: it failed, nothing is known."""
        if self._make is not None:
            make, self._make = self._make, None
            self._found = make() if self._boundary is None else self._boundary(make)
        return self._found

    def places(self, pair: Pair, parts: int, turns: int) -> Tensor | None:
        """Sums of |d| by place, of all tokens of a pair; None: not all batches are at hand."""
        if self._places is None or self._boundary is None:
            return None
        return self._boundary(self._places, pair, parts, turns)


@dataclass(frozen=True)
class _Held:
    """Some batches in which extreme tokens may lie.

    Attributes:
        batch: its tokens; several batches are one row, one behind the other.
        pairs: of which.
        number: micro-batch of the first.
        starts: [batches] flat index of each one's first token.
        columns: [batches] of each.
    """

    batch: TokenBatch
    pairs: tuple[Pair, ...]
    number: int
    starts: tuple[int, ...]
    columns: tuple[int, ...]

    @classmethod
    def of(cls, number: int, batch: TokenBatch, pairs: Sequence[Pair], _: object = None) -> _Held:
        """One batch."""
        return cls(batch, tuple(pairs), number, (0,), (batch.shape[1],))

    def fill(self, found: Tensor, tokens: Tensor) -> None:
        """Write the neighbours of those tokens that lie here.

        Args:
            found: as `shape`.
            tokens: [pairs, tails, top, TOKEN_FIELDS].
        """
        batch, (rows, width) = self.batch, self.batch.shape
        places = [PAIR_INDEX[pair.name] for pair in self.pairs]
        mine = torch.stack([tokens[i] for i in places])
        number = mine[..., _MICRO_BATCH].long() - self.number
        here = (mine[..., _KEY] > 0) & (number >= 0) & (number < len(self.starts))
        if not rows * width or not bool(here.any()):
            return
        sequence, position = (
            torch.where(here, mine[..., k], 0.0).long() for k in (_SEQUENCE, _POSITION)
        )
        low, high = self._bounds(torch.where(here, number, 0), sequence)
        first = batch.starts()
        centre = low + position if first is None else first[sequence] + position
        at = centre.unsqueeze(-1) + _offsets()
        inside = here.unsqueeze(-1) & (at >= low.unsqueeze(-1)) & (at < high.unsqueeze(-1))
        at = at.clamp_(0, rows * width - 1)
        row, column = at // width, at % width
        if batch.segments is not None:
            inside &= batch.segments[at] == sequence.unsqueeze(-1)
        if batch.mask is not None:
            inside &= batch.mask[row, column]
        token = torch.ones_like(at) if batch.token_ids is None else batch.token_ids[row, column] + 2
        for i, pair in enumerate(self.pairs):
            both = (batch.log_probs[name][row[i], column[i]].float() for name in (pair.q, pair.p))
            values = torch.stack([*both, token[i].clamp(min=UNKNOWN_ID).float()], dim=-2)
            values = torch.where(inside[i].unsqueeze(-2), values, 0.0)
            own = here[i].unsqueeze(-1).unsqueeze(-1)
            found[places[i]] = torch.where(own, values, found[places[i]])

    def _bounds(self, number: Tensor, sequence: Tensor) -> tuple[Tensor, Tensor]:
        """Flat index of the first token of a token's row, and of the first behind it."""
        if len(self.starts) > 1:
            host = torch.tensor([self.starts, self.columns], device="cpu")
            starts, columns = host[:, number]
            low = starts + sequence * columns
            return low, low + columns
        if self.batch.segments is not None:
            low = torch.zeros_like(sequence)
            return low, low + self.batch.shape[1]
        low = sequence * self.columns[0]
        return low, low + self.columns[0]


class Neighbours:
    """Holds a step's batches, to tell what stood around its extreme tokens."""

    def __init__(self) -> None:
        """Nothing held."""
        self._held: list[tuple[int, TokenBatch, Sequence[Pair], list[int] | None]] = []
        self._tokens = self._from = 0
        self._early: Tensor | None = None

    def add(
        self, number: int, batch: TokenBatch, pairs: Sequence[Pair], tokens: Tensor, lent: bool
    ) -> None:
        """Hold a batch that was just summed, or look at it at once.

        Args:
            number: micro-batch.
            batch: checked.
            pairs: which pairs were summed; those of one micro-batch come behind each other.
            tokens: extreme tokens of the step so far, [pairs, tails, top, TOKEN_FIELDS].
            lent: its memory is the caller's own, who may write to it unseen.
        """
        versions = None if lent else _versions(batch)
        self._held.append((number, batch, pairs, versions))
        rows, columns = batch.shape
        self._tokens += rows * columns
        if versions is None or self._tokens > MOST_HELD:
            self._early, self._from = self.gathered(tokens), number + 1
            self._held, self._tokens = [], 0

    def gathered(self, tokens: Tensor) -> Tensor:
        """What stood around the extreme tokens, as `shape`; zeros where it is not known.

        Args:
            tokens: of the step so far, [pairs, tails, top, TOKEN_FIELDS], in order.
        """
        like = torch.empty(0, dtype=torch.float32, device=tokens.device)
        found = like.new_zeros(shape(tokens.shape[2]))
        if self._early is not None:
            # Those that are still among the first are in the order that they had.
            old = (tokens[..., _KEY] > 0) & (tokens[..., _MICRO_BATCH] < self._from)
            origin = (old.cumsum(-1) - 1).clamp_(min=0)
            found = torch.where(
                _over(old, found), self._early.gather(2, _over(origin, found)), found
            )
        for held in _joined([_Held.of(*one) for one in self._held if _same(one[1], one[3])]):
            held.fill(found, tokens)
        return found

    def places(self, pair: Pair, parts: int, turns: int) -> Tensor | None:
        """Sums of |d| by place (`klmonitor.summary.places`).

        None where a batch is not held any more, or was written to.
        """
        whole = all(_same(batch, versions) for _, batch, _, versions in self._held)
        if self._early is not None or not whole:
            return None
        mine = [batch for _, batch, pairs, _ in self._held if pair in pairs]
        sums = [place_sums(batch, pair, parts, turns) for batch in mine]
        return torch.stack(sums).sum(0) if sums else None


def merged(
    records: Sequence[Tensor], around: Sequence[Tensor | None], origin: Tensor
) -> Tensor | None:
    """The neighbours of those records that are kept of several summaries.

    Args:
        records: [pairs, tails, R_i, ...] of each summary.
        around: of each, as `shape`; None: nothing is known.
        origin: [pairs, tails, top] index of each kept record among all of them, one behind the
            other.
    """
    if all(one is None for one in around):
        return None
    whole = [
        torch.zeros(*tokens.shape[:3], len(WHAT), WIDTH, device="cpu") if one is None else one
        for tokens, one in zip(records, around, strict=True)
    ]
    every = torch.cat(whole, dim=2)
    return every.gather(2, _over(origin, every))


def _over(index: Tensor, like: Tensor) -> Tensor:
    """[pairs, tails, top] over the last two dimensions of a tensor as `shape`."""
    return index.unsqueeze(-1).unsqueeze(-1).expand(*index.shape, *like.shape[-2:])


def _same(batch: TokenBatch, versions: list[int] | None) -> bool:
    """Whether nobody has written to a batch since it was summed; None: it just was."""
    return versions is None or _versions(batch) == versions


def _versions(batch: TokenBatch) -> list[int] | None:
    """How often each tensor was written to; None: that is not to be had, or too much is behind."""
    found = []
    for x in (*batch.log_probs.values(), batch.mask, batch.token_ids):
        if x is None:
            continue
        if x.is_inference() or x.untyped_storage().nbytes() > MUCH * (x.nbytes + 4096):
            return None
        found.append(x._version)
    return found


def _joined(held: Sequence[_Held]) -> list[_Held]:
    """The same batches, as few as can be: each costs the same, unless copying it costs more."""
    found: list[list[_Held]] = []
    for one in held:
        last = found[-1][-1] if found else None
        if last is not None and _fit(last, one):
            found[-1].append(one)
        else:
            found.append([one])
    return [_one(some) if len(some) > 1 else some[0] for some in found]


def _fit(one: _Held, other: _Held) -> bool:
    a, b = one.batch, other.batch
    small = a.shape[0] * a.shape[1] + b.shape[0] * b.shape[1] <= MOST_COPIED
    return (
        small
        and one.pairs == other.pairs
        and other.number == one.number + 1
        and a.segments is None
        and b.segments is None
        and _kinds(a) == _kinds(b)
    )


def _kinds(batch: TokenBatch) -> tuple[object, ...]:
    ids = None if batch.token_ids is None else batch.token_ids.dtype
    return {name: x.dtype for name, x in batch.log_probs.items()}, batch.mask is None, ids


def _one(held: Sequence[_Held]) -> _Held:
    """Batches behind each other as one row."""
    batches, starts, n = [one.batch for one in held], [], 0
    for batch in batches:
        starts.append(n)
        n += batch.shape[0] * batch.shape[1]

    def row(tensors: Sequence[Tensor | None]) -> Tensor | None:
        there = [x.reshape(-1) for x in tensors if x is not None]
        return torch.cat(there).unsqueeze(0) if there else None

    names = list(batches[0].log_probs)
    log_probs = {name: row([batch.log_probs[name] for batch in batches]) for name in names}
    whole = TokenBatch(
        {name: x for name, x in log_probs.items() if x is not None},
        row([batch.mask for batch in batches]),
        row([batch.token_ids for batch in batches]),
        None,
        1,
        None,
    )
    columns = tuple(batch.shape[1] for batch in batches)
    return _Held(whole, held[0].pairs, held[0].number, tuple(starts), columns)


@cache
def _offsets() -> Tensor:
    """Places from a token, int64 [WIDTH]."""
    return torch.arange(-REACH, REACH + 1, device="cpu")
