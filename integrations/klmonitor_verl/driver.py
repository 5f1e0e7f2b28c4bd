"""verl's driver: one watch a run, whose step is closed where verl computes or logs its metrics."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from klmonitor.hooks.actions import CHECKPOINT, STOP
from klmonitor.hooks.feed import Feed
from klmonitor.hooks.options import Options
from klmonitor.hooks.remote import RemoteWatch, refuse, version_of
from klmonitor_verl.capture import DriverCapture
from klmonitor_verl.objective import objective_of, penalty_of
from klmonitor_verl.runvalues import RunValues, updates_a_step
from klmonitor_verl.settings import Config, Settings, at

STATE = "klmonitor.json"
"""In the trainer's checkpoint folder: what a resumed run continues from."""
NOT_HERE = ("reference", "reference_every", "recompute")
"""Options that are of other trainers: verl computes its own reference."""


class Driver(RemoteWatch):
    """One run of verl being watched.

    Attributes:
        settings: what verl's configuration says.
        trainer: verl's trainer, as soon as it is known.
        run: what verl's metrics tell of the run.
    """

    capture: DriverCapture

    def __init__(
        self,
        config: Config,
        options: Options,
        trainer: Any = None,
        absent: Callable[[], Mapping[str, str]] = dict,
    ) -> None:
        """Set up, and open the job's mailbox.

        Raises:
            ValueError: an option cannot work here.
            OSError: the run directory cannot be made.
        """
        refuse(options, NOT_HERE, "none of verl's: it computes its own reference")
        settings = Settings.read(config, tuple(options.groups), options.group_column)
        kind = type(trainer).__name__ if trainer is not None else "trainer"
        self.settings, self.trainer = settings, trainer
        self._save_freq: int | None = None
        self._checkpoint: Path | None = None
        super().__init__(
            f"{kind} (verl {version_of('verl')})",
            options,
            output_dir=settings.output_dir,
            objective=objective_of(config),
            penalty=penalty_of(config),
            tokenizer=getattr(trainer, "tokenizer", None),
            begins=int(at(config, "trainer.critic_warmup", 0) or 0),
            notes=settings.notes,
            meta={
                "trainer": kind,
                "verl": version_of("verl"),
                "experiment": at(config, "trainer.experiment_name"),
            },
        )
        self.run: RunValues = RunValues(updates_a_step(config))
        self.capture = DriverCapture(Feed(self.monitor, self.guards, self.text), settings, absent)
        self.open_mailbox({"groups": settings.groups, "bypass": settings.bypass})
        if settings.bypass:
            self.monitor.note(next(iter(settings.notes.values())))
        self.warn_of_absent()
        self.announce("set actor_rollout_ref.actor.use_kl_loss or algorithm.use_kl_in_reward")

    @property
    def held(self) -> tuple[str, ...]:
        """Names of the pairs: what the workers compare, then what the driver does."""
        found = ["rollout_policy"] if self.settings.bypass else ["old_policy"]
        if self.settings.reference:
            found = ["policy_ref", "old_ref", *found]
        if self.settings.rollout and not self.settings.bypass:
            found.append("rollout_old")
        return tuple(found)

    # --- steps -------------------------------------------------------------------------------
    @property
    def pending(self) -> bool:
        """Whether anything was observed here since the last step."""
        return self.capture.observed

    def read(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Values of the run among verl's metrics."""
        self.capture.observed = False
        self.run.read(step, metrics)

    def act(self) -> None:
        """Do what alerts ask for, as verl's loop allows, and write what a resumed run needs.

        A checkpoint is saved by verl itself at the end of the next step. V1 stops at once, or after
        the checkpoint; V0 has looked at its last step before it logs, and stops after the next.
        """
        wanted, trainer = self.wanted(), self.trainer
        if wanted and trainer is not None:
            self._follow(wanted, trainer)
        self._write_state()

    def _follow(self, wanted: Collection[str], trainer: Any) -> None:
        if CHECKPOINT in wanted:
            self._set_save_freq(1)
        if STOP in wanted:
            at_once = _is_v1(trainer) and CHECKPOINT not in wanted
            trainer.total_training_steps = trainer.global_steps + (0 if at_once else 1)

    def _set_save_freq(self, every: int) -> None:
        table = self.trainer.config.trainer
        if self._save_freq is None:
            self._save_freq = int(table.save_freq)
        table.save_freq = every

    # --- checkpoints -------------------------------------------------------------------------
    def saved(self, trainer: Any) -> None:
        """A checkpoint was saved, before the step was closed: ours goes there after it."""
        self._checkpoint = folder_of(trainer)
        if self._save_freq is not None:
            self.trainer.config.trainer.save_freq, self._save_freq = self._save_freq, None

    def _write_state(self) -> None:
        folder, self._checkpoint = self._checkpoint, None
        if folder is None or not folder.is_dir():
            return
        fresh = folder / f"{STATE}.new"
        fresh.write_text(json.dumps(self.state()), encoding="utf-8")
        fresh.replace(folder / STATE)

    def loaded(self, trainer: Any) -> None:
        """A checkpoint was loaded, or none."""
        self.trainer = trainer
        folder = folder_of(trainer)
        if not int(getattr(trainer, "global_steps", 0)) or not (folder / STATE).is_file():
            return
        self.resume(json.loads((folder / STATE).read_text(encoding="utf-8")))
        self.say(f"continues from {folder / STATE}")


def folder_of(trainer: Any) -> Path:
    """The checkpoint folder of the trainer's present step."""
    table = trainer.config.trainer
    step = f"global_step_{trainer.global_steps}"
    given = getattr(table, "resume_from_path", None)
    if getattr(table, "resume_mode", "") == "resume_path" and str(given).rstrip("/").endswith(step):
        return Path(str(given))
    return Path(str(table.default_local_dir)) / step


def _is_v1(trainer: Any) -> bool:
    return any(base.__module__.startswith("verl.trainer.ppo.v1") for base in type(trainer).__mro__)
