"""From `observe` to sums: what a monitor and a collector do alike with a micro-batch."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from klmonitor.pairs import Pair, default_pairs, parse_pairs
from klmonitor.summary import signatures
from klmonitor.summary.batch import TensorLike, TokenBatch, build, moved
from klmonitor.summary.extras import Extras, Version, Versions, checked_entropy
from klmonitor.summary.extremes import Place
from klmonitor.summary.fields import SummaryConfig
from klmonitor.summary.parts import PHASES, MergedParts, Part
from klmonitor.summary.passes import accumulate
from klmonitor.summary.state import Summary


@dataclass(frozen=True)
class Known:
    """What a caller knows of a micro-batch beside its log-probs; as for `Monitor.observe`."""

    entropy: TensorLike | None = None
    version: Version = None
    current_version: int | None = None


NOTHING_KNOWN = Known()
ID_BITS = 53
"""Of the key of a prompt that is named by a string: a float64 holds it exactly."""

Group: TypeAlias = "str | Sequence[str] | Tensor | np.ndarray[Any, Any] | None"
PromptIds: TypeAlias = "TensorLike | Sequence[str]"


class Intake:
    """Checks micro-batches and adds them to a summary a phase.

    Args:
        groups: names of data sets or environments to report apart.
        pairs: names of the pairs to watch; None: those that the observed policies allow.
        prompts: keep sums by prompt.

    Attributes:
        config: what decides the shape of a summary.
        seen: policies observed so far.

    Raises:
        ValueError: a name is no pair, or group names cannot be told apart.
    """

    def __init__(
        self, groups: Sequence[str] = (), pairs: Sequence[str] | None = None, prompts: bool = True
    ) -> None:
        names = tuple(groups)
        if len(set(names)) < len(names) or "other" in names:
            raise ValueError(f"groups {names}: give distinct names, 'other' is taken")
        self.config = SummaryConfig(groups=names) if prompts else SummaryConfig(names, 0)
        self.seen: set[str] = set()
        self._pairs = None if pairs is None else parse_pairs(pairs)
        self._states: dict[str, Summary] = {}
        self._parts: dict[str, MergedParts] = {}
        self._micro_batches = dict.fromkeys(PHASES, 0)
        self._taken = dict.fromkeys(PHASES, 0)
        self._versions = Versions()
        self._checked = False

    def add(
        self,
        log_probs: Mapping[str, TensorLike | None],
        layout: Mapping[str, TensorLike | None],
        prompt_ids: PromptIds | None,
        group: Group,
        phase: str,
        rank: int,
        known: Known = NOTHING_KNOWN,
    ) -> None:
        """Add one micro-batch; arguments as for `Monitor.observe`.

        Raises:
            ValueError: shapes, masks or layouts do not fit.
            TypeError: a dtype or a policy's name is wrong.
        """
        if phase not in PHASES:
            raise ValueError(f"phase is {phase!r}: choose 'train' or 'eval'")
        batch = build(
            log_probs,
            check_values=not self._checked,
            prompt_ids=numbered(prompt_ids),
            **layout,
        )
        extras = Extras(
            checked_entropy(known.entropy, batch),
            self._versions.lag(known.version, known.current_version, batch),
        )
        pairs = self._pairs_of(batch)
        state = self._states.get(phase)
        if state is None or state.device != batch.device:
            state = self._states[phase] = self._empty(batch.device, state)
        accumulate(
            state,
            batch,
            pairs,
            place=Place(rank, self._micro_batches[phase]),
            groups=self._rows_of(group, batch),
        )
        self._taken[phase] = signatures.add(state, batch, pairs, extras, self._taken[phase])
        self._micro_batches[phase] += 1
        self._checked = True
        self.seen.update(batch.log_probs)

    def take(self, phase: str) -> Summary:
        """What was added since the last time; the next begins with nothing."""
        self._micro_batches[phase] = self._taken[phase] = 0
        state, parts = self._states.pop(phase, None), self._parts.pop(phase, None)
        if parts is None:
            return self._empty(torch.device("cpu"), None) if state is None else state
        merged = parts.take()
        return merged if state is None else state.merge(merged.to(state.device))

    def merge(self, part: Part, rank: int) -> None:
        """Add what a worker summed, under a rank of its own."""
        if part.phase not in self._parts:
            self._parts[part.phase] = MergedParts(self.config)
        self._parts[part.phase].add(part, rank)

    def _empty(self, device: torch.device, moved: Summary | None) -> Summary:
        """A summary on a device, of no tokens or of those of another device's."""
        with torch.inference_mode(False):  # else it could not be added to outside that mode
            fresh = Summary.empty(self.config, device)
            return fresh if moved is None else fresh.merge(moved.to(device))

    def _pairs_of(self, batch: TokenBatch) -> tuple[Pair, ...]:
        held = batch.log_probs
        if self._pairs is None:
            pairs = default_pairs(held)
        else:
            pairs = tuple(pair for pair in self._pairs if pair.q in held and pair.p in held)
        if not pairs:
            wanted = "a pair" if self._pairs is None else ", ".join(p.name for p in self._pairs)
            raise ValueError(
                f"log-probs of {', '.join(held)} make none of {wanted}: pass policy and ref, "
                "old and policy, or rollout and old"
            )
        return pairs

    def _rows_of(self, group: Group, batch: TokenBatch) -> int | Tensor:
        """The row of a group, or of each sequence's."""
        if group is None or isinstance(group, str):
            return self.config.group_index(group)
        if isinstance(group, np.ndarray):
            group = torch.from_numpy(group)
        if not isinstance(group, Tensor):
            group = torch.tensor(
                [
                    self.config.group_index(one) if isinstance(one, str) else int(one)
                    for one in group
                ],
                dtype=torch.int64,
            )
        if tuple(group.shape) != (batch.n_sequences,):
            raise ValueError(
                f"group has {group.numel()} entries but there are {batch.n_sequences} sequences: "
                "pass one a sequence, or one name for all"
            )
        other = len(self.config.groups)
        rows = moved(group.long(), batch.device)
        return torch.where((rows >= 0) & (rows < other), rows, other)


def numbered(prompt_ids: PromptIds | None) -> TensorLike | None:
    """Prompt ids as integers: strings become the leading bits of their hash, the same everywhere.

    That two of a million prompts share one is once in 18,000 steps (2^40 / 2^54).
    """
    if not isinstance(prompt_ids, (list, tuple)) and not (
        isinstance(prompt_ids, np.ndarray) and prompt_ids.dtype.kind in "UO"
    ):
        return prompt_ids  # type: ignore[return-value]  # what is left are tensors and arrays
    if len(prompt_ids) and all(isinstance(one, str) for one in prompt_ids):
        keys = (hashlib.blake2b(str(one).encode(), digest_size=8).digest() for one in prompt_ids)
        return torch.tensor([int.from_bytes(key, "big") >> (64 - ID_BITS) for key in keys])
    return prompt_ids
