"""Metrics for Prometheus, served over HTTP by this process.

A gauge holds the last step's value, and Prometheus looks every 15 s or so: a spike of one step may
fall between two looks. So everything to alert on is a counter, which remembers, and every counter
is there with 0 from the beginning, since ``increase()`` does not see a series being born. Rules
and a Grafana dashboard are in the repository's ``docs/prometheus``.
"""

from __future__ import annotations

import hashlib
import math
import re
import threading
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from klmonitor.dashboard.local import LOCAL, LocalServer
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
        address: whom to listen to: only this machine by default, and then only those who ask for
            it by name (`klmonitor.dashboard.local`); ``"0.0.0.0"`` for all.
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
        self._names: dict[str, str] = {}
        self._counters = self._make_counters(kinds)
        try:
            self._server = MetricsServer(self._registry, port, address)
        except (OSError, OverflowError) as error:
            why = getattr(error, "strerror", None) or error
            raise OSError(
                f"cannot serve metrics at port {port}: {why}; "
                "give PrometheusSink another port, or an address of this machine"
            ) from error
        self._thread = threading.Thread(
            target=self._server.serve_forever, name="klmonitor: Prometheus", daemon=True
        )
        self._thread.start()
        self.port: int = self._server.server_port

    def __call__(self, report: Report) -> None:
        """Take a report over; costs microseconds, nothing is sent."""
        health = {name: report.run_values[name] for name in HEALTH if name in report.run_values}
        for name, value in (select(self._metrics, report) | health).items():
            metric, labels = self._series(name)
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

    def _series(self, name: str) -> tuple[str, dict[str, str]]:
        """Name and labels; two names that look alike to Prometheus stay two."""
        metric, labels, whole = series(name)
        if self._names.setdefault(metric, whole) != whole:
            metric += f"_{hashlib.sha256(whole.encode(errors='replace')).hexdigest()[:8]}"
        return metric, labels

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


class MetricsServer(LocalServer):
    """Serves a registry at ``/metrics``, and at any other path.

    Args:
        registry: what is served.
        port: where.
        address: whom to listen to.
    """

    def __init__(self, registry: Any, port: int, address: str) -> None:
        super().__init__(port, address, LOCAL if address in LOCAL else None)
        self._registry = registry

    def answer(self, path: str, headers: Any) -> tuple[int, dict[str, str], bytes]:
        """The metrics in the format that is asked for."""
        from prometheus_client.exposition import choose_encoder

        encoder, kind = choose_encoder(headers.get("Accept") or "")
        return 200, {"Content-Type": kind}, encoder(self._registry)


def series(name: str) -> tuple[str, dict[str, str], str]:
    """A metric's full name as Prometheus wants it: name, labels; and what tells names apart."""
    phase, evaluated, rest = name.partition("eval/")
    rest = rest if evaluated and not phase else name
    head = "klmonitor_eval_" if rest is not name else "klmonitor_"
    first, _, tail = rest.partition("/")
    pair, _, metric = tail.partition("/")
    if first != "kl" or not metric:
        return head + _plain(rest.removeprefix("klmonitor/")), {}, head + rest
    if metric.startswith("group/") and metric.count("/") >= 3:
        group, estimator, what = metric.removeprefix("group/").rsplit("/", 2)
        kind = f"group/{estimator}/{what}"
        return f"{head}kl_{_plain(kind)}", {"pair": pair, "group": group}, f"{head}kl/{kind}"
    return f"{head}kl_{_plain(metric)}", {"pair": pair}, f"{head}kl/{metric}"


def _plain(name: str) -> str:
    return re.sub(r"[^a-zA-Z0-9]+", "_", name)


def _count_of(value: float) -> float:
    return value if value > 0 and math.isfinite(value) else 0.0
