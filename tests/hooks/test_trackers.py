"""What a trainer's open runs get without being asked; the libraries themselves: tests/sinks."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from klmonitor.hooks.trackers import Extras, with_extras
from klmonitor.sinks import table
from klmonitor.sinks.table import TABLE, SinkOptions
from tests.helpers.reports import make_alert, make_report

OPEN = [kind.name for kind in TABLE if kind.is_open]


def test_every_tracker_with_runs_is_there_once_and_none_is_imported():
    before = set(sys.modules)
    found = with_extras(("tensorboard", "mlflow", SimpleNamespace(name="trackio")))
    names = [sink._kind.name for sink in found if isinstance(sink, Extras)]
    assert names == [name for name in OPEN if name not in ("mlflow", "trackio")]
    assert found[:2] == ("tensorboard", "mlflow")
    assert not (set(sys.modules) - before) & {"wandb", "trackio", "mlflow", "swanlab"}


@pytest.mark.parametrize("name", OPEN)
def test_no_run_is_opened_for_extras_alone(name, monkeypatch):
    monkeypatch.delitem(sys.modules, name, raising=False)
    [kind] = [kind for kind in TABLE if kind.name == name]
    sink = Extras(kind, SinkOptions())
    sink(make_report(1, alerts=(make_alert(1),)))
    sink.close()
    assert (sink._sink, sink.errors, sink.dropped) == (None, 0, 0)
    assert name not in sys.modules


def test_a_run_that_is_open_gets_alerts_and_no_rows():
    made = []

    class Kept:
        errors, dropped = 3, 4

        def __init__(self, options):
            self.options, self.reports, self.closed = options, [], 0
            made.append(self)

        def __call__(self, report):
            self.reports.append(report.step)

        def close(self):
            self.closed += 1

    is_open = [False]
    kind = table.SinkKind("kept", "kept", "kept", "", Kept, lambda: is_open[0])
    sink = Extras(kind, SinkOptions("run", metrics="full"))
    sink(make_report(1))
    is_open[0] = True
    sink(make_report(2))
    sink(make_report(3))
    sink.close()
    [one] = made
    assert (one.options.metrics, one.options.run_dir) == ((), "run")
    assert (one.reports, one.closed, sink.errors, sink.dropped) == ([2, 3], 1, 3, 4)
