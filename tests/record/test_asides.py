"""Files that others append to while a run goes on: notices and mutes."""

from __future__ import annotations

import pytest

from klmonitor.record import MUTES, NOTES, STEPS, RecordWriter, read_run
from klmonitor.record.mutes import Mute, MuteFile
from klmonitor.record.notices import Notice, last_step
from tests.helpers.reports import make_alert, small_report


def test_notices_and_alerts_are_one_time_line(tmp_path):
    writer = RecordWriter(tmp_path)
    for step in (1, 2, 3):
        writer.step(small_report(step))
    writer.alert(make_alert(2))
    notices = [Notice(3, "later", time=9.5), Notice(2, "new data"), Notice(2, "and a new prompt")]
    for notice in notices:
        writer.note(notice)
    assert writer.close()
    run = read_run(tmp_path)
    assert run.notices == [notices[1], notices[2], notices[0]]
    assert run.timeline == [notices[1], notices[2], make_alert(2), notices[0]]
    with (tmp_path / NOTES).open("a") as file:
        file.write('{"step": "x"}\n{"step": 3, "te')
    again = read_run(tmp_path)
    assert (again.notices, again.bad_lines) == (run.notices, 1)


@pytest.mark.parametrize(
    ("tail", "step"),
    [("", 3), ('{"step": 4}\n', 4), ('{"step": 4, "pai', 3), ("nonsense\n[1]\n", 3)],
)
def test_the_last_step_is_that_of_the_last_whole_row(tmp_path, tail, step):
    assert last_step(tmp_path) == 0
    rows = "".join(f'{{"step": {n}, "x": "{"-" * 2**19}"}}\n' for n in (1, 2, 3))
    (tmp_path / STEPS).write_text(rows + tail)
    assert last_step(tmp_path) == step


def test_a_growing_file_of_mutes_is_read_where_it_has_changed(tmp_path, monkeypatch):
    path = tmp_path / MUTES
    file = MuteFile(path)
    assert file.mutes == ()
    path.write_text('{"kind": "spike"}\n{"pair": "old_ref"}\n{"kind": "gap", "until_step": "x"}\n')
    assert file.mutes == (), "it is looked at when it is asked to"
    file.look()
    assert file.mutes == (Mute("spike"),)
    with path.open("a") as more:
        more.write('{"kind": "gap", "pair": "old_ref", "until_step": 9}\n{"kind": "spike", ')
    file.look()
    assert file.mutes == (Mute("spike"), Mute("gap", "old_ref", 9.0))
    opened = []
    monkeypatch.setattr(type(path), "open", lambda *args: opened.append(args))
    file.look()
    assert not opened, "one stat where nothing has changed"
    monkeypatch.undo()
    with path.open("a") as more:
        more.write('"until_step": 2}\n')
    file.look()
    assert file.mutes[0] == Mute("spike", None, 2.0)
    assert MuteFile(path).mutes == file.mutes, "a resumed run goes on with it"


def test_a_file_of_mutes_that_cannot_be_read_costs_nothing(tmp_path):
    (tmp_path / MUTES).mkdir()
    writer = RecordWriter(tmp_path)
    writer.step(small_report(1))
    assert writer.close()
    assert (writer.mutes, writer.errors, writer.written) == ((), 0, 1)
