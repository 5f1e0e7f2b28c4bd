"""What is replaced in OpenRLHF, and whom it calls: the process's driver, or its worker."""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib import import_module
from typing import Any

from klmonitor.hooks.process import Hook
from klmonitor.hooks.process import Process as HookedProcess

TRAINER = "openrlhf.trainer.ppo_trainer"
MAKER = "openrlhf.trainer.ppo_utils.experience_maker"
GENERATOR = "openrlhf.trainer.ppo_utils.samples_generator"
ACTOR = "openrlhf.trainer.ray.ppo_actor"
LOGGERS = "openrlhf.utils.logging_utils"
WORKER = "klmonitor_openrlhf.worker"
BASE = "BasePPOTrainer"
NO_WORKERS = "no old_policy, no policy_ref"
OPEN = "where Ray cannot say so either, the record is closed as it is left"
HOOKS = (
    Hook(TRAINER, f"{BASE}.__init__", "start", "klmonitor is off"),
    Hook(TRAINER, f"{BASE}.save_logs_and_checkpoints", "log", "klmonitor is off"),
    Hook(TRAINER, f"{BASE}.init_checkpoint_states", "resumed", "a resumed run begins anew"),
    Hook(MAKER, "RemoteExperienceMaker.make_experience", "capture.experience",
         "no rollout_old, no old_ref"),
    Hook(MAKER, "compute_approx_kl", "capture.approx_kl", "no old_ref if the KL is in the reward"),
    Hook(MAKER, "SamplesGenerator.generate_samples", "samples", ""),
    Hook(GENERATOR, "SamplesGenerator.generate_samples", "samples", "on_alert cannot stop"),
    Hook(LOGGERS, "WandbLogger.close", "finish", OPEN),
    Hook(LOGGERS, "TensorboardLogger.close", "finish", OPEN),
    Hook(ACTOR, "ActorPPOTrainer.ppo_train", "worker.update", NO_WORKERS),
    Hook(ACTOR, "ActorPPOTrainer.training_step", "worker.micro_batch",
         "no policy_ref, no prompts, no tokens"),
    Hook("openrlhf.models.loss", "PolicyLoss.forward", "worker.loss", NO_WORKERS),
)  # fmt: skip
"""In 0.9 to 0.11; the generator of samples has been in both of its places."""
GENERATES = "Generate"
"""How a class begins that samples for another that trains; in 0.9.0 it derives from `BASE` too."""
AT_END = "__ray_shutdown__"
"""Called by Ray, 2.50 and newer, when an actor is let go."""


class Process(HookedProcess):
    """What this process is to OpenRLHF: a driver, a worker, a generator, or neither so far."""

    def __init__(self) -> None:
        """Nothing replaced."""
        super().__init__(HOOKS, WORKER)
        self._box: Any = None

    # --- around OpenRLHF's functions, on the driver ------------------------------------------
    def _start(self, original: Callable[..., Any], trainer: Any, *args: Any, **kw: Any) -> Any:
        """A trainer is made, before the models are."""
        result = original(trainer, *args, **kw)
        if self.driver is None and not type(trainer).__name__.startswith(GENERATES):
            self._begin(trainer)
        return result

    def _begin(self, trainer: Any) -> None:
        def make(module: Any, loader: Any) -> Any:
            options = loader.load_options(json.loads(os.environ.get(loader.GIVEN, "{}")))
            return module.Driver(trainer, options, self.absent)

        there = self._set_up("klmonitor_openrlhf.driver", make)
        if there and not hasattr(type(trainer), AT_END):
            with suppress(Exception):
                setattr(type(trainer), AT_END, lambda _: self._end())

    def _log(self, original: Callable[..., Any], trainer: Any, *args: Any, **kwargs: Any) -> Any:
        """A row on its way to all trackers, and maybe a checkpoint: ours joins both."""
        if self.driver is None:
            return original(trainer, *args, **kwargs)
        call = self._outermost(self._joined, original, trainer, args, kwargs)
        result = (
            original(trainer, *args, **kwargs) if call is None else original(*call[0], **call[1])
        )
        self._outermost(self.driver.logged)
        return result

    def _joined(
        self, original: Callable[..., Any], trainer: Any, args: Any, kwargs: Mapping[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of a call that closes a step, with ours among them."""
        call = inspect.signature(original).bind(trainer, *args, **kwargs)
        given, step = call.arguments, int(call.arguments["global_step"])
        logs = given.get("logs_dict") or {}
        self.driver.trainer = trainer
        self.driver.close_step(step, logs)
        given["logs_dict"] = self.driver.joined(logs, step)
        states = given.get("client_states")
        kept = self.driver.kept(states)
        if isinstance(states, dict) and states:
            states.update(kept)  # the best checkpoint is saved with the same table, later
        else:
            given["client_states"] = kept
        return call.args, call.kwargs

    def _resumed(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """What was beside the checkpoint that a run goes on from."""
        states = original(*args, **kwargs)
        if self.driver is not None:
            self._outermost(self.driver.loaded, states)
        return states

    def _samples(
        self, original: Callable[..., Any], generator: Any, *args: Any, **kwargs: Any
    ) -> Any:
        """The next batch; after a stop none, as if there were no more prompts."""
        if not args and self._guard(self._stops):  # 0.9.0 passes prompts, and cannot be stopped
            return [], None, 0, True
        return original(generator, *args, **kwargs)

    def _stops(self) -> bool:
        """Whether an alert has ended the run; a process that only samples asks the mailbox."""
        if self.driver is not None:
            return bool(self.driver.stopping)
        if self._box is None:
            mailbox = import_module("klmonitor.hooks.mailbox").Mailbox
            try:
                self._box = mailbox.find()
            except ValueError:  # the driver is switched off, or has said what is wrong
                self._box = False
        return bool(self._box and self._box.settings().get("stop"))

    def _finish(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """The end of a run; ours is sent while its trackers are open."""
        self._end()
        return original(*args, **kwargs)

    def _end(self) -> None:
        driver, self.driver = self.driver, None
        if driver is not None:
            with suppress(Exception):
                driver.finish()


PROCESS = Process()
install = PROCESS.install
