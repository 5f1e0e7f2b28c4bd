"""What was said to a person while a test ran."""

from __future__ import annotations

import logging

import pytest


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The messages of warnings and errors."""
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
