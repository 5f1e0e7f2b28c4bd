"""Text and tables as HTML for a notebook, all of it escaped."""

from __future__ import annotations

import html
from collections.abc import Sequence


def text_html(text: str) -> str:
    """Text with its line breaks."""
    return f"<pre>{html.escape(text)}</pre>"


def table_html(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table with a head."""
    head = "".join(f"<th>{html.escape(name)}</th>" for name in columns)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
