"""`klmonitor status`: the same object for every kind of run, and exit statuses that mean it."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from statistics import median

import pytest
from jsonschema import Draft202012Validator

from klmonitor.cli import main
from klmonitor.dashboard.source import RecordSource
from klmonitor.dashboard.standing import SCHEMA, in_words, standing
from klmonitor.dashboard.statusschema import STATUS
from klmonitor.record import STEPS, RecordWriter, read_run
from klmonitor.report import Alert, PairReport, Report
from klmonitor.rules import RuleSet
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
    (steps,) = path.rglob(STEPS)
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


BEFORE = 30
"""Steps at the level of before."""


def judged(run_dir, *levels, pair="old_ref"):
    """A record of k3 at `BEFORE` steps of .004 nats and then of these, as its rules judged it."""
    rng, rules, writer = random.Random(5), RuleSet(), RecordWriter(run_dir, {"groups": []})
    k3 = [level * rng.lognormvariate(0, 0.1) for level in [*[0.004] * BEFORE, *levels]]
    for step, value in enumerate(k3, 1):
        values = {"k3/mean": value, "k3/se": value / 10, "tokens": 4096.0, "sequences": 64.0}
        report = Report(step=step, pairs={pair: PairReport(pair, values)})
        said = rules.judge(report)
        found = replace(report.pairs[pair], open_kinds=said.open_kinds[pair])
        writer.step(replace(report, pairs={pair: found}))
        for one in (*said.ended, *said.alerts):
            writer.alert(one)
    writer.close()
    return k3


def where(run_dir):
    body = standing([run_dir], now=NOW)
    Draft202012Validator(STATUS).validate(body)
    (run,) = body["runs"]
    return run, body["exit"]


def test_a_level_that_never_came_back_is_no_fine_run(tmp_path, capsys):
    """The spike's episode ends when its level has been learned; that the run is well it is not."""
    k3 = judged(tmp_path, *[0.15] * 12)
    told = [one for one in read_run(tmp_path).alerts if one.phase == "open"]
    run, status = where(tmp_path)
    assert told[0].kind in ("spike", "surge")
    assert not run["open_alerts"]
    assert (run["level"], status) == ("warn", 10)
    (found,) = run["raised"]
    assert (found["pair"], found["since"]) == ("old_ref", BEFORE + 1)
    assert found["k3"] == median(k3[-3:])
    assert found["before"] == pytest.approx(median(k3[BEFORE - 9 : BEFORE]), rel=0.1)
    assert f"{found['k3'] / found['before']:.3g}x" in found["message"]
    assert "has not come back, though its alert has ended" in found["message"]
    said = in_words({"runs": [run]})
    assert found["message"] in said
    assert found["do"] in said
    main(["explain", str(tmp_path), "--step", str(len(k3))])
    assert found["message"] in capsys.readouterr().out
    (columns,) = RecordSource([tmp_path]).runs()
    line = columns.glances()["old_ref"]
    assert (line["level"], line["since"]) == ("warn", BEFORE + 1)
    assert line["parts"][-1] in found["message"]


def test_what_it_says_to_do_acknowledges_it(tmp_path):
    judged(tmp_path, *[0.15] * 12)
    run, _ = where(tmp_path)
    _, command = run["do"][-1].split("klmonitor ")
    assert main(command.replace("RUN", str(tmp_path)).split()) == 0
    assert where(tmp_path)[1] == 0
    (columns,) = RecordSource([tmp_path]).runs()
    assert columns.glances()["old_ref"]["parts"][-1] == "no alert is open"


@pytest.mark.parametrize(
    ("levels", "why"),
    [
        ([0.15, *[0.004] * 2], "a spike of one step"),
        ([0.15, 0.15, *[0.004] * 2], "of two"),
        ([*[0.15] * 12, *[0.012] * 8], "it has come back more than half-way"),
        ([*[0.15] * 12, *[0.012 * 1.05**i for i in range(40)]], "and grew after that"),
        ([*[0.012] * 12, *[0.02] * 5], "it is less than four times as high"),
        ([*[0.15] * 102], "it is what the run is like"),
    ],
)
def test_what_came_back_or_is_a_habit_is_no_news(levels, why, tmp_path):
    judged(tmp_path, *levels)
    assert not where(tmp_path)[0]["raised"], why


def test_what_is_open_tells_it(tmp_path):
    judged(tmp_path, *[0.8] * 12)
    run, _ = where(tmp_path)
    assert "limit" in run["open_alerts"][0]["kinds"]
    assert not run["raised"]


if __name__ == "__main__":
    SNAPSHOT.write_text(json.dumps(current(), indent=1) + "\n", encoding="utf-8")
