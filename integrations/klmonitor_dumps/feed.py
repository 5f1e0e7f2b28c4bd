"""Sequences into a monitor: micro-batches of bounded size, a step when its last sequence is in."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from klmonitor_dumps.problems import Problems
from klmonitor_dumps.sequences import Rollout

if TYPE_CHECKING:
    from klmonitor import Monitor, Report

TOKENS = 2**16
"""Tokens of a micro-batch, about."""
FLUSH_STEPS = 16
"""Steps after which the record is waited for: its queue drops what a disk is too slow for."""
LOOK_AHEAD = 2**20
"""Tokens that are held to find the names of groups, at most."""
MOST_GROUPS = 32


def groups_ahead(rows: Iterator[Rollout]) -> tuple[list[str], list[Rollout]]:
    """Names of groups in the first step, and the sequences that were read to find them."""
    held: list[Rollout] = []
    names: set[str] = set()
    tokens = 0
    for row in rows:
        held.append(row)
        tokens += row.length
        if row.group is not None and len(names) < MOST_GROUPS:
            names.add(row.group)
        if row.step != held[0].step or tokens > LOOK_AHEAD:
            break
    return sorted(names - {"other", ""}), held


def feed(monitor: Monitor, rows: Iterable[Rollout], problems: Problems) -> Iterator[Report]:
    """Give all sequences to a monitor, whose reports come as steps close.

    Sequences of a step that is closed are left out: a sum that was judged is not taken back.
    """
    held: list[Rollout] = []
    size, step, steps = 0, None, 0
    for row in rows:
        for role, count in row.nonfinite.items():
            text = f"{role} has nan or infinite values: these tokens are counted and left out"
            problems.add(f"nan or infinite value of {role}", row.where, text, count)
        if step is not None and row.step < step:
            text = (
                f"step {row.step} comes again after step {step} has begun; left out: sort the rows "
                "by step"
            )
            problems.add("step out of order", row.where, text)
            continue
        if held and (row.step != step or _kind(row) != _kind(held[0]) or size >= TOKENS):
            observe(monitor, held)
            held, size = [], 0
        if step is not None and row.step != step:
            yield monitor.step(step)
            steps += 1
            if steps % FLUSH_STEPS == 0:
                monitor.flush()
        step = row.step
        held.append(row)
        size += row.length
    if held and step is not None:
        observe(monitor, held)
        yield monitor.step(step)


def _kind(row: Rollout) -> tuple[object, ...]:
    """What sequences of one micro-batch have in common."""
    return (
        row.log_probs.keys(),
        row.tokens is None,
        row.entropy is None,
        type(row.prompt),
        row.group is None,
    )


def observe(monitor: Monitor, held: list[Rollout]) -> None:
    """One micro-batch, packed."""
    first = held[0]
    lengths = np.array([row.length for row in held])
    masked = any(row.mask is not None for row in held)
    entropies = [row.entropy for row in held if row.entropy is not None]
    ids = [row.tokens for row in held if row.tokens is not None]
    log_probs: dict[str, Any] = {
        role: np.concatenate([row.log_probs[role] for row in held]) for role in first.log_probs
    }
    monitor.observe(
        mask=np.concatenate([_mask(row) for row in held]) if masked else None,
        token_ids=np.concatenate(ids) if ids else None,
        prompt_ids=_prompts(held),
        entropy=np.concatenate(entropies) if entropies else None,
        cu_seqlens=np.concatenate([[0], np.cumsum(lengths)]),
        group=None if first.group is None else [row.group or "other" for row in held],
        **log_probs,
    )


def _mask(row: Rollout) -> NDArray[np.bool_]:
    return np.ones(row.length, dtype=bool) if row.mask is None else row.mask


def _prompts(held: list[Rollout]) -> list[str] | NDArray[np.int64] | None:
    if held[0].prompt is None:
        return None
    if isinstance(held[0].prompt, int):
        return np.array([row.prompt for row in held], dtype=np.int64)
    return [str(row.prompt) for row in held]
