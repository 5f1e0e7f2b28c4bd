"""The screenshots of docs/dashboard.md: real runs of every scenario, in a real Chromium.

make pictures                                 trains them
python docs/pictures.py DIRECTORY [NAME...]   of runs that `klmonitor demo --out DIRECTORY` has left
"""

from __future__ import annotations

import os
import sys
import tempfile
import threading
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

from klmonitor.dashboard.server import PageServer
from klmonitor.dashboard.source import RecordSource
from klmonitor_trl.demo.run import run_demo

IMAGES = Path(__file__).parent / "images"
LAPTOP, PHONE = {"width": 1280, "height": 1000}, {"width": 390, "height": 844}
SHOWN = {
    "spike": "",
    "healthy": "",
    "k1": "",
    "k3": "",
    "sampler": "gap",
    "collapse": "gap",
    "penalty": "pull_dead",
}
"""Scenario -> the alert at which the cursor stands, empty for the first there is."""
ROOMS, EDGE = ("story", "around"), 6
"""The first and the last room; pixels around them."""
TWO = ("spike", "collapse")
"""Overlaid in a picture of their own."""


def main(place: str | None = None, names: Sequence[str] = ()) -> None:
    """Photograph the page of every scenario; train those of which there is no run."""
    with tempfile.TemporaryDirectory() as fresh, sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=os.environ.get("CHROMIUM", "/usr/bin/chromium"),
            args=["--no-sandbox", "--disable-gpu"],
        )
        runs = Path(place or fresh)
        for name in names or SHOWN:
            if place is None and run_demo(name, out_dir=runs, trackers=()):
                raise SystemExit(f"{name} did not show what it should: see above")
            one, kind = [runs / name], SHOWN[name]
            picture(browser, one, kind, LAPTOP, IMAGES / f"dashboard-{name}.png")
            picture(browser, one, kind, PHONE, IMAGES / f"dashboard-{name}-phone.png", "dark")
        if not names:
            both = [runs / name for name in TWO]
            picture(browser, both, "", LAPTOP, IMAGES / "dashboard-two.png")
            for view, name in ((LAPTOP, "rooms"), (PHONE, "rooms-phone")):
                picture(browser, both[:1], "", view, IMAGES / f"dashboard-{name}.png", rooms=True)
        browser.close()


def picture(
    browser: Browser,
    directories: Sequence[Path],
    kind: str,
    view: dict[str, int],
    to: Path,
    theme: str = "light",
    rooms: bool = False,
) -> None:
    """Photograph the live page of records, the cursor at its first alert of a kind.

    The first screen of it, or its rooms, with the text of tokens.
    """
    with PageServer(RecordSource(directories, tokens_text=rooms)) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        page = browser.new_page(viewport=view)
        page.goto(f"{server.url}#theme={theme}")
        page.wait_for_selector("html[data-ready]")
        if kind:
            page.evaluate(
                "kind => KLM.app.goTo(KLM.app.alerts().find((a) => a.kind === kind).step)", kind
            )
        page.wait_for_timeout(1000)  # the verdict follows the cursor
        shot = page.screenshot(**(_rooms_of(page) if rooms else {}))
        page.close()
        server.shutdown()
        thread.join()
    in_few_colours(Image.open(BytesIO(shot)).convert("RGB")).save(to, optimize=True)


def _rooms_of(page: Page) -> dict[str, Any]:
    """Where the rooms are on the whole page."""
    first, last = (page.locator(f"#panel-{name}").bounding_box() for name in ROOMS)
    assert first
    assert last
    height = last["y"] + last["height"] - first["y"] + 2 * EDGE
    width = min(max(first["width"], last["width"]) + 2 * EDGE, 1280)
    place = {"x": first["x"] - EDGE, "y": first["y"] - EDGE, "width": width, "height": height}
    return {"full_page": True, "clip": place}


def in_few_colours(image: Image.Image) -> Image.Image:
    """256 colours, a third of the size: the commonest as they are, the others near enough."""
    counts = sorted(image.getcolors(1 << 24) or [], reverse=True)
    common = [value for _, colour in counts[:128] for value in colour]
    covering = image.quantize(128, Image.Quantize.MAXCOVERAGE).getpalette() or []
    palette = Image.new("P", (1, 1))
    palette.putpalette(common + covering[: 3 * 128])
    return image.quantize(palette=palette, dither=Image.Dither.NONE)


if __name__ == "__main__":
    main(next(iter(sys.argv[1:]), None), sys.argv[2:])
