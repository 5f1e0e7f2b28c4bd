"""What the trainer's trackers get beside its rows.

Its wandb run gets what rows cannot hold: alerts, histograms, tables, the page. The text of tokens
goes there, and as Markdown to its TensorBoard, only where the user asked for that
(``log_tokens=True``): at every alert, and every 50 steps.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from klmonitor.report import Report
from klmonitor.sinks import WandbSink
from klmonitor.sinks.panels import TOKENS
from klmonitor.sinks.tokentable import COLUMNS, Annotate, shown_tokens, token_rows

EVERY = 50
"""Steps between two tables where nothing alerts."""


class WandbExtras:
    """A sink for these, silent until the trainer has opened a wandb run; its rows are its own.

    Follows the run that is active: what a notebook trains after ``wandb.finish()`` goes to its own.
    """

    def __init__(self, run_dir: Path | None = None, tokens: bool = True) -> None:
        """Not connected; wandb is not imported for this.

        Args:
            run_dir: of the record whose page is logged at the end.
            tokens: whether extreme tokens are sent, without their text.
        """
        self._sink: WandbSink | None = None
        self._run_dir, self._tokens = run_dir, tokens

    @property
    def errors(self) -> int:
        """Reports lost to errors."""
        return 0 if self._sink is None else self._sink.errors

    @property
    def dropped(self) -> int:
        """Reports not tried, because wandb hung."""
        return 0 if self._sink is None else self._sink.dropped

    def __call__(self, report: Report) -> None:
        """Send what is due."""
        if getattr(sys.modules.get("wandb"), "run", None) is None:
            return
        if self._sink is None:
            self._sink = WandbSink(metrics=(), run_dir=self._run_dir, tokens=self._tokens)
        self._sink(report)

    def close(self) -> None:
        """Deliver what waits, and the page."""
        if self._sink is not None:
            self._sink.close()


def with_extras(
    sinks: Collection[Any], run_dir: Path | None = None, tokens: bool = True
) -> tuple[Any, ...]:
    """The sinks, and `WandbExtras` where none of them logs to wandb already."""
    if any(sink == "wandb" or isinstance(sink, WandbSink) for sink in sinks):
        return tuple(sinks)
    return (*sinks, WandbExtras(run_dir, tokens))


class TokenTables:
    """A sink for the text of tokens."""

    def __init__(self, trainer: Any, annotate: Annotate, wandb: bool = True) -> None:
        """For one trainer; `annotate` gives tokens their text; `wandb`: whether it gets them."""
        self._trainer, self._annotate, self._wandb = trainer, annotate, wandb

    def __call__(self, report: Report) -> None:
        """Send a table, if it is time for one."""
        if report.phase != "train" or not (report.alerts or report.step % EVERY == 0):
            return
        rows = token_rows(report.step, self._annotate(shown_tokens(report), report.phase))
        if not rows:
            return
        wandb = sys.modules.get("wandb")
        run = getattr(wandb, "run", None)
        if self._wandb and wandb is not None and run is not None:
            # The open row: the trainer's own log, which comes next, commits it.
            run.log({TOKENS: wandb.Table(columns=list(COLUMNS), data=rows)}, commit=False)
        writer = _tensorboard(self._trainer)
        if writer is not None:
            writer.add_text(TOKENS, markdown(rows), report.step)

    def close(self) -> None:
        """Nothing is held."""


def markdown(rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table, whose cells stay cells whatever a token's text is."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    for row in rows:
        cells = (str(cell).replace("|", "\\|").replace("\n", "\\n") for cell in row)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _tensorboard(trainer: Any) -> Any:
    """The trainer's ``SummaryWriter``, None before it has one."""
    for callback in trainer.callback_handler.callbacks:
        writer = getattr(callback, "tb_writer", None)
        if writer is not None:
            return writer
    return None
