"""The page's own files: scripts in the order in which they run, one style sheet, uPlot if built."""

from __future__ import annotations

from pathlib import Path

STATIC = Path(__file__).parent / "static"
SCRIPTS = (
    "vendor/uPlot.iife.min.js",
    "source.js",
    "decimate.js",
    "panels.js",
    "paint.js",
    "chart.js",
    "details.js",
    "app.js",
)
"""What every host loads; one script more starts the page."""
STYLES = ("vendor/uPlot.min.css", "style.css")
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
}
_NAMES = frozenset((*SCRIPTS, *STYLES, "index.html", "live.js", "index.js"))


def asset(name: str) -> tuple[str, bytes]:
    """The media type and the bytes of one of the page's files.

    Raises:
        LookupError: it is none of them, or uPlot was not there when klmonitor was built.
    """
    path = STATIC / name
    if name not in _NAMES or not path.is_file():
        raise LookupError(f"no file {name!r}")
    return TYPES[path.suffix], path.read_bytes()


def text_of(name: str) -> str:
    """The text of one of the page's files, empty where uPlot was not there at build time."""
    path = STATIC / name
    return path.read_text(encoding="utf-8") if path.is_file() else ""
