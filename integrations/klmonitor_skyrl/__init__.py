"""SkyRL: a callback of its trainers.

    trainer.add_callback(klmonitor_skyrl.KLMonitorCallback())     # or klmonitor.attach(trainer)

On the driver the batch of a step holds the log-probs of the engine, of the policy before the update
and of the reference; what the workers compute while they update, no callback is given.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from skyrl.train.utils.callbacks import TrainingCallback
from torch import Tensor

from klmonitor.hooks.actions import CHECKPOINT, STOP
from klmonitor.hooks.doors import door_options, entered
from klmonitor.hooks.handed import HandedWatch
from klmonitor.hooks.handle import Handle
from klmonitor.hooks.objective import PenaltyRead
from klmonitor.hooks.options import Options, disabled
from klmonitor.hooks.prompts import prompt_keys
from klmonitor.hooks.watch import OUTERMOST

__all__ = ["KLMonitorCallback", "attach"]

STATE = "klmonitor.json"
"""In a checkpoint of SkyRL's: what a resumed run continues from."""
HELD = {
    "old": "action_log_probs",
    "ref": "base_action_log_probs",
    "rollout": "rollout_logprobs",
}
"""Policy -> key of its log-probs in the batch of a step, [B, T]."""
SCORES = "fwd_logprobs_values_reward"
"""What scores the batches of SkyRL's RL trainer."""


class KLMonitorCallback(TrainingCallback):  # type: ignore[misc]  # SkyRL: untyped
    """Watches the trainer that it is given to.

    Attributes:
        watch: what watches, from the beginning of training on; None: nothing does.
    """

    def __init__(self, **options: Any) -> None:
        """Options as `klmonitor.attach` takes them; the environment's and a file's come after.

        Raises:
            ValueError: an option is unknown, or has a value that cannot work.
        """
        self.options = door_options(options)
        self.watch: HandedWatch | None = None

    def bind(self, trainer: Any) -> Handle:
        """Watch a trainer.

        Raises:
            TypeError: it is none of SkyRL's RL trainers.
            ValueError: an option cannot work with it.
        """
        self.watch = _watch(trainer, self.options)
        return self.watch.handle

    # --- events ------------------------------------------------------------------------------
    def on_train_start(self, trainer: Any, callback_input: Any, control: Any) -> None:
        """Watch, and continue a resumed run."""
        if self.watch is None and not disabled():
            entered(f"SkyRL's {type(trainer).__name__}", lambda: self.bind(trainer))
        self._guarded(OUTERMOST, _begin, trainer)

    def on_step_end(self, trainer: Any, callback_input: Any, control: Any) -> None:
        """Look at the batch that was trained on, and do what alerts ask for."""
        self._guarded(OUTERMOST, _step, trainer, callback_input, control)

    def on_log(self, trainer: Any, callback_input: Any, control: Any) -> None:
        """Our numbers join SkyRL's before they are sent."""
        self._guarded("log", _join, callback_input)

    def on_save(self, trainer: Any, callback_input: Any, control: Any) -> None:
        """What a resumed run continues from."""
        self._guarded(OUTERMOST, _save, callback_input)

    def on_train_end(self, trainer: Any, callback_input: Any, control: Any) -> None:
        """Say what came of it, and close the record."""
        self._guarded(OUTERMOST, HandedWatch.finish)

    def _guarded(self, hook: str, call: Callable[..., None], *args: Any) -> None:
        watch = self.watch
        if watch is not None and watch.active:
            watch.guards[hook](call, watch, *args)


def attach(trainer: Any, **options: Any) -> Handle:
    """Watch a trainer of SkyRL's; options as `klmonitor.hooks.options.Options`.

    One that takes no callbacks trains on, and one line says so.

    Raises:
        TypeError: it is none of the RL trainers.
        ValueError: an option cannot work with it.
    """
    callback = KLMonitorCallback(**options)
    handle = callback.bind(trainer)
    known = f"SkyRL's {type(trainer).__name__}, which takes no callbacks,"
    if entered(known, lambda: trainer.add_callback(callback) or True) is None:
        handle.detach()
    return handle


# --- behind boundaries -----------------------------------------------------------------------
def _begin(watch: HandedWatch, trainer: Any) -> None:
    done = int(trainer.global_step)
    watch.run.begin(done)
    place = Path(str(trainer.cfg.trainer.ckpt_path)) / f"global_step_{done}" / STATE
    if done and place.is_file():
        watch.resume(json.loads(place.read_text(encoding="utf-8")))
        watch.say(f"continues from {place}")


def _step(watch: HandedWatch, trainer: Any, event: Any, control: Any) -> None:
    watch.run.beta = _beta(trainer)
    policies, layout = _given(event.batch)
    watch.take(int(event.global_step), policies, **layout)
    wanted = watch.wanted()
    if CHECKPOINT in wanted:
        control.should_save = True
    if STOP in wanted:
        trainer.cfg.trainer.max_training_steps = int(event.global_step)


def _join(watch: HandedWatch, event: Any) -> None:
    mine = watch.row(int(event.global_step))
    event.logs.update({name: x for name, x in mine.items() if name not in event.logs})


def _save(watch: HandedWatch, event: Any) -> None:
    folder = str(event.ckpt_path)
    if Path(folder).is_dir():  # a checkpoint in the cloud goes without
        fresh = Path(folder) / f"{STATE}.new"
        fresh.write_text(json.dumps(watch.state()), encoding="utf-8")
        fresh.replace(Path(folder) / STATE)


# --- words -----------------------------------------------------------------------------------
def _watch(trainer: Any, options: Options) -> HandedWatch:
    if not hasattr(trainer, SCORES):
        name = type(trainer).__name__
        raise TypeError(f"{name} has no {SCORES}: it trains on no tokens of its own policy")
    cfg = trainer.cfg
    sources, missing = _sources(cfg)
    return HandedWatch(
        f"{type(trainer).__name__} (SkyRL {_version()})",
        options,
        output_dir=cfg.trainer.export_path,
        sources=sources,
        missing=missing,
        remedy="set trainer.algorithm.use_kl_loss, or generator.sampling_params.logprobs",
        tokenizer=trainer.tokenizer,
        penalty=_penalty(cfg.trainer.algorithm),
        process_group=False,
        meta={"trainer": type(trainer).__name__, "skyrl": _version()},
    )


def _sources(cfg: Any) -> tuple[dict[str, str], dict[str, str]]:
    """Policy -> where its log-probs come from, and why those of the others are not to be had."""
    sources = {"old": f"{HELD['old']} on the driver"}
    if _penalised(cfg.trainer.algorithm):
        sources["ref"] = f"{HELD['ref']} on the driver"
    if cfg.generator.sampling_params.logprobs is not None:
        sources["rollout"] = f"{HELD['rollout']} on the driver"
    missing = {
        "policy": "only the workers have it while they update; no callback is given it",
        "ref": "neither use_kl_loss nor use_kl_in_reward is on",
        "rollout": "generator.sampling_params.logprobs is not set",
    }
    return sources, missing


def _given(batch: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Policies and layout of a step's batch: all [B, T], responses at the end of their rows."""
    policies = {name: batch[key] for name, key in HELD.items() if batch.get(key) is not None}
    mask, responses = batch["loss_mask"], batch["response_mask"]
    ids, length = batch["sequences"], batch["loss_mask"].shape[1]
    prompts = batch["attention_mask"] != 0
    prompts[:, -length:] &= responses == 0
    layout = {
        "mask": mask,
        "token_ids": ids[:, -length:],
        "prompt_ids": prompt_keys(ids, prompts),
    }
    advantages = batch.get("advantages")
    if advantages is not None and advantages.shape == mask.shape:
        layout["advantages"] = advantages
    return policies, layout


def _penalised(algorithm: Any) -> bool:
    """Whether the objective has a KL term, for which SkyRL scores with the reference."""
    return bool(algorithm.use_kl_loss or algorithm.use_kl_in_reward)


def _beta(trainer: Any) -> float | None:
    """The coefficient of the KL term as it is now; None where there is none."""
    controller = getattr(trainer, "reward_kl_controller", None)
    if controller is not None:
        return float(controller.value)
    algorithm = trainer.cfg.trainer.algorithm
    return float(algorithm.kl_loss_coef) if _penalised(algorithm) else None


def _penalty(algorithm: Any) -> PenaltyRead:
    if not _penalised(algorithm):
        return PenaltyRead(why="the objective has no KL term")
    where = "reward" if algorithm.use_kl_in_reward else "workers' loss"
    term = f"{algorithm.kl_estimator_type} in the {where}"
    return PenaltyRead(why=f"{term}, whose ratios no callback is given; give penalty")


def _version() -> str:
    try:
        return version("skyrl")
    except PackageNotFoundError:  # run from its sources
        return "of unknown version"
