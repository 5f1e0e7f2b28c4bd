import json

import pytest

from benchmarks import trl_suite


def results(outcomes, **reasons):
    return {"outcomes": outcomes, "reasons": reasons, "counts": {}, "refused": []}


def test_the_same_outcomes_do_not_differ():
    run = results({"a": "passed", "b": "failed"}, b="no hub")
    assert trl_suite.differences(run, run) == []


@pytest.mark.parametrize(
    "attached",
    [
        results({"a": "passed", "b": "passed"}),
        results({"a": "failed", "b": "failed"}, a="x", b="no hub at 0x1f, line 3"),
        results({"b": "failed"}, b="no hub at 0x1f, line 3"),
        results({"a": "passed", "b": "failed"}, b="AttributeError in klmonitor"),
    ],
    ids=["passes", "fails", "gone", "fails otherwise"],
)
def test_what_is_not_the_same_is_named(attached):
    without = results({"a": "passed", "b": "failed"}, b="no hub at 0x2e, line 4")
    assert len(trl_suite.differences(without, attached)) == 1


def test_numbers_and_addresses_of_a_failure_may_change():
    first = results({"a": "failed"}, a="object at 0x7f2e of size 12")
    second = results({"a": "failed"}, a="object at 0xdead of size 7")
    assert trl_suite.differences(first, second) == []


def test_a_row_takes_the_place_of_its_version(tmp_path, monkeypatch):
    page = tmp_path / "page.md"
    page.write_text(f"before\n{trl_suite.BEGIN}\n{trl_suite.END}\nafter <!-- end -->\n")
    monkeypatch.setattr(trl_suite, "PAGE", page)
    for line in ("| 1.16.0 | old |", "| 1.9.0 | x |", "| 1.16.0 | new |"):
        trl_suite.write_row(line)
    text = page.read_text()
    assert [line for line in text.splitlines() if line.startswith("| 1")] == [
        "| 1.9.0 | x |",
        "| 1.16.0 | new |",
    ]
    assert text.startswith("before\n")
    assert text.endswith("after <!-- end -->\n")


def test_a_run_that_collects_nothing_stops(tmp_path, monkeypatch):
    (tmp_path / "attached.json").write_text(json.dumps(results({"a": "passed"})))
    monkeypatch.setattr(trl_suite, "TESTS", ("no_such_test.py",))
    monkeypatch.setattr(trl_suite, "environment", lambda **_: {"PATH": ""})
    with pytest.raises(SystemExit, match="did not run"):
        trl_suite.run(tmp_path, "", attach=True)
