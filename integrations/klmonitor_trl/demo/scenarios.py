"""What the demo does to an ordinary GRPO run, and what klmonitor must say of it.

Each scenario interferes with real training, at one step that is known, and leaves what is found
to the ordinary rules: nothing below is a number that klmonitor reports.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Disturb = Callable[[Any, int], Any]
"""Interferes with a trainer from a step on; what it returns tells afterwards what it did."""


@dataclass(frozen=True)
class Scenario:
    """One run.

    Attributes:
        story: what is done, a sentence in which ``{event}`` is the step.
        help: the same in a few words.
        kinds: the alerts of which one must come at the event or later; none: no alert may come.
        verdict: words of the verdict on that step or a later one.
        at: the event, as a share of the steps.
        beta: weight of the KL penalty.
        batch: completions a step, two of each prompt.
        learning_rate: of AdamW, constant but for `jump`.
        jump: factor of the learning rate from the event on.
        jump_steps: for so many steps.
        disturb: what is done to the trainer beside that.
        clamp: nats at which the KL term, k3 in the loss, is clamped; None: it is TRL's own.
    """

    story: str
    help: str
    kinds: tuple[str, ...]
    verdict: str
    at: float = 0.75
    beta: float = 0.04
    batch: int = 16
    learning_rate: float = 5e-5
    jump: float = 1.0
    jump_steps: float = math.inf
    disturb: Disturb | None = None
    clamp: float | None = None

    def rate(self, step: int, event: int) -> float:
        """The factor of the learning rate at a step, both from 1."""
        return self.jump if event <= step < event + self.jump_steps else 1.0

    def event(self, steps: int) -> int:
        """The step of the event in a run of so many steps."""
        return int(self.at * steps)


def _plant(log_ratio: float) -> Disturb:
    def disturb(trainer: Any, event: int) -> Any:
        from klmonitor_trl.demo.plant import Plant

        plant = Plant(event, log_ratio)
        plant.into(trainer)
        return plant

    return disturb


def _stale(trainer: Any, event: int) -> Any:
    from klmonitor_trl.demo.plant import StaleSampler

    return StaleSampler(trainer, event)


SCENARIOS: Mapping[str, Scenario] = {
    "spike": Scenario(
        story="the learning rate is multiplied by 200 on 3 steps from step {event} on",
        help="the learning rate jumps",
        kinds=("spike", "surge"),
        verdict="believe",
        jump=200.0,
        jump_steps=3,
    ),
    "healthy": Scenario(
        story="nothing is done to it",
        help="an undisturbed run",
        kinds=(),
        verdict="believe",
    ),
    "k1": Scenario(
        story="one token with d = -40 is planted at step {event}",
        help="one token dominates k1",
        kinds=("dominance_k1",),
        verdict="k1 is severely dominated",
        disturb=_plant(-40.0),
    ),
    "k3": Scenario(
        story="one token with d = +8 is planted at step {event}",
        help="one token dominates k3",
        kinds=("dominance_k3",),
        verdict="k3 is severely dominated",
        disturb=_plant(8.0),
    ),
    "sampler": Scenario(
        story=(
            "from step {event} on completions are generated with the weights of the start, as by "
            "an engine that was restarted and never got the trainer's weights"
        ),
        help="stale weights generate the completions",
        kinds=("gap", "k1_negative", "cause"),
        verdict="the sampler was another one",
        learning_rate=5e-4,
        beta=0.02,
        batch=32,  # 8 prompts' errors are too rough for 5 standard errors
        disturb=_stale,
    ),
    "collapse": Scenario(
        story=(
            "from step {event} on the learning rate is 60 times as high, with next to no KL "
            "penalty: the policy learns to write the one letter that the reward counts"
        ),
        help="the policy collapses onto its reward",
        kinds=("surge", "spike", "shift", "runaway"),
        verdict="policy has collapsed",
        at=1 / 3,
        jump=60.0,
        beta=1e-3,
    ),
    "penalty": Scenario(
        story=(
            "its KL term is k3 in the loss, clamped at 2 nats a token; from step {event} on the "
            "learning rate is 60 times as high, the tokens stray beyond the clamp, and the term "
            "lets go of them"
        ),
        help="a clamp stops the pull of the KL term on the tokens that stray",
        kinds=("pull_dead",),
        verdict="of the tokens pull nothing",
        at=1 / 3,
        jump=60.0,
        clamp=2.0,
    ),
}
"""Name -> scenario; the first is the default."""
