"""Numbers, alerts as tags, a table and the page as artifacts to MLflow.

The active run of MLflow belongs to a thread; ours is named by its id, through the client.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from klmonitor.report import Alert
from klmonitor.sinks.media import Heat
from klmonitor.sinks.queued import library

TAG_LENGTH = 5000
"""Characters of a tag's value that every store takes."""
BATCH = 1000
"""Metrics that one call may carry."""


class MlflowRun:
    """A run of MLflow.

    An alert is the tag ``klmonitor/alert/{kind}/{pair}``, which holds the last of its kind, and
    ``klmonitor/alert`` is the last of all. The table of a step's extreme tokens is the artifact
    ``klmonitor/tokens/step_{n}.json``, the page ``klmonitor/report.html``. Histograms have no form
    in MLflow: the page has them.

    Args:
        run_id: None: the run that is active on this thread, else one of our own in MLflow's default
            experiment (or ``$MLFLOW_EXPERIMENT_NAME``), ended by us.

    Raises:
        ImportError: mlflow is not installed.
    """

    name = "MLflow"

    def __init__(self, run_id: str | None = None) -> None:
        mlflow = library("mlflow")
        run_id = run_id or open_run()
        self._owned = run_id is None
        self._client = mlflow.MlflowClient()
        if run_id is None:
            experiment = mlflow.set_experiment(
                os.environ.get("MLFLOW_EXPERIMENT_NAME", "klmonitor")
            )
            run_id = self._client.create_run(experiment.experiment_id).info.run_id
        self.run_id: str = run_id
        self._metric = mlflow.entities.Metric

    def log(self, row: Mapping[str, float], step: int) -> None:
        """Log the numbers of a step."""
        now = int(time.time() * 1000)
        metrics = [self._metric(name, value, now, step) for name, value in row.items()]
        for first in range(0, len(metrics), BATCH):
            self._client.log_batch(self.run_id, metrics=metrics[first : first + BATCH])

    def alert(self, alert: Alert) -> None:
        """Set the alert's tags."""
        text = alert.text()[:TAG_LENGTH]
        for key in (f"klmonitor/alert/{alert.kind}/{alert.pair or 'run'}", "klmonitor/alert"):
            self._client.set_tag(self.run_id, key, text)

    def media(
        self, step: int, heat: Heat, columns: Sequence[str], rows: Sequence[Sequence[Any]]
    ) -> None:
        """Log the table, in the form that MLflow's viewer opens."""
        del heat
        if rows:
            table = {"columns": list(columns), "data": [list(row) for row in rows]}
            name = f"klmonitor/tokens/step_{step}.json"
            self._client.log_text(self.run_id, json.dumps(table), name)

    def page(self, html: str, step: int) -> None:
        """Log the page."""
        del step
        self._client.log_text(self.run_id, html, "klmonitor/report.html")

    def finish(self) -> None:
        """End a run of our own."""
        if self._owned:
            self._client.set_terminated(self.run_id)


def open_run() -> str | None:
    """The id of the run that is active on this thread; None: none."""
    active = getattr(sys.modules.get("mlflow"), "active_run", None)
    run = active() if active is not None else None
    return None if run is None else str(run.info.run_id)


def is_open() -> bool:
    """Whether somebody has opened a run that we would go on with."""
    return open_run() is not None
