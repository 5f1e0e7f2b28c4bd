"""What is known of a batch beside its log-probs: entropies, and the age of what sampled it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from klmonitor.summary.batch import TensorLike, TokenBatch, as_tensor

Version: TypeAlias = "TensorLike | int | None"
"""Weight updates in the weights that sampled: one number, or [sequences]."""


@dataclass(frozen=True)
class Extras:
    """Checked.

    Attributes:
        entropy: [B, T] (or [1, N] packed) of the trainer's policy at each position, nats.
        lag: int64 [sequences], weight updates since the weights that sampled.
        advantages: [B, T] (or [1, N] packed) of each token.
        beta: weight of the KL term; None: the one that the term was given with.
    """

    entropy: Tensor | None = None
    lag: Tensor | None = None
    advantages: Tensor | None = None
    beta: float | None = None


class Versions:
    """The newest weights that were heard of.

    Attributes:
        largest: their number of updates; None: no version was given yet.
    """

    def __init__(self) -> None:
        self.largest: int | None = None

    def lag(self, version: Version, current: int | None, batch: TokenBatch) -> Tensor | None:
        """int64 [sequences], how many updates behind `current` each is; None: unknown.

        Args:
            version: of the weights that sampled, one number or [sequences].
            current: of the trainer's weights; None: the largest version so far.
            batch: whose sequences.

        Raises:
            ValueError: there is not one version a sequence.
            TypeError: versions are no integers.
        """
        if version is None:
            return None
        numbers = (
            torch.tensor(version, device="cpu")
            if isinstance(version, int)
            else as_tensor("version", version)
        )
        if numbers.is_floating_point() or numbers.dtype == torch.bool:
            raise TypeError(f"version has dtype {numbers.dtype}: pass integers, weight updates")
        if numbers.dim() == 0:
            numbers = numbers.expand(batch.n_sequences)
        if tuple(numbers.shape) != (batch.n_sequences,):
            raise ValueError(
                f"version has shape {list(numbers.shape)} but there are {batch.n_sequences} "
                "sequences: pass one integer a sequence, or one for all"
            )
        if current is None and numbers.numel():
            self.largest = max(int(numbers.max()), -1 if self.largest is None else self.largest)
        newest = self.largest if current is None else current
        return ((newest or 0) - numbers).long()


def checked_entropy(entropy: TensorLike | None, batch: TokenBatch) -> Tensor | None:
    """Entropies in the batch's layout.

    Raises:
        ValueError: their shape is not that of the log-probs.
        TypeError: they are no floats.
    """
    if entropy is None:
        return None
    found = _floats("entropy", "entropy has", entropy)
    if found.dim() == 1:
        found = found.unsqueeze(0)
    if tuple(found.shape) != batch.shape:
        raise _misshapen("entropy has", found, batch, "the entropy of every token's position")
    return found


def checked_advantages(advantages: TensorLike | None, batch: TokenBatch) -> Tensor | None:
    """Advantages in the batch's layout: of tokens as they are, of sequences spread over them.

    Raises:
        ValueError: they are neither one a sequence nor one a token.
        TypeError: they are no floats.
    """
    if advantages is None:
        return None
    found = _floats("advantages", "advantages have", advantages)
    packed = batch.segments is not None
    if packed and tuple(found.shape) == (batch.shape[1],):
        return found.unsqueeze(0)
    if tuple(found.shape) == (batch.n_sequences,):
        if packed:
            return found[batch.segments].unsqueeze(0)
        return found.unsqueeze(1).expand(batch.shape)
    if tuple(found.shape) != batch.shape:
        raise _misshapen("advantages have", found, batch, "one a sequence, or one a token")
    return found


def _floats(name: str, they_have: str, values: TensorLike) -> Tensor:
    found = as_tensor(name, values)
    if not found.is_floating_point():
        raise TypeError(f"{they_have} dtype {found.dtype}: pass floats")
    return found


def _misshapen(they_have: str, found: Tensor, batch: TokenBatch, remedy: str) -> ValueError:
    return ValueError(
        f"{they_have} shape {list(found.shape)} but log-probs have {list(batch.shape)}: pass "
        f"{remedy}, sliced alike"
    )


def checked_beta(beta: float | None, penalised: bool) -> float | None:
    """The weight of the KL term.

    Raises:
        ValueError: it is not finite, or there is no term that it could belong to.
    """
    if beta is None:
        return None
    if not math.isfinite(beta):
        raise ValueError(f"beta is {beta}: give a finite weight")
    if not penalised:
        raise ValueError(f"beta is {beta:g} of no KL term: give penalty=Penalty(...) at setup")
    return float(beta)
