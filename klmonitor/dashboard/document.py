"""The page as one HTML file that opens from disk, with a summary at its top.

Every script is in the file and named by its hash in the policy, so that nothing else runs and
nothing is fetched. Data are JSON in a block that no browser executes.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import math
from collections.abc import Sequence
from typing import Any

from klmonitor.boundary import inert
from klmonitor.dashboard.assets import SCRIPTS, STYLES, text_of
from klmonitor.dashboard.columns import NOTICE, RunColumns
from klmonitor.dashboard.source import Source, overview
from klmonitor.record.runfile import TERMS
from klmonitor.rules import describe_rules

DETAILED_STEPS = 2000
"""Steps whose verdict and tokens a file carries, all runs together, beside those that matter."""
WORST = 5


def document(source: Source, detailed: int = DETAILED_STEPS) -> str:
    """The page as HTML.

    Args:
        source: its runs.
        detailed: steps, all runs together, that carry verdict and tokens beside those that matter.
    """
    runs = source.runs()
    budget = detailed // max(len(runs), 1)
    body = {
        "overview": overview(source),
        "summary": "\n\n".join(summary(run) for run in runs),
        "data": [run.data() for run in runs],
        "steps": [
            {str(step): run.details(step) for step in detailed_steps(run, budget)} for run in runs
        ],
    }
    names = ", ".join(inert(run.name) for run in runs)
    return _html(json.dumps(body, separators=(",", ":"), default=str), names)


def summary(run: RunColumns) -> str:
    """What there is to know first: verdict, alerts, worst steps, settings, rules, versions."""
    if not run.steps:
        return "\n".join([f"{run.name}: no training step was recorded yet", *run.remarks])
    opened = [alert for alert in run.alerts if alert["phase"] not in ("end", NOTICE)]
    notices = [alert for alert in run.alerts if alert["phase"] == NOTICE]
    last, worst = run.steps[-1], worst_steps(run)
    lines = [
        f"{run.name}: steps {run.steps[0]} to {last}, pairs {', '.join(run.pairs) or 'none'}",
        *(f"  the record: {remark}" for remark in run.remarks),
        "",
        f"Verdict at the last step ({last}):",
        *run.details(last)["explain"].values(),
        "",
        f"Alerts: {len(opened) or 'none'}",
        *(f"  [{_severity(a)}] {a['kind']}, {_message(a)}" for a in opened),
    ]
    if notices:
        lines += ["", "Notices:", *(f"  {a['kind']}, {_message(a)}" for a in notices)]
    lines += ["", "Worst steps, by mean k3 in nats per token:"]
    lines += [f"  {pair}: step {step}, k3 {value:.4g}" for pair, step, value in worst]
    settings = ", ".join(f"{key} = {value}" for key, value in run.meta.items() if key != TERMS)
    lines += ["", f"Settings: {settings or 'none were recorded'}"]
    if run.starts:
        rules = run.starts[-1].get("rules")
        if rules is not None:
            lines.append(f"Alert rules: {', '.join(describe_rules(rules))}")
        versions = run.starts[-1]["versions"]
        lines.append("Versions: " + ", ".join(f"{k} {v}" for k, v in versions.items()))
    return "\n".join(lines)


def _severity(alert: dict[str, Any]) -> str:
    return f"{alert['severity']}, muted" if alert["muted"] else str(alert["severity"])


def _message(alert: dict[str, Any]) -> str:
    return f"step {alert['step']}: {' '.join(str(alert['message']).split())}"


def worst_steps(run: RunColumns, count: int = WORST) -> list[tuple[str, int, float]]:
    """(pair, step, mean k3) of each pair's largest mean k3, largest first; nan is no size."""
    found = []
    for name, pair in run.pairs.items():
        k3 = pair.metrics.get("k3/mean", ())
        sized = [(value, step) for value, step in zip(k3, run.steps, strict=False)]
        sized = [one for one in sized if not math.isnan(one[0])]
        found += [(name, step, value) for value, step in sorted(sized, reverse=True)[:count]]
    return found


def detailed_steps(run: RunColumns, budget: int) -> list[int]:
    """Which steps a file explains: alerts, worst steps, the last one, then evenly spread ones."""
    known = set(run.steps)
    first = [alert["step"] for alert in run.alerts if alert["step"] in known]
    first += [step for _, step, _ in worst_steps(run)] + run.steps[-1:]
    stride = max(1, math.ceil(len(run.steps) / max(budget, 1)))
    return sorted(dict.fromkeys([*first, *run.steps[::stride]]))


def _html(data: str, names: str) -> str:
    scripts = [text_of(name) for name in SCRIPTS]
    styles = [text_of(name) for name in STYLES]
    policy = (
        f"default-src 'none'; script-src {_hashes(scripts)}; style-src {_hashes(styles)}; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )
    return "".join(
        [
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n',
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n',
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n',
            f"<title>{html.escape(names)} · klmonitor report</title>\n",
            '<link rel="icon" href="data:,">\n',
            *(f"<style>{style}</style>\n" for style in styles),
            "</head>\n<body>\n",
            f'<script type="application/json" id="klm-data">{_inert(data)}</script>\n',
            *(f"<script>{script}</script>\n" for script in scripts),
            "</body>\n</html>\n",
        ]
    )


def _inert(data: str) -> str:
    """JSON in which no tag can begin or end."""
    return data.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _hashes(texts: Sequence[str]) -> str:
    digests = (hashlib.sha256(text.encode()).digest() for text in texts)
    return " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)
