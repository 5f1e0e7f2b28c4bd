"""What is replaced in verl, and whom it calls: the process's driver, or its worker.

Everything sits where verl defines it, so that trainers which derive from verl's are watched too.
What of ours raises is caught, counted and told once; verl's own function runs in any case.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from klmonitor.hooks.process import Hook
from klmonitor.hooks.process import Process as HookedProcess

V0, V1 = "verl.trainer.ppo.ray_trainer", "verl.trainer.ppo.v1.trainer_base"
WORKER = "klmonitor_verl.worker"
HOOKS = (
    Hook("verl.utils.tracking", "Tracking.__init__", "start", "klmonitor is off"),
    Hook("verl.utils.tracking", "Tracking.log", "log", "trackers get no numbers of ours"),
    Hook("verl.utils.tracking", "Tracking.finish", "finish", ""),
    Hook("verl.utils.tracking", "Tracking.__del__", "finish", "the record is closed as it is left"),
    Hook(V0, "compute_advantage", "capture.advantages", "no rollout_old, no old_ref"),
    Hook(V0, "RayPPOTrainer._compute_old_log_prob", "capture.old_log_prob", "no entropies"),
    Hook(V0, "RayPPOTrainer._save_checkpoint", "saved", "checkpoints lack our state"),
    Hook(V0, "RayPPOTrainer._load_checkpoint", "loaded", "a resumed run begins anew"),
    Hook("verl.trainer.ppo.v1.utils", "compute_advantage_for_multi_trajectories",
         "capture.advantages", "no rollout_old, no old_ref"),
    Hook(V1, "PPOTrainer._compute_advantage", "capture.versioned", "no versions of the weights"),
    Hook(V1, "PPOTrainer._compute_metrics", "close", "a step is closed when it is logged"),
    Hook(V1, "PPOTrainer._save_checkpoint", "saved", "checkpoints lack our state"),
    Hook(V1, "PPOTrainer._load_checkpoint", "loaded", "a resumed run begins anew"),
    Hook("verl.utils.debug.metrics", "calculate_debug_metrics", "capture.debugged",
         "no entropies, and V1's tokens have no text"),
    Hook("verl.trainer.ppo.rollout_corr_helper", "compute_rollout_correction_and_add_to_batch",
         "capture.correction", "rollout_old is of the tokens that train alone"),
    Hook("verl.trainer.ppo.core_algos", "get_policy_loss_fn", "worker.policy_loss_fn",
         "no old_policy, no policy_ref"),
    Hook("verl.trainer.ppo.core_algos", "kl_penalty", "worker.kl_penalty", "no policy_ref"),
    Hook("verl.workers.utils.losses", "ppo_loss", "worker.ppo_loss", "no prompts, no tokens"),
    Hook("verl.workers.engine_workers", "TrainingWorker.train_mini_batch", "worker.update",
         "no old_policy, no policy_ref"),
    Hook("verl.workers.actor.dp_actor", "DataParallelPPOActor.update_policy", "worker.update",
         "no old_policy, no policy_ref"),
)  # fmt: skip
"""In 0.6 to 0.9; a module that a version lacks is never imported, and nothing is missing of it."""

TRAINERS = (V0, V1)
"""Modules one of which a process has imported that runs a trainer of verl's PPO."""
DEPTH = 8
"""Frames above `Tracking` in which its trainer is looked for."""


class Process(HookedProcess):
    """What this process is to verl: a driver, a worker, or neither so far."""

    def __init__(self) -> None:
        """Nothing replaced."""
        super().__init__(HOOKS, WORKER)
        self._last_trainer: Any = None
        self._tracking = 0

    # --- around verl's functions, on the driver ----------------------------------------------
    def _start(self, original: Callable[..., Any], tracking: Any, *args: Any, **kw: Any) -> Any:
        """`Tracking` is made with the whole configuration, before the first step."""
        result = original(tracking, *args, **kw)
        if self.driver is None and any(module in sys.modules for module in TRAINERS):
            self._tracking = id(tracking)  # a reference would keep it alive
            config = kw.get("config", args[3] if len(args) > 3 else None)
            self._begin(config if isinstance(config, Mapping) else {}, _caller())
        return result

    def _begin(self, config: Mapping[str, Any], trainer: Any) -> None:
        trainer = self._last_trainer if trainer is None else trainer

        def make(module: Any, loader: Any) -> Any:
            options = loader.load_options(config.get("klmonitor"))
            return module.Driver(config, options, trainer, self.absent)

        if not self._set_up("klmonitor_verl.driver", make):
            return
        if self._last_trainer is not None and self._last_trainer is trainer:
            self._outermost(self.driver.loaded, trainer)  # V1 has loaded it before
        self._last_trainer = None

    def _log(
        self, original: Callable[..., Any], tracking: Any, data: Any, step: Any, *a: Any, **k: Any
    ) -> Any:
        """A row on its way to all trackers: ours joins it, past verl's reducers."""
        if self.driver is not None:
            joined = self._outermost(self._join, data, step)
            data = data if joined is None else joined
        return original(tracking, data, step, *a, **k)

    def _join(self, data: Mapping[str, Any], step: int) -> dict[str, Any]:
        if "training/global_step" in data or self.driver.pending:  # else validation alone
            self.driver.close_step(int(step), data)
        return self.driver.joined(data, int(step))  # type: ignore[no-any-return]  # a Driver

    def _finish(self, original: Callable[..., Any], tracking: Any, *args: Any, **kw: Any) -> Any:
        """The end of a run: Ray kills its actors, whose exit handlers never run."""
        if self.driver is not None and id(tracking) == self._tracking:
            driver, self.driver = self.driver, None
            with suppress(Exception):
                driver.finish()
        return original(tracking, *args, **kw)

    def _close(
        self,
        original: Callable[..., Any],
        trainer: Any,
        batch: Any,
        metrics: Any,
        *a: Any,
        **k: Any,
    ) -> Any:
        """V1 computes a step's metrics, and empties its queue afterwards."""
        result = original(trainer, batch, metrics, *a, **k)
        if self.driver is not None:
            self.driver.trainer = trainer
            self._outermost(self.driver.close_step, int(trainer.global_steps), metrics)
        return result

    def _saved(self, original: Callable[..., Any], trainer: Any, *args: Any, **kw: Any) -> Any:
        result = original(trainer, *args, **kw)
        if self.driver is not None:
            self._outermost(self.driver.saved, trainer)
        return result

    def _loaded(self, original: Callable[..., Any], trainer: Any, *args: Any, **kw: Any) -> Any:
        result = original(trainer, *args, **kw)
        if self.driver is None:
            self._last_trainer = trainer
        else:
            self._outermost(self.driver.loaded, trainer)
        return result


def _caller() -> Any:
    """The trainer that is making a `Tracking`: it is on the stack."""
    frame = sys._getframe(2)
    for _ in range(DEPTH):
        owner = frame.f_locals.get("self")
        if hasattr(owner, "config") and hasattr(owner, "tokenizer"):
            return owner
        if frame.f_back is None:
            break
        frame = frame.f_back
    return None


PROCESS = Process()
install = PROCESS.install
