"""What sinks share that work on a thread of their own: its counts, and when media are due."""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import ModuleType

from klmonitor.background import Worker
from klmonitor.record.rows import shown_tokens
from klmonitor.report import ExtremeToken, Later, Report
from klmonitor.sinks.selection import Metrics, check_metrics
from klmonitor.sinks.tokentable import Annotate

CAPACITY = 256
"""Reports that may wait once a tracker or a disk has stalled."""
MEDIA_EVERY = 50
"""Steps between two histograms, and two tables, where nothing alerts."""


class QueuedSink:
    """A sink that queues what it gets.

    Args:
        name: what the thread works for, for messages.
        metrics: ``"core"``, ``"full"`` or a list of globs.

    Raises:
        ValueError: `metrics` is wrong.
    """

    def __init__(self, name: str, metrics: Metrics) -> None:
        check_metrics(metrics)
        self._metrics = metrics
        self._worker = Worker(name, CAPACITY)

    @property
    def dropped(self) -> int:
        """Reports not tried, because too many were waiting."""
        return self._worker.dropped

    @property
    def errors(self) -> int:
        """Reports lost to errors."""
        return self._worker.errors


class MediaSink(QueuedSink):
    """One that, now and then, shows histograms and extreme tokens too, and the page at the end.

    Args:
        name: what the thread works for, for messages.
        metrics: ``"core"``, ``"full"`` or a list of globs.
        run_dir: of the record whose page is sent at the end; None: no page.
        tokens: whether there is a table of extreme tokens.
        annotate: gives those tokens their text; None: the table has none.

    Raises:
        ValueError: `metrics` is wrong.
    """

    def __init__(
        self,
        name: str,
        metrics: Metrics,
        run_dir: str | os.PathLike[str] | None,
        tokens: bool,
        annotate: Annotate | None,
    ) -> None:
        super().__init__(name, metrics)
        self._run_dir = None if run_dir is None else Path(run_dir)
        self._tokens = tokens
        self._annotate = annotate
        self._media_step: int | None = None
        self._last: int | None = None
        self._closed = False

    def _media_due(self, report: Report) -> bool:
        """Whether it is time for histograms and the table, and there is what they show."""
        last = self._media_step
        if report.phase != "train" or not (
            last is None or report.alerts or not 0 <= report.step - last < MEDIA_EVERY
        ):
            return False
        return any(pair.histogram or pair.extremes for pair in report.pairs.values())

    def _table_of(self, report: Report) -> Sequence[ExtremeToken]:
        """The tokens of the table, with their text if they may have it."""
        tokens = Later(partial(shown_tokens, report))
        if not self._tokens:
            return ()
        if self._annotate is not None:
            return self._annotate(tokens, report.phase)
        return Later(lambda: [token.with_text(None) for token in tokens])


def library(name: str) -> ModuleType:
    """A tracker's own library.

    Raises:
        ImportError: it is not installed; the message has the extra that brings it.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(
            f'the sink "{name}" needs {name}: pip install "klmonitor[{name}]"'
        ) from error
