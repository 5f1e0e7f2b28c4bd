"""Doors: what is refused when they are opened, and what trains on."""

import logging

import pytest
import torch

from klmonitor.hooks.doors import door_options, entered
from klmonitor.hooks.handed import HandedWatch
from klmonitor.hooks.options import Options


def test_options_that_cannot_work_are_refused(monkeypatch):
    assert door_options({"metrics": "full"}).metrics == "full"
    monkeypatch.setenv("KLMONITOR_METRICS", "full")
    assert door_options().metrics == "full"
    with pytest.raises(ValueError, match=r"metricss.*metrics"):
        door_options({"metricss": "full"})
    with pytest.raises(ValueError, match="a configuration cannot hold a model"):
        door_options({"reference": "gpt2"})
    assert door_options({"reference": None}).reference is None


@pytest.mark.parametrize("error", [AttributeError, ImportError, KeyError, NotImplementedError])
def test_what_a_trainer_lacks_is_said_in_one_line(error, caplog):
    def bind():
        raise error("no such\nthing")

    with caplog.at_level(logging.WARNING, logger="klmonitor"):
        assert entered("acme's Trainer", bind) is None
    (record,) = caplog.records
    said = record.message
    assert said.startswith("klmonitor: acme's Trainer trains on without klmonitor: ")
    assert error.__name__ in said
    assert "\n" not in said


def test_options_that_cannot_work_with_a_trainer_are_raised():
    def bind():
        raise ValueError("reference= is of no use here")

    with pytest.raises(ValueError, match="of no use"):
        entered("acme's Trainer", bind)
    assert entered("acme's Trainer", lambda: 3) == 3


def handed(**options):
    return HandedWatch(
        "acme's Trainer",
        Options.parse({"run_dir": False, **options}),
        output_dir=None,
        sources={"old": "batch.old", "ref": "batch.ref"},
        missing={"policy": "no hook is given it", "rollout": "it is not kept"},
        remedy="keep the rollout's log-probs",
    )


def test_whole_batches_are_taken_a_step_each():
    watch = handed()
    old = -1 - torch.rand(4, 8)
    watch.take(1, {"old": old, "ref": old + 0.5}, mask=torch.ones(4, 8))
    assert watch.row(1)["kl/old_ref/k1/mean"] == pytest.approx(-0.5, abs=1e-6)
    assert watch.row(2) == {}
    assert "not held: no hook is given it" in watch.handle.describe()
    with pytest.raises(ValueError, match="audit_every needs a model"):
        handed(audit_every=50)


def test_a_disabled_watch_does_nothing(monkeypatch):
    monkeypatch.setenv("KLMONITOR_DISABLE", "1")
    watch = handed()
    watch.take(1, {"old": -torch.ones(2, 2), "ref": -torch.ones(2, 2)})
    assert watch.row(1) == {}
    assert not watch.active
    assert "klmonitor is off" in watch.handle.describe()
