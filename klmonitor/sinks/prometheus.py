"""Metrics for Prometheus, served over HTTP by this process.

A gauge holds the last step's value, and Prometheus looks every 15 s or so: a spike of one step may
fall between two looks. So everything to alert on is a counter, which remembers, and every counter
is there with 0 from the beginning, since ``increase()`` does not see a series being born. Rules
and a Grafana dashboard are in the repository's ``docs/prometheus``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from klmonitor.pairs import PAIRS
from klmonitor.report import PairReport, Report
from klmonitor.rules.table import RULES
from klmonitor.sinks.selection import Metrics, check_metrics, select

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

PORT = 9464
SEVERITIES = ("info", "warn", "critical")
HEALTH = ("klmonitor/active", "klmonitor/errors", "klmonitor/dropped")
"""Always served: the shipped rules look at them."""


class PrometheusSink:
    """Serves ``/metrics``: the chosen metrics as gauges, alerts and odd tokens as counters.

    Gauges are called ``klmonitor_kl_{metric}`` with the pair as a label. Counters:
    ``klmonitor_alerts_total`` by kind and severity, ``klmonitor_steps_total``, and by pair
    ``klmonitor_seen_tokens_total``, ``klmonitor_nonfinite_tokens_total`` and (also by estimator)
    ``klmonitor_outlier_tokens_total``.

    Args:
        port: where to listen; 0 takes a free one.
        address: whom to listen to: only this machine by default, ``"0.0.0.0"`` for all.
        metrics: ``"core"``, ``"full"`` or a list of globs.
        kinds: kinds of alert beside klmonitor's own: the names of your rules.
        registry: where to register; None: a registry of its own.

    Attributes:
        port: where it listens.

    Raises:
        ImportError: prometheus-client is not installed.
        OSError: the port is taken.
        ValueError: `metrics` is wrong.
    """

    def __init__(
        self,
        port: int = PORT,
        address: str = "127.0.0.1",
        metrics: Metrics = "core",
        kinds: Iterable[str] = (),
        registry: CollectorRegistry | None = None,
    ) -> None:
        try:
            import prometheus_client as client
        except ImportError as error:
            raise ImportError(
                'PrometheusSink needs prometheus-client: pip install "klmonitor[prometheus]"'
            ) from error
        check_metrics(metrics)
        self._client = client
        self._metrics = metrics
        self._registry = client.CollectorRegistry() if registry is None else registry
        self._gauges: dict[str, Any] = {}
        self._counters = self._make_counters(kinds)
        try:
            self._server, self._thread = client.start_http_server(port, address, self._registry)
        except OSError as error:
            raise OSError(
                f"cannot serve metrics at {address}:{port}: {error.strerror or error}; "
                "give PrometheusSink another port"
            ) from error
        self.port: int = self._server.server_port

    def __call__(self, report: Report) -> None:
        """Take a report over; costs microseconds, nothing is sent."""
        health = {name: report.run_values[name] for name in HEALTH if name in report.run_values}
        for name, value in (select(self._metrics, report) | health).items():
            metric, labels = _series(name)
            gauge = self._gauge(metric, tuple(labels))
            (gauge.labels(**labels) if labels else gauge).set(value)
        if report.phase != "train":
            return
        self._gauge("klmonitor_step", ()).set(report.step)
        self._counters["steps"].inc()
        for alert in report.alerts:
            self._counters["alerts"].labels(alert.kind, alert.severity).inc()
        for pair in report.pairs.values():
            self._count(pair)

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5.0)

    def _make_counters(self, kinds: Iterable[str]) -> dict[str, Any]:
        def make(name: str, text: str, *labels: str) -> Any:
            return self._client.Counter(f"klmonitor_{name}", text, labels, registry=self._registry)

        counters = {
            "steps": make("steps", "Optimizer steps seen."),
            "alerts": make("alerts", "Alerts opened or made worse.", "kind", "severity"),
            "tokens": make("seen_tokens", "Tokens counted.", "pair"),
            "nonfinite": make("nonfinite_tokens", "NaN or infinite log-ratios.", "pair"),
            "outliers": make("outlier_tokens", "Outlier tokens.", "pair", "estimator"),
        }
        for kind in (*(rule.kind for rule in RULES), *kinds):
            for severity in SEVERITIES:
                counters["alerts"].labels(kind, severity)
        for pair in PAIRS:
            counters["tokens"].labels(pair.name)
            counters["nonfinite"].labels(pair.name)
            for estimator in ("k1", "k3"):
                counters["outliers"].labels(pair.name, estimator)
        return counters

    def _count(self, pair: PairReport) -> None:
        self._counters["tokens"].labels(pair.name).inc(_count_of(pair.tokens))
        self._counters["nonfinite"].labels(pair.name).inc(_count_of(pair["nonfinite"]))
        for estimator in ("k1", "k3"):
            found = _count_of(pair[f"outliers/{estimator}"])
            self._counters["outliers"].labels(pair.name, estimator).inc(found)

    def _gauge(self, name: str, labels: tuple[str, ...]) -> Any:
        if name not in self._gauges:
            text = "Value of the last step; see docs/metrics.md."
            self._gauges[name] = self._client.Gauge(name, text, labels, registry=self._registry)
        return self._gauges[name]


def _series(name: str) -> tuple[str, dict[str, str]]:
    """A metric's full name as Prometheus wants it: name and labels."""
    phase, evaluated, rest = name.partition("eval/")
    rest = rest if evaluated and not phase else name
    head = "klmonitor_eval_" if rest is not name else "klmonitor_"
    first, _, tail = rest.partition("/")
    pair, _, metric = tail.partition("/")
    if first == "kl" and metric:
        return head + "kl_" + _plain(metric), {"pair": pair}
    return head + _plain(rest.removeprefix("klmonitor/")), {}


def _plain(name: str) -> str:
    return re.sub(r"[^a-zA-Z0-9]+", "_", name)


def _count_of(value: float) -> float:
    return value if value > 0 and math.isfinite(value) else 0.0
