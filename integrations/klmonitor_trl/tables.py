"""Extreme tokens with their text in the trainer's trackers: only where the user asked for that.

``log_tokens=True`` sends a ``wandb.Table`` to the run that the trainer logs to, and a Markdown
table to its TensorBoard: at every alert, and every 50 steps.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

from klmonitor.report import ExtremeToken, Report
from klmonitor.rows import recorded_tokens

EVERY = 50
"""Steps between two tables where nothing alerts."""
TAG = "kl/extreme_tokens"
COLUMNS = ("step", "pair", "tail", "d", "log q", "log p", "token id", "text", "prompt", "place")

Annotate = Callable[[Sequence[ExtremeToken], str], Sequence[ExtremeToken]]


class TokenTables:
    """A sink for the text of tokens."""

    def __init__(self, trainer: Any, annotate: Annotate) -> None:
        """For one trainer; `annotate` gives tokens their text."""
        self._trainer, self._annotate = trainer, annotate

    def __call__(self, report: Report) -> None:
        """Send a table, if it is time for one."""
        if report.phase != "train" or not (report.alerts or report.step % EVERY == 0):
            return
        tokens = [token for pair in report.pairs.values() for token in recorded_tokens(pair)]
        rows = [_row(report.step, token) for token in self._annotate(tokens, report.phase)]
        if not rows:
            return
        wandb = sys.modules.get("wandb")
        run = getattr(wandb, "run", None)
        if wandb is not None and run is not None:
            # The open row: the trainer's own log, which comes next, commits it.
            run.log({TAG: wandb.Table(columns=list(COLUMNS), data=rows)}, commit=False)
        writer = _tensorboard(self._trainer)
        if writer is not None:
            writer.add_text(TAG, markdown(rows), report.step)

    def close(self) -> None:
        """Nothing is held."""


def markdown(rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table, whose cells stay cells whatever a token's text is."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    for row in rows:
        cells = (str(cell).replace("|", "\\|").replace("\n", "\\n") for cell in row)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _row(step: int, token: ExtremeToken) -> list[Any]:
    numbers = (round(token.log_ratio, 4), round(token.log_q, 4), round(token.log_p, 4))
    prompt = "" if token.prompt_id is None else str(token.prompt_id)
    ids = -1 if token.token_id is None else token.token_id
    return [step, token.pair, token.tail, *numbers, ids, token.text or "", prompt, token.where]


def _tensorboard(trainer: Any) -> Any:
    """The trainer's ``SummaryWriter``, None before it has one."""
    for callback in trainer.callback_handler.callbacks:
        writer = getattr(callback, "tb_writer", None)
        if writer is not None:
            return writer
    return None
