"""`klmonitor status`: the same object for every kind of run, and exit statuses that mean it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from klmonitor.cli import main
from klmonitor.dashboard.standing import SCHEMA, in_words, standing
from klmonitor.dashboard.statusschema import STATUS
from klmonitor.record import STEPS, RecordWriter
from klmonitor.report import Alert
from tests.helpers.reports import make_report

V1 = Path(__file__).parents[1] / "data" / "v1" / "run"
SNAPSHOT = Path(__file__).parents[1] / "data" / "status.json"
NOW = 1.7e9 + 100


def alert(step, severity="critical", phase="open", pair="policy_ref", kind="spike", **more):
    values = {"message": f"{kind} at {step}", "action": f"look at {kind}", "since": step, **more}
    return Alert(step=step, kind=kind, severity=severity, pair=pair, phase=phase, **values)


def write(
    run_dir,
    steps=6,
    alerts=(),
    open_kinds=None,
    change=lambda report: report,
    pairs=("policy_ref",),
):
    """A record of reports; kinds are open on policy_ref from a step on."""
    writer = RecordWriter(run_dir, {"groups": []})
    for step in range(1, steps + 1):
        report = make_report(step, *pairs)
        kinds = tuple((open_kinds or {}).get(step, ()))
        pair = replace(report.pairs["policy_ref"], open_kinds=kinds)
        writer.step(change(replace(report, pairs={**report.pairs, "policy_ref": pair})))
        for one in alerts:
            if one.step == step:
                writer.alert(one)
        writer.flush()
    writer.close()
    return run_dir


def from_step(step, *kinds, until=99):
    return dict.fromkeys(range(step, min(until, 99)), kinds)


def healthy(path):
    return write(path)


def warned(path):
    return write(path, alerts=[alert(4, "warn")], open_kinds=from_step(4, "spike"))


def critical(path):
    return write(path, alerts=[alert(4)], open_kinds=from_step(4, "spike"))


def ended(path):
    end = alert(5, "info", "end", since=3)
    return write(path, alerts=[alert(3), end], open_kinds=from_step(3, "spike", until=5))


def muted(path):
    return write(path, alerts=[alert(4, muted=True)], open_kinds=from_step(4, "spike"))


def two_kinds(path):
    """One event of two kinds: one of them has ended."""
    alerts = [alert(3, kinds=("spike", "surge")), alert(5, "info", "end", kind="surge", since=3)]
    return write(path, alerts=alerts, open_kinds=from_step(3, "spike"))


def of_the_run(path):
    """No data: of the run, and not in any report."""
    return write(path, alerts=[alert(4, "warn", pair=None, kind="no_data")])


def started_anew(path):
    """An alert that nothing ended: the process died, and the next one knows nothing of it."""
    return write(path, alerts=[alert(2)], open_kinds=from_step(2, "spike", until=4))


def inactive(path):
    return write(
        path, change=lambda r: replace(r, run_values=r.run_values | {"klmonitor/active": 0.0})
    )


def nothing_yet(path):
    RecordWriter(path, {}).close()
    return path


def torn(path):
    write(path)
    steps = path / STEPS
    steps.write_bytes(b"not a row\n" + steps.read_bytes() + b'{"step": 7, "pa')
    return path


def of_version_1(path):
    return V1


def several(path):
    write(path / "a")
    write(path / "b", alerts=[alert(4)], open_kinds=from_step(4, "spike"))
    return path


def not_there(path):
    return path / "nowhere"


def two_pairs(path):
    def late(report):
        if report.step < 4:
            return report
        return replace(report, pairs={"policy_ref": report.pairs["policy_ref"]})

    return write(path, pairs=("policy_ref", "old_policy"), change=late)


KINDS = {
    healthy: ("fine", 0),
    warned: ("warn", 10),
    critical: ("critical", 11),
    ended: ("fine", 0),
    muted: ("fine", 0),
    two_kinds: ("critical", 11),
    of_the_run: ("warn", 10),
    started_anew: ("fine", 0),
    inactive: ("warn", 10),
    nothing_yet: ("fine", 0),
    torn: ("fine", 0),
    of_version_1: (None, None),
    several: ("critical", 11),
    not_there: ("unreadable", 2),
    two_pairs: ("fine", 0),
}


@pytest.fixture(params=KINDS, ids=lambda kind: kind.__name__)
def kind(request):
    return request.param


def test_every_kind_of_run_has_the_form_that_is_promised(kind, tmp_path, capsys):
    path = kind(tmp_path / "run")
    status = main(["status", str(path), "--json"])
    body = json.loads(capsys.readouterr().out)
    Draft202012Validator(STATUS).validate(body)
    level, exit_status = KINDS[kind]
    assert status == body["exit"]
    if level is not None:
        assert (body["level"], status) == (level, exit_status)
    assert main(["status", str(path)]) == status
    said = capsys.readouterr().out
    for run in body["runs"]:
        assert run["run"] in said
        assert (
            all(line in said for line in run["do"])
            or run["level"] == "unreadable"
            or not run["steps"]
        )


def test_the_schema_refuses_what_it_should(tmp_path):
    """A schema that accepts everything would prove nothing."""
    body = standing([critical(tmp_path / "run")])
    validator = Draft202012Validator(STATUS)
    validator.validate(body)
    for change in (
        lambda b: b.pop("level"),
        lambda b: b["runs"][0].pop("pairs"),
        lambda b: b["runs"][0].update(steps="six"),
        lambda b: b["runs"][0]["pairs"]["policy_ref"].update(k3="0.1"),
        lambda b: b["runs"][0]["open_alerts"][0].update(severity="fatal"),
        lambda b: b.update(schema="klmonitor.status/2"),
    ):
        other = json.loads(json.dumps(body))
        change(other)
        assert list(validator.iter_errors(other))


def test_the_schema_can_be_printed(capsys):
    assert main(["status", "--schema"]) == 0
    printed = json.loads(capsys.readouterr().out)
    Draft202012Validator.check_schema(printed)
    assert printed == STATUS
    assert printed["properties"]["schema"]["const"] == SCHEMA


def test_the_object_is_what_it_was():
    """A change here is one for programs: add keys, and raise the version where one changes or goes.

    `python tests/dashboard/test_standing.py` writes the snapshot anew.
    """
    assert current() == json.loads(SNAPSHOT.read_text(encoding="utf-8"))


def current():
    body = standing([V1], now=NOW + 1e8)
    body["runs"][0]["path"] = "RUN"
    for pair in body["runs"][0]["pairs"].values():
        pair["verdict"] = "..."  # tests/numbers/test_verdicts.py
    return json.loads(json.dumps(body))


def test_an_event_keeps_the_kinds_that_are_open(tmp_path):
    (run,) = standing([two_kinds(tmp_path / "run")], now=NOW)["runs"]
    (event,) = run["open_alerts"]
    assert (event["kind"], event["kinds"], event["since"]) == ("spike", ["spike"], 3)


def test_a_worsening_is_the_last_word_at_the_gravest_severity(tmp_path):
    alerts = [alert(3, "warn"), alert(5, "critical", "worse", since=3)]
    path = write(tmp_path / "run", alerts=alerts, open_kinds=from_step(3, "spike"))
    (run,) = standing([path], now=NOW)["runs"]
    (event,) = run["open_alerts"]
    assert (event["severity"], event["since"], event["step"]) == ("critical", 3, 5)
    assert run["alerts"] == {"info": 0, "warn": 1, "critical": 1}


def test_where_a_run_is(tmp_path):
    (run,) = standing([two_pairs(tmp_path / "run")], now=NOW)["runs"]
    assert (run["steps"], run["first_step"], run["last_step"]) == (6, 1, 6)
    assert run["age_s"] == pytest.approx(94)
    assert {name: pair["step"] for name, pair in run["pairs"].items()} == {
        "policy_ref": 6,
        "old_policy": 3,
    }
    report = make_report(6)
    assert run["pairs"]["policy_ref"]["k3"] == report.pairs["policy_ref"]["k3/mean"]
    said = in_words(standing([tmp_path / "run"], now=NOW))
    assert "step 6 (6 steps, 94 s ago)" in said
    assert "old_policy (at step 3)" in said


def test_lines_that_cannot_be_read_are_counted(tmp_path):
    (run,) = standing([torn(tmp_path / "run")], now=NOW)["runs"]
    assert run["health"]["bad_lines"] == 1
    assert run["steps"] == 6


def test_one_unreadable_run_among_others_does_not_hide_them(tmp_path):
    body = standing([tmp_path / "nowhere", critical(tmp_path / "run")], now=NOW)
    assert (body["level"], body["exit"]) == ("critical", 11)
    assert [run["level"] for run in body["runs"]] == ["unreadable", "critical"]


def test_no_run_is_a_wrong_use(capsys):
    assert main(["status"]) == 2
    assert "give a run's directory" in capsys.readouterr().err


if __name__ == "__main__":
    SNAPSHOT.write_text(json.dumps(current(), indent=1) + "\n", encoding="utf-8")
