"""The page as TensorBoard's tab "KL", over the steps in its own event files."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from tensorboard import context as request_context
from tensorboard import plugin_util
from tensorboard.backend import http_util
from tensorboard.data import provider
from tensorboard.plugins import base_plugin
from werkzeug import wrappers

from klmonitor.dashboard.assets import SCRIPTS, STYLES, asset
from klmonitor.dashboard.columns import RunColumns
from klmonitor.dashboard.source import answer
from klmonitor.record.checks import alert_of, report_row, tokens_row, word
from klmonitor.record.jsonl import SAID, UNREADABLE, parse
from klmonitor.record.runfile import PENALTY
from klmonitor.record.stepevent import PLUGIN, TAG

MOST_STEPS = 1_000_000
NO_TEXT = "never in TensorBoard"
QUESTIONS = ("runs", "data", "step")
App = Callable[..., Iterable[bytes]]


class Tab(base_plugin.TBPlugin):  # type: ignore[misc]  # TensorBoard has no types
    """Serves the page's files and its answers."""

    plugin_name = PLUGIN

    def __init__(self, context: base_plugin.TBContext) -> None:
        self._source = EventSource(context.data_provider)
        self._one_at_a_time = threading.Lock()

    def is_active(self) -> bool:
        """TensorBoard itself turns the tab on where there are data with the plugin's name."""
        return False

    def frontend_metadata(self) -> base_plugin.FrontendMetadata:
        """An ES module that starts the page."""
        return base_plugin.FrontendMetadata(es_module_path="/index.js", tab_name="KL")

    def get_plugin_apps(self) -> dict[str, App]:
        """Routes, below the plugin's own path."""
        files = ("index.js", *SCRIPTS, *STYLES)
        return {f"/{name}": self._file(name) for name in files} | {
            f"/api/{question}": self._answer(question) for question in QUESTIONS
        }

    def _file(self, name: str) -> App:
        @wrappers.Request.application
        def app(request: wrappers.Request) -> Any:
            try:
                kind, body = asset(name)
            except LookupError as error:
                return http_util.Respond(request, str(error), "text/plain", code=404)
            return http_util.Respond(request, body, kind.partition(";")[0])

        return app

    def _answer(self, question: str) -> App:
        @wrappers.Request.application
        def app(request: wrappers.Request) -> Any:
            where = request_context.from_environ(request.environ)
            experiment = plugin_util.experiment_id(request.environ)
            try:
                with self._one_at_a_time:
                    self._source.read(where, experiment)
                    body = answer(self._source, question, request.args.to_dict())
            except (LookupError, ValueError) as error:
                return http_util.Respond(request, str(error), "text/plain", code=404)
            return http_util.Respond(request, body, "application/json")

        return app


class EventSource:
    """The runs of a log directory as columns; a run is read again only when it has grown."""

    def __init__(self, data_provider: provider.DataProvider) -> None:
        self._provider = data_provider
        self._runs: dict[str, RunColumns] = {}
        self._ends: dict[str, tuple[int, float]] = {}
        self._seen: dict[str, set[tuple[int, float]]] = {}
        self._skipped: dict[str, list[int]] = {}

    def runs(self) -> Sequence[RunColumns]:
        """The runs as they were read last."""
        return list(self._runs.values())

    def read(self, context: Any, experiment: str = "") -> None:
        """Take in what came since."""
        only = provider.RunTagFilter(tags=[TAG])
        names = {"experiment_id": experiment, "plugin_name": PLUGIN, "run_tag_filter": only}
        listed = self._provider.list_tensors(context, **names)
        for run in sorted(listed):
            series = listed[run][TAG]
            end = (series.max_step, series.max_wall_time)
            if self._ends.get(run) == end:
                continue
            only_run = provider.RunTagFilter(runs=[run], tags=[TAG])
            found = self._provider.read_tensors(
                context, **(names | {"run_tag_filter": only_run}), downsample=MOST_STEPS
            )
            self._add(run, found.get(run, {}).get(TAG, ()))
            self._ends[run] = end

    def _add(self, run: str, data: Iterable[Any]) -> None:
        columns = self._runs.setdefault(run, RunColumns(run, False, NO_TEXT))
        seen = self._seen.setdefault(run, set())
        for datum in data:
            key = (datum.step, datum.wall_time)
            if key in seen:
                continue
            seen.add(key)
            try:
                row = parse(datum.numpy.item())
                tokens, report = tokens_row(row), report_row(row)
                alerts = [alert_of(alert) for alert in row["alerts"]]
                terms = {str(pair): word(term) for pair, term in row.get(PENALTY, {}).items()}
            except UNREADABLE:
                self._skipped.setdefault(run, []).append(datum.step)
                columns.remarks = [_skipped(self._skipped[run])]
                continue
            columns.meta = {PENALTY: terms} if terms else {}
            columns.add_tokens(tokens)
            columns.add_row(report)
            for alert in alerts:
                columns.add_alert(alert)


def _skipped(steps: Sequence[int]) -> str:
    """What is said of events that are none of ours."""
    more = ", ..." if len(steps) > SAID else ""
    return f"{len(steps)} events skipped, at step {', '.join(map(str, steps[:SAID]))}{more}"
