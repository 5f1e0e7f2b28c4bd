"""Make a workspace in wandb with the page's panels, in the page's order, for all runs of a project.

It is saved on wandb's server as a new view of the project, and needs a key (`wandb login`, or
WANDB_API_KEY); nothing asks for one. A run that is still offline has to be synced to be seen.
"""

from __future__ import annotations

import argparse
import json
import os
from typing import TYPE_CHECKING

from klmonitor.commands.inputs import refuse

if TYPE_CHECKING:
    from klmonitor.sinks.panels import Section

NAME = "wandb-dashboard"


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "project", metavar="PROJECT", help="PROJECT of your default entity, or ENTITY/PROJECT"
    )
    parser.add_argument(
        "--pair",
        action="append",
        default=[],
        help="a pair to show, once for each; default: every pair, the first one open",
    )
    parser.add_argument(
        "--metrics",
        action="append",
        default=[],
        metavar="CHOICE",
        help="what the runs log, as in metrics=: core (default), full, or globs",
    )
    parser.add_argument(
        "--prefix",
        default="",
        help="what the trainer puts before the names of what it logs: train/ with TRL",
    )
    parser.add_argument(
        "--run-id",
        action="append",
        default=[],
        help="a run whose lines get the page's colours and names, once for each",
    )
    parser.add_argument("--name", default="klmonitor", help="of the workspace (default: klmonitor)")
    parser.add_argument(
        "--dry-run", action="store_true", help="say what would be made, and make nothing"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")


def run(args: argparse.Namespace) -> int:
    """Make it; 0 once it is saved, 2 where it cannot be."""
    from klmonitor.pairs import PAIR_INDEX, parse_pairs
    from klmonitor.sinks.panels import sections_of
    from klmonitor.sinks.selection import check_metrics
    from klmonitor.sinks.workspace import make_workspace

    try:
        entity, project = _place(args.project)
        pairs = [pair.name for pair in parse_pairs(args.pair or PAIR_INDEX)]
        metrics = check_metrics(args.metrics or "core")
        sections = sections_of(pairs, metrics)
        if not any(panel.kind == "lines" for section in sections for panel in section.panels):
            raise ValueError(f"--metrics {' '.join(metrics)}: no panel draws any of these")
        if args.dry_run:
            _describe(args, entity, project, sections)
            return 0
        _check_ready()
        workspace = make_workspace(
            entity or _default_entity(), project, args.name, sections, args.prefix, args.run_id
        )
        _save(workspace)
    except (ValueError, ImportError, ConnectionError) as error:
        return refuse(NAME, error)
    panels = sum(len(section.panels) for section in sections)
    if args.json:
        print(json.dumps({"name": args.name, "panels": panels, "url": workspace.url}))
    else:
        print(f"workspace {args.name!r} with {panels} panels: {workspace.url}")
    return 0


def _place(project: str) -> tuple[str, str]:
    """Entity (empty: the default one) and project."""
    entity, slash, name = project.rpartition("/")
    if not name or (slash and not entity) or "/" in entity:
        raise ValueError(f"{project!r} is no project: give PROJECT or ENTITY/PROJECT")
    return entity or os.environ.get("WANDB_ENTITY", ""), name


def _check_ready() -> None:
    """Refuse at once what would end in a question or in a stack trace."""
    try:
        import wandb
        import wandb_workspaces  # noqa: F401  # only whether it is there
    except ImportError as error:
        raise ImportError(f'{error.name} is missing: pip install "klmonitor[wandb]"') from error
    from klmonitor.sinks.wandb import has_key

    if not has_key(wandb.setup().settings):
        raise ValueError("wandb has no key: run `wandb login`, or set WANDB_API_KEY")


def _default_entity() -> str:
    """The entity that wandb would log to."""
    import wandb

    try:
        entity = wandb.setup().settings.entity or wandb.Api().default_entity
    except Exception as error:  # whatever wandb, its core or the network raise
        raise ConnectionError(_reason(error)) from error
    if not entity:
        raise ValueError("wandb knows no default entity: give ENTITY/PROJECT, or set WANDB_ENTITY")
    return str(entity)


def _save(workspace: object) -> None:
    try:
        workspace.save()  # type: ignore[attr-defined]  # wandb-workspaces is optional
    except Exception as error:  # whatever wandb, its core or the network raise
        raise ConnectionError(_reason(error)) from error


def _reason(error: Exception) -> str:
    """The error in one line."""
    text = " ".join(str(error).split())
    return f"wandb did not save it: {text or type(error).__name__}"


def _describe(
    args: argparse.Namespace, entity: str, project: str, sections: tuple[Section, ...]
) -> None:
    from klmonitor.sinks.workspace import STEP, x_axis

    if args.json:
        shown = {one.title: [panel.title for panel in one.panels] for one in sections}
        print(json.dumps({"name": args.name, "project": project, "sections": shown}))
        return
    place = f"{entity or '(your default entity)'}/{project}"
    print(f"workspace {args.name!r} in {place}, over {x_axis(args.prefix)}; nothing is made")
    for section in sections:
        print(f"{section.title}")
        for panel in section.panels:
            before = args.prefix if panel.kind == "lines" else ""
            unit = f" [{panel.unit}{', log' if panel.log else ''}]" if panel.unit else ""
            what = {"heat": f" (heat map over {STEP})", "media": " (media)"}.get(panel.kind, "")
            print(f"  {panel.title}{unit}{what}: {', '.join(before + m for m in panel.metrics)}")
