"""The demo: a GRPO run of TRL with klmonitor attached, what it found, and where it all is."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from shlex import quote
from shutil import which
from typing import Any

from klmonitor.report import Alert, Report
from klmonitor_trl.demo.scenarios import SCENARIOS, Scenario
from klmonitor_trl.demo.screen import Screen, make_screen

AUDIT_EVERY = 50
"""Optimizer steps."""


@dataclass
class Run:
    """What the demo keeps of a run.

    Attributes:
        directory: where its files are.
        reports: step -> report.
        seconds: training time.
        did: what the scenario's disturbance left, None without one.
        wandb: directory of the offline wandb run, None without one.
    """

    directory: Path
    reports: dict[int, Report] = field(default_factory=dict)
    seconds: float = 0.0
    did: Any = None
    wandb: Path | None = None

    @property
    def alerts(self) -> list[Alert]:
        """Every alert, in the order of the steps."""
        return [alert for report in self.reports.values() for alert in report.alerts]

    def verdict(self, step: int) -> str:
        """What `Report.explain` says of a step, empty where there is no report."""
        return self.reports[step].explain() if step in self.reports else ""


def run_demo(
    scenario: str = "spike",
    steps: int = 80,
    out_dir: str | os.PathLike[str] = "klmonitor-demo",
    trackers: Sequence[str] = ("tensorboard", "wandb"),
) -> int:
    """Train, show, and tell what was found.

    Args:
        scenario: one of `SCENARIOS`.
        steps: optimizer steps, 40 at least.
        out_dir: the run goes to a fresh directory in it, named after the scenario.
        trackers: what the trainer reports to; those that are not installed are left out.

    Returns:
        An exit status: 0 if what the scenario does was found, 1 if it was not.

    Raises:
        ValueError: the scenario is unknown, or there are too few steps.
    """
    if scenario not in SCENARIOS:
        raise ValueError(f"scenario {scenario!r}: choose from {', '.join(SCENARIOS)}")
    if steps < 40:
        raise ValueError(f"steps = {steps}: the rules need 40 at least")
    run = Run(_fresh(Path(out_dir), scenario))
    wanted = SCENARIOS[scenario]
    event = wanted.event(steps)
    _introduce(scenario, steps, event, run.directory)
    with _quiet(run.directory):
        _train(run, steps, event, wanted, [name for name in trackers if find_spec(name)])
    found = _found(run, wanted, event)
    _tell_findings(run, found or [max(run.reports)])
    if not found:
        print(f"\nThat is not what was expected: {_expected(wanted, event)}.")
    _tell_places(run)
    return 0 if found else 1


def _found(run: Run, wanted: Scenario, event: int) -> list[int]:
    """The steps that say what a scenario must show: its alert's, its verdict's; else none."""
    if not wanted.kinds:
        last = max(run.reports)
        return [last] if not run.alerts and wanted.verdict in run.verdict(last) else []
    kinds = set(wanted.kinds)
    steps = [a.step for a in run.alerts if a.step >= event and kinds.intersection(a.kinds)]
    if not steps:
        return []
    said = [
        step for step in run.reports if step >= steps[0] and wanted.verdict in run.verdict(step)
    ]
    return list(dict.fromkeys([steps[0], said[0]])) if said else []


def _expected(wanted: Scenario, event: int) -> str:
    if not wanted.kinds:
        return "no alert at all"
    return f'{" or ".join(wanted.kinds)} from step {event} on, and the verdict "{wanted.verdict}"'


def _train(run: Run, steps: int, event: int, scenario: Scenario, trackers: Sequence[str]) -> None:
    from klmonitor import KLMonitorCallback
    from klmonitor_trl.demo import tiny

    model = tiny.save_tiny_model(run.directory / "model")
    tab = ["tensorboard"] if "tensorboard" in trackers else []
    callback = KLMonitorCallback(
        run_dir=run.directory / "klmonitor",
        sinks=tab,
        audit_every=AUDIT_EVERY,
        penalty=None if scenario.clamp is None else _term(scenario),
    )
    trainer = tiny.make_trainer(
        model,
        run.directory,
        steps=steps,
        beta=scenario.beta,
        learning_rate=scenario.learning_rate,
        per_device_train_batch_size=scenario.batch,
        num_generations=2,
        optimizer=lambda weights: _optimizer(weights, scenario, event),
        callbacks=[callback],
        report_to=list(trackers) or "none",
        trainer_class=_trainer_class(scenario),
    )
    if scenario.disturb is not None:
        run.did = scenario.disturb(trainer, event)
    screen = make_screen(steps)
    trainer.add_callback(_show(screen, callback, run.reports))
    started = time.perf_counter()
    try:
        trainer.train()
    finally:
        screen.close()
        run.seconds = time.perf_counter() - started
        run.wandb = _finish_wandb() if "wandb" in trackers else None
        if callback.handle is not None:
            callback.handle.detach()


def _term(scenario: Scenario) -> Any:
    """The KL term that a trainer of our own has, which no option tells of."""
    from klmonitor import Penalty

    return Penalty("k3", clamp=scenario.clamp, beta=scenario.beta)


def _trainer_class(scenario: Scenario) -> Any:
    if scenario.clamp is None:
        return None
    from klmonitor_trl.demo.clamped import clamped

    return clamped(scenario.clamp)


def _optimizer(model: Any, scenario: Scenario, event: int) -> tuple[Any, Any]:
    """AdamW, and the scenario's schedule."""
    import torch

    optimizer = torch.optim.AdamW(model.parameters(), lr=scenario.learning_rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda before: scenario.rate(before + 1, event)
    )
    return optimizer, schedule


def _show(screen: Screen, watched: Any, reports: dict[int, Report]) -> Any:
    """A callback that shows each report of another one."""
    from transformers import TrainerCallback

    class Show(TrainerCallback):  # type: ignore[misc]  # transformers: untyped
        """Added after the one that makes the reports, so that it runs after it."""

        def on_step_end(self, *_: Any, **__: Any) -> None:
            if watched.report is not None:
                reports[watched.report.step] = watched.report
                screen.show(watched.report)

    return Show()


def _introduce(scenario: str, steps: int, event: int, directory: Path) -> None:
    """Say what is about to happen."""
    print(
        f"klmonitor demo: TRL's GRPOTrainer, {steps} steps of a tiny random model on this CPU "
        f"(a reward counts the letter a).\nScenario {scenario}: "
        f"{SCENARIOS[scenario].story.format(event=event)}.\nFiles: {directory}\n",
        flush=True,
    )


def _tell_findings(run: Run, steps: Sequence[int]) -> None:
    """The alerts and the verdicts of the steps that matter in full, and the other alerts."""
    print(f"\n{len(run.reports)} steps in {run.seconds:.0f} s, {len(run.alerts) or 'no'} alerts.")
    if run.did is not None:
        print(run.did)
    for step in steps:
        print(f"\nWhat klmonitor found at step {step}:")
        for alert in run.reports[step].alerts:
            print(alert.text())
        print(f"\n{run.verdict(step)}")
    others = [alert for alert in run.alerts if alert.step not in steps]
    if others:
        print("\nAnd at other steps:")
        for alert in others:
            print(f"  step {alert.step}: {alert.kind} ({alert.severity})")


def _tell_places(run: Run) -> None:
    """Where the files are, and the command to look at each."""
    record, board = run.directory / "klmonitor", run.directory / "tensorboard"
    places = [("record", record, command("klmonitor", "serve", record))]
    if board.exists():
        look = command("tensorboard", "--logdir", run.directory)
        places.append(("TensorBoard", board, look))
    if run.wandb is not None:
        places.append(("wandb, offline", run.wandb, command("wandb", "sync", run.wandb)))
    print("\nWhere it is, and how to look:")
    for name, path, line in places:
        print(f"# {name}: {path}\n{line}")


def command(program: str, *arguments: object) -> str:
    """A line that can be pasted into a shell as it stands, also where nothing is on its path."""
    beside = Path(sys.executable).with_name(program)
    if which(program) is None and beside.exists():
        program = str(beside)
    return " ".join(quote(str(part)) for part in (program, *arguments))


def _fresh(parent: Path, name: str) -> Path:
    """A new directory: ``name``, else ``name-2``, ``name-3``, ..."""
    for number in range(1, 10_000):
        path = (parent / (name if number == 1 else f"{name}-{number}")).absolute()
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            continue
        return path
    raise FileExistsError(f"{parent} is full of runs named {name}: remove some")


@contextmanager
def _quiet(directory: Path) -> Iterator[None]:
    """Trackers offline and in `directory`, one thread, and the libraries' chatter off."""
    import warnings

    import torch
    import transformers.integrations.integration_utils  # noqa: F401  # prints if WANDB_MODE is set
    from transformers.utils import logging

    values = {
        "WANDB_MODE": "offline",
        "WANDB_SILENT": "true",
        "WANDB_CONSOLE": "off",
        "WANDB_DIR": str(directory),
        "WANDB_PROJECT": "klmonitor-demo",
        "TENSORBOARD_LOGGING_DIR": str(directory / "tensorboard"),
        "TOKENIZERS_PARALLELISM": "false",
    }
    before = {name: os.environ.get(name) for name in values}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # so small a model is slower with more
    os.environ.update(values)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        torch.set_num_threads(threads)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _finish_wandb() -> Path | None:
    """Close the run that the trainer opened; its directory."""
    import wandb

    if wandb.run is None:
        return None
    directory = Path(wandb.run.dir).parent
    wandb.finish()
    return directory
