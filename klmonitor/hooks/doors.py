"""Doors: where a trainer calls us by itself, from a line of its configuration.

Options that cannot work are refused when the door is opened. A trainer that cannot be watched,
because it lacks what log-probs are had from, trains on: one line says what is missing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from klmonitor.boundary import cause, say
from klmonitor.hooks.configuration import load_options
from klmonitor.hooks.options import Options

T = TypeVar("T")
LACKING = (AttributeError, ImportError, LookupError, NotImplementedError, TypeError)
"""What is raised where a trainer is not as we know it."""


def door_options(given: Mapping[str, Any] | None = None) -> Options:
    """The options of a run that no code of the user's starts.

    Args:
        given: from the trainer's own configuration; the environment and a file are read besides
            (`klmonitor.hooks.configuration`).

    Raises:
        ValueError: an option is unknown, or has a value that cannot work.
    """
    options = load_options(given)
    if options.reference not in ("auto", None, False):
        raise ValueError(
            f"option reference is {options.reference!r}: a configuration cannot hold a model; give "
            "'auto' or none, or call klmonitor.attach(trainer, reference=model)"
        )
    return options


def entered(trainer: str, bind: Callable[[], T]) -> T | None:
    """What `bind` gives; None, and one line, where the trainer cannot be watched.

    Args:
        trainer: what it is, in words.
        bind: watches it.

    Raises:
        ValueError: an option cannot work with this trainer.
    """
    try:
        return bind()
    except LACKING as error:
        why = str(error) if type(error) is TypeError else cause(error)
        say("%s trains on without klmonitor: %s", trainer, why)
        return None
