"""The page of two long runs in a real Chromium: its first paint, and a zoom.

    PYTHONPATH=. python benchmarks/page.py [--steps 20000] [--opens 9] [--zooms 40]

20,000 steps of two pairs, two runs overlaid, served as `klmonitor serve` does it: the records are
read before the address is printed, and how long that takes is told apart. First paint: from the
navigation to the frame after every panel is drawn. Zoom: from the call to the frame after it, on
random ranges. Wall time of the page's own clock; beside it the CPU time that the browser took,
which a busy machine leaves alone.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page, sync_playwright

from klmonitor.dashboard.server import PageServer
from klmonitor.dashboard.source import RecordSource
from tests.helpers.longrun import write_long_run

PAINTED = """
new MutationObserver((seen, self) => {
    if (!document.documentElement.dataset.ready) return;
    self.disconnect();
    requestAnimationFrame(() => setTimeout(() => { window.painted = performance.now(); }));
}).observe(document, { subtree: true, attributes: true });
"""
ZOOM = """range => new Promise((done) => {
    const began = performance.now();
    KLM.app.zoom(range);
    requestAnimationFrame(() => requestAnimationFrame(() => done(performance.now() - began)));
})"""
FIRST_PAINT, A_ZOOM = 2000.0, 100.0
"""ms: what is to be kept."""


def cpu_seconds(page: Page) -> float:
    """CPU time that the page's process has taken."""
    session = page.context.new_cdp_session(page)
    session.send("Performance.enable")
    found = session.send("Performance.getMetrics")["metrics"]
    session.detach()
    return next(float(one["value"]) for one in found if one["name"] == "ProcessTime")


def opened(browser: Browser, url: str) -> tuple[Page, float]:
    """A page in a context of its own, and the ms to its first paint."""
    page = browser.new_context(viewport={"width": 1280, "height": 900}).new_page()
    page.add_init_script(PAINTED)
    page.goto(url)
    while not (painted := page.evaluate("window.painted")):
        time.sleep(0.05)
    return page, float(painted)


def measure(
    browser: Browser, url: str, steps: int, opens: int, zooms: int
) -> dict[str, list[float]]:
    """First paints and zooms, ms, and the CPU time of each kind."""
    found: dict[str, list[float]] = {"paint": [], "paint cpu": [], "zoom": []}
    for _ in range(opens):
        page, painted = opened(browser, url)
        found["paint"].append(painted)
        found["paint cpu"].append(1000 * cpu_seconds(page))
        page.context.close()
    page, _ = opened(browser, url)
    assert page.evaluate("KLM.app.shown().length") == 2
    rng = random.Random(0)
    before = cpu_seconds(page)
    for _ in range(zooms):
        low = rng.randrange(steps - steps // 20)
        high = min(low + rng.randrange(steps // 20, steps), steps - 1)
        found["zoom"].append(page.evaluate(ZOOM, [low, high]))
        page.wait_for_timeout(200)  # the panels out of sight follow
    found["zoom cpu"] = [1000 * (cpu_seconds(page) - before) / zooms]
    page.context.close()
    return found


def main() -> None:
    """Write two runs, open them, and tell."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, number in (("steps", 20_000), ("opens", 9), ("zooms", 40)):
        parser.add_argument(f"--{name}", type=int, default=number)
    args: Any = parser.parse_args()
    with tempfile.TemporaryDirectory() as place, sync_playwright() as playwright:
        runs = [write_long_run(Path(place) / f"run{i}", args.steps, seed=i) for i in range(2)]
        source = RecordSource(runs)
        began, cpu = time.perf_counter(), time.process_time()
        source.runs()
        took, cpu = time.perf_counter() - began, time.process_time() - cpu
        print(f"reading two runs of {args.steps} steps: {took:.1f} s ({cpu:.1f} s of CPU)")
        print(f"a second of CPU takes {took / cpu:.1f} s here: 1 on an idle machine")
        with PageServer(source) as server:
            thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
            thread.start()
            browser = playwright.chromium.launch(
                executable_path=os.environ.get("CHROMIUM", "/usr/bin/chromium"),
                args=["--no-sandbox", "--disable-gpu"],
            )
            found = measure(browser, server.url, args.steps, args.opens, args.zooms)
            browser.close()
            server.shutdown()
            thread.join()
    for name, limit in (("paint", FIRST_PAINT), ("zoom", A_ZOOM)):
        middle, most = statistics.median(found[name]), max(found[name])
        cpu = statistics.median(found[f"{name} cpu"])
        kept = "kept" if middle <= limit else "NOT KEPT"
        print(
            f"{name}: median {middle:.0f} ms, largest {most:.0f} ms, of {len(found[name])}; CPU "
            f"{cpu:.0f} ms; limit {limit:.0f} ms: {kept}"
        )


if __name__ == "__main__":
    main()
