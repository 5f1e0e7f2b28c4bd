"""Alerts arrive, whatever the receiver does, and whatever it does costs training nothing."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import textwrap
import threading
import time
import traceback
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from klmonitor import Monitor
from klmonitor.background import Worker
from klmonitor.notify import Notifier, parse_targets
from klmonitor.notify.child import same_place
from klmonitor.notify.message import make_message
from klmonitor.notify.notifier import BACKOFF, CAPACITY
from klmonitor.report import Alert, Report
from klmonitor.sinks import FanOut
from tests.helpers.reports import alerts, make_alert, make_token
from tests.helpers.webhooks import CANARY, hook, refused_url

PATIENCE = 60
"""Seconds after which a test gives up waiting for what must come."""


def report(*alerts):
    return Report(step=1, pairs={}, alerts=alerts or (make_alert(),))


class Waits:
    """Stands for the back-off: notes the waits and does not wait, unless it is to block."""

    def __init__(self):
        self.seconds = []

    def __call__(self, hurry, seconds):
        self.seconds.append(seconds)


@pytest.fixture
def notifier(monkeypatch):
    """``notifier(url, **settings)``: a notifier of one target, without real back-off."""
    made = []

    def make(url, waits=None, **settings):
        monkeypatch.setenv("KLM_HOOK", url)
        targets = parse_targets([{"to": "env:KLM_HOOK", **settings}])
        made.append(Notifier(targets, run="runs/math", wait=waits or Waits()))
        return made[-1]

    yield make
    for one in made:
        one.close(0.0)


# --- what the receiver does ------------------------------------------------------------------
def test_an_alert_arrives_whole_and_without_text_of_tokens(notifier):
    alert = make_alert(tokens=(make_token(text="a prompt"),))
    with hook(200) as server:
        one = notifier(server.url)
        one(report(alert))
        assert one.flush(PATIENCE)
        assert one.lanes[0].delivered == 1
    [got] = server.got
    assert got == json.loads(json.dumps(make_message(alert, "runs/math")))
    assert got["title"] == "klmonitor warn: spike at step 7 (policy_ref)"
    assert got["alert"]["values"] == {"z": 8.25}
    assert alert.text() in got["text"]
    assert "a prompt" not in json.dumps(got)


@pytest.mark.parametrize("trouble", [500, 503, 429, "drip", "hang"])
def test_a_receiver_that_recovers_loses_nothing_and_keeps_the_order(notifier, trouble):
    waits = Waits()
    with hook(trouble, trouble, 200) as server:
        one = notifier(server.url, waits, timeout=0.5 if isinstance(trouble, str) else 30)
        for step in range(3):
            one(report(make_alert(step)))
        assert one.flush(PATIENCE)
        assert [body["alert"]["step"] for body in server.got] == [0, 1, 2]
        assert one.lanes[0].lost == 0
    asked = 7.0 if trouble == 429 else 0.0
    assert waits.seconds == [max(pause, asked) for pause in BACKOFF[:2]]


def test_a_redirect_on_the_same_host_is_followed_with_the_message(notifier):
    with hook("redirect") as server:
        one = notifier(server.url)
        one(report())
        assert one.flush(PATIENCE)
        assert one.lanes[0].delivered == 1
        assert server.asked == 1


@pytest.mark.parametrize("final", ["elsewhere", 400, 404, 410])
def test_what_will_never_work_is_not_tried_again(notifier, final, caplog):
    waits = Waits()
    with hook(final) as server:
        one = notifier(server.url, waits)
        one(report())
        assert one.flush(PATIENCE)
        assert (one.lanes[0].lost, server.asked, waits.seconds) == (1, 1, [])
    assert "that alert is lost" in caplog.text


def test_nobody_there_is_tried_again_then_given_up_then_the_next_alert_has_its_turn(notifier):
    waits = Waits()
    one = notifier(refused_url(), waits)
    one(report(make_alert(1)))
    one(report(make_alert(2)))
    assert one.flush(PATIENCE)
    assert waits.seconds == [*BACKOFF, *BACKOFF]
    assert one.lanes[0].lost == 2


@pytest.mark.parametrize(
    ("old", "new", "same"),
    [
        ("http://a/x", "http://a/y", True),
        ("http://a/x", "https://a/x", True),
        ("https://a/x", "http://a/x", False),
        ("https://a/x", "https://b/x", False),
        ("https://a/x", "file:///etc/passwd", False),
    ],
)
def test_a_message_does_not_follow_to_another_host_or_into_the_clear(old, new, same):
    assert same_place(old, new) is same


def test_each_target_gets_the_severities_it_asked_for(monkeypatch):
    with hook() as chat, hook() as pager, hook() as everything:
        wanted = []
        for name, server, extra in (
            ("CHAT", chat, {}),
            ("PAGER", pager, {"severity": "critical"}),
            ("ALL", everything, {"severity": "info"}),
        ):
            monkeypatch.setenv(name, server.url)
            wanted.append({"to": f"env:{name}", **extra})
        one = Notifier(parse_targets(wanted))
        for severity in ("info", "warn", "critical"):
            one(report(make_alert(severity=severity)))
        assert one.flush(PATIENCE)
        one.close()
        got = [[body["severity"] for body in server.got] for server in (chat, pager, everything)]
    assert got == [["warn", "critical"], ["critical"], ["info", "warn", "critical"]]


def test_one_target_that_hangs_does_not_hold_up_another(monkeypatch):
    with hook("hang") as stuck, hook() as healthy:
        monkeypatch.setenv("STUCK", stuck.url)
        monkeypatch.setenv("HEALTHY", healthy.url)
        one = Notifier(parse_targets(["env:STUCK", "env:HEALTHY"]))
        one(report())
        assert one.lanes[1].flush(PATIENCE)
        assert not one.lanes[0].flush(0.0)
        assert len(healthy.got) == 1
        one.close(0.1)
        assert one.lanes[0].lost == 1


def test_apprise_speaks_for_its_services(notifier):
    pytest.importorskip("apprise")
    with hook(200) as server:
        one = notifier(server.url.replace("http://", "json://"))
        assert one.lanes[0].target.service == "apprise"
        one(report(make_alert(severity="critical")))
        assert one.flush(PATIENCE)
        assert one.lanes[0].delivered == 1
    [got] = server.got
    assert got["title"] == "klmonitor critical: spike at step 7 (policy_ref)"
    assert "k3 is 12 x its level" in got["message"]


def test_an_apprise_service_that_hangs_is_killed_and_tried_again(notifier):
    pytest.importorskip("apprise")
    with hook("hang", 200) as server:
        one = notifier(server.url.replace("http://", "json://"), timeout=2)
        one(report())
        assert one.flush(PATIENCE)
        assert (one.lanes[0].delivered, server.asked) == (1, 2)


# --- what training notices -------------------------------------------------------------------
def test_a_call_does_not_wait_for_a_receiver_that_hangs(notifier):
    """The server answers only after every call has returned: a call that waited would not."""
    with hook("hang") as server:
        one = notifier(server.url, timeout=600)
        one(report())
        assert server.arrived.wait(PATIENCE)
        for step in range(CAPACITY + 10):
            one(report(make_alert(step)))
        assert one.lanes[0].lost == 10
        assert not server.released.is_set()
        assert one.lanes[0].delivered == 0
        one.close(0.0)


def test_step_does_not_wait_for_a_receiver_that_hangs(monkeypatch, tmp_path):
    waited_for = []
    real_flush = Worker.flush
    monkeypatch.setattr(
        Worker, "flush", lambda w, t: (waited_for.append(w.name), real_flush(w, t))[1]
    )
    with hook("hang") as server:
        monkeypatch.setenv("KLM_HOOK", server.url)
        monitor = Monitor(tmp_path / "run", notify=[{"to": "env:KLM_HOOK", "timeout": 600}])
        for step in range(20):
            p = torch.full((4, 8), -1.0)
            if step >= 10:
                p[0, 0] = float("nan")
            monitor.observe(policy=torch.full((4, 8), -1.1), ref=p)
            found = monitor.step(step)
            if step == 10:
                assert [alert.kind for alert in found.alerts] == ["nonfinite"]
        assert server.arrived.wait(PATIENCE)
        assert waited_for == []
        assert monitor.errors == 0
        server.released.set()
        monitor.close()


def run_script(body, **environment):
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(body)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, done.stderr
    return done, time.monotonic() - started


SCRIPT = """
import os, time, logging
logging.basicConfig(level=logging.DEBUG)
from klmonitor.notify import Notifier, parse_targets
from klmonitor.report import Alert, Report
notifier = Notifier(parse_targets(os.environ["TARGETS"].split()), run="runs/math")
for step in range(3):
    alert = Alert(step=step, kind="spike", severity="warn", pair=None, message="k3 rose")
    notifier(Report(step=step, pairs={{}}, alerts=(alert,)))
{end}
print(time.monotonic())
"""


def exit_seconds(done):
    """From the end of the script to the end of its process; both clocks are the machine's."""
    return time.monotonic() - float(done.stdout)


@pytest.mark.parametrize("end", ["", "notifier.close()"])
@pytest.mark.parametrize("trouble", ["hang", "drip"])
def test_exit_is_bounded_and_the_process_leaves_nothing_behind(end, trouble):
    """The bound is 5 s; as the machine may be busy, the test accepts three times as much.

    A join of the hanging request would take as long as the server lives: for ever.
    """
    with hook(trouble) as server:
        done, _ = run_script(SCRIPT.format(end=end), TARGETS="env:HOOK", HOOK=server.url)
        assert exit_seconds(done) < 15
        assert "did not finish in time" in done.stderr
        assert CANARY not in done.stdout + done.stderr


@pytest.mark.parametrize("plan", [(200,), (500, 429, 200), ("redirect", 503, 200)])
@pytest.mark.parametrize("end", ["", "notifier.close()"])
def test_what_was_accepted_arrives_before_the_process_ends(end, plan):
    """Back-off does not outlast the run: a receiver that recovers in time gets everything."""
    with hook(*plan) as server:
        done, _ = run_script(SCRIPT.format(end=end), TARGETS="env:HOOK", HOOK=server.url)
        assert [body["alert"]["step"] for body in server.got] == [0, 1, 2]
        assert server.asked == 3 + sum(one in (500, 503, 429) for one in plan)
        assert "did not reach" not in done.stderr
        assert CANARY not in done.stdout + done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="kill -9 is POSIX")
def test_the_process_of_a_killed_run_ends_with_it():
    with hook("hang") as server:
        body = """
        import os, signal, sys, time
        from klmonitor.notify import Notifier, parse_targets
        from klmonitor.report import Alert, Report
        notifier = Notifier(parse_targets("env:HOOK"))
        alert = Alert(step=1, kind="spike", severity="warn", pair=None, message="k3 rose")
        notifier(Report(step=1, pairs={}, alerts=(alert,)))
        print(notifier.lanes[0].courier._process.pid, flush=True)
        sys.stdin.readline()
        os.kill(os.getpid(), signal.SIGKILL)
        """
        run = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(body)],
            env={**os.environ, "HOOK": server.url},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        with run:
            child = int(run.stdout.readline())
            assert server.arrived.wait(PATIENCE)
            run.stdin.write(b"\n")
            run.stdin.close()
            assert run.wait(PATIENCE) == -9
        deadline = time.monotonic() + PATIENCE
        while alive(child):
            assert time.monotonic() < deadline
            time.sleep(0.02)


def alive(pid):
    """Whether a process runs; one that has ended and was not collected does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"


def test_sinks_close_side_by_side():
    """Each close waits for the other's: one after the other they would never end."""
    both = threading.Barrier(2, timeout=PATIENCE)

    class Meets:
        def __call__(self, report):
            pass

        def close(self):
            both.wait()

    sinks = FanOut([Meets(), Meets()])
    sinks.close()
    assert sinks.errors == 0


# --- secrets ---------------------------------------------------------------------------------
@pytest.mark.parametrize("plan", [(500, 200), (404,), ("elsewhere",), ("hang", 200)])
def test_no_secret_in_any_log_or_repr(notifier, plan, caplog, capfd):
    caplog.set_level(logging.DEBUG)
    with hook(*plan) as server:
        one = notifier(server.url, timeout=0.5)
        one(report())
        assert one.flush(PATIENCE)
        process = one.lanes[0].courier._process
        for file in Path(f"/proc/{process.pid}").glob("cmdline"):
            assert CANARY.encode() not in file.read_bytes()
        said = repr([vars(lane) for lane in one.lanes]) + repr(one.lanes[0].target)
        one.close(0.0)
    out, err = capfd.readouterr()
    assert CANARY not in caplog.text + out + err + said
    if plan[0] != 200:
        assert "no delivery to env:KLM_HOOK (http)" in caplog.text


BAD = [
    f"https://hooks.example.com/services/{CANARY}",
    f"https://user:{CANARY}@example.com/x",
    f"https://example.com/x?token={CANARY}",
    f"slack://{CANARY}/A/B",
    f"mailto://me:{CANARY}@example.com",
    CANARY,
]


@pytest.mark.parametrize("address", BAD)
def test_a_literal_that_may_be_secret_is_refused_without_showing_it(address):
    with pytest.raises(ValueError, match='environment variable and give "env:NAME"') as caught:
        parse_targets([address])
    text = "".join(traceback.format_exception_only(caught.value))
    assert CANARY not in text


@pytest.mark.parametrize("kept", [f"nonsense {CANARY}", f"http://[{CANARY}", f"http:///{CANARY}"])
def test_an_address_that_cannot_work_is_not_shown(monkeypatch, kept):
    monkeypatch.setenv("KLM_HOOK", kept)
    with pytest.raises(ValueError, match="env:KLM_HOOK") as caught:
        parse_targets("env:KLM_HOOK")
    assert CANARY not in "".join(traceback.format_exception(caught.value))


def test_apprise_refuses_without_showing(monkeypatch, caplog):
    pytest.importorskip("apprise")
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("KLM_HOOK", f"nosuchservice://{CANARY}")
    with pytest.raises(ValueError, match="apprise does not know such an address") as caught:
        Notifier(parse_targets("env:KLM_HOOK"))
    assert CANARY not in "".join(traceback.format_exception(caught.value)) + caplog.text


@pytest.mark.parametrize(
    "address", ["http://localhost:9000/x1y2z3", "http://127.0.0.1:1/A", "https://alerts.lab/klm/v1"]
)
def test_a_harmless_literal_is_taken_and_called_by_its_host(address):
    [target] = parse_targets(address)
    assert target.address.reveal() == address
    assert target.name == address.partition("/")[0] + "//" + target.name.partition("//")[2]
    assert "/" not in target.name.partition("//")[2]


def test_addresses_come_from_files_and_variables(monkeypatch, tmp_path):
    secret = tmp_path / "pagers"
    secret.write_text(f"# on call\nhttps://a.example/{CANARY}\n\njson://b.example/{CANARY}\n")
    monkeypatch.setenv("CHAT", f"https://hooks.slack.com/services/{CANARY}")
    found = parse_targets([f"file:{secret}", {"to": "env:CHAT", "severity": "critical"}])
    assert [(t.name, t.service, t.severity) for t in found] == [
        (f"file:{secret}#1 (https)", "webhook", "warn"),
        (f"file:{secret}#2 (json)", "apprise", "warn"),
        ("env:CHAT (https)", "apprise", "critical"),
    ]
    assert parse_targets(None) == parse_targets([]) == ()


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("env:KLM_NOT_SET", "set the environment variable KLM_NOT_SET"),
        ("file:/no/such/file", r"notify\[0\]: cannot read file:/no/such/file: FileNotFoundError"),
        ([{"url": "x"}], r'notify\[0\]: give "env:NAME", "file:/path" or a table with "to"'),
        ([{"to": "http://localhost/", "level": "warn"}], r"notify\[0\] has a key besides to"),
        ([{"to": "http://localhost/", "severity": "bad"}], "choose from info, warn, critical"),
        ([{"to": "http://localhost/", "timeout": 0}], "give seconds, more than 0"),
    ],
)
def test_what_cannot_work_is_said_with_the_remedy(wanted, message):
    with pytest.raises(ValueError, match=message):
        parse_targets(wanted)


def test_apprise_is_named_where_it_is_missing(monkeypatch):
    monkeypatch.setenv("KLM_HOOK", f"slack://{CANARY}")
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(ImportError, match=r'pip install "klmonitor\[notify\]"'):
        Notifier(parse_targets("env:KLM_HOOK"))


# --- messages ----------------------------------------------------------------------------------
@given(alerts, st.text(max_size=20))
def test_any_alert_makes_a_message_of_json_without_text_of_tokens(alert, run):
    message = make_message(alert, run)
    assert json.loads(json.dumps(message, allow_nan=False)) == message
    assert all("text" not in token for token in message["alert"]["tokens"])


def test_messages_of_one_alert_have_one_id_and_of_others_another():
    first = Alert(step=1, kind="spike", severity="warn", pair="policy_ref", message="")
    assert make_message(first, "a")["id"] == make_message(first, "a")["id"]
    others = [make_message(first, "b"), make_message(make_alert(1, phase="worse"), "a")]
    assert len({make_message(first, "a")["id"], *(one["id"] for one in others)}) == 3
