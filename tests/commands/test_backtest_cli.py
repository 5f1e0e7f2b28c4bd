"""`klmonitor backtest` and `klmonitor tune` on records and on what trackers export."""

from __future__ import annotations

import csv
import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from klmonitor.cli import main
from klmonitor.record.rows import alert_to_row
from klmonitor.replay import backtest, replay
from klmonitor.replay.curve import Curve, load_run
from klmonitor.replay.scoring import Event, Tally, score, upper
from klmonitor.replay.tuning import evident, tune
from klmonitor.report import Report
from klmonitor.rules import parse_rules
from klmonitor.rules.file import load_rules, rules_toml
from tests.helpers.reports import make_alert, recorded_run


def noisy(steps=300, seed=0, spikes=()):
    k3 = 0.002 * np.exp(0.1 * np.random.default_rng(seed).normal(size=steps))
    k3[list(spikes)] *= 10
    return k3


def write_csv(path, columns):
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
    return str(path)


@pytest.fixture
def series(tmp_path):
    """A CSV with two spikes, at steps 200 and 250."""
    return write_csv(
        tmp_path / "kl.csv", {"step": range(300), "k3": noisy(spikes=(200, 250)).tolist()}
    )


@pytest.fixture
def say(capsys):
    """Run a command: its status, and what it prints."""

    def run(*arguments):
        status = main([str(argument) for argument in arguments])
        told = capsys.readouterr()
        return status, told.out + told.err

    return run


def found(say, *arguments):
    """(step, kind) of the alerts that backtest prints as JSON."""
    status, out = say("backtest", *arguments, "--json")
    assert status == 0
    return [(a["step"], a["kind"]) for run in json.loads(out)["runs"] for a in run["alerts"]]


# --- a run's own record ----------------------------------------------------------------------
def test_a_record_gives_the_alerts_of_the_live_run(tmp_path, say):
    live = recorded_run(tmp_path / "out" / "klmonitor", 60)
    assert len(live) >= 3
    for place in (tmp_path / "out" / "klmonitor", tmp_path / "out"):
        status, out = say("backtest", place, "--json")
        assert status == 0
        [run] = json.loads(out)["runs"]
        replayed = [{k: v for k, v in a.items() if k != "false_alarm"} for a in run["alerts"]]
        assert replayed == json.loads(json.dumps([alert_to_row(alert) for alert in live]))
        assert run["steps"] == 60
    steps = load_run(str(tmp_path / "out" / "klmonitor" / "steps.jsonl")).reports
    assert [report.step for report in steps] == list(range(60))


# --- what trackers export --------------------------------------------------------------------
K3 = noisy(spikes=(250,))
NAMES = [
    {"step": "step", "k3": "k3"},
    {"step": "Step", "k3": "Value"},
    {"step": "global_step", "k3": "kl"},
    {"step": "_step", "k3": "train/kl/policy_ref/k3/mean"},
    {"step": "Step", "k3": "run 7 - train/kl/policy_ref/k3/mean"},
    {"step": "train/global_step", "k3": "kl/policy_ref/k3/mean"},
]


@pytest.mark.parametrize("names", NAMES, ids=lambda names: names["k3"])
@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_the_names_that_trackers_give_are_understood(tmp_path, say, names, form):
    columns = {names["step"]: range(0, 3000, 10), names["k3"]: K3.tolist()}
    if names["k3"].startswith("run"):
        columns[names["k3"] + "__MIN"] = [0.0] * 300
        columns[names["k3"] + "__MAX"] = [9.0] * 300
    path = tmp_path / f"kl.{form}"
    if form == "csv":
        write_csv(path, columns)
    else:
        rows = zip(*columns.values(), strict=True)
        path.write_text("\n".join(json.dumps(dict(zip(columns, r, strict=True))) for r in rows))
    assert found(say, path) == [(10 * a.step, a.kind) for a in backtest(K3)] == [(2500, "spike")]


def test_errors_k1_and_tokens_are_used_as_in_python(tmp_path, say):
    rng = np.random.default_rng(1)
    k1 = 0.002 + 0.001 * rng.normal(size=300)
    k1[200] = -0.008
    columns = {"se": 0.05 * K3, "k1": k1, "tokens": np.full(300, 4000.0)}
    path = write_csv(
        tmp_path / "kl.csv",
        {"step": range(300), "k3": K3.tolist()} | {k: v.tolist() for k, v in columns.items()},
    )
    expected = [(alert.step, alert.kind) for alert in backtest(K3, **columns)]
    assert (200, "k1_excursion") in expected
    assert found(say, path) == expected


def test_other_names_are_given_by_hand(tmp_path, say):
    path = write_csv(tmp_path / "kl.csv", {"tick": range(300), "my_drift": K3.tolist()})
    given = ("--column", "step=tick", "--column", "k3=my_drift")
    assert found(say, path, *given) == [(250, "spike")]
    status, said = say("backtest", path)
    assert status == 2
    assert "no column for k3, only 'tick', 'my_drift': name it with --column k3=NAME" in said
    status, said = say("backtest", path, "--column", "k3=my_drift")
    assert status == 2
    assert "no column for the step, only 'tick', 'my_drift'" in said
    assert "name it with --column step=NAME" in said


def test_empty_cells_are_no_data_and_nan_is_a_value_that_is_not_finite(tmp_path, say):
    k3 = [f"{value:.6g}" for value in K3]
    k3[100:120] = [""] * 20
    k3[200] = "NaN"
    path = write_csv(tmp_path / "kl.csv", {"step": range(300), "k3": k3})
    assert found(say, path) == [(200, "nonfinite"), (250, "spike")]
    assert len(load_run(path).reports) == 280


def test_rows_may_come_in_any_order_and_the_later_one_counts(tmp_path):
    path = write_csv(tmp_path / "kl.csv", {"step": [3, 1, 2, 1], "k3": [0.3, 9.0, 0.2, 0.1]})
    run = load_run(path)
    assert [(r.step, r.pairs["policy_ref"].k3.mean) for r in run.reports] == [
        (1, 0.1),
        (2, 0.2),
        (3, 0.3),
    ]


def test_two_runs_in_one_export_are_told_apart(tmp_path, say):
    columns = {"Step": range(300), "a - kl": K3.tolist(), "b - kl": noisy().tolist()}
    path = write_csv(tmp_path / "kl.csv", columns)
    status, said = say("backtest", path)
    assert status == 2
    assert "columns 'a - kl' and 'b - kl' both are k3/mean of policy_ref" in said
    assert found(say, path, "--column", "k3=a - kl") == [(250, "spike")]
    assert found(say, path, "--column", "k3=b - kl") == []


def test_every_pair_of_an_export_is_judged(tmp_path, say):
    columns = {"step": range(300)}
    columns["kl/policy_ref/k3/mean"] = noisy(seed=1).tolist()
    columns["kl/rollout_old/k3/mean"] = K3.tolist()
    _, out = say("backtest", write_csv(tmp_path / "kl.csv", columns), "--json")
    [run] = json.loads(out)["runs"]
    assert [(alert["step"], alert["pair"]) for alert in run["alerts"]] == [(250, "rollout_old")]


# --- rules, events, status -------------------------------------------------------------------
def test_rules_come_from_a_file_and_a_preset(tmp_path, say, series):
    rules = tmp_path / "rules.toml"
    rules.write_text('preset = "quiet"\nspike = false\n\n[limit]\npolicy_ref = 0.01\n')
    assert found(say, series, "--rules", rules) == [(200, "limit"), (250, "limit")]
    as_json = tmp_path / "rules.json"
    as_json.write_text('{"spike": {"ratio": 20}}')
    assert found(say, series, "--rules", as_json, "--preset", "quiet") == []
    assert found(say, series) == [(200, "spike"), (250, "spike")]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--preset", "quit"], "unknown preset 'quit': did you mean 'quiet'"),
        (["--rules", "no/such.toml"], "cannot read the rules in no/such.toml"),
        (["--rules", "quiet"], "give a .toml or .json file; a preset is --preset"),
        (["--events", "no/such.csv"], "cannot read the events in no/such.csv"),
        (["--column", "kl"], "--column kl: give WHAT=NAME"),
        (["--pair", "ref_policy"], "unknown pair 'ref_policy'"),
        (["no/such/run"], "no/such/run"),
    ],
)
def test_what_cannot_be_read_is_said_in_one_line(say, series, arguments, message):
    status, said = say("backtest", series, *arguments)
    assert status == 2
    assert message in said
    assert said.startswith("klmonitor backtest: ")
    assert said.count("\n") == 1


def test_since_learns_from_earlier_steps_and_counts_later_ones(say, series):
    assert found(say, series, "--since", 201) == [(250, "spike")]
    _, out = say("backtest", series, "--since", 201)
    assert "99 steps, 1 alert" in out


def test_labelled_events_are_found_and_the_rest_is_false(tmp_path, say, series):
    events = tmp_path / "events.csv"
    events.write_text(
        "start,end,kind,run\n198,210,,kl.csv\n100,105,,\n250,260,drift,\n5,9,,other\n"
    )
    status, out = say("backtest", series, "--events", events)
    assert status == 0
    assert "step 250" in out
    assert out.count("(false alarm)") == 1
    quiet = 300 - 13 - 6 - 11
    bound = stats.gamma.ppf(0.95, 2) * 1e4 / quiet
    expected = f"1 false alarm in {quiet} steps outside events: {1e4 / quiet:.3g} per 10,000 steps"
    assert f"{expected} (95 % bound {bound:.3g})" in out
    assert "1 of 3 events found, median delay 2 steps" in out


@pytest.mark.parametrize(
    ("spikes", "factor", "severity", "status"),
    [((), 1, "warn", 0), ((250,), 3, "warn", 1), ((250,), 3, "critical", 0),
     ((250,), 100, "critical", 1)],
)  # fmt: skip
def test_the_status_is_for_ci(tmp_path, say, spikes, factor, severity, status):
    k3 = noisy()
    k3[list(spikes)] *= factor
    path = write_csv(tmp_path / "kl.csv", {"step": range(300), "k3": k3.tolist()})
    assert say("backtest", path, "--fail-on", severity)[0] == status
    assert say("backtest", path)[0] == 0
    events = tmp_path / "events.json"
    events.write_text('[{"start": 245}]')
    assert say("backtest", path, "--fail-on", severity, "--events", events)[0] == 0


# --- scores ----------------------------------------------------------------------------------
@given(st.integers(0, 400))
def test_the_bound_is_garwoods(count):
    assert upper(count) == pytest.approx(stats.gamma.ppf(0.95, count + 1), rel=1e-9)


runs = st.builds(
    Curve,
    st.just("runs/a"),
    st.sets(st.integers(0, 60), max_size=40).map(
        lambda steps: [Report(step, {}) for step in sorted(steps)]
    ),
)
events = st.lists(
    st.builds(
        lambda start, length, kind: Event(start, start + length, kind),
        st.integers(0, 60),
        st.integers(0, 20),
        st.sampled_from([None, "spike", "drift"]),
    ),
    max_size=4,
)
alerts = st.lists(
    st.builds(
        lambda step, kind: make_alert(step, kind=kind, since=step),
        st.integers(0, 60),
        st.sampled_from(["spike", "drift"]),
    ),
    max_size=8,
)


@given(runs, alerts, events, st.integers(0, 60))
def test_scores_add_up(run, raised, labelled, since):
    whole = score(run, raised, labelled)
    assert whole.quiet_steps <= whole.steps == len(run.reports)
    assert len(whole.false) <= len(whole.alerts) == len(raised)
    assert all(delay >= 0 for delay in whole.found)
    assert score(run, raised).false == whole.alerts, "without events every alert is false"
    late = score(run, raised, labelled, since)
    assert late.steps + sum(report.step < since for report in run.reports) == whole.steps
    both = whole + late
    assert both.steps == whole.steps + late.steps
    assert both.delays == whole.delays + late.delays


def test_a_worsening_belongs_to_the_event_of_its_opening():
    run = Curve("a", [Report(step, {}) for step in range(100)])
    opening = make_alert(12, since=12)
    worse = make_alert(40, since=12, phase="worse")
    judged = score(run, [opening, worse], [Event(10, 20)])
    assert (judged.false, judged.delays) == ((), (2,))
    assert math.isnan(Tally().rate)


# --- tuning ----------------------------------------------------------------------------------
def heavy(steps=1500, seed=3):
    """A run whose log k3 jumps more often than the defaults are made for."""
    rng = np.random.default_rng(seed)
    return 0.002 * np.exp(0.1 * rng.standard_t(3, size=steps))


def as_run(k3):
    from klmonitor.replay import _reports

    return Curve("run", list(_reports({"k3/mean": np.asarray(k3)}, "policy_ref")))


def test_tuning_raises_the_threshold_that_rings_until_the_rate_is_met():
    run = as_run(heavy())
    proposal = tune([run], rate=10)
    assert proposal.before.rate > 10 >= proposal.after.rate
    assert proposal.reached
    assert not proposal.resolved, "1500 steps cannot tell 10 in 10,000 from 20"
    raised = set(proposal.rules) - {"preset"}
    assert raised <= {alert.kind for alert in proposal.before.false}
    tuned, default = (parse_rules(r).thresholds for r in (proposal.rules, "default"))
    for kind in raised:
        assert tuned[kind]["z"] > default[kind]["z"]
    assert {k: v for k, v in tuned.items() if k not in raised} == {
        k: v for k, v in default.items() if k not in raised
    }


def test_a_long_quiet_record_earns_sensitive_rules():
    proposal = tune([as_run(noisy(4000, seed=5))], rate=40)
    assert proposal.resolved
    assert proposal.reached
    assert proposal.rules["preset"] == "sensitive"
    assert proposal.after.rate <= 40


def test_what_has_no_threshold_is_not_tuned_away():
    k3 = noisy(500)
    k3[::50] = math.nan
    proposal = tune([as_run(k3)], rate=20, events=[])
    assert not proposal.reached
    assert {alert.kind for alert in proposal.after.false} == {"nonfinite"}


def test_events_are_not_false_alarms():
    run = as_run(noisy(spikes=(200, 250)))
    assert tune([run], 10, []).before.false
    assert not tune([run], 10, [Event(200, 200), Event(250, 250)]).before.false


def test_no_threshold_is_raised_past_an_evident_event(tmp_path, say):
    """A rate that only a z beyond the spike's would meet: the spike stays told all the same."""
    k3 = 0.002 * np.exp(0.15 * np.random.default_rng(1).normal(size=400))
    k3[[100, 160, 280, 340]] *= 2.5
    k3[220] *= 5
    run = as_run(k3)
    unaware, proposal = tune([run], 10, []), tune([run], 10)
    assert [event.start for event in proposal.events] == [220]
    assert 220 not in {a.step for a in replay(run.reports, unaware.rules)}
    for table in (proposal.rules, tune([run], 0.1).rules):
        assert 220 in {alert.step for alert in replay(run.reports, table)}
    path = write_csv(tmp_path / "kl.csv", {"step": range(400), "k3": k3.tolist()})
    _, out = say("tune", path)
    assert "assumed that nothing happened but what is evident" in out
    assert f": {path} step 220; no threshold was raised past that" in out
    events = tmp_path / "events.csv"
    events.write_text("start\n220\n")
    assert "assumed" not in say("tune", path, "--events", events)[1]


def test_evident_is_what_is_critical_or_stands_far_out():
    run = as_run(noisy(spikes=(100, 105, 200)))
    assert [(e.start, e.end) for e in evident(run, replay(run.reports))] == [(100, 110), (200, 210)]
    small = [make_alert(150), make_alert(160, severity="critical"), make_alert(170, pair=None)]
    assert [event.start for event in evident(run, small)] == [160]
    worse = make_alert(180, since=175, phase="worse", severity="critical")
    assert [event.start for event in evident(run, [worse])] == [175]


def test_the_command_writes_rules_that_backtest_and_the_monitor_read(tmp_path, say):
    path = write_csv(tmp_path / "kl.csv", {"step": range(1500), "k3": heavy().tolist()})
    rules = tmp_path / "rules.toml"
    status, out = say("tune", path, "--rate", 10, "--out", rules)
    assert status == 0
    assert "# before, default:" in out
    assert "too few to tell 10 per 10,000 steps" in out
    table = load_rules(str(rules))
    assert table == tune([as_run(heavy())], 10).rules
    count = len(tune([as_run(heavy())], 10).after.false)
    assert len(found(say, path, "--rules", rules)) == count
    status, printed = say("tune", path, "--rate", 10)
    assert rules.read_text() in printed
    assert say("tune", path, "--rate", 0)[0] == 2


def test_rules_files_round_trip(tmp_path):
    table = {"preset": "quiet", "surge": False, "spike": {"z": 7.5, "ratio": 2.0}}
    file = tmp_path / "rules.toml"
    file.write_text(rules_toml(table))
    assert load_rules(file) == load_rules(str(file)) == table
    assert load_rules("quiet") == "quiet"
    assert load_rules(table) is table
    file.write_text("preset = ")
    with pytest.raises(ValueError, match=r"rules\.toml"):
        load_rules(file)


# --- notify-test -----------------------------------------------------------------------------
def test_notify_test_says_who_took_it(say, monkeypatch):
    from tests.helpers.webhooks import CANARY, hook, refused_url

    with hook(200) as good, hook(404) as bad:
        monkeypatch.setenv("GOOD", good.url)
        monkeypatch.setenv("BAD", bad.url)
        monkeypatch.setenv("NOBODY", refused_url())
        assert say("notify-test", "env:GOOD") == (0, "env:GOOD (http): delivered\n")
        status, out = say("notify-test", "env:BAD", "env:GOOD", "env:NOBODY")
        assert status == 1
        assert out.splitlines() == [
            "env:BAD (http): failed: HTTP 404",
            "env:GOOD (http): delivered",
            "env:NOBODY (http): failed: ConnectionRefusedError",
        ]
        assert len(good.got) == 2
        assert good.got[0]["severity"] == "critical"
    status, out = say("notify-test", f"slack://{CANARY}/x")
    assert status == 2
    assert CANARY not in out


def test_the_monitor_takes_a_file_of_rules(tmp_path):
    torch = pytest.importorskip("torch")
    from klmonitor import Monitor

    file = tmp_path / "rules.toml"
    file.write_text("[limit]\npolicy_ref = 0.001\n")
    monitor = Monitor(rules=str(file))
    log_probs = -torch.linspace(1.0, 2.0, 32).view(4, 8)
    monitor.observe(policy=log_probs, ref=log_probs + 0.5)
    assert monitor.step(0).alerts[0].kind == "limit"
    with pytest.raises(ValueError, match="cannot read the rules"):
        Monitor(rules="no/such.toml")
