"""docs/offline.md and docs/automation.md name what the code has."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

from klmonitor.commands.read import ROLES
from klmonitor.dashboard.standing import EXITS, SCHEMA
from klmonitor.dashboard.statusschema import RUN
from klmonitor_dumps.files import FORMATS
from klmonitor_dumps.layout import ROLES as KNOWN
from klmonitor_dumps.layouts import LAYOUTS

DOCS = Path(__file__).parents[2] / "docs"
OFFLINE, AUTOMATION = ((DOCS / name).read_text() for name in ("offline.md", "automation.md"))


def test_every_layout_has_its_columns_on_the_page():
    for layout in LAYOUTS[:-1]:
        line = next(line for line in OFFLINE.splitlines() if line.startswith(f"| `{layout.name}`"))
        columns = {role: names[0] for role, names in layout.columns.items()}
        for role in ("policy", "old", "rollout", "ref", "mask"):
            assert role not in columns or f"`{columns[role]}`" in line, (layout.name, role)


def test_every_format_and_option_is_on_the_page():
    assert all(f"`{suffix}`" in OFFLINE for suffix in FORMATS)
    assert set(ROLES) == set(KNOWN)
    assert all(f"--{role}" in OFFLINE for role in ROLES)


def test_exit_statuses_and_schema_are_as_documented():
    table = re.findall(r"^\| (\d+) \| (.*) \|$", AUTOMATION, re.MULTILINE)
    assert {int(status) for status, _ in table} == set(EXITS.values())
    assert f'"schema": "{SCHEMA}"' in AUTOMATION
    for key in ("level", "last_step", "last_time", "age_s", "pairs", "open_alerts", "do", "health"):
        assert f"`{key}`" in AUTOMATION
        assert key in RUN["properties"]


def test_the_example_program_runs(tmp_path):
    """On the status of a run with a critical alert."""
    alert = {"since": 3, "message": "k3 rose", "do": "look"}
    status = {"runs": [{"level": "critical", "open_alerts": [alert]}]}
    (tmp_path / "status.json").write_text(json.dumps(status))
    program = AUTOMATION.partition("<<'PY'\n")[2].partition("\nPY")[0]
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout == "since step 3: k3 rose; look\n"
