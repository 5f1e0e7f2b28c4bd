"""One trainer being watched: what is bound, the step's end, the log row, and letting go."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib.metadata import version
from typing import Any

from torch import nn

from klmonitor.attachment import Handle, Options
from klmonitor.monitor import Monitor
from klmonitor.pairs import default_pairs
from klmonitor.report import Report
from klmonitor.sinks import select
from klmonitor_trl import describe
from klmonitor_trl.alerts import with_alerts
from klmonitor_trl.bindings import Guard, Wrap
from klmonitor_trl.capture import Capture
from klmonitor_trl.reference import Reference, adapters_off, given_model, has_adapters

LOG_PROBS = ("_get_per_token_logps_and_entropies", "_get_per_token_logps")
"""Names of TRL's log-prob function, newest first."""

GENERATE = "_generate_and_score_completions"


class Watch:
    """Binds a trainer on construction.

    Attributes:
        handle: what the user holds.
        report: the last optimizer step's report.
        active: whether anything is bound.
        on_detach: called when the trainer is let go.
    """

    def __init__(
        self, trainer: Any, log_probs: str, options: Options, enabled: bool = True
    ) -> None:
        """Wrap the trainer's functions.

        Args:
            trainer: the trainer.
            log_probs: name of its log-prob function.
            options: what the user asked for.
            enabled: False binds nothing.

        Raises:
            TypeError: `reference` is of a kind that cannot be evaluated.
            ValueError: an option cannot work with this trainer.
        """
        self.report: Report | None = None
        self.active = enabled
        self.on_detach: Callable[[], None] = lambda: None
        self._trainer, self._options = trainer, options
        self._log_probs = log_probs
        self._reference = self._choose_reference()
        directory = options.directory(trainer.args.output_dir) if enabled else None
        self._monitor = Monitor(
            run_dir=directory,
            metrics=options.metrics,
            rules=options.rules,
            groups=options.groups,
            log_tokens=options.log_tokens,
            strict=options.strict,
            sinks=with_alerts(options.sinks),
            half_life=options.half_life,
            merge_rows=True,
            meta={"trainer": type(trainer).__name__, "trl": version("trl")},
        )
        self._guards = {
            name: Guard(name, self._count_error, options.strict)
            for name in ("log-probs", "generation", "loss", "log", "step")
        }
        self._capture = Capture(
            trainer,
            self._monitor,
            self._guards,
            self._reference,
            options.groups,
            options.group_column,
        )
        self.handle = Handle(self._monitor, self.detach, self.describe)
        self._sources = describe.sources(trainer, self._log_probs, self._reference)
        self._wraps: list[Wrap] = []
        if enabled:
            self._wrap()
            self._announce(directory)

    def finish_step(self, step: int) -> None:
        """Close an optimizer step; collective."""
        self.report = self._guards["step"].always(self._monitor.step, step)

    def finish_evaluation(self, step: int) -> Report | None:
        """Close an evaluation; collective."""
        if self._reference is not None:
            self._reference.start_evaluation()
        return self._guards["step"].always(self._monitor.step, step, phase="eval")

    def detach(self) -> None:
        """Leave the trainer as it was, and close the monitor."""
        if not self.active:
            return
        self.active = False
        for wrap in reversed(self._wraps):
            wrap.undo()
        self.on_detach()
        self._monitor.close()

    def describe(self) -> str:
        """What was bound, what was not and why, and what has been seen."""
        if not self._wraps:
            return "klmonitor is off (KLMONITOR_DISABLE is set): nothing is bound"
        kind = type(self._trainer).__name__
        state = "watches" if self.active else "was detached from"
        lines = [f"klmonitor {state} {kind} (TRL {version('trl')})"]
        missing = describe.missing(self._trainer, self._sources)
        for policy in ("policy", "old", "rollout", "ref"):
            seen = self._capture.seen.get(policy, 0)
            if policy in self._sources:
                lines.append(f"  {policy:8}{self._sources[policy]} ({seen} micro-batches so far)")
            else:
                lines.append(f"  {policy:8}not held: {missing[policy]}")
        pairs = ", ".join(pair.name for pair in default_pairs(self._sources)) or "none"
        lines.append(f"  pairs   {pairs}")
        lines += [f"  given up: {name}" for name, guard in self._guards.items() if guard.closed]
        if self._reference is not None and self._reference.passes:
            mean = self._reference.seconds / self._reference.passes
            lines.append(f"  a reference pass takes {1e3 * mean:.0f} ms")
        return "\n".join(lines)

    def conclude(self) -> None:
        """One line at the end of training, if something of ours failed on the way."""
        if self._monitor.errors:
            self._say(f"{self._monitor.errors} errors of the monitor were caught; see describe()")

    def _wrap(self) -> None:
        capture = self._capture
        wanted = {
            self._log_probs: capture.log_probs,
            GENERATE: capture.generation,
            "compute_loss": capture.loss,
            "log": self._log,
        }
        self._wraps = [Wrap(self._trainer, name, around) for name, around in wanted.items()]

    def _choose_reference(self) -> Reference | None:
        """The reference of ours that the options ask for, None if TRL's own or none."""
        wanted, trainer = self._options.reference, self._trainer
        if wanted is None or wanted is False:
            return None
        beta = getattr(trainer, "beta", 0.0)
        if isinstance(wanted, nn.Module):
            if beta:
                raise ValueError(
                    f"reference=<model> but TRL holds a reference already (beta = {beta:g}): "
                    "leave reference='auto'"
                )
            source, name = given_model(trainer, wanted), type(wanted).__name__
        elif wanted == "auto":
            if beta or not has_adapters(trainer):
                return None
            source = adapters_off(trainer, getattr(trainer, self._log_probs))
            name = "adapters off"
        else:
            raise TypeError(f"reference is a {type(wanted).__name__}: give 'auto', a model or None")
        return Reference(name, source, self._options.reference_every, trainer, self._say)

    def _log(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Around the trainer's `log`: our numbers join the row before it is sent."""
        logs = kwargs["logs"] if "logs" in kwargs else (args[0] if args else None)
        if isinstance(logs, dict):
            prefix = evaluation_prefix(logs)
            if prefix is None:
                self._guards["log"].run(self._join_row, logs)
            else:
                report = self.finish_evaluation(self._trainer.state.global_step)
                self._guards["log"].run(self._join_evaluation, logs, prefix, report)
        return original(*args, **kwargs)

    def _join_row(self, logs: dict[str, Any]) -> None:
        """The summary of the steps since the last row."""
        report = self._monitor.take_logged()
        if report is not None:
            logs.update(select(self._options.metrics, report))

    def _join_evaluation(self, logs: dict[str, Any], prefix: str, report: Report | None) -> None:
        """The evaluation's means and errors, under its own name."""
        if report is not None:
            values = select(self._options.metrics, report)
            logs.update({f"{prefix}_{name.removeprefix('eval/')}": x for name, x in values.items()})

    def _announce(self, directory: Any) -> None:
        """One line: what is bound, where the record is, the next command."""
        pairs = [pair.name for pair in default_pairs(self._sources)]
        kind = type(self._trainer).__name__
        record = "no record" if directory is None else f"record in {directory}"
        look = "" if directory is None else f"; look: tail -F {directory}/alerts.jsonl"
        bound = ", ".join(self._sources)
        self._say(
            f"watching {kind} (TRL {version('trl')}): {bound}; "
            f"pairs {', '.join(pairs) or 'none'}; {record}{look}"
        )
        if not pairs:
            self._say(
                f"{kind} holds no second distribution to compare the policy with (beta = 0, no "
                f"adapters). To get one, {describe.remedy(self._trainer)}"
            )

    def _say(self, line: str) -> None:
        """A line on the console of the main process."""
        if self._trainer.is_world_process_zero():
            sys.stderr.write(f"klmonitor: {line}\n")

    def _count_error(self) -> None:
        self._monitor.errors += 1


def evaluation_prefix(logs: Mapping[str, Any]) -> str | None:
    """``"eval"`` (or what the user called it) for an evaluation's row, None for training's.

    `Trainer.evaluate` adds ``{prefix}_runtime`` to its row; the summary at the end of training is
    ``train_runtime``. All ranks log the same keys, so all ranks agree.
    """
    for key in logs:
        prefix, found, _ = key.partition("_runtime")
        if found and prefix != "train":
            return prefix
    return None


def log_prob_function(trainer: Any) -> str:
    """Name of the trainer's log-prob function.

    Raises:
        TypeError: it has none, or does not generate; the message names what is missing.
    """
    found = [name for name in LOG_PROBS if callable(getattr(trainer, name, None))]
    absent = [name for name in ("compute_loss", GENERATE) if not hasattr(trainer, name)]
    if found and not absent:
        return found[0]
    raise TypeError(
        f"klmonitor cannot watch a {type(trainer).__name__} of TRL {version('trl')}: it has no "
        f"{absent[0] if absent else ' or '.join(LOG_PROBS)}; call Monitor.observe(policy=..., "
        "ref=...) per micro-batch and Monitor.step(n) per step yourself"
    )
