"""Faults by count: every site's calls fail in turn, once each, within a loop around a Monitor.

A sample here; `make test-faults` (KLMONITOR_FAULTS=all) makes all of them and writes the counts
that docs/reliability.md states.
"""

from __future__ import annotations

import json
import os
import random
import shutil
from pathlib import Path

import pytest

from tests.faults.loops import compared, run
from tests.faults.sites import ERRORS, SITES, Faults

ALL = os.environ.get("KLMONITOR_FAULTS") == "all"
SHARE = 1 if ALL else 60
"""One of so many faults is made."""
AT_ONCE = 4
"""Faults within one run."""


@pytest.fixture(scope="module")
def faults():
    with pytest.MonkeyPatch.context() as patch:
        yield Faults(patch)


def targets(calls):
    """(site, number of the call, error) of every fault that can be made."""
    for site in SITES:
        for number in range(1, calls[site] + 1):
            for error in ERRORS:
                yield site, number, error


def test_no_fault_reaches_the_loop_or_changes_a_number(faults, tmp_path, caplog):
    caplog.set_level("CRITICAL", "klmonitor")
    clean = run(tmp_path / "clean", faults)
    again = run(tmp_path / "again", faults)
    calls = faults.calls.copy()
    assert compared(again, clean) == []
    assert {site for site in SITES if not calls[site]} <= {
        "klmonitor.summary.passes:compare",
        "logging:Logger.warning",
        "klmonitor.hooks.progress:Progress.values",  # of an adapter: test_trl_faults.py
        "klmonitor.hooks.progress:Progress.stepped",
    }, "a site that nothing calls tests nothing"
    chosen = list(targets(calls))[::SHARE]
    random.Random(0).shuffle(chosen)
    reached, forced = [], 0
    for first in range(0, len(chosen), AT_ONCE):
        some, directory = chosen[first : first + AT_ONCE], tmp_path / f"run-{first}"
        try:
            found = run(directory, faults, some)
        except BaseException as error:  # noqa: BLE001  # what is looked for
            faults.disarm()
            reached.append((some, f"raised {type(error).__name__}: {error}"))
            continue
        forced += faults.forced
        reached += [(some, wrong) for wrong in compared(found, clean)[:1]]
        if len(found) < len(clean):
            reached.append((some, f"{len(found)} reports"))
        shutil.rmtree(directory, ignore_errors=True)
    assert reached == []
    assert forced >= 0.7 * len(chosen), "a fault can keep a later one from being reached"
    if ALL:
        Path("faults.json").write_text(json.dumps({"made": len(chosen), "forced": forced}))
