"""What verl's configuration says of its policies: who is there, and who stands for whom."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Config = Mapping[str, Any]


@dataclass(frozen=True)
class Settings:
    """Of one run.

    Attributes:
        bypass: where the rollout's log-probs stand in for the old ones, which setting says so;
            empty: they do not.
        rollout: whether the engine's log-probs are kept.
        reference: whether the reference's are computed.
        groups: the declared groups.
        group_column: the column of verl's batch that names a prompt's group.
        output_dir: where verl writes its checkpoints; None: not said.
    """

    bypass: str = ""
    rollout: bool = True
    reference: bool = False
    groups: tuple[str, ...] = ()
    group_column: str = "group"
    output_dir: str | None = None

    @classmethod
    def read(cls, config: Config, groups: tuple[str, ...] = (), column: str = "group") -> Settings:
        """From the whole configuration of a run, as plain tables; what is not there is off."""
        bypass = ""
        if at(config, "algorithm.rollout_correction.bypass_mode"):
            bypass = "algorithm.rollout_correction.bypass_mode"
        elif at(config, "actor_rollout_ref.actor.use_rollout_log_probs"):
            bypass = "actor_rollout_ref.actor.use_rollout_log_probs"
        penalised = ("actor_rollout_ref.actor.use_kl_loss", "algorithm.use_kl_in_reward")
        directory = at(config, "trainer.default_local_dir")
        return cls(
            bypass=bypass,
            rollout=bool(at(config, "actor_rollout_ref.rollout.calculate_log_probs")),
            reference=any(bool(at(config, where)) for where in penalised),
            groups=groups,
            group_column=column,
            output_dir=None if directory is None else str(directory),
        )

    @property
    def notes(self) -> dict[str, str]:
        """Pair -> what there is to know of it before its numbers are read."""
        if not self.bypass:
            return {}
        old = f"old is the rollout engine here ({self.bypass})"
        return {
            "old_ref": f"{old}: this is KL(rollout || ref), of the engine's own log-probs",
            "rollout_policy": f"{old}: what verl calls old against the policy is this pair",
        }


def at(config: Any, path: str, default: Any = None) -> Any:
    """A value of nested tables: ``"trainer.default_local_dir"``."""
    for key in path.split("."):
        if not isinstance(config, Mapping) or key not in config:
            return default
        config = config[key]
    return config
