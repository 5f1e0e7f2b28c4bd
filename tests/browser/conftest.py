"""A Chromium that may talk to this machine only, and runs to show it."""

import math
import os
import random
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import sync_playwright

from tests.helpers.pages import SPIKE_K3, SPIKES, write_lines

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
    path = tmp_path_factory.mktemp("long") / "long"
    path.mkdir()
    rng = random.Random(0)
    edges = [round(s * 2.0 ** (i / 2 - 8), 4) for s in (-1, 1) for i in range(20)]
    edges.sort()

    def pair(step, name):
        k3 = 0.01 * math.exp(0.2 * rng.gauss(0, 1))
        if name == "policy_ref" and step in SPIKES:
            k3 = SPIKE_K3
        sizes = {
            f"{k}/{m}": k3 * rng.uniform(0.8, 1.2) for k in ("k1", "k2") for m in ("mean", "var")
        }
        sizes |= {f"{k}/{m}": k3 / 10 for k in ("k1", "k2", "k3") for m in ("se", "running_var")}
        sizes |= {f"log_ratio/{q}": v * rng.uniform(0.8, 1.2) for q, v in QUANTILES.items()}
        sizes |= {f"dominance/{k}/top_share": rng.uniform(0.02, 0.1) for k in ("k1", "k3")}
        sizes |= {"k3/mean": k3, "k3/var": k3, "spike/z": rng.gauss(0, 1), "tokens": 1000}
        sizes |= {
            "outliers/k1": rng.randrange(5),
            "outliers/k3": rng.randrange(5),
            "outliers/rate": 3,
        }
        counts = [rng.randrange(1, 500) for _ in edges]
        return {"values": sizes, "histogram": {"edges": edges, "counts": counts}}

    rows = (
        {"step": s, "first_step": s, "pairs": {n: pair(s, n) for n in ("policy_ref", "old_policy")}}
        for s in range(20_000)
    )
    write_lines(path / "steps.jsonl", rows)
    return path


QUANTILES = {"p0.1": -0.5, "p1": -0.2, "p50": 0.001, "p99": 0.2, "p99.9": 0.5}
