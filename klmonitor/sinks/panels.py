"""The panels that a tracker can draw of a pair: titles and order of klmonitor's own page.

The page draws more than trackers get by default. So each panel lists what it would draw, and a
tracker draws of that what it is sent; a panel of which nothing is sent is left out. What the page
draws as one and no tracker can (bands of standard errors) is a panel more, after it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from klmonitor.numbers.metrics import METRICS
from klmonitor.sinks.selection import Metrics, is_chosen

INKS = {"k1": "#0072b2", "k2": "#00805c", "k3": "#c14600"}
"""The page's colours of the estimators, on white."""
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


ORDER = (
    Panel("Estimators", (), "nats per token"),
    Panel("Standard errors", (), "nats per token"),
    Panel("Quantiles of d = -k1", (), "nats"),
    Panel("Share of the largest tokens", (), "share of the sum"),
    Panel("Dominance: 0 none, 1 warn, 2 severe", (), "level"),
    Panel("Variance, and running variance", (), "nats²", log=True),
    Panel("Tokens by log-ratio d", (HISTOGRAM,), "nats", kind="heat"),
    Panel("Outlier tokens", (), "tokens"),
    Panel("Spike score", (), "scales"),
    Panel("Gap of k3 and k1", (), "standard errors"),
    Panel("Sequences beyond a ratio of 3", (), "share"),
    Panel("What the KL term pulls", (), "weight, and share of tokens"),
)
"""The page's order; which metrics are in a panel, their rows in the table of metrics say."""


def _panels() -> Iterator[Panel]:
    """Every panel with its metrics; one that only a metric's row names comes last."""
    known = {panel.title: panel for panel in ORDER}
    titles = dict.fromkeys((*known, *(metric.panel for metric in METRICS if metric.panel)))
    for title in titles:
        mine = [metric for metric in METRICS if metric.panel == title]
        panel = known.get(title) or Panel(title, (), mine[0].unit)
        yield replace(panel, metrics=(*panel.metrics, *(metric.name for metric in mine)))


PANELS = tuple(_panels())


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
