"""OpenRLHF's driver: one watch a run, whose step is closed where OpenRLHF logs it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from klmonitor.hooks.actions import CHECKPOINT, STOP
from klmonitor.hooks.feed import Feed
from klmonitor.hooks.options import Options
from klmonitor.hooks.remote import RemoteWatch, refuse, version_of
from klmonitor.hooks.rowvalues import RowValues
from klmonitor_openrlhf.capture import DriverCapture
from klmonitor_openrlhf.objective import objective_of, penalty_of
from klmonitor_openrlhf.settings import NOT_HERE, WHY, Settings, at, set_at

STATE = "klmonitor"
"""In the states that OpenRLHF keeps beside its checkpoints: what a resumed run continues from."""
RATE = ("actor_lr",)


class Driver(RemoteWatch):
    """One run of OpenRLHF being watched.

    Attributes:
        settings: what OpenRLHF's arguments say.
        trainer: its `BasePPOTrainer`.
        stopping: whether an alert has ended the run.
        run: what OpenRLHF's metrics tell of the run.
    """

    capture: DriverCapture

    def __init__(
        self,
        trainer: Any,
        options: Options,
        absent: Callable[[], Mapping[str, str]] = dict,
    ) -> None:
        """Set up, and open the job's mailbox.

        Raises:
            ValueError: an option cannot work here.
            OSError: the run directory cannot be made.
        """
        refuse(options, NOT_HERE, WHY)
        args, kind = trainer.args, type(trainer).__name__
        self.settings, self.trainer = Settings.read(args), trainer
        self.stopping = False
        self._save_steps: Any = None
        read = penalty_of(args)
        super().__init__(
            f"{kind} (OpenRLHF {version_of('openrlhf')})",
            options,
            output_dir=self.settings.output_dir,
            objective=objective_of(args),
            penalty=read,
            tokenizer=getattr(trainer, "tokenizer", None),
            begins=self.settings.freezing,
            merge_rows=self.settings.logging_steps > 1,
            meta={
                "trainer": kind,
                "openrlhf": version_of("openrlhf"),
                "experiment": at(args, "experiment"),
            },
        )
        self.run: RowValues = RowValues(RATE, (), self.settings.updates_a_step)
        feed = Feed(self.monitor, self.guards, self.text)
        self.capture = DriverCapture(feed, self.settings, absent, self._beta)
        self.open_mailbox(
            {
                "penalty": {k: v for k, v in self.monitor.penalties.items() if k == "policy_ref"},
                "adaptive": self.settings.adaptive,
                "by_token": self.settings.by_token,
            }
        )
        self.warn_of_absent()
        self.announce("set --algo.kl.init_coef above 0")
        if not self.settings.rollout:
            self.say(f"no rollout_old: {self.capture.missing()['rollout']}")

    @property
    def held(self) -> tuple[str, ...]:
        """Names of the pairs: what the workers compare, then what the driver does."""
        found = ["old_policy"]
        if self.settings.reference:
            found = [*(["policy_ref"] if self.settings.in_loss else []), "old_ref", *found]
        if self.settings.rollout:
            found.append("rollout_old")
        return tuple(found)

    # --- steps -------------------------------------------------------------------------------
    def read(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Values of the run, among OpenRLHF's metrics and in its controller."""
        self.run.read(step, metrics)
        self.run.beta = self._beta()

    def joined(self, data: Mapping[str, Any], step: int) -> dict[str, Any]:
        """OpenRLHF's row with ours in it; one of several steps has the exact summary of them."""
        if self.settings.logging_steps == 1:
            return super().joined(data, step)
        if step % self.settings.logging_steps:
            return dict(data)
        report = self.monitor.take_logged()
        mine = {} if report is None else self.row(report)
        return {**data, **{name: x for name, x in mine.items() if name not in data}}

    def act(self) -> None:
        """Do what alerts ask for: a checkpoint of this very step, no batch after this one."""
        wanted = self.wanted()
        if CHECKPOINT in wanted:
            self._save_steps = at(self.trainer.args, "save_steps")
            set_at(self.trainer.args, "save_steps", 1)
        if STOP in wanted:
            self.stopping = True
            self.tell({"stop": True})

    def logged(self) -> None:
        """The step's row is written, and its checkpoint if there was to be one."""
        if self._save_steps is not None:
            set_at(self.trainer.args, "save_steps", self._save_steps)
            self._save_steps = None

    def _beta(self) -> float | None:
        controller = getattr(self.trainer, "kl_ctl", None)
        return None if controller is None else float(controller.value)

    # --- checkpoints -------------------------------------------------------------------------
    def kept(self, states: Mapping[str, Any] | None) -> dict[str, Any]:
        """What OpenRLHF keeps beside a checkpoint, and ours."""
        return {**(states or {}), STATE: json.dumps(self.state())}

    def loaded(self, states: Mapping[str, Any] | None) -> None:
        """What was beside the checkpoint that a run goes on from, if it does."""
        text = (states or {}).get(STATE)
        if text:
            self.resume(json.loads(text))
            self.say("continues from the checkpoint")
