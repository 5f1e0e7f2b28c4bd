"""The page's own files: scripts in the order in which they run, one style sheet, uPlot if built."""

from __future__ import annotations

from pathlib import Path

STATIC = Path(__file__).parent / "static"
SCRIPTS = (
    "vendor/uPlot.iife.min.js",
    "source.js",
    "decimate.js",
    "frame.js",
    "panels.js",
    "paint.js",
    "axes.js",
    "export.js",
    "chart.js",
    "pull.js",
    "story.js",
    "cause.js",
    "runs.js",
    "around.js",
    "details.js",
    "glance.js",
    "address.js",
    "layout.js",
    "app.js",
)
"""What every host loads; the last of them starts the page, but for TensorBoard's `index.js`."""
STYLES = ("vendor/uPlot.min.css", "style.css")
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
}
_NAMES = frozenset((*SCRIPTS, *STYLES, "index.html", "index.js"))


def asset(name: str) -> tuple[str, bytes]:
    """The media type and the bytes of one of the page's files.

    Raises:
        LookupError: it is none of them, or uPlot was not there when klmonitor was built.
    """
    path = STATIC / name
    if name not in _NAMES or not path.is_file():
        raise LookupError(f"no file {name!r}")
    body = path.read_bytes()
    if name == "index.html":
        tags = (f'<script src="{script}"></script>' for script in SCRIPTS)
        body = body.replace(b"<!-- scripts -->", "\n".join(tags).encode())
    elif name == "index.js":
        body = body.replace(b"{scripts}", " ".join(SCRIPTS).encode())
    return TYPES[path.suffix], body


def text_of(name: str) -> str:
    """The text of one of the page's files, empty where uPlot was not there at build time."""
    path = STATIC / name
    return path.read_text(encoding="utf-8") if path.is_file() else ""
