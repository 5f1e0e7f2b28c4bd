"""verl's driver: one watch a run, whose step is closed where verl computes or logs its metrics."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from klmonitor.boundary import Boundary, cause, say
from klmonitor.hooks.actions import CHECKPOINT, STOP
from klmonitor.hooks.feed import Feed
from klmonitor.hooks.mailbox import Letter, Mailbox, is_timeout
from klmonitor.hooks.options import Options
from klmonitor.hooks.text import TokenText
from klmonitor.hooks.trackers import with_extras
from klmonitor.hooks.watch import Watch
from klmonitor.report import Report
from klmonitor.sinks import select
from klmonitor_verl.capture import DriverCapture
from klmonitor_verl.objective import objective_of, penalty_of
from klmonitor_verl.roll import Roll
from klmonitor_verl.runvalues import RunValues
from klmonitor_verl.settings import Config, Settings, at

STATE = "klmonitor.json"
"""In the trainer's checkpoint folder: what a resumed run continues from."""
NOT_HERE = ("reference", "reference_every", "recompute")
"""Options that are of other trainers: verl computes its own reference."""


class Driver(Watch):
    """One run of verl being watched.

    Attributes:
        settings: what verl's configuration says.
        trainer: verl's trainer, as soon as it is known.
        roll: which workers have been heard of.
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
        for name in NOT_HERE:
            if getattr(options, name) != getattr(Options(), name):
                raise ValueError(f"option {name} is none of verl's: it computes its own reference")
        settings = Settings.read(config, tuple(options.groups), options.group_column)
        directory = options.directory(settings.output_dir)
        kind = type(trainer).__name__ if trainer is not None else "trainer"
        self.settings, self.trainer = settings, trainer
        self._options = options
        self._closed_step: int | None = None
        self._save_freq: int | None = None
        self._checkpoint: Path | None = None
        self._box: Mailbox | None = None
        super().__init__(
            f"{kind} (verl {_version()})",
            options,
            active=True,
            run_dir=directory,
            pairs=None,
            objective=objective_of(config),
            penalty=penalty_of(config),
            text=_text(trainer, options),
            main=True,
            sinks=with_extras(options.sinks, directory, tokens=options.log_tokens == "local"),
            process_group=False,
            notes=settings.notes,
            meta={
                "trainer": kind,
                "verl": _version(),
                "experiment": at(config, "trainer.experiment_name"),
            },
        )
        self.roll = Roll(self.monitor.log)
        self.run: RunValues = RunValues()
        self.capture = DriverCapture(Feed(self.monitor, self.guards, self.text), settings, absent)
        self.guards["mailbox"] = Boundary("the mailbox", self.monitor.log, vital=True)
        self._open_mailbox()
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

    def close_step(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Merge what the workers sent, and close the step; once a step.

        Args:
            step: verl's.
            metrics: verl's of that step, where values of the run are read.
        """
        if step == self._closed_step:
            return
        self._closed_step, self.capture.observed = step, False
        self.run.read(step, metrics)
        if self._box is not None:
            letters, lost = self.guards["mailbox"](self._drain) or ([], 0)
            for letter in letters:
                self.monitor.add_part(letter.part)
            if letters:
                seen = self.capture.feed.seen
                seen["policy"] = seen.get("policy", 0) + len(letters)
            for line in self.roll.call(letters, lost, step):
                self.monitor.note(line)
                self.say(line)
        self.finish_step(step)
        self.act()
        self._write_state()

    def joined(self, data: Mapping[str, Any], step: int) -> dict[str, Any]:
        """A row of verl's with ours in it, if it is this step's."""
        report = self.report
        if report is None or report.step != step:
            return dict(data)
        mine = {name: x for name, x in self.row(report).items() if name not in data}
        return {**data, **mine}

    def row(self, report: Report) -> dict[str, float]:
        """What trackers get of a report."""
        active = report.run_values["klmonitor/active"]
        return {**select(self._options.metrics, report), "klmonitor/active": active}

    def act(self) -> None:
        """Do what alerts ask for, as verl's loop allows.

        A checkpoint is saved by verl itself at the end of the next step. V1 stops at once, or after
        the checkpoint; V0 has looked at its last step before it logs, and stops after the next.
        """
        wanted, trainer = self.wanted(), self.trainer
        if not wanted or trainer is None:
            return
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

    def finish(self) -> None:
        """The run is over."""
        self.conclude()
        self.monitor.close()

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

    # --- the mailbox -------------------------------------------------------------------------
    def _open_mailbox(self) -> None:
        wanted = {
            "watch": True,
            "groups": self.settings.groups,
            "bypass": self.settings.bypass,
        }
        self._box = self.guards["mailbox"](Mailbox.open, wanted)

    def _drain(self) -> tuple[list[Letter], int]:
        assert self._box is not None  # the only caller has it
        try:
            return self._box.drain()
        except Exception as error:
            if is_timeout(error):  # what came in waits there for the next step
                raise
            self._box = None
            self.monitor.log.stop("mailbox", f"it is gone ({cause(error)})")
            self.say(
                f"the mailbox is gone ({cause(error)}): workers are watched no more, the driver's "
                "own pairs and training go on"
            )
            return [], 0


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


def _version() -> str:
    try:
        return version("verl")
    except PackageNotFoundError:  # run from its sources
        return str(getattr(sys.modules.get("verl"), "__version__", "of unknown version"))


def _text(trainer: Any, options: Options) -> TokenText | None:
    """What decodes extreme tokens, if it may."""
    tokenizer = getattr(trainer, "tokenizer", None)
    if options.log_tokens is False or not hasattr(tokenizer, "decode"):
        return None
    try:
        return TokenText(tokenizer, rank=0)
    except Exception as error:  # noqa: BLE001  # whatever a tokenizer does when it is copied
        say("tokens are recorded without text: no copy of the tokenizer (%s)", cause(error))
        return None
