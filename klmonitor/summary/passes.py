"""Add a batch to a state, by the fastest pass that there is.

That is `numba_pass`, where Numba is installed and what it compiles is there. Before its first use
with some dtypes a kernel must agree with `chunked` on a few made-up tokens; one that does not is
given up for good, one that fails is tried again after a rest, with one warning. `chunked` does the
work of all that is not there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from importlib import import_module
from typing import Any

import numpy as np
import torch
from torch import Tensor

from klmonitor.boundary import Boundary, cause
from klmonitor.pairs import PAIR_INDEX, Pair
from klmonitor.summary import chunked
from klmonitor.summary.batch import TokenBatch
from klmonitor.summary.extremes import Place
from klmonitor.summary.fields import SummaryConfig
from klmonitor.summary.kernelcache import Loader
from klmonitor.summary.state import Summary, Undo

REST = 1000
"""Batches for which a kernel that failed is left alone."""
TRIAL_SHAPE = (5, 2500)
"""Sequences and tokens of the trial at most; wider than a block of the kernel."""
ODD = (0.0, 0.5, 3.0, 25.0, -25.0, -40.0, 345.0, -500.0, torch.inf, -torch.inf, torch.nan)
"""Values in the trial that are counted or summed apart."""
TOLERANCE = 1e-9
"""Of the trial's sums, relative to the largest of their kind: far above rounding."""


def accumulate(
    state: Summary,
    batch: TokenBatch,
    pairs: Sequence[Pair],
    *,
    place: Place,
    groups: int | Tensor = 0,
) -> None:
    """Add a batch's tokens to a state, in place.

    Args:
        state: what is added to.
        batch: checked log-probs; the pairs' policies must be in it.
        pairs: which pairs.
        place: rank and micro-batch.
        groups: row of the group, or int64 [sequences].
    """
    done = TOKENS.add(state, batch, pairs, place, groups)
    state.fresh = False
    if not done:
        chunked.add(state, batch, pairs, place, groups)


class Compiled:
    """A compiled module, once it is there; called through a boundary of its own.

    Args:
        compiler: who compiles it.
        module: its name.
        loader: brings it here while others do its work; None: it is there.
        done_without: what is said to happen where it fails.

    Attributes:
        wrong: why it is not used any more: without its compiler, or it found other numbers.
    """

    def __init__(
        self,
        compiler: str,
        module: str,
        loader: Loader | None = None,
        done_without: str = "the plain pass does its work, slower",
    ) -> None:
        self.wrong: str | None = None
        self.loader = loader
        self._name = module
        self._module: Any = None
        self._boundary = Boundary(
            f"the {compiler} kernel", None, patience=1, rest=REST, done_without=done_without
        )

    def module(self) -> Any:
        """The module; None: it is not there, yet or for good."""
        if self._module is None:
            try:
                if self.loader is None or self.loader.ready():
                    self._module = import_module(self._name)
            except ModuleNotFoundError as error:
                self.wrong = str(error)  # without the compiler
        return self._module


class Kernel(Compiled):
    """A compiled pass, in use where it is there and has been proven.

    Args:
        compiler: as `Compiled`.
        module: with `fits` and `add`.
        loader: as `Compiled`.
        agree: compares it with the plain pass, as `compare`, which it is if None.
        undo: what takes back what it has done to a state.

    Attributes:
        tried: dtypes of batches with which it has agreed with the plain pass.
    """

    def __init__(
        self,
        compiler: str,
        module: str,
        loader: Loader | None = None,
        agree: Callable[[Callable[..., None], TokenBatch, Sequence[Pair]], None] | None = None,
        undo: Callable[[Summary, Iterable[int]], Undo] = Summary.undo,
    ) -> None:
        super().__init__(compiler, module, loader)
        self.tried: set[frozenset[torch.dtype]] = set()
        self._agree, self._undo = agree, undo

    def add(self, state: Summary, batch: TokenBatch, pairs: Sequence[Pair], *rest: Any) -> bool:
        """Add a batch to a state, in place; False, and nothing added, if it is another pass's.

        Args:
            state: what is added to.
            batch: checked log-probs; the pairs' policies must be in it.
            pairs: which pairs.
            rest: what else the module's `add` takes.
        """
        if self.wrong is not None:
            return False
        return bool(self._boundary(self._add, state, batch, pairs, *rest))

    def _add(self, state: Summary, batch: TokenBatch, pairs: Sequence[Pair], *rest: Any) -> bool:
        compiled = self.module()
        if compiled is None:
            return self.wrong is None and self._missing()
        if not compiled.fits(batch):
            return False
        if batch.dtypes not in self.tried:
            self._prove(compiled.add, batch, pairs)
            self.tried.add(batch.dtypes)
        undo = self._undo(state, (PAIR_INDEX[pair.name] for pair in pairs))
        try:
            compiled.add(state, batch, pairs, *rest)
        except Exception:
            undo()  # of several pairs the first are in it already
            raise
        return True

    def _missing(self) -> bool:
        """It is not loaded: yet, or for good."""
        assert self.loader is not None  # the only caller has asked it
        if self.loader.error is not None:
            self.wrong = cause(self.loader.error)
            raise self.loader.error
        return False

    def _prove(self, add: Callable[..., None], batch: TokenBatch, pairs: Sequence[Pair]) -> None:
        try:
            (self._agree or compare)(add, batch, pairs)
        except ArithmeticError as error:
            self.wrong = cause(error)
            raise


TOKENS = Kernel("Numba", "klmonitor.summary.numba_pass", Loader())
"""The pass over all tokens."""


def compare(add: Callable[..., None], batch: TokenBatch, pairs: Sequence[Pair]) -> None:
    """Compare what a pass and `chunked` make of tokens that are made up after a batch's.

    Raises:
        ArithmeticError: counts or extremes differ, or sums by more than `TOLERANCE`.
    """
    trial, rows = made_up(batch), torch.arange(TRIAL_SHAPE[0], device="cpu")
    config = SummaryConfig(groups=tuple(map(str, rows.tolist())), prompt_buckets=64)
    found, expected = Summary.empty(config), Summary.empty(config)
    add(found, trial, pairs, Place(), rows)
    chunked.add(expected, trial, pairs, Place(), rows)
    for name in ("policies", "histogram", "maxima", "tokens"):
        if not torch.equal(getattr(found, name), getattr(expected, name)):
            raise ArithmeticError(f"other {name}")
    for name in ("sums", "prompts"):
        mine, theirs = (getattr(state, name).flatten(0, -2) for state in (found, expected))
        if not bool(((mine - theirs).abs() <= TOLERANCE * theirs.abs().amax(0)).all()):
            raise ArithmeticError(f"other {name}")


def check_alike(found: Summary, expected: Summary, name: str, terms: float) -> None:
    """Compare what two passes have added to one of a state's arrays.

    Args:
        found: by one.
        expected: by the other.
        name: of the array.
        terms: how large the terms of a sum are together, where it may cancel.

    Raises:
        ArithmeticError: sums differ by more than `TOLERANCE`, of them or of their terms.
    """
    mine, theirs = getattr(found, name), getattr(expected, name)
    if not bool(((mine - theirs).abs() <= TOLERANCE * theirs.abs().clamp(min=terms)).all()):
        raise ArithmeticError(f"other {name}")


def undo_of(name: str) -> Callable[[Summary, Iterable[int]], Undo]:
    """For a `Kernel` that adds to one of a state's arrays alone."""

    def undo(state: Summary, pairs: Iterable[int]) -> Undo:
        held = state.arrays[name]
        return partial(np.copyto, held, held.copy())

    return undo


def made_up(
    batch: TokenBatch, shape: tuple[int, int] | None = None, odd: Sequence[float] = ODD
) -> TokenBatch:
    """Made-up tokens, of the same policies and dtypes as a batch's.

    Args:
        batch: the batch.
        shape: sequences and tokens of each; None: `TRIAL_SHAPE`, and no longer than the batch's.
        odd: values that some tokens have.
    """
    generator = torch.Generator().manual_seed(0)
    shape = shape or (TRIAL_SHAPE[0], min(TRIAL_SHAPE[1], batch.shape[1]))
    rows, columns = shape
    uniform = partial(torch.rand, shape, generator=generator, dtype=torch.float64, device="cpu")
    common, some = uniform(), torch.tensor(odd, device="cpu")
    log_probs = {}
    for name, values in batch.log_probs.items():
        made = -common - uniform()
        made[::2, ::9] = some[(len(odd) * uniform()).long()][::2, ::9]
        log_probs[name] = made.to(values.dtype)
    mask = uniform() < 0.8
    return TokenBatch(
        log_probs=log_probs,
        mask=None if batch.mask is None else mask,
        token_ids=torch.arange(rows * columns, device="cpu").view(shape),
        segments=None,
        n_sequences=rows,
        prompt_ids=torch.arange(rows, device="cpu") // 2,
    )
