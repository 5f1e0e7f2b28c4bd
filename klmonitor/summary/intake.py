"""From `observe` to sums: what a monitor and a collector do alike with a micro-batch."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from klmonitor.boundary import Boundary, HealthLog
from klmonitor.pairs import PAIR_INDEX, POLICIES, Pair, default_pairs, parse_pairs
from klmonitor.penalty import Penalty
from klmonitor.summary import pulls, signatures, unclipped
from klmonitor.summary.around import Around, Neighbours
from klmonitor.summary.batch import TensorLike, TokenBatch, build, log_probs_of, mask_of
from klmonitor.summary.extras import (
    Extras,
    Version,
    Versions,
    checked_advantages,
    checked_beta,
    checked_entropy,
)
from klmonitor.summary.extremes import Place
from klmonitor.summary.fields import AUDIT_SUMS, SummaryConfig
from klmonitor.summary.groups import Group, Groups
from klmonitor.summary.parts import PHASES, MergedParts, Part, digest_of
from klmonitor.summary.passes import accumulate
from klmonitor.summary.state import Summary


@dataclass(frozen=True)
class Known:
    """What a caller knows of a micro-batch beside its log-probs; as for `Monitor.observe`."""

    entropy: TensorLike | None = None
    version: Version = None
    current_version: int | None = None
    advantages: TensorLike | None = None
    beta: float | None = None


NOTHING_KNOWN = Known()
ID_BITS = 53
"""Of the key of a prompt that is named by a string: a float64 holds it exactly."""

PromptIds: TypeAlias = "TensorLike | Sequence[str]"


class Intake:
    """Checks micro-batches and adds them to a summary a phase.

    Args:
        groups: names of data sets or environments to report apart.
        pairs: names of the pairs to watch; None: those that the observed policies allow.
        prompts: keep sums by prompt.
        log: where a policy's log-probs that do not fit are counted.

    Attributes:
        config: what decides the shape of a summary.
        seen: policies observed so far.
        penalties: pair -> the KL term on it, whose tokens' pull is summed.

    Raises:
        ValueError: a name is no pair, or group names cannot be told apart.
        TypeError: names are given as one string.
    """

    def __init__(
        self,
        groups: Collection[str] = (),
        pairs: Collection[str] | None = None,
        prompts: bool = True,
        log: HealthLog | None = None,
    ) -> None:
        self._groups = Groups(_names("groups", groups, "math"))
        names = self._groups.names
        self.config = SummaryConfig(groups=names) if prompts else SummaryConfig(names, 0)
        self.seen: set[str] = set()
        self.penalties: Mapping[str, Penalty] = {}
        self._digest = digest_of(self.config)
        self._pairs = None if pairs is None else parse_pairs(_names("pairs", pairs, "policy_ref"))
        self._states: dict[str, Summary] = {}
        self._parts: dict[str, MergedParts] = {}
        self._micro_batches = dict.fromkeys(PHASES, 0)
        self._taken = dict.fromkeys(PHASES, 0)
        self._versions = Versions()
        self._neighbours = defaultdict[str, Neighbours](Neighbours)
        self._checked = False
        log = log or HealthLog()
        self._fits = {
            name: Boundary(
                f"what was observed of {name}", log, vital=True, done_without="the others go on"
            )
            for name in POLICIES
        }
        self._around = Boundary(
            "what stood around extreme tokens", log, done_without="that stays unknown"
        )

    def digest(self) -> int:
        """Of what decides the shape of a summary: 56 bits."""
        return int(self._digest[:14], 16)

    def add(
        self,
        log_probs: Mapping[str, TensorLike | None],
        layout: Mapping[str, Any],
        prompt_ids: PromptIds | None,
        group: Group,
        phase: str,
        rank: int,
        known: Known = NOTHING_KNOWN,
        alone: bool = True,
    ) -> None:
        """Add one micro-batch; arguments as for `Monitor.observe`.

        Args:
            log_probs: by policy.
            layout: ``mask=`` and the like.
            prompt_ids: which prompt each sequence answers.
            group: the sequences' group or groups.
            phase: ``"train"`` or ``"eval"``.
            rank: of this process, part of the tokens' place.
            known: what is known of the tokens beside their log-probs.
            alone: whether this process may raise for a value; one of several ranks may not, since
                the others would wait for it.

        Raises:
            ValueError: shapes, masks or layouts do not fit.
            TypeError: a dtype or a policy's name is wrong.
        """
        if phase not in PHASES:
            raise ValueError(f"phase is {phase!r}: choose 'train' or 'eval'")
        layout, masks = self._masks(dict(layout, prompt_ids=numbered(prompt_ids)))
        batch = self._batch(log_probs, layout, alone)
        parts = [(batch, self._pairs_of(batch))] if not masks else self._masked(batch, masks, alone)
        extras = Extras(
            checked_entropy(known.entropy, batch),
            self._versions.lag(known.version, known.current_version, batch),
            checked_advantages(known.advantages, batch),
            checked_beta(known.beta, bool(self.penalties)),
        )
        groups = self._groups.rows(group, batch)
        state = self._states.get(phase)
        if state is None:
            state = self._states[phase] = Summary.empty(self.config)
        place, taken = Place(rank, self._micro_batches[phase]), self._taken[phase]
        beside = self._neighbours[phase]
        given = (*log_probs.values(), layout.get("mask"), *masks.values(), layout.get("token_ids"))
        lent = any(isinstance(one, np.ndarray) for one in given)
        for part, pairs in parts:
            accumulate(state, part, pairs, place=place, groups=groups)
            self._around(beside.add, place.micro_batch, part, pairs, state.tokens, lent)
            self._taken[phase] = signatures.add(state, part, pairs, extras, taken)
            unclipped.add(state, part, pairs, extras.advantages)
            most = self._taken[phase] - taken
            for pair in pairs:
                if pair.name in self.penalties:
                    pulls.add(state, part, pair, self.penalties[pair.name], extras, most)
        self._micro_batches[phase] += 1
        self._checked = True
        self.seen.update(batch.log_probs)

    def add_audit(self, pair: str, sums: Tensor) -> None:
        """Add sums of audit positions, [AUDIT_SUMS], to the present training step."""
        state = self._states.get("train")
        if state is None:
            state = self._states["train"] = Summary.empty(self.config)
        state.pulls[PAIR_INDEX[pair], -len(AUDIT_SUMS) :] += sums.cpu()

    def _masks(self, layout: dict[str, Any]) -> tuple[dict[str, Any], dict[Pair, Any]]:
        """The layout without a mask by pair, and the masks of the pairs that are watched."""
        given = layout.get("mask")
        if not isinstance(given, Mapping):
            return layout, {}
        watched = {pair: given[pair.name] for pair in parse_pairs(given)}
        if self._pairs is not None:
            watched = {pair: mask for pair, mask in watched.items() if pair in self._pairs}
        if not watched:
            raise ValueError(
                f"mask names {', '.join(given) or 'no pair'}: name one that is watched"
            )
        return dict(layout, mask=None), watched

    def _masked(
        self, batch: TokenBatch, masks: Mapping[Pair, Any], alone: bool
    ) -> list[tuple[TokenBatch, tuple[Pair, ...]]]:
        """A batch once a mask, each with the pairs that it is for."""
        pairs_of: dict[int, list[Pair]] = {}
        for pair, mask in masks.items():
            if {pair.q, pair.p} <= set(batch.log_probs):
                pairs_of.setdefault(id(mask), []).append(pair)
            elif not self._checked:
                raise ValueError(f"mask names {pair.name}: pass the log-probs of both its policies")
        check = alone and not self._checked
        return [
            (replace(batch, mask=mask_of(masks[pairs[0]], batch, check)), tuple(pairs))
            for pairs in pairs_of.values()
        ]

    def _batch(
        self,
        log_probs: Mapping[str, TensorLike | None],
        layout: Mapping[str, Any],
        alone: bool,
    ) -> TokenBatch:
        """The checked batch; after setup without the policies that do not fit the others."""
        try:
            batch = build(log_probs, check_values=alone and not self._checked, **layout)
        except (TypeError, ValueError):
            faults = self._faults(log_probs, layout) if self._checked else {}
            fitting = {name: x for name, x in log_probs.items() if name not in faults}
            if not faults or len([x for x in fitting.values() if x is not None]) < 2:
                raise
            batch = build(fitting, **layout)
            for name, error in faults.items():
                self._fits[name].caught(error)
        for name in batch.log_probs:
            if self._fits[name].failing:
                self._fits[name].always(_nothing)
        return batch

    def _faults(
        self, log_probs: Mapping[str, TensorLike | None], layout: Mapping[str, Any]
    ) -> dict[str, Exception]:
        """The policies whose log-probs have not the shape of the mask, or of most, and why."""
        given = {name: x for name, x in log_probs.items() if x is not None and name in self._fits}
        known = [shape_of(layout.get(name)) for name in ("mask", "token_ids")]
        shapes = [shape for shape in known if shape] or [shape_of(x) for x in given.values()]
        wanted = max(shapes, key=shapes.count)
        found = {name: fault_of(name, value, wanted) for name, value in given.items()}
        return {name: error for name, error in found.items() if error is not None}

    def take(self, phase: str) -> Summary:
        """What was added since the last time; the next begins with nothing."""
        self._micro_batches[phase] = self._taken[phase] = 0
        state, parts = self._states.pop(phase, None), self._parts.pop(phase, None)
        held = self._neighbours.pop(phase, None)
        if state is not None and held is not None:
            state.around = Around(
                partial(held.gathered, state.tokens),
                self._around,
                None if parts is not None else held.places,
            )
        if parts is None:
            return Summary.empty(self.config) if state is None else state
        merged = parts.take()
        return merged if state is None else state.merge(merged)

    def drop(self, phase: str) -> None:
        """Forget what was added since the last time: it belongs to a step that is over."""
        self._states.pop(phase, None)
        self._parts.pop(phase, None)
        self._neighbours.pop(phase, None)

    def merge(self, part: Part, rank: int) -> None:
        """Add what a worker summed, under a rank of its own."""
        if part.phase not in self._parts:
            self._parts[part.phase] = MergedParts(self.config)
        self._parts[part.phase].add(part, rank)

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


def _nothing() -> None:
    """What succeeds."""


def _names(what: str, names: Collection[str], example: str) -> tuple[str, ...]:
    """Names as a tuple.

    Raises:
        TypeError: they are one string, whose letters would be names.
    """
    if isinstance(names, str):
        raise TypeError(f"{what}={names!r} is one string: give a list, {what}=[{example!r}]")
    return tuple(names)


def shape_of(value: TensorLike | None) -> tuple[int, ...]:
    """A shape to compare layouts by: of a tensor its own, of a list the lengths; () of nothing."""
    if value is None:
        return ()
    if isinstance(value, (list, tuple)):
        return tuple(len(one) for one in value)
    return tuple(getattr(value, "shape", ()))


def fault_of(name: str, value: TensorLike, wanted: tuple[int, ...]) -> Exception | None:
    """What is wrong with the log-probs of one policy beside the others', if anything."""
    if shape_of(value) != wanted:
        return ValueError(f"{name} has shape {list(shape_of(value))}, the others {list(wanted)}")
    try:
        log_probs_of(name, value)
    except (TypeError, ValueError) as error:
        return error
    return None


def numbered(prompt_ids: PromptIds | None) -> TensorLike | None:
    """Prompt ids as integers: strings become the leading bits of their hash, the same everywhere.

    That two of a million prompts share one happens once in 16,000 such steps (2^39 / 2^53).
    """
    if not isinstance(prompt_ids, (list, tuple)) and not (
        isinstance(prompt_ids, np.ndarray) and prompt_ids.dtype.kind in "UO"
    ):
        return prompt_ids  # type: ignore[return-value]  # what is left are tensors and arrays
    if len(prompt_ids) and all(isinstance(one, str) for one in prompt_ids):
        keys = (hashlib.blake2b(str(one).encode(), digest_size=8).digest() for one in prompt_ids)
        numbers = [int.from_bytes(key, "big") >> (64 - ID_BITS) for key in keys]
        return torch.tensor(numbers, device="cpu")
    return prompt_ids
