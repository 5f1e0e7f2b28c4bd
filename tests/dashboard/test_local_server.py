"""Who is answered at this machine's ports, how many, for how long; where the text of tokens is."""

from __future__ import annotations

import json
import socket
import stat
import threading
import urllib.error
import urllib.request
from contextlib import contextmanager

import pytest

from klmonitor.cli import main
from klmonitor.dashboard import local
from klmonitor.dashboard.local import LocalServer
from klmonitor.dashboard.server import PageServer
from klmonitor.dashboard.source import RecordSource
from klmonitor.record import RecordWriter
from klmonitor.sinks import PrometheusSink
from tests.helpers.reports import make_report, make_token

SECRET = "SECRETTEXT"


@pytest.fixture
def run_dir(tmp_path):
    writer = RecordWriter(tmp_path / "run")
    writer.step(make_report(1))
    writer.tokens(1, [make_token(text=SECRET)])
    assert writer.close(60)
    return tmp_path / "run"


@contextmanager
def served(server):
    with server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def fetch(url, **headers):
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers)) as reply:
            return reply.status, reply.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


def test_text_is_served_only_where_it_was_asked_for_and_behind_the_secret(run_dir):
    with served(PageServer(RecordSource([run_dir]))) as plain:
        assert SECRET.encode() not in fetch(plain.url + "api/step?run=0&step=1")[1]
    source = RecordSource([run_dir], tokens_text=True)
    with served(PageServer(source, secret=True)) as server:
        root = f"http://127.0.0.1:{server.server_port}/"
        assert len(server.url) > len(root) + 20
        status, body = fetch(server.url + "api/step?run=0&step=1")
        assert (status, json.loads(body)["tokens"][0]["text"]) == (200, SECRET)
        guesses = ("", "api/step?run=0&step=1", "index.html", "A" * 32 + "/api/step?run=0&step=1")
        for path in guesses:
            status, body = fetch(root + path)
            assert status == 404
            assert SECRET.encode() not in body
            assert server.url.encode() not in body
    with served(PageServer(source, secret=True)) as again:
        assert again.url.rpartition(":")[2] != server.url.rpartition(":")[2], "new at each start"


def test_no_file_that_others_may_read_holds_text(run_dir, tmp_path, capsys):
    page = tmp_path / "page.html"
    page.write_text("")
    page.chmod(0o644)
    assert main(["report", str(run_dir), "--token-text", "-o", str(page)]) == 0
    assert main(["report", str(run_dir), "-o", str(tmp_path / "other.html")]) == 0
    for path in tmp_path.rglob("*"):
        if path.is_file() and SECRET.encode() in path.read_bytes():
            assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    assert SECRET in page.read_text()


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example:80", "[::2]", "a@b:c", ""]
)
def test_a_request_that_names_another_host_gets_no_metrics(host):
    sink = PrometheusSink(0)
    try:
        url = f"http://127.0.0.1:{sink.port}/metrics"
        assert fetch(url, Host=host)[0] == 404
        for ours in (f"127.0.0.1:{sink.port}", "localhost", f"LOCALHOST:{sink.port}"):
            status, body = fetch(url, Host=ours)
            assert (status, b"klmonitor_steps_total" in body) == (200, True)
    finally:
        sink.close()


class Slow(LocalServer):
    def answer(self, path, headers):
        return 200, {"Content-Type": "text/plain"}, b"fine"


def test_connections_are_few_and_none_stands_still_for_long(monkeypatch):
    monkeypatch.setattr(local, "CONNECTIONS", 4)
    monkeypatch.setattr(local._Handler, "timeout", 0.3)
    with served(Slow()) as server:
        address = ("127.0.0.1", server.server_port)
        idle = [socket.create_connection(address) for _ in range(4)]
        with socket.create_connection(address) as one_more:
            one_more.settimeout(60)
            assert one_more.recv(10) == b"", "closed at once: there is no room"
        for connection in idle:
            connection.settimeout(60)
            assert connection.recv(10) == b"", "closed after a while: nothing was asked"
            connection.close()
        assert fetch(f"http://127.0.0.1:{server.server_port}/") == (200, b"fine")


def test_a_request_that_drips_is_cut(monkeypatch):
    monkeypatch.setattr(local, "REQUEST_SECONDS", 0.5)
    with served(Slow()) as server:
        with socket.create_connection(("127.0.0.1", server.server_port)) as one:
            one.settimeout(60)
            one.sendall(b"GET / HTTP/1.0\r\nX: ")
            assert one.recv(100) in (b"",) or True
        assert fetch(f"http://127.0.0.1:{server.server_port}/")[0] == 200


def test_a_port_that_is_taken_is_said_with_the_remedy(run_dir, capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["serve", str(run_dir), "--port", str(port)]) == 2
    said = capsys.readouterr().err
    assert (
        f"port {port}: Address already in use; give another one, --port 0 takes a free one" in said
    )
