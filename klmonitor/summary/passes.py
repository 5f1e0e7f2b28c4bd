"""Add a batch to a state, by the fastest pass that its device and layout allow.

On the CPU that is `numpy_pass` for a small batch, `chunked` for any other. On a GPU it is
`triton_pass`, where Triton is installed. Before its first use it must agree with
`chunked` on a few made-up tokens; a kernel that does not, or cannot be built, is given up for good
with one warning. `chunked` takes everything else.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor

from klmonitor.batch import TokenBatch
from klmonitor.pairs import POLICIES, Pair
from klmonitor.summary import chunked, numpy_pass
from klmonitor.summary.collected import Collection
from klmonitor.summary.extremes import Place
from klmonitor.summary.state import Summary

logger = logging.getLogger("klmonitor")

TRIAL_SHAPE = (5, 2500)
"""Sequences and tokens of the trial at most; wider than a block of the kernel."""
ODD = (0.0, 0.5, 3.0, -40.0, -500.0, torch.inf, -torch.inf, torch.nan)
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
    centres: Mapping[str, float] | None = None,
) -> None:
    """Add a batch's tokens to a state, in place.

    Args:
        state: on the batch's device.
        batch: checked log-probs; the pairs' policies must be in it.
        pairs: which pairs.
        place: rank and micro-batch.
        groups: row of the group, or int64 [sequences].
        centres: each pair's recent mean k1, nats.
    """
    if numpy_pass.fits(batch):
        numpy_pass.add(state, batch, pairs, place=place, groups=groups, centres=centres or {})
        return
    found = _kernel.collect(batch, pairs) if batch.device.type == "cuda" else None
    if found is None:
        found = chunked.collect(batch, pairs, by_row=not isinstance(groups, int))
    enter(state, found, place=place, groups=groups, centres=centres)


def enter(
    state: Summary,
    found: Collection,
    *,
    place: Place,
    groups: int | Tensor = 0,
    centres: Mapping[str, float] | None = None,
) -> None:
    """Add what a pass collected to a state, in place; arguments as for `accumulate`."""
    for name, counts in found.policies.items():
        state.policies[POLICIES.index(name)] += counts
    for sums in found.pairs:
        sums.add_to(state, place, groups, (centres or {}).get(sums.pair.name, 0.0))


@dataclass
class Kernel:
    """The Triton pass, until it fails.

    Attributes:
        given_up: it is not used any more.
        tried: the devices where it has agreed with `chunked`.
    """

    given_up: bool = False
    tried: set[torch.device] = field(default_factory=set)

    def collect(self, batch: TokenBatch, pairs: Sequence[Pair]) -> Collection | None:
        """Sum a batch; None where it is another pass's."""
        if self.given_up:
            return None
        try:
            from klmonitor.summary import triton_pass

            if not triton_pass.fits(batch):
                return None
            if batch.device not in self.tried:
                trial = trial_batch(batch)
                mine = triton_pass.collect(_on(batch.device, trial), pairs)
                compare(mine, chunked.collect(trial, pairs, by_row=True))
                self.tried.add(batch.device)
            return triton_pass.collect(batch, pairs)
        except torch.cuda.OutOfMemoryError:
            raise
        except ModuleNotFoundError:  # without Triton
            self.given_up = True
        except Exception as error:  # noqa: BLE001  # builds depend on the machine; see the docstring
            self.given_up = True
            logger.warning(
                "klmonitor: the Triton kernel does not work here, the plain pass does its work, "
                "slower (%s: %s)",
                type(error).__name__,
                error,
            )
        return None


_kernel = Kernel()


def trial_batch(batch: TokenBatch) -> TokenBatch:
    """Made-up tokens on the CPU, of the same policies and dtypes as a batch's."""
    generator = torch.Generator().manual_seed(0)
    rows, columns = TRIAL_SHAPE[0], min(TRIAL_SHAPE[1], batch.shape[1])
    shape = (rows, columns)
    uniform = partial(torch.rand, shape, generator=generator, dtype=torch.float64, device="cpu")
    common, odd = uniform(), torch.tensor(ODD, device="cpu")
    log_probs = {}
    for name, values in batch.log_probs.items():
        made = -common - uniform()
        made[::2, ::9] = odd[(len(ODD) * uniform()).long()][::2, ::9]
        log_probs[name] = made.to(values.dtype)
    mask = uniform() < 0.8
    return replace(
        batch,
        log_probs=log_probs,
        mask=None if batch.mask is None else mask,
        token_ids=None,
        n_sequences=rows,
        prompt_ids=None,
    )


def _on(device: torch.device, batch: TokenBatch) -> TokenBatch:
    log_probs = {name: values.to(device) for name, values in batch.log_probs.items()}
    mask = None if batch.mask is None else batch.mask.to(device)
    return replace(batch, log_probs=log_probs, mask=mask)


def compare(found: Collection, expected: Collection) -> None:
    """Compare what two passes collected of the same tokens, by sequence.

    Raises:
        ArithmeticError: counts differ, or sums by more than `TOLERANCE`.
    """
    for name, counts in expected.policies.items():
        if not torch.equal(found.policies[name].cpu(), counts):
            raise ArithmeticError(f"other counts of {name}'s log-probs")
    for mine, theirs in zip(found.pairs, expected.pairs, strict=True):
        name = theirs.pair.name
        if not torch.equal(mine.histogram.cpu(), theirs.histogram):
            raise ArithmeticError(f"another histogram of {name}")
        error = (mine.rows.cpu() - theirs.rows).abs().amax(0)
        if not bool((error <= TOLERANCE * theirs.rows.abs().amax(0)).all()):
            raise ArithmeticError(f"other sums of {name}")
        extremes = (x.extremes.maxima(x.batch, x.pair).cpu() for x in (mine, theirs))
        if not torch.equal(*extremes):
            raise ArithmeticError(f"other extremes of {name}")
