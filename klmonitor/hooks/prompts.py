"""One integer per prompt, the same on every rank and for every padding, without a host copy."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from klmonitor.summary.passes import TOKENS, Compiled

PROMPT_BITS = 53
"""Keys stay below 2**53, so that a float64 holds them exactly."""
DROPPED_BITS = 64 - PROMPT_BITS
Ints = NDArray[np.int64]


def prompt_keys(ids: Tensor, mask: Tensor) -> Tensor:
    """Hash each row's unmasked tokens, in their order.

    A key is the leading bits of the sum, modulo 2**64, of the tokens times odd random numbers, one
    for each place (multilinear hashing: Dietzfelbinger, STACS 1996). Places count unmasked tokens,
    so padding on either side changes nothing. Two different prompts of a vocabulary of 2**18 share
    a key with a probability of about 2**-46.

    Args:
        ids: token ids, [B, P].
        mask: 1 where a token belongs to the prompt, [B, P].

    Returns:
        int64 [B], in [0, 2**53).
    """
    keys = COMPILED(ids, mask) if ids.is_cpu and ids.shape == mask.shape else None
    return _keys(ids, mask) if keys is None else keys


def _keys(ids: Tensor, mask: Tensor) -> Tensor:
    """The same by torch."""
    ids, inside = ids.to(torch.int64), mask.to(torch.int64)
    factors = _factors_on(ids.device, _places(ids))
    sums = ((ids + 1) * factors[inside.cumsum(1)] * inside).sum(1)
    return (sums >> DROPPED_BITS) & ((1 << PROMPT_BITS) - 1)


def _places(ids: Tensor) -> int:
    """How many factors there are: a power of two, so that few are made."""
    return 1 << ids.shape[1].bit_length()


class CompiledKeys(Compiled):
    """`_keys` by `klmonitor.summary.numba_prompts`, where that is there and agrees with it."""

    def __init__(self) -> None:
        super().__init__(
            "prompt keys' Numba",
            "klmonitor.summary.numba_prompts",
            TOKENS.loader,
            "torch does its work, slower",
        )
        self._proven = False

    def __call__(self, ids: Tensor, mask: Tensor) -> Tensor | None:
        """The keys; None: they are torch's to make."""
        return None if self.wrong is not None else self._boundary(self._made, ids, mask)

    def _made(self, ids: Tensor, mask: Tensor) -> Tensor | None:
        compiled = self.module()
        if compiled is None:
            return None
        rows, inside = (one.to(torch.int64).contiguous().numpy() for one in (ids, mask))
        keys = np.empty(len(rows), np.int64)
        compiled.fill_keys(rows, inside, _factors(_places(ids)), DROPPED_BITS, keys)
        found = torch.from_numpy(keys)
        if not self._proven and not torch.equal(found, _keys(ids, mask)):
            self.wrong = "other keys"
            raise ArithmeticError(self.wrong)
        self._proven = True
        return found


COMPILED = CompiledKeys()


@cache
def _factors(places: int) -> Ints:
    """Odd 64-bit numbers, the same everywhere: splitmix64 (Steele, Lea, Flood, OOPSLA 2014)."""
    state: NDArray[np.uint64] = np.arange(1, places + 1, dtype=np.uint64)
    state *= np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        state = (state ^ (state >> np.uint64(shift))) * np.uint64(factor)
    state = (state ^ (state >> np.uint64(31))) | np.uint64(1)
    return state.view(np.int64)


@cache
def _factors_on(device: torch.device, places: int) -> Tensor:
    return torch.from_numpy(_factors(places)).to(device)
