"""Names, paths and messages that others chose: inert in the terminal, in Prometheus, in chat."""

from __future__ import annotations

import io
import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from klmonitor.boundary import inert, say
from klmonitor.cli import main
from klmonitor.commands.terminal import InertStream
from klmonitor.notify.message import chat, make_message
from klmonitor.notify.targets import parse_targets
from klmonitor.record import RecordWriter
from klmonitor.sinks import PrometheusSink
from klmonitor.sinks.prometheus import series
from tests.helpers.reports import make_alert, make_report

HOSTILE = "\x1b[31m\x1b]0;x\x07\r\u202eevil\x9b2J\ud800"


@given(st.text(st.characters()))
def test_inert_text_is_printable_and_what_was_printable_stays(text):
    found = inert(text)
    assert found.isprintable()
    assert inert(found) == found
    if text.isprintable():
        assert found == text
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    InertStream(stream).write(text)
    stream.flush()
    written = stream.buffer.getvalue().replace(b"\n", b"").replace(b"\t", b"")
    assert all(32 <= byte < 127 for byte in written)


def test_no_command_lets_a_name_or_a_message_act_on_the_terminal(tmp_path, capsysbinary):
    run = tmp_path / ("run" + HOSTILE.replace("\ud800", "").replace("\n", ""))
    writer = RecordWriter(run)
    for step in range(1, 40):
        writer.step(make_report(step))
    writer.alert(make_alert(3, message=HOSTILE, kind="x" + HOSTILE))
    assert writer.close(60)
    missing = str(tmp_path / ("none" + HOSTILE.replace("\ud800", "")))
    for command in (
        ["watch", str(run), "--once"],
        ["backtest", str(run)],
        ["tune", str(run)],
        ["report", str(run), "-o", str(run / "page.html")],
        ["note", str(run), HOSTILE],
        *([name, missing] for name in ("watch", "backtest", "report", "serve", "tune")),
    ):
        main(command)
        said = capsysbinary.readouterr()
        for byte in (b"\x1b", b"\x07", b"\r", b"\x9b", "\u202e".encode(), "\x9b".encode()):
            assert byte not in said.out + said.err, command


def test_a_line_of_the_log_is_one_line(caplog):
    caplog.set_level(logging.WARNING)
    say("%s", "a\nb\x1b[31m")
    [record] = caplog.records
    assert record.getMessage() == "klmonitor: a\\nb\\x1b[31m"


def test_groups_that_look_alike_to_prometheus_stay_apart():
    import urllib.request
    from dataclasses import replace

    report = make_report(1)
    pair = report.pairs["policy_ref"]
    names = ("a/b", "a_b", 'q"}\n\\evil{', "ü", "k3/mean")
    values = {f"group/{name}/k3/mean": float(at) for at, name in enumerate(names)}
    sink = PrometheusSink(0, metrics=["group/*"])
    try:
        sink(replace(report, pairs={"policy_ref": replace(pair, values=values)}))
        with urllib.request.urlopen(f"http://127.0.0.1:{sink.port}/metrics") as reply:
            text = reply.read().decode()
    finally:
        sink.close()
    lines = [one for one in text.splitlines() if one.startswith("klmonitor_kl_group_k3_mean{")]
    assert len(lines) == len(names)
    assert {float(one.rpartition(" ")[2]) for one in lines} == {0, 1, 2, 3, 4}
    assert 'group="q\\"}\\n\\\\evil{"' in text
    assert series("eval/kl/policy_ref/group/a/b/k1/se")[:2] == (
        "klmonitor_eval_kl_group_k1_se",
        {"pair": "policy_ref", "group": "a/b"},
    )


@pytest.mark.parametrize(
    "text",
    ["@all", "<!channel> <@U1> <https://x|y>", "[a](https://x)", "`code`", "a\n# b", HOSTILE],
)
def test_chat_gets_no_mention_link_or_markup_of_others(text):
    alert = make_alert(3, message=text, kind=text, cause=text, values={})
    message = make_message(alert, run=f"/runs/{text}")
    for part in (message["title"], message["text"], message["markdown"]):
        assert "@" not in part
        assert not any(mark in part for mark in ("<!", "<@", "<h", "](", "`", "\x1b", "\n# b"))
    assert chat("d <= -2, k3 < 3 > 2") == "d <= -2, k3 < 3 > 2"


ADDRESS = "https://hooks.example.com/services/T0SECRET/B0SECRET"


@pytest.mark.parametrize(
    "notify",
    [
        ADDRESS, f"env:{ADDRESS}", f"file:{ADDRESS}", "env:xoxb-SECRET-1", "https://s3cr3tSECRET.example.com/",
        "https://a1b2c3d4e5SECRET.m.example.net", {"to": "env:X", ADDRESS: 1}, {"to": ADDRESS},
        {"to": "env:X", "severity": ADDRESS}, {"to": "env:X", "timeout": ADDRESS}, "ftp://SECRET@h/",
    ],
)  # fmt: skip
def test_an_error_about_an_address_prints_no_part_of_it(notify, capsys):
    with pytest.raises(ValueError, match="notify") as caught:
        parse_targets(notify)
    assert "SECRET" not in str(caught.value).upper().replace("MAY HOLD A SECRET", "")
    if isinstance(notify, str):
        assert main(["notify-test", notify]) == 2
        said = capsys.readouterr().err.upper()
        assert "SECRET" not in said.replace("MAY HOLD A SECRET", "")
