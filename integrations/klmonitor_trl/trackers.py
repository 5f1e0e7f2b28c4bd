"""The text of tokens, for the trainer's trackers.

It goes to its wandb run, and as Markdown to its TensorBoard, only where the user asked for that
(``log_tokens=True``): at every alert, and every 50 steps.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from klmonitor.record.rows import shown_tokens
from klmonitor.report import Report
from klmonitor.sinks.panels import TOKENS
from klmonitor.sinks.tokentable import COLUMNS, Annotate, token_rows

EVERY = 50
"""Steps between two tables where nothing alerts."""


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
