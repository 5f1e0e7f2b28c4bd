"""The log-probs that meet on OpenRLHF's driver: the engine's, the old policy's, the reference's.

`RemoteExperienceMaker.make_experience` brings them together. Where the KL is in the reward it keeps
no reference: then that is what was given to its own `compute_approx_kl`, batch by batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from klmonitor.hooks.feed import Feed, argument
from klmonitor.hooks.remote import RemoteCapture
from klmonitor_openrlhf.batch import layout_of
from klmonitor_openrlhf.settings import Settings

LOG_PROBS = {
    "rollout": "rollout_log_probs",
    "old": "action_log_probs",
    "ref": "base_action_log_probs",
}
"""Policy -> its log-probs in an `Experience` on the driver."""


class DriverCapture(RemoteCapture):
    """OpenRLHF's.

    Args:
        feed: where log-probs go.
        settings: what OpenRLHF's arguments say.
        absent: ``module.name`` -> what is done without it.
        beta: the weight of the KL term as it is now.
    """

    def __init__(
        self,
        feed: Feed,
        settings: Settings,
        absent: Callable[[], Mapping[str, str]],
        beta: Callable[[], float | None],
    ) -> None:
        super().__init__(feed, absent)
        self._settings, self._beta = settings, beta
        self._references: list[tuple[Tensor, Tensor]] = []

    # --- words -------------------------------------------------------------------------------
    def sources(self) -> dict[str, str]:
        """Policy -> where its log-probs come from."""
        found = {
            "policy": "the workers' policy loss",
            "old": "action_log_probs on the driver and in the workers' policy loss",
        }
        if self._settings.rollout:
            found["rollout"] = "rollout_log_probs on the driver"
        if self._settings.reference:
            where = (
                "on the driver and in the workers" if self._settings.in_loss else "on the driver"
            )
            found["ref"] = f"base_action_log_probs {where}"
        return found

    def missing(self) -> dict[str, str]:
        """Policy -> why it is not to be had."""
        how = self._settings.to_get_rollout
        return {
            "rollout": "the engine is not asked for log-probs; "
            f"{how} does that, and weighs the loss by them",
            "ref": "the KL coefficient is 0, so there is no reference; --algo.kl.init_coef 1e-6",
            **super().missing(),
        }

    # --- around OpenRLHF's functions ---------------------------------------------------------
    def approx_kl(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Around the KL in the reward: it is given the reference."""
        result = original(*args, **kwargs)
        self.feed.guards["log-probs"](self._keep, args, kwargs)
        return result

    def experience(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Around the making of a step's experience: all log-probs of the driver are there."""
        self._references = []
        try:
            samples = original(*args, **kwargs)
            self.feed.guards["log-probs"](self._observe, samples)
            return samples
        finally:
            self._references = []

    def _keep(self, args: Any, kwargs: Mapping[str, Any]) -> None:
        old = argument(args, kwargs, 0, "log_probs")
        self._references.append((old, argument(args, kwargs, 1, "log_probs_base")))

    # --- a step's batches --------------------------------------------------------------------
    def _observe(self, samples: Sequence[Any]) -> None:
        for sample in samples:
            mask = sample.action_mask
            held = {name: getattr(sample, key, None) for name, key in LOG_PROBS.items()}
            if held["ref"] is None:
                held["ref"] = self._reference(sample.action_log_probs)
            policies = {name: x for name, x in held.items() if x is not None}
            known = layout_of(sample, mask)
            if self._settings.adaptive and "old_ref" in self.feed.monitor.penalties:
                known["beta"] = self._beta()
            self.feed.observe(policies, phase="train", mask=mask, **known)

    def _reference(self, old: Tensor) -> Tensor | None:
        """The reference of a batch, by the old log-probs that it was compared with."""
        return next((ref for mine, ref in self._references if mine is old), None)
