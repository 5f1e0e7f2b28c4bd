"""What the browser's tests share: runs served, records read, pixels counted."""

import json
import threading
import time
from contextlib import contextmanager
from pathlib import Path

from klmonitor.dashboard.server import PageServer
from klmonitor.dashboard.source import RecordSource

HOSTILE_RUN = "<img src=x onerror=alert(1)>\u202egnp.exe"
SPIKES = tuple(range(250, 20_000, 500))
SPIKE_K3 = 5.0


@contextmanager
def serving(*paths, tokens_text=False):
    with PageServer(RecordSource(paths, tokens_text=tokens_text)) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield server.url
        finally:
            server.shutdown()
            thread.join()


def write_lines(path, rows):
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def wait_until(page, expression, arg=None, seconds=20.0):
    """Wait until the page finds an expression true; the policy forbids Playwright's own way."""
    deadline = time.monotonic() + seconds
    while not page.evaluate(expression, arg):
        assert time.monotonic() < deadline, f"never true: {expression}"
        time.sleep(0.05)


def read(path: Path):
    return [json.loads(line) for line in path.read_text().splitlines()]
