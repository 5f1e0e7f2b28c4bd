"""The demo: a GRPO run of TRL with klmonitor attached, what it found, and where it all is.

Scenario ``spike`` multiplies the learning rate by 200 on three steps near step 60, and the KL that
follows is found by the ordinary rules. ``k1`` and ``k3`` plant one token in an otherwise ordinary
run, d = -40 and d = +8, and say so.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from klmonitor.demo.plant import Plant
from klmonitor.demo.screen import Screen, make_screen
from klmonitor.report import Alert, Report

SCENARIOS = {
    "spike": ("spike", "surge"),
    "k1": ("dominance_k1",),
    "k3": ("dominance_k3",),
}
"""Scenario -> the kinds of alert of which it must raise one."""
PLANTED = {"k1": -40.0, "k3": 8.0}
"""Scenario -> d of the token that it plants, nats."""

LEARNING_RATE = 5e-5
JUMP = 200.0
JUMP_STEPS = 3


@dataclass
class Run:
    """What the demo keeps of a run.

    Attributes:
        directory: where its files are.
        reports: step -> report.
        seconds: training time.
        wandb: directory of the offline wandb run, None without one.
    """

    directory: Path
    reports: dict[int, Report] = field(default_factory=dict)
    seconds: float = 0.0
    wandb: Path | None = None

    @property
    def alerts(self) -> list[Alert]:
        """Every alert, in the order of the steps."""
        return [alert for report in self.reports.values() for alert in report.alerts]


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
    event = steps * 3 // 4
    plant = Plant(event, PLANTED[scenario]) if scenario in PLANTED else None
    run = Run(_fresh(Path(out_dir), scenario))
    _introduce(scenario, steps, event, run.directory)
    with _quiet(run.directory):
        _train(run, steps, event, plant, [name for name in trackers if find_spec(name)])
    wanted = SCENARIOS[scenario]
    found = [alert for alert in run.alerts if alert.step >= event and alert.kind in wanted]
    _tell_findings(run, found[0].step if found else event, plant)
    if not found:
        print(f"\nNo {' or '.join(wanted)} alert from step {event} on: one was expected.")
    _tell_places(run)
    return 0 if found else 1


def _train(run: Run, steps: int, event: int, plant: Plant | None, trackers: Sequence[str]) -> None:
    from klmonitor import KLMonitorCallback
    from klmonitor.demo import tiny

    model = tiny.save_tiny_model(run.directory / "model")
    tab = ["tensorboard"] if "tensorboard" in trackers else []
    callback = KLMonitorCallback(run_dir=run.directory / "klmonitor", sinks=tab)
    jump = range(event - 1, event - 1 + JUMP_STEPS) if plant is None else range(0)
    trainer = tiny.make_trainer(
        model,
        run.directory,
        steps=steps,
        beta=0.04,
        learning_rate=LEARNING_RATE,
        num_generations=2,
        optimizer=lambda weights: _optimizer(weights, jump),
        callbacks=[callback],
        report_to=list(trackers) or "none",
    )
    if plant is not None:
        plant.into(trainer)
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


def _optimizer(model: Any, jump: range) -> tuple[Any, Any]:
    """AdamW, and a schedule that multiplies the rate on the steps (from 0) in `jump`."""
    import torch

    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: JUMP if step in jump else 1.0
    )
    return optimizer, schedule


def _show(screen: Screen, watched: Any, reports: dict[int, Report]) -> Any:
    """A callback that shows each report of another one."""
    from transformers import TrainerCallback

    class Show(TrainerCallback):  # type: ignore[misc]
        """Added after the one that makes the reports, so that it runs after it."""

        def on_step_end(self, *_: Any, **__: Any) -> None:
            if watched.report is not None:
                reports[watched.report.step] = watched.report
                screen.show(watched.report)

    return Show()


def _introduce(scenario: str, steps: int, event: int, directory: Path) -> None:
    """Say what is about to happen."""
    what = {
        "spike": f"the learning rate is multiplied by {JUMP:g} on steps {event} to "
        f"{event + JUMP_STEPS - 1}",
        "k1": f"one token with d = {PLANTED['k1']:g} is planted at step {event}",
        "k3": f"one token with d = +{PLANTED['k3']:g} is planted at step {event}",
    }[scenario]
    print(
        f"klmonitor demo: TRL's GRPOTrainer, {steps} steps of a tiny random model on this CPU "
        f"(a reward counts the letter a).\nScenario {scenario}: {what}.\nFiles: {directory}\n",
        flush=True,
    )


def _tell_findings(run: Run, step: int, plant: Plant | None) -> None:
    """The alerts of the step that matters in full, what that step held, and the other alerts."""
    print(f"\n{len(run.reports)} steps in {run.seconds:.0f} s, {len(run.alerts)} alerts.")
    if plant is not None and plant.done:
        print(f"Planted at step {plant.step}: d = {plant.log_ratio:+g}, token id {plant.token_id}.")
    print(f"\nWhat klmonitor found at step {step}:")
    if step in run.reports:
        for alert in run.reports[step].alerts:
            print(alert.text())
        print(f"\n{run.reports[step].explain()}")
    others = [alert for alert in run.alerts if alert.step != step]
    if others:
        print("\nAnd at other steps:")
        for alert in others:
            print(f"  step {alert.step}: {alert.kind} ({alert.severity})")


def _tell_places(run: Run) -> None:
    """Where the files are, and the command to look at each."""
    record, board = run.directory / "klmonitor", run.directory / "tensorboard"
    places = [("record", record, f"klmonitor serve {record}")]
    if board.exists():
        places.append(("TensorBoard", board, f"tensorboard --logdir {run.directory}"))
    if run.wandb is not None:
        places.append(("wandb, offline", run.wandb, f"wandb sync {run.wandb}"))
    print("\nWhere it is, and how to look:")
    for name, path, command in places:
        print(f"  {name:15} {path}\n  {'':15} $ {command}")


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
