"""The page's panels as a workspace of Weights & Biases, which lies on their server.

wandb has no bands, no asinh axis and no line of a threshold, and colours lines by run. Where a run
is named, its lines have the page's colours and short names.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from klmonitor.sinks.panels import INKS, Panel, Section

STEP = "klmonitor/step"
"""The x-axis of what klmonitor logs itself."""


def make_workspace(
    entity: str,
    project: str,
    name: str,
    sections: Sequence[Section],
    prefix: str = "",
    runs: Sequence[str] = (),
) -> Any:
    """A ``wandb_workspaces.workspaces.Workspace``, not saved yet.

    Args:
        entity: whose it is.
        project: the project.
        name: what it is called.
        sections: what it shows; the first one is open.
        prefix: before the names of numbers that the trainer logs, ``train/`` with TRL.
        runs: ids of runs whose lines are coloured as on the page.

    Raises:
        ImportError: wandb-workspaces is not installed.
    """
    try:
        import wandb_workspaces.workspaces as ws
    except ImportError as error:
        raise ImportError(
            'a workspace needs wandb-workspaces: pip install "klmonitor[wandb]"'
        ) from error
    return ws.Workspace(
        entity=entity,
        project=project,
        name=name,
        sections=[
            ws.Section(
                name=section.title,
                panels=[draw(panel, prefix, runs) for panel in section.panels],
                is_open=at == 0 or at == len(sections) - 1,
            )
            for at, section in enumerate(sections)
        ],
        settings=ws.WorkspaceSettings(x_axis=x_axis(prefix), smoothing_type="none"),
    )


def x_axis(prefix: str) -> str:
    """The x-axis of the numbers: that of the trainer where the trainer logs them."""
    return f"{prefix}global_step" if prefix else STEP


def draw(panel: Panel, prefix: str, runs: Sequence[str]) -> Any:
    """One panel of the workspace."""
    import wandb_workspaces.reports.v2 as wr

    if panel.kind == "media":
        return wr.MediaBrowser(title=panel.title, media_keys=list(panel.metrics), num_columns=1)
    if panel.kind == "heat":  # wandb draws histograms over steps as a heat map
        return wr.LinePlot(
            title=panel.title, x=STEP, y=list(panel.metrics), title_y=f"d, {panel.unit}"
        )
    lines = [f"{prefix}{metric}" for metric in panel.metrics]
    short = {line: "/".join(line.removeprefix(prefix).split("/")[2:]) for line in lines}
    inks = {line: INKS[ink] for line in lines if (ink := _estimator(line)) is not None}
    each_run = [(run, line) for run in runs for line in lines]
    return wr.LinePlot(
        title=panel.title,
        x=x_axis(prefix),
        y=lines,
        title_x="step",
        title_y=panel.unit,
        log_y=panel.log or None,
        ignore_outliers=False,
        smoothing_type="none",
        point_visualization_method="bucketing-gorilla",  # keeps the extremes of what it thins
        line_titles={f"{run}:{line}": short[line] for run, line in each_run if short[line]} or None,
        line_colors={f"{run}:{line}": inks[line] for run, line in each_run if line in inks} or None,
    )


def _estimator(metric: str) -> str | None:
    """The estimator that a metric is about."""
    return next((part for part in metric.split("/") if part in INKS), None)
