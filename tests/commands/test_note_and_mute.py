"""`klmonitor note` and `klmonitor mute` beside a run that goes on."""

from __future__ import annotations

import io
import json
import time

import pytest

from klmonitor.cli import main
from klmonitor.commands.watch import Tail
from klmonitor.dashboard.document import summary
from klmonitor.dashboard.source import RecordSource, answer
from klmonitor.record import MUTES, NOTES, RecordWriter, read_run
from klmonitor.record.mutes import Mute, MuteFile
from klmonitor.record.notices import Notice
from tests.helpers.reports import make_alert, small_report


@pytest.fixture
def run_dir(tmp_path):
    path = tmp_path / "out" / "klmonitor"
    writer = RecordWriter(path)
    for step in range(1, 6):
        writer.step(small_report(step, k3__mean=0.01))
    writer.alert(make_alert(3, message="told"))
    writer.alert(make_alert(4, message="kept quiet", muted=True))
    assert writer.close()
    return path


def test_a_note_is_dated_and_belongs_to_the_last_step(run_dir, capsys):
    before = time.time()
    assert main(["note", str(run_dir.parent), "new data from here"]) == 0
    assert capsys.readouterr().out == "noted at step 5\n"
    assert main(["note", str(run_dir), "an old one", "--step", "2"]) == 0
    old, new = read_run(run_dir).notices
    assert (old.step, old.text, new.step, new.text) == (2, "an old one", 5, "new data from here")
    assert before <= new.time <= old.time <= time.time()


def test_readers_show_notices_among_alerts_and_mark_what_is_muted(run_dir):
    from rich.console import Console

    main(["note", str(run_dir), "a new\nprompt <b>", "--step", "3"])
    [run] = (source := RecordSource([run_dir])).runs()
    said = summary(run)
    assert "Alerts: 2" in said
    assert "Notices:\n  note, step 3: a new prompt <b>" in said
    assert "[warn, muted] spike, step 4: kept quiet" in said
    rows = json.loads(answer(source, "data", {"run": "0"}))["alerts"]
    [note] = [row for row in rows if row["phase"] == "note"]
    assert (note["step"], note["kind"], note["pair"]) == (3, "note", None)
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(Tail(run_dir, 9).view())
    *_, first, second, third = console.export_text().strip().splitlines()
    assert [first.strip(), second.strip(), third.strip()] == [
        "klmonitor step 3 note: a new prompt <b>",
        "klmonitor [warn] step 3 spike: told",
        "klmonitor [warn, muted] step 4 spike: kept quiet",
    ]


def test_a_mute_is_appended_and_the_last_counts(run_dir, capsys):
    assert main(["mute", str(run_dir), "gap", "--pair", "rollout_old", "--until", "500"]) == 0
    said = capsys.readouterr().out
    assert said == "gap of rollout_old muted up to step 500: recorded, and told to nobody\n"
    assert main(["mute", str(run_dir), "spike"]) == 0
    assert main(["mute", str(run_dir), "spike", "--until", "5"]) == 0
    expected = (Mute("gap", "rollout_old", 500.0), Mute("spike", None, 5.0))
    assert MuteFile(run_dir / MUTES).mutes == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["mute", "{run}", "spyke"], "unknown kind in mute 'spyke': did you mean 'spike'"),
        (["mute", "{run}", "spike", "--pair", "ref"], "unknown pair in mute 'ref'"),
        (["mute", "{run}/none", "spike"], "no record in"),
        (["note", "{run}/none", "x"], "no record in"),
        (["note", "{run}/../..", "x"], "holds 2 records: give one of"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(run_dir, tmp_path, capsys, arguments, message):
    other = RecordWriter(tmp_path / "other")
    other.step(small_report(1))
    other.close()
    assert main([argument.format(run=run_dir) for argument in arguments]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.startswith(f"klmonitor {arguments[0]}: ")
    assert said.count("\n") == 1
    assert not any((run_dir / name).exists() for name in (MUTES, NOTES))


def test_a_note_before_the_first_step_is_at_step_0(tmp_path):
    RecordWriter(tmp_path).close()
    main(["note", str(tmp_path), "begun"])
    [notice] = read_run(tmp_path).notices
    assert notice == Notice(0, "begun", time=notice.time)
