"""A batch's memory as compiled loops take it: arrays of values, one behind the other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from klmonitor.summary.once import once

NO_MASK, NO_IDS = np.empty(0, np.uint8), np.empty(0, np.int64)


class Arrays:
    """A batch's log-probs, mask and sequences, for all passes over it.

    Args:
        log_probs: policy -> [B, T] values.
        mask: bool [B, T]; None: all count.
        segments: int64 [T] of packed input; None: rows are sequences.
        n_sequences: number of sequences.

    Attributes:
        log_probs: policy -> [N] values, of their own dtype where numpy has it.
        mask: uint8 [N], or empty: all count.
        offsets: flat index of each packed sequence's first token, and N; or empty.
    """

    def __init__(
        self,
        log_probs: Mapping[str, Tensor],
        mask: Tensor | None,
        segments: Tensor | None,
        n_sequences: int,
    ) -> None:
        self.log_probs = {name: flat(x) for name, x in log_probs.items()}
        self.mask = NO_MASK if mask is None else flat(mask).view(np.uint8)
        self.offsets = NO_IDS
        if segments is not None:
            self.offsets = np.searchsorted(segments.numpy(), np.arange(n_sequences + 1))

    @once
    def narrow(self) -> Mapping[str, NDArray[np.float32]]:
        """The log-probs in float32."""
        return {name: x.astype(np.float32, copy=False) for name, x in self.log_probs.items()}


def flat(tensor: Tensor) -> NDArray[Any]:
    """A tensor's values, one behind the other; the same memory where it holds them so."""
    try:
        values: NDArray[Any] = tensor.numpy().ravel()
    except TypeError:  # of a dtype that numpy lacks
        return tensor.float().numpy().ravel()
    except RuntimeError:
        if not tensor.is_neg():
            raise
        return tensor.resolve_neg().numpy().ravel()
    return values


def narrow(tensor: Tensor) -> NDArray[np.float32]:
    """A tensor's values in float32, likewise."""
    return flat(tensor if tensor.dtype == torch.float32 else tensor.float())


def ids(tensor: Tensor | None) -> NDArray[np.int64]:
    """The same of integers; empty: there are none."""
    return NO_IDS if tensor is None else flat(tensor).astype(np.int64, copy=False)
