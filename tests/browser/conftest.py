"""A Chromium that may talk to this machine only, and runs to show it."""

import os
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import sync_playwright

from tests.helpers.longrun import write_long_run

FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
ONE_THREAD = os.environ | {"OMP_NUM_THREADS": "1"}
PROBES = Path(__file__).parent / "probes.js"
MAIN = "from klmonitor.cli import main; raise SystemExit(main())"


class Watched:
    """A page and what it did: console messages, errors, requests."""

    def __init__(self, page):
        self.page = page
        self.said, self.asked, self.missed = [], [], []
        page.add_init_script(path=PROBES)
        page.on("console", self._hear)
        page.on("pageerror", lambda error: self.said.append(f"error: {error}"))
        page.on("dialog", lambda dialog: self.said.append(f"dialog: {dialog.message}"))
        page.on("response", lambda r: self.missed.append(r.url) if r.status == 404 else None)
        page.on("request", lambda request: self.asked.append(request.url))

    def _hear(self, message):
        if "willReadFrequently" not in message.text:  # the probes read pixels, the page does not
            self.said.append(f"{message.type}: {message.text}")

    def open(self, url):
        self.page.goto(url)
        self.page.wait_for_selector("html[data-ready]")
        return self.page

    def assert_quiet(self):
        assert (self.said, self.missed) == ([], [])
        away = [url for url in self.asked if not is_local(url)]
        assert away == []


def is_local(url):
    parts = urlsplit(url)
    return parts.scheme in ("file", "data", "blob") or parts.hostname in ("127.0.0.1", "localhost")


@pytest.fixture(scope="session")
def chromium():
    path = os.environ.get("CHROMIUM", "/usr/bin/chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(FLAGS))
        yield browser
        browser.close()


@pytest.fixture
def watched(chromium):
    context = chromium.new_context(viewport={"width": 1400, "height": 1000})
    yield Watched(context.new_page())
    context.close()


@pytest.fixture(scope="session")
def demo(tmp_path_factory):
    """The demo's run with the spike: a real GRPO run; its directory."""
    out = tmp_path_factory.mktemp("demo")
    command = [sys.executable, "-c", MAIN, "demo", "--steps", "60", "--out", str(out)]
    subprocess.run(
        command, check=True, capture_output=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    return out / "spike"


@pytest.fixture(scope="session")
def long_run(tmp_path_factory):
    """20,000 steps of two pairs; k3 of the first is `SPIKE_K3` at each step of `SPIKES`."""
    return write_long_run(tmp_path_factory.mktemp("long") / "long")
