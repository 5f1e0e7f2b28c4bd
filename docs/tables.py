"""Write what the docs take from tables in code: ``python docs/tables.py [--check]``.

`docs/metrics.md` is made whole; in `docs/alerts.md`, `docs/delivery.md` and `docs/estimators.md`
what stands between two marks is.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from klmonitor.numbers.metrics import METRICS
from klmonitor.numbers.runvalues import TABLE as TABLE_OF_RUN
from klmonitor.rules.table import RULES
from klmonitor.simulate.claims import CLAIMS
from klmonitor.sinks.table import TABLE

DOCS = Path(__file__).parent
BEGIN, END = "<!-- made by docs/tables.py -->", "<!-- end -->"

HEAD = """\
# Metrics

Generated from the table in `klmonitor/numbers/metrics.py` by `make docs`; do not edit.

A full name is `kl/{pair}/{name}`, e.g. `kl/policy_ref/k1/mean`. A pair `{q}_{p}` is KL(q || p):
tokens x ~ q, d = log p(x) - log q(x), r = e^d, k1 = -d, k2 = d^2/2, k3 = expm1(d) - d. Sums run
over the N counted tokens; S_i and T_i are the sum of values and the number of tokens of cluster i
(a prompt where prompts are known, else a sequence), B the number of clusters, h the half-life of
the running numbers; o are the largest tokens, as in docs/dominance.md. What nothing was
counted for is nan and is not sent. **Core** metrics are sent to trackers by default; the record and
`report.scalars()` hold all of them.

"""

TAIL = """\

With `groups=[...]` also `group/{name}/{k1,k3}/{mean,se}` for every declared group and `other`.

Once for the run: `kl/alerts` (alerts opened or made worse at this step), `klmonitor/active`
(1 while log-probs are captured on every rank), `klmonitor/errors` (failures caught so far) and
`klmonitor/dropped` (rows, alerts and parts lost so far), both the largest of any rank; and at steps
where an alert rule failed `klmonitor/rule_errors`, how many did.

## What is known of the run

`run/{name}` of `report.run_values`, where somebody gave it: an adapter (`Watch.run`), or you in
`monitor.step(17, run={"learning_rate": 1e-6, "beta": 0.04})`; of ranks that give different numbers
the largest counts. Rules and notices read them ([alerts.md](alerts.md#start)); what is not given is
unknown. The record holds them, `metrics="core"` does not send them.

"""


def table(columns: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table of Markdown."""
    names = list(columns)
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    lines += ("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)
    return "\n".join(lines) + "\n"


def metrics() -> str:
    """All metrics."""
    return table(
        ("name", "core", "unit", "formula", "meaning"),
        (
            (f"`{m.name}`", "yes" if m.core else "", m.unit, f"`{m.formula}`", m.text)
            for m in METRICS
        ),
    )


def run_values() -> str:
    """What may be known of a run."""
    return table(
        ("name", "meaning"), ((f"`run/{name}`", text) for name, text in TABLE_OF_RUN.items())
    )


def rules() -> str:
    """All rules with their default thresholds."""

    def limits(thresholds: Mapping[str, float]) -> str:
        return ", ".join(f"{name} {value:.4g}" for name, value in thresholds.items())

    return table(
        ("kind", "on", "thresholds", "cool-down, steps", "calm steps that end it"),
        (
            (
                f"`{rule.kind}`",
                "yes" if rule.on else "no",
                limits(rule.thresholds) or ("a limit a pair, nats" if rule.per_pair else ""),
                f"{rule.cooldown}",
                f"{rule.calm_for}",
            )
            for rule in RULES
        ),
    )


def sinks() -> str:
    """All sinks that have a name."""
    return table(
        ("sink", "needs", "what it gets"),
        ((f'`"{s.name}"`', f"`klmonitor[{s.extra}]`", s.text) for s in TABLE),
    )


def claims() -> str:
    """What people repeat about the estimators, with its numbers computed anew."""
    return table(
        ("people say", "it", "numbers", "again: `klmonitor ...`"),
        (
            (c.said, c.verdict, c.numbers(), f"`{c.command}`" if " -" in c.command else c.command)
            for c in CLAIMS
        ),
    )


def between(page: str, content: str) -> str:
    """A page with what stands between its marks replaced."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise SystemExit(f"a page has no {BEGIN} ... {END}")
    return f"{before}{begin}\n\n{content}\n{end}{after}"


def pages() -> dict[Path, str]:
    """Every page that is made, whole or in part, as it should be."""
    made = {DOCS / "metrics.md": HEAD + metrics() + TAIL + run_values()}
    parts = (("alerts.md", rules()), ("delivery.md", sinks()), ("estimators.md", claims()))
    for name, content in parts:
        made[DOCS / name] = between((DOCS / name).read_text(encoding="utf-8"), content)
    return made


def main(arguments: list[str]) -> int:
    """Write the pages, or with ``--check`` report which are out of date."""
    stale = {
        path: text
        for path, text in pages().items()
        if not path.exists() or path.read_text(encoding="utf-8") != text
    }
    if "--check" in arguments:
        for path in stale:
            sys.stderr.write(f"docs/{path.name} is out of date: run `make docs`\n")
        return 1 if stale else 0
    for path, text in stale.items():
        path.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
