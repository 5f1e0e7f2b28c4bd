"""One integer per prompt, the same on every rank and for every padding, without a host copy."""

from __future__ import annotations

from functools import cache
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

PROMPT_BITS = 53
"""Keys stay below 2**53, so that a float64 holds them exactly."""
DROPPED_BITS = 64 - PROMPT_BITS
Ints = NDArray[np.int64]
Array: TypeAlias = Any
"""Of numpy or torch: what both spell alike is used."""


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
    ids, inside = ids.to(torch.int64), mask.to(torch.int64)
    factors = _factors_on(ids.device, 1 << ids.shape[1].bit_length())
    if ids.is_cpu:  # numpy takes half the time for so few numbers
        return torch.from_numpy(_keys(ids.numpy(), inside.numpy(), factors.numpy()))
    keys: Tensor = _keys(ids, inside, factors)
    return keys


def _keys(ids: Array, inside: Array, factors: Array) -> Array:
    """The same of int64 arrays, or of tensors."""
    sums = ((ids + 1) * factors[inside.cumsum(1)] * inside).sum(1)
    return (sums >> DROPPED_BITS) & ((1 << PROMPT_BITS) - 1)


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
