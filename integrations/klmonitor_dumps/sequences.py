"""One sequence's log-probs from a row of a dump, checked before anything is counted."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from klmonitor_dumps.layout import POLICIES, REAL, Layout, Row
from klmonitor_dumps.problems import RowError

Array = NDArray[Any]


@dataclass(frozen=True)
class Rollout:
    """The sampled tokens of one sequence.

    Attributes:
        step: the optimizer step.
        log_probs: policy -> log-probs, nats, [T], float32 where that holds them exactly.
        mask: bool [T]: which tokens count; None: all.
        entropy: [T] of the trainer's policy, nats, None: unknown.
        tokens: int64 [T] vocabulary ids, None: unknown.
        prompt: which prompt it answers, None: unknown.
        group: its environment or data set, None: unknown.
        where: its place in the dump.
        nonfinite: policy -> counted values that are nan or infinite, where there are any.
    """

    step: int
    log_probs: Mapping[str, Array]
    mask: Array | None
    entropy: Array | None
    tokens: Array | None
    prompt: str | int | None
    group: str | None
    where: str
    nonfinite: Mapping[str, int]

    @property
    def length(self) -> int:
        """Tokens, counted or not."""
        return len(next(iter(self.log_probs.values())))


def rollouts(
    row: Row, layout: Layout, step: int | None, where: str, number: int | None = None
) -> Iterator[Rollout]:
    """The sequences of a row that have a token that counts.

    Args:
        row: of the dump.
        layout: which column is what.
        step: its step, None: it is in the row.
        where: the row's place.
        number: the step of a row that has none.

    Raises:
        RowError: a column is missing or of a wrong kind, or lengths differ.
    """
    if step is None:
        step = _step(row, layout, number)
    every = {role: _column(row, layout, role) for role in POLICIES}
    given = {role: found for role, found in every.items() if found is not None}
    if len(given) < 2:
        raise RowError("missing column", f"has {_held(given)}, and a KL needs two policies")
    tokens = _column(row, layout, "tokens")
    real = _column(row, layout, REAL)
    entropy = _column(row, layout, "entropy")
    others = [one for one in (tokens, real, entropy) if one is not None]
    every_one = [*given.values(), *others]
    count = _same_number({name: len(arrays) for name, arrays in every_one})
    masks = _masks(row, layout, count)
    prompts, groups = (_labels(row, layout, role, count) for role in ("prompt", "group"))
    for index in range(count):
        log_probs = {role: _floats(n, arrays[index]) for role, (n, arrays) in given.items()}
        found = _one(log_probs, [mask[index] for mask in masks], layout)
        if found is None:
            continue
        log_probs, mask = found
        length = len(next(iter(log_probs.values())))
        full = None if tokens is None else _integers(tokens[0], tokens[1][index])
        prompt = prompts[index] if prompts else None
        if prompt is None and full is not None and layout.prompts_from_tokens:
            prompt = _prompt(full, length, mask, None if real is None else real[1][index])
        yield Rollout(
            step,
            log_probs,
            mask,
            None if entropy is None else _beside(*_at(entropy, index), length, layout),
            None if full is None else _own(full[layout.first :], length, layout),
            prompt,
            groups[index] if groups else None,
            where,
            {role: bad for role, x in log_probs.items() if (bad := _nonfinite(x, mask))},
        )


def _one(
    log_probs: Mapping[str, Array], masks: list[Array], layout: Layout
) -> tuple[dict[str, Array], Array | None] | None:
    """One sequence's log-probs and mask, from the first sampled token on; None: none counts."""
    lengths = {role: len(x) for role, x in log_probs.items()}
    if len(set(lengths.values())) > 1:
        said = ", ".join(f"{role} {length}" for role, length in lengths.items())
        raise RowError("mixed lengths", f"has sequences of mixed lengths: {said}")
    length = next(iter(lengths.values()))
    mask: Array | None = None
    for one in masks:
        if one.size not in (1, length):
            text = f"has a mask of {one.size} values for {length} tokens"
            raise RowError("mixed lengths", text)
        mask = one if mask is None else mask & one
    if mask is not None:
        mask = np.broadcast_to(mask, length)[layout.first :]
        if not mask.any():
            return None
    cut = {role: x[layout.first :] for role, x in log_probs.items()}
    return (cut, mask) if length > layout.first else None


def _step(row: Row, layout: Layout, number: int | None) -> int:
    for name in layout.columns.get("step", ()):
        value = row.get(name)
        if value is not None:
            plain = _plain(value)
            if isinstance(plain, list) and len(plain) == 1:
                plain = plain[0]
            if isinstance(plain, (int, float)) and float(plain).is_integer():
                return int(plain)
            raise RowError("wrong step", f"{name} is {value!r}, not a whole number")
    if number is None:
        text = "has no step: name its column with --step, or put a number into the file's name"
        raise RowError("no step", text)
    return number


def _column(row: Row, layout: Layout, role: str) -> tuple[str, list[Array]] | None:
    """The column of a role, and its sequences; None: the row has none."""
    for name in layout.columns.get(role, ()):
        value = row.get(name)
        if value is not None:
            return name, split(name, value, row.get("cu_seqlens"))
    if role in layout.named:
        name = layout.columns[role][0]
        raise RowError(f"missing column {name!r}", f"has no {name!r} for {role}")
    return None


def split(name: str, value: Any, offsets: Any = None) -> list[Array]:
    """The sequences of a column's value: of [T] one, of [B, T] or a list of lists several.

    Args:
        name: of the column.
        value: numbers, an array or a tensor, or a list of them.
        offsets: [B + 1] of packed sequences, None: they are not packed.

    Raises:
        RowError: it holds something else.
    """
    if isinstance(value, (list, tuple)):
        first = next((item for item in value if item is not None), None)
        if isinstance(first, (list, tuple)) or getattr(first, "ndim", None):
            return [_array(name, item) for item in value]
    array = _array(name, value)
    if array.ndim > 2:
        raise RowError("wrong shape", f"{name} has shape {list(array.shape)}, not [B, T]")
    if array.ndim == 2:
        return list(array)
    if offsets is not None and array.ndim == 1:
        return np.split(array, _array("cu_seqlens", offsets)[1:-1])
    return [np.atleast_1d(array)]


def _array(name: str, value: Any) -> Array:
    if hasattr(value, "detach"):  # a tensor; numpy knows no bfloat16
        value = value.detach().cpu()
        return np.asarray((value if value.dtype.itemsize > 2 else _wide(value)).numpy())
    if isinstance(value, np.ndarray):
        return value
    try:
        return np.array(value)
    except ValueError:
        raise RowError("mixed lengths", f"{name} is a list of uneven lists") from None


def _wide(tensor: Any) -> Any:
    return tensor.float() if tensor.is_floating_point() else tensor


def _floats(name: str, value: Array) -> Array:
    """Log-probs, as float32 where that loses nothing: what was written in JSON has no type."""
    if value.dtype.kind == "O":  # null is nan
        try:
            value = np.array([np.nan if x is None else x for x in value])
        except ValueError:
            raise RowError("mixed lengths", f"{name} is a list of uneven lists") from None
    if value.dtype.kind != "f" and (value.dtype.kind not in "iu" or value.any()):
        what = {
            "i": "whole numbers (token ids?)",
            "u": "whole numbers (token ids?)",
            "b": "true and false",
            "U": "text",
        }.get(value.dtype.kind, str(value.dtype))
        raise RowError(f"wrong dtype of {name!r}", f"{name} holds {what}, not numbers in nats")
    if value.dtype == np.float32:
        return value
    with np.errstate(over="ignore"):
        narrow = value.astype(np.float32)
    same = (narrow == value) | np.isnan(value)
    return narrow if same.all() else value.astype(np.float64)


def _integers(name: str, value: Array) -> Array:
    if value.dtype.kind == "f" and np.array_equal(value, np.trunc(value)):
        value = value.astype(np.int64)
    if value.dtype.kind not in "iu" and value.size:
        raise RowError(f"wrong dtype of {name!r}", f"{name} holds {value.dtype}, not token ids")
    return np.asarray(value, dtype=np.int64)


def _masks(row: Row, layout: Layout, count: int) -> list[list[Array]]:
    """Each mask by sequence, bool: [T], or one value for all of it.

    Raises:
        RowError: a mask has other values than 0 and 1, or the user named one that is not there.
    """
    found = []
    names = [name for name in layout.columns.get("mask", ()) if row.get(name) is not None]
    if not names and "mask" in layout.named:
        _column(row, layout, "mask")
    for name in names:
        parts = split(name, _small(row[name]), row.get("cu_seqlens"))
        if len(parts) == 1 and parts[0].size == count != 1:
            parts = list(parts[0].reshape(count, 1))  # a value a sequence
        if len(parts) != count:
            raise RowError("mixed lengths", f"{name} has {len(parts)} rows for {count} sequences")
        found.append([_bools(name, part) for part in parts])
    return found


def _small(value: Any) -> Any:
    """A list of small whole numbers as an array, three times as fast."""
    if isinstance(value, list) and value and isinstance(value[0], int):
        try:
            return np.frombuffer(bytes(value), dtype=np.uint8)
        except (TypeError, ValueError):
            return value
    return value


def _bools(name: str, mask: Array) -> Array:
    if mask.dtype == np.bool_:
        return mask
    if mask.dtype.kind not in "iuf":
        raise RowError(f"wrong dtype of {name!r}", f"{name} holds {mask.dtype}, not 0 and 1")
    found = np.asarray(mask != 0)
    if not np.array_equal(found, mask):
        text = f"{name} has values other than 0 and 1: name a mask, not weights"
        raise RowError(f"weights in {name!r}", text)
    return found


def _labels(row: Row, layout: Layout, role: str, count: int) -> list[Any] | None:
    """Of every sequence its prompt or group, None: unknown."""
    name = next((n for n in layout.columns.get(role, ()) if row.get(n) is not None), None)
    if name is None:
        return None
    value = _plain(row[name])
    many = isinstance(value, list) and len(value) == count
    if isinstance(value, list) and not many:
        raise RowError("mixed lengths", f"{name} has {len(value)} entries for {count} sequences")
    values = value if many else [value] * count
    whole = role == "prompt" and all(isinstance(x, int) for x in values)
    return values if whole else [None if x is None else str(x) for x in values]


def _plain(value: Any) -> Any:
    """Tensors and arrays as numbers and lists."""
    return value.tolist() if hasattr(value, "tolist") else value


def _prompt(full: Array, length: int, mask: Array | None, real: Array | None) -> str:
    """A name for the tokens before the first that counts, without what they are padded with."""
    first = max(full.size - length + (0 if mask is None else int(mask.argmax())), 0)
    before = full[:first] if real is None else full[:first][real[:first] != 0]
    return hashlib.blake2b(before.tobytes(), digest_size=8).hexdigest()


def _own(full: Array, length: int, layout: Layout) -> Array:
    """The ids of the sampled tokens: of prompt and completion the last ones."""
    if full.size == length or (full.size > length and layout.prompts_from_tokens):
        return full[full.size - length :]
    text = f"has sequences of mixed lengths: tokens {full.size}, log-probs {length}"
    raise RowError("mixed lengths", text)


def _at(column: tuple[str, list[Array]], index: int) -> tuple[str, Array]:
    return column[0], column[1][index]


def _beside(name: str, value: Array, length: int, layout: Layout) -> Array:
    """Numbers of the same tokens as the log-probs."""
    found = _floats(name, value)[layout.first :]
    if found.size != length:
        text = f"has sequences of mixed lengths: {name} {found.size}, log-probs {length}"
        raise RowError("mixed lengths", text)
    return found


def _nonfinite(x: Array, mask: Array | None) -> int:
    finite = np.isfinite(x)
    if finite.all():
        return 0
    return int((~finite if mask is None else ~finite & mask).sum())


def _same_number(counts: Mapping[str, int]) -> int:
    if len(set(counts.values())) > 1:
        said = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise RowError("mixed lengths", f"has columns of different numbers of sequences: {said}")
    return next(iter(counts.values()))


def _held(given: Mapping[str, Any]) -> str:
    return f"log-probs of {', '.join(given)} alone" if given else "no log-probs"
