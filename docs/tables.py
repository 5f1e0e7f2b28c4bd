"""Generate `docs/metrics.md` from the table of metrics: ``python docs/tables.py [--check]``."""

from __future__ import annotations

import sys
from pathlib import Path

from klmonitor.numbers.metrics import METRICS

TARGET = Path("docs/metrics.md")

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
(1 while log-probs are captured on every rank), `klmonitor/errors` (failures caught so far; the
largest count of any rank).
"""


def metrics_page() -> str:
    """The page as Markdown."""
    rows = ["| name | core | unit | formula | meaning |", "|---|---|---|---|---|"]
    for m in METRICS:
        cells = (f"`{m.name}`", "yes" if m.core else "", m.unit, f"`{m.formula}`", m.text)
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return HEAD + "\n".join(rows) + "\n" + TAIL


def main(arguments: list[str]) -> int:
    """Write the page, or with ``--check`` report whether it is up to date."""
    page = metrics_page()
    if "--check" in arguments:
        if TARGET.exists() and TARGET.read_text(encoding="utf-8") == page:
            return 0
        sys.stderr.write(f"{TARGET} is out of date: run `make docs`\n")
        return 1
    TARGET.parent.mkdir(exist_ok=True)
    TARGET.write_text(page, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
