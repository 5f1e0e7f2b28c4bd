"""What TensorBoard's Custom Scalars tab shows: one category a pair, the panels of the page.

A directory has room for one layout, the last that is written there. So one is written beside our
own event file alone, never into a writer that somebody else may have laid out. TensorBoard merges
the layouts of several directories. Charts of several lines, not margin charts: those need tags
for a lower and an upper bound, and what we have are standard errors.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from klmonitor.record.stepevent import tensor_value
from klmonitor.sinks.panels import ALERTS, panels_of
from klmonitor.sinks.selection import Metrics, is_chosen


def layout_value(pairs: Iterable[str], metrics: Metrics) -> Any:
    """The layout of some pairs, as a ``Summary.Value``."""
    from tensorboard.plugins.custom_scalar import metadata

    layout = make_layout(pairs, metrics)
    return tensor_value(
        metadata.CONFIG_SUMMARY_TAG, metadata.PLUGIN_NAME, layout.SerializeToString()
    )


def make_layout(pairs: Iterable[str], metrics: Metrics) -> Any:
    """The layout as TensorBoard's ``Layout``."""
    from tensorboard.plugins.custom_scalar import layout_pb2

    def chart(title: str, tags: Iterable[str]) -> Any:
        exact = [f"^{re.escape(tag)}$" for tag in tags]  # TensorBoard matches beginnings
        return layout_pb2.Chart(title=title, multiline=layout_pb2.MultilineChartContent(tag=exact))

    categories = [
        layout_pb2.Category(
            title=f"kl/{pair}",
            chart=[
                chart(panel.title, panel.metrics)
                for panel in panels_of(pair, metrics)
                if panel.kind == "lines"
            ],
        )
        for pair in pairs
    ]
    if is_chosen(metrics, ALERTS, ALERTS):
        categories.append(layout_pb2.Category(title="kl", chart=[chart("Alerts", [ALERTS])]))
    return layout_pb2.Layout(category=[category for category in categories if category.chart])
