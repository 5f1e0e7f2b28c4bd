"""TokenBatch: the one place where shapes, masks, dtypes and layouts are checked.

Whatever layout comes in, the rest of the package sees log-probs of shape [B, T], a mask of the
same shape or None, and one of two meanings of a row: without `segments` every row is a sequence;
with `segments` (packed input, B = 1) each token carries the index of its sequence.

Checking reads shapes and dtypes. Values (masks of 0 and 1, `cu_seqlens` that cover the tokens) are
read only when `check_values=True`, at the first batch. What lies on another device is copied to the
host (`klmonitor.summary.arrivals` does that before, without waiting).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from klmonitor.pairs import POLICIES, POLICY_INDEX
from klmonitor.summary.arrays import Arrays
from klmonitor.summary.once import once

TensorLike: TypeAlias = "Tensor | np.ndarray[Any, Any] | Sequence[Tensor | np.ndarray[Any, Any]]"


@dataclass(frozen=True)
class TokenBatch:
    """Log-probs of sampled tokens under two or more policies.

    Attributes:
        log_probs: policy name -> log-probs, nats, [B, T], any float dtype, detached.
        mask: bool [B, T], True where a token counts; None: all count.
        token_ids: integer [B, T] or None.
        segments: int64 [T], the sequence of each token of packed input (B = 1); None: rows are
            sequences.
        n_sequences: number of sequences.
        prompt_ids: int64 [n_sequences], which prompt a sequence answers; None: unknown.
    """

    log_probs: Mapping[str, Tensor]
    mask: Tensor | None
    token_ids: Tensor | None
    segments: Tensor | None
    n_sequences: int
    prompt_ids: Tensor | None

    @once
    def device(self) -> torch.device:
        """Where the log-probs live: the host; a default device may be another."""
        return next(iter(self.log_probs.values())).device

    @once
    def shape(self) -> tuple[int, int]:
        """[B, T]."""
        rows, columns = next(iter(self.log_probs.values())).shape
        return rows, columns

    @once
    def arrays(self) -> Arrays:
        """The same memory as compiled loops take it."""
        return Arrays(self.log_probs, self.mask, self.segments, self.n_sequences)

    @once
    def dtypes(self) -> frozenset[torch.dtype]:
        """Of the log-probs."""
        return frozenset([x.dtype for x in self.log_probs.values()])

    def first(self, rows: int, columns: int) -> TokenBatch:
        """The first tokens of the first rows, as views; without their ids."""
        if (rows, columns) == self.shape:
            return self
        packed = self.segments is not None
        return TokenBatch(
            {name: x[:rows, :columns] for name, x in self.log_probs.items()},
            None if self.mask is None else self.mask[:rows, :columns],
            None,
            None if self.segments is None else self.segments[:columns],
            self.n_sequences if packed else rows,
            self.prompt_ids if packed or self.prompt_ids is None else self.prompt_ids[:rows],
        )

    def starts(self) -> Tensor | None:
        """First token of each packed sequence, int64 [n_sequences]; None for [B, T] input."""
        if self.segments is None:
            return None
        tokens = self.segments.shape[0]
        first = torch.full((self.n_sequences,), tokens, device=self.device)
        index = torch.arange(tokens, device=self.device)
        return first.scatter_reduce_(0, self.segments, index, "amin")


def build(
    log_probs: Mapping[str, TensorLike | None],
    *,
    mask: TensorLike | None = None,
    token_ids: TensorLike | None = None,
    prompt_ids: TensorLike | None = None,
    cu_seqlens: TensorLike | None = None,
    sequence_ids: TensorLike | None = None,
    check_values: bool = False,
) -> TokenBatch:
    """Check one micro-batch and bring it into the one layout.

    Args:
        log_probs: policy name -> log-probs of the sampled tokens, nats: [B, T] tensors aligned on
            the response, packed [N] tensors (with `cu_seqlens` or `sequence_ids`), or lists of
            1-D tensors, one a sequence. None values are policies that are not known.
        mask: same layout; bool, integer or float of 0 and 1.
        token_ids: same layout, integer.
        prompt_ids: [B], one integer a sequence.
        cu_seqlens: [B + 1] integers from 0 to N, for packed input.
        sequence_ids: [N] integers, equal within a sequence, for packed input.
        check_values: also read the values of `mask` and `cu_seqlens`.

    Raises:
        ValueError: shapes, masks or layouts do not fit; the message names both and the remedy.
        TypeError: a dtype is wrong, or a policy's name is unknown.
    """
    given = {name: value for name, value in log_probs.items() if value is not None}
    if not POLICY_INDEX.keys() >= given.keys():
        unknown = min(given.keys() - POLICY_INDEX.keys())
        raise TypeError(f"unknown policy {unknown!r}: name one of {', '.join(POLICIES)}")
    if len(given) < 2:
        held = ", ".join(given) or "none"
        raise ValueError(f"a KL needs log-probs of two policies, got {held}: pass e.g. policy, ref")

    lengths = _list_lengths(given)
    tensors = {name: log_probs_of(name, value) for name, value in given.items()}
    name, first = next(iter(tensors.items()))
    for other, tensor in tensors.items():
        _same_shape(f"{other}", tensor, name, first)
    flat_mask = None if mask is None else _mask(as_tensor("mask", mask), name, first, check_values)
    ids = None if token_ids is None else _integers("token_ids", token_ids)
    if ids is not None:
        _same_shape("token_ids", ids, name, first)

    segments, n_sequences = _sequences(name, first, lengths, cu_seqlens, sequence_ids, check_values)
    prompts = None if prompt_ids is None else _integers("prompt_ids", prompt_ids)
    if prompts is not None and sequence_ids is not None:
        raise ValueError("prompt_ids with sequence_ids is ambiguous: pass cu_seqlens instead")
    if prompts is not None and tuple(prompts.shape) != (n_sequences,):
        raise ValueError(
            f"prompt_ids has shape {list(prompts.shape)} but there are {n_sequences} sequences: "
            "pass one integer a sequence"
        )
    if first.dim() == 1:
        tensors = {key: value.unsqueeze(0) for key, value in tensors.items()}
        flat_mask = None if flat_mask is None else flat_mask.unsqueeze(0)
        ids = None if ids is None else ids.unsqueeze(0)
    return TokenBatch(
        log_probs=tensors,
        mask=flat_mask,
        token_ids=ids,
        segments=segments,
        n_sequences=n_sequences,
        prompt_ids=None if prompts is None else prompts.long(),
    )


def mask_of(
    mask: TensorLike | None, batch: TokenBatch, check_values: bool = False
) -> Tensor | None:
    """Another mask for a batch, in the layout of its log-probs; None: all tokens count.

    Raises:
        ValueError: its shape is not theirs, or it has values other than 0 and 1.
    """
    if mask is None:
        return None
    name, first = next(iter(batch.log_probs.items()))
    tensor = as_tensor("mask", mask)
    if tensor.dim() == 1:
        tensor = tensor.unsqueeze(0)
    return _mask(tensor, name, first, check_values)


def _list_lengths(given: Mapping[str, TensorLike]) -> list[int] | None:
    """Lengths of the sequences if the input is lists of 1-D tensors, else None."""
    lists = {name: value for name, value in given.items() if isinstance(value, (list, tuple))}
    if not lists:
        return None
    if len(lists) < len(given):
        other = next(name for name in given if name not in lists)
        raise ValueError(
            f"{next(iter(lists))} is a list but {other} is a tensor: pass all in one layout"
        )
    (name, first), *rest = lists.items()
    lengths = [len(sequence) for sequence in first]
    for other, value in rest:
        if [len(sequence) for sequence in value] != lengths:
            raise ValueError(
                f"{other} and {name} are lists of sequences of different lengths: "
                "pass the same tokens for every policy"
            )
    return lengths


def as_tensor(name: str, value: TensorLike) -> Tensor:
    """A detached tensor on the host; a list of 1-D tensors becomes one 1-D tensor."""
    if isinstance(value, Tensor):
        value = value if value.is_cpu else value.cpu()
        value = value.resolve_neg() if value.is_neg() else value
        return value.detach() if value.requires_grad else value
    if isinstance(value, np.ndarray):  # torch takes neither read-only nor reversed memory
        return torch.from_numpy(np.require(value, requirements=["C", "W"]))
    if isinstance(value, (list, tuple)):
        parts = [as_tensor(name, part) for part in value]
        if any(part.dim() != 1 for part in parts):
            raise ValueError(
                f"{name} is a list of tensors that are not 1-D: pass one [B, T] tensor"
            )
        return torch.cat(parts) if parts else torch.zeros(0, device="cpu")
    raise TypeError(
        f"{name} is a {type(value).__name__}: pass a tensor, a numpy array or a list of 1-D tensors"
    )


def log_probs_of(name: str, value: TensorLike) -> Tensor:
    """Log-probs of one policy as a tensor.

    Raises:
        TypeError: they are no floats, or no tensor.
        ValueError: they are neither [B, T] nor packed.
    """
    tensor = as_tensor(name, value)
    if not tensor.is_floating_point():
        raise TypeError(
            f"{name} has dtype {tensor.dtype}: log-probs are floats (were token ids passed?)"
        )
    if tensor.dim() not in (1, 2):
        raise ValueError(
            f"{name} has shape {list(tensor.shape)}: pass the log-probs of the sampled tokens, "
            "[B, T] or packed [N], not logits"
        )
    return tensor


def _integers(name: str, value: TensorLike) -> Tensor:
    tensor = as_tensor(name, value)
    if tensor.is_floating_point() or tensor.dtype == torch.bool:
        raise TypeError(f"{name} has dtype {tensor.dtype}: pass integers")
    return tensor


def _same_shape(name: str, tensor: Tensor, other: str, reference: Tensor) -> None:
    if tensor.shape != reference.shape and tensor.dim() == 2 == reference.dim():
        narrow = name if tensor.shape[1] == 1 else other if reference.shape[1] == 1 else ""
        if narrow and tensor.shape[0] == reference.shape[0]:
            raise ValueError(
                f"{narrow} has one column, {name} has shape {list(tensor.shape)} and {other} "
                f"{list(reference.shape)}: pass log-probs by token, not their sums by sequence"
            )
    if tensor.shape != reference.shape:
        raise ValueError(
            f"{name} has shape {list(tensor.shape)} but {other} has {list(reference.shape)}: "
            "slice both to the response tokens so that they align"
        )


def _mask(mask: Tensor, name: str, reference: Tensor, check_values: bool) -> Tensor:
    _same_shape("mask", mask, name, reference)
    if mask.dtype == torch.bool:
        return mask
    if check_values and bool(((mask != 0) & (mask != 1)).any()):
        raise ValueError("mask has values other than 0 and 1: pass which tokens count, not weights")
    return mask != 0


def _sequences(
    name: str,
    reference: Tensor,
    lengths: list[int] | None,
    cu_seqlens: TensorLike | None,
    sequence_ids: TensorLike | None,
    check_values: bool,
) -> tuple[Tensor | None, int]:
    """The segment of each token (None if rows are sequences) and the number of sequences."""
    if reference.dim() == 2:
        if cu_seqlens is not None or sequence_ids is not None:
            raise ValueError(
                f"{name} has shape {list(reference.shape)}: cu_seqlens and sequence_ids belong to "
                "packed [N] tensors, leave them out"
            )
        return None, reference.shape[0]
    tokens, device = reference.shape[0], reference.device
    if lengths is not None:
        counts = torch.tensor(lengths, dtype=torch.int64, device=device)
        index = torch.arange(len(lengths), device=device)
        return torch.repeat_interleave(index, counts, output_size=tokens), len(lengths)
    if cu_seqlens is not None:
        ends = _integers("cu_seqlens", cu_seqlens).long()
        if ends.dim() != 1 or ends.shape[0] < 2:
            raise ValueError(f"cu_seqlens has shape {list(ends.shape)}: pass [B + 1] offsets")
        if check_values and (int(ends[0]) != 0 or int(ends[-1]) != tokens):
            raise ValueError(
                f"cu_seqlens runs from {int(ends[0])} to {int(ends[-1])} but there are "
                f"{tokens} tokens: it must run from 0 to the number of tokens"
            )
        if check_values and bool((ends[1:] < ends[:-1]).any()):
            raise ValueError("cu_seqlens decreases: pass the offsets of the sequences, in order")
        position = torch.arange(tokens, device=device)
        return torch.bucketize(position, ends[1:-1], right=True), ends.shape[0] - 1
    if sequence_ids is not None:
        ids = _integers("sequence_ids", sequence_ids)
        _same_shape("sequence_ids", ids, name, reference)
        change = torch.zeros(tokens, dtype=torch.int64, device=device)
        change[1:] = (ids[1:] != ids[:-1]).long()
        segments = change.cumsum(0)
        return segments, int(segments[-1]) + 1 if tokens else 0
    raise ValueError(
        f"{name} has shape {list(reference.shape)}: packed tokens need cu_seqlens or sequence_ids, "
        "or pass [B, T] tensors"
    )
