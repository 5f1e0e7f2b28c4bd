"""What a trainer's own wandb run gets beside its rows: alerts, histograms, tables, the page."""

from __future__ import annotations

import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

from klmonitor.report import Report
from klmonitor.sinks import WandbSink


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
