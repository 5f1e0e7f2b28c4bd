"""Our event files stay within their limit, whole, and are made again where they are removed."""

from __future__ import annotations

import json
import shutil

from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

from klmonitor.sinks import TensorBoardSink
from tests.helpers.reports import make_alert, make_report

TAG = "klmonitor/step"


def steps_in(directory):
    """Step -> its row, of every event that the tab draws."""
    found = {}
    for file in sorted(directory.glob("events.out.tfevents.*")):
        for event in EventFileLoader(str(file)).Load():
            for value in event.summary.value:
                if value.tag == TAG:
                    found[event.step] = json.loads(value.tensor.string_val[0])
    return found


def test_old_steps_are_thinned_and_alerts_stay(tmp_path):
    sink = TensorBoardSink(tmp_path, max_bytes=440_000)
    alerted = list(range(11, 400, 60))
    for step in range(400):
        alerts = (make_alert(step),) if step in alerted else ()
        sink(make_report(step, "policy_ref", alerts=alerts))
        if step % 50 == 49:
            assert sink._worker.flush(60)
            assert sum(file.stat().st_size for file in tmp_path.iterdir()) <= 440_000
    sink.close(60)
    assert (sink.errors, sink.dropped) == (0, 0)
    found = steps_in(tmp_path)
    assert set(alerted) <= set(found)
    assert all(found[step]["alerts"] for step in alerted)
    assert list(found)[-5:] == list(range(395, 400))
    old = [step for step in found if step < 200 and step not in alerted]
    assert 5 < len(old) < 120
    for step, row in found.items():
        expected = make_report(step, "policy_ref").pairs["policy_ref"]["k3/mean"]
        assert abs(row["pairs"]["policy_ref"]["values"]["k3/mean"] - expected) <= 1e-6 * abs(
            expected
        )


def test_a_directory_that_is_removed_is_made_again(tmp_path):
    sink = TensorBoardSink(tmp_path / "events")
    for step in range(6):
        if step == 3:
            assert sink._worker.flush(60)
            shutil.rmtree(tmp_path / "events")
        sink(make_report(step, "policy_ref"))
    sink.close(60)
    assert sorted(steps_in(tmp_path / "events")) == [3, 4, 5]
    assert sink.errors == 0
