"""The page's own files: scripts in the order in which they run, one style sheet."""

from __future__ import annotations

from pathlib import Path

STATIC = Path(__file__).parent / "static"
SCRIPTS = (
    "source.js",
    "decimate.js",
    "panels.js",
    "plot.js",
    "paint.js",
    "chart.js",
    "details.js",
    "app.js",
)
"""What every host loads; one script more starts the page."""
STYLES = ("style.css",)
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
}
_NAMES = frozenset((*SCRIPTS, *STYLES, "index.html", "live.js", "index.js"))


def asset(name: str) -> tuple[str, bytes]:
    """The media type and the bytes of one of the page's files.

    Raises:
        LookupError: it is none of them.
    """
    path = STATIC / name
    if name not in _NAMES:
        raise LookupError(f"no file {name!r}")
    return TYPES[path.suffix], path.read_bytes()


def text_of(name: str) -> str:
    """The text of one of the page's files."""
    return (STATIC / name).read_text(encoding="utf-8")
