"""One integer per prompt, the same on every rank and for every padding, without a host copy."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

Bits = Any
"""int64, a tensor or an array."""
PROMPT_BITS = 53
"""Keys stay below 2**53, so that a float64 holds them exactly."""


def _signed(value: int) -> int:
    """A 64-bit pattern as the signed integer that torch stores."""
    return value - (1 << 64) if value >= 1 << 63 else value


_TOKEN = _signed(0x9E3779B97F4A7C15)
_PLACE = _signed(0xD1B54A32D192ED03)
_MIX_1 = _signed(0xBF58476D1CE4E5B9)
_MIX_2 = _signed(0x94D049BB133111EB)


def prompt_keys(ids: Tensor, mask: Tensor) -> Tensor:
    """Hash each row's unmasked tokens, in their order.

    Every (token, place) is mixed to 64 bits and a prompt's key is the mixed sum. Places are
    counted from the prompt's end, so padding on either side changes nothing. Two different
    prompts share a key with probability 2**-53.

    Args:
        ids: token ids, [B, P].
        mask: 1 where a token belongs to the prompt, [B, P].

    Returns:
        int64 [B], in [0, 2**53).
    """
    ids, inside = ids.to(torch.int64), mask.to(torch.int64)
    if ids.is_cpu:  # the same arithmetic, whose calls cost less
        return torch.from_numpy(_keys(ids.numpy(), inside.numpy()))
    found: Tensor = _keys(ids, inside)
    return found


def _keys(ids: Bits, inside: Bits) -> Bits:
    place = inside.sum(1, keepdims=True) - inside.cumsum(1) + inside
    mixed = _mix(ids * _TOKEN + place * _PLACE) * inside
    return _mix(mixed.sum(1)) & ((1 << PROMPT_BITS) - 1)


def _mix(bits: Bits) -> Bits:
    """The finaliser of splitmix64 (Steele, Lea, Flood, OOPSLA 2014), modulo 2**64."""
    bits = (bits ^ _shift(bits, 30)) * _MIX_1
    bits = (bits ^ _shift(bits, 27)) * _MIX_2
    return bits ^ _shift(bits, 31)


def _shift(bits: Bits, by: int) -> Bits:
    """Shift right and fill with zeros (a signed integer's own shift copies the sign)."""
    return (bits >> by) & ((1 << (64 - by)) - 1)
