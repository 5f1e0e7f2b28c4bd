"""The panels that a tracker can draw of a pair: titles and order of klmonitor's own page.

The page draws more than trackers get by default. So each panel lists what it would draw, and a
tracker draws of that what it is sent; a panel of which nothing is sent is left out. What the page
draws as one and no tracker can (bands of standard errors) is a panel more, after it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from klmonitor.sinks.selection import Metrics, is_chosen

INKS = {"k1": "#0072b2", "k2": "#00805c", "k3": "#c14600"}
"""The page's colours of the estimators, on white."""
ESTIMATORS = tuple(INKS)
REPORT = "klmonitor/report"
TOKENS = "kl/extreme_tokens"
ALERTS = "kl/alerts"
"""What belongs to the run: the page, the table of extreme tokens, alerts opened at a step."""
HISTOGRAM = "log_ratio"
"""A pair's histogram of d, as ``kl/{pair}/log_ratio``."""


@dataclass(frozen=True)
class Panel:
    """One panel of a pair.

    Attributes:
        title: as on the page.
        metrics: what it draws, without the ``kl/{pair}/`` prefix.
        unit: of the y-axis.
        log: whether the y-axis is logarithmic; the page's asinh is not to be had.
        kind: ``"lines"``, ``"heat"`` (a histogram over the steps) or ``"media"``.
    """

    title: str
    metrics: tuple[str, ...]
    unit: str
    log: bool = False
    kind: str = "lines"


@dataclass(frozen=True)
class Section:
    """Panels under a common title."""

    title: str
    panels: tuple[Panel, ...]


def _each(what: str, names: tuple[str, ...] = ESTIMATORS) -> tuple[str, ...]:
    return tuple(f"{name}/{what}" for name in names)


PANELS = (
    Panel("Estimators", _each("mean"), "nats per token"),
    Panel("Standard errors", _each("se"), "nats per token"),
    Panel(
        "Quantiles of d = -k1",
        tuple(f"{HISTOGRAM}/{label}" for label in ("p0.1", "p1", "p50", "p99", "p99.9")),
        "nats",
    ),
    Panel(
        "Share of the largest tokens",
        ("dominance/k1/top_share", "dominance/k3/top_share"),
        "share of the sum",
    ),
    Panel("Dominance: 0 none, 1 warn, 2 severe", ("dominance/level",), "level"),
    Panel(
        "Variance, and running variance", (*_each("var"), *_each("running_var")), "nats²", log=True
    ),
    Panel("Tokens by log-ratio d", (HISTOGRAM,), "nats", kind="heat"),
    Panel("Outlier tokens", ("outliers/k1", "outliers/k3", "outliers/rate"), "tokens"),
    Panel("Spike score", ("spike/z",), "scales"),
    Panel("Gap of k3 and k1", ("gap_z",), "standard errors"),
    Panel("Sequences beyond a ratio of 3", ("sequence/ratio_beyond_3",), "share"),
)
"""In the page's order."""


def panels_of(pair: str, metrics: Metrics) -> Iterator[Panel]:
    """The panels of a pair that a choice of metrics fills, each with the metrics' full names."""
    for panel in PANELS:
        full = tuple(
            f"kl/{pair}/{name}"
            for name in panel.metrics
            if panel.kind == "heat" or is_chosen(metrics, f"kl/{pair}/{name}", name)
        )
        if full:
            yield replace(panel, metrics=full)


def sections_of(pairs: Iterable[str], metrics: Metrics) -> tuple[Section, ...]:
    """A section a pair, then what belongs to the run."""
    run = [Panel("Extreme tokens", (TOKENS,), "", kind="media")]
    if is_chosen(metrics, ALERTS, ALERTS):
        run.append(Panel("Alerts opened", (ALERTS,), "alerts"))
    run.append(Panel("Report", (REPORT,), "", kind="media"))
    drawn = [Section(f"kl/{pair}", tuple(panels_of(pair, metrics))) for pair in pairs]
    return (*drawn, Section("kl", tuple(run)))
