"""The screenshots of docs/dashboard.md: real runs of the demo, in a real Chromium.

make pictures
"""

from __future__ import annotations

import os
import tempfile
import threading
from io import BytesIO
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, sync_playwright

from klmonitor.dashboard.server import PageServer
from klmonitor.dashboard.source import RecordSource
from klmonitor_trl.demo.run import run_demo

IMAGES = Path(__file__).parent / "images"
VIEW = {"width": 1280, "height": 1210}
SHOWN = {
    "spike": "",
    "healthy": "",
    "k1": "",
    "k3": "",
    "sampler": "gap",
    "collapse": "gap",
}
"""Scenario -> the alert at which the cursor stands, empty for the first there is."""
PHONE = "collapse"


def main() -> None:
    """Train every scenario, and photograph its page."""
    with tempfile.TemporaryDirectory() as place, sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=os.environ.get("CHROMIUM", "/usr/bin/chromium"),
            args=["--no-sandbox", "--disable-gpu"],
        )
        for scenario, kind in SHOWN.items():
            if run_demo(scenario, out_dir=place, trackers=()):
                raise SystemExit(f"{scenario} did not show what it should: see above")
            directory = Path(place) / scenario / "klmonitor"
            picture(browser, directory, kind, VIEW, IMAGES / f"dashboard-{scenario}.png")
            if scenario == PHONE:
                narrow = {"width": 390, "height": 1210}
                picture(browser, directory, kind, narrow, IMAGES / "dashboard-phone.png", "dark")
        browser.close()


def picture(
    browser: Browser,
    directory: Path,
    kind: str,
    view: dict[str, int],
    to: Path,
    theme: str = "light",
) -> None:
    """Photograph the live page of a record, the cursor at its first alert of a kind."""
    with PageServer(RecordSource([directory])) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        page = browser.new_page(viewport=view)
        page.goto(f"{server.url}#theme={theme}")
        page.wait_for_selector("html[data-ready]")
        if kind:
            page.locator(".alert", has_text=f"· {kind} ·").first.click()
            page.mouse.move(0, 0)
            page.evaluate("document.activeElement.blur()")
        page.wait_for_timeout(1000)  # the verdict follows the cursor
        shot = page.screenshot()
        page.close()
        server.shutdown()
        thread.join()
    in_few_colours(Image.open(BytesIO(shot)).convert("RGB")).save(to, optimize=True)


def in_few_colours(image: Image.Image) -> Image.Image:
    """256 colours, a third of the size: the commonest as they are, the others near enough."""
    counts = sorted(image.getcolors(1 << 24) or [], reverse=True)
    common = [value for _, colour in counts[:128] for value in colour]
    covering = image.quantize(128, Image.Quantize.MAXCOVERAGE).getpalette() or []
    palette = Image.new("P", (1, 1))
    palette.putpalette(common + covering[: 3 * 128])
    return image.quantize(palette=palette, dither=Image.Dither.NONE)


if __name__ == "__main__":
    main()
