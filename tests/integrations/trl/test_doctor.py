"""`klmonitor doctor`: what would be bound of the installed TRL."""

import json

import pytest
from trl import GRPOTrainer

from klmonitor.cli import main
from klmonitor_trl.names import GENERATE, LOG_PROBS


def findings(capsys):
    status = main(["doctor", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["good"] == (status == 0)
    return status, {(one["part"], one["name"]): one for one in found["findings"]}


@pytest.fixture(autouse=True)
def silent(monkeypatch):
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")


def test_it_names_what_is_bound(capsys):
    status, found = findings(capsys)
    assert status == 0
    grpo = found["trainers", "GRPOTrainer"]
    assert grpo["good"]
    assert GENERATE in grpo["text"]
    assert any(name in grpo["text"] for name in LOG_PROBS)
    assert "old_ref" in found["trainers", "RLOOTrainer"]["text"]
    assert found["sinks", "record"]["good"]
    assert main(["doctor"]) == 0
    said = capsys.readouterr().out
    assert "ok GRPOTrainer" in said
    assert said.rstrip().endswith("klmonitor can be used here")


def test_a_lost_name_is_seen_without_running(capsys, monkeypatch):
    for name in LOG_PROBS:
        monkeypatch.delattr(GRPOTrainer, name, raising=False)
    status, found = findings(capsys)
    assert status == 0
    assert "the model's outputs" in found["trainers", "GRPOTrainer"]["text"]


def test_the_status_tells_that_it_is_off(capsys, monkeypatch):
    monkeypatch.setenv("KLMONITOR_DISABLE", "1")
    status, found = findings(capsys)
    assert status == 1
    assert not found["settings", "KLMONITOR_DISABLE"]["good"]
