"""Options where nobody calls `attach`: from a command line, the environment, a file.

In falling precedence: what the trainer's own command line gave; ``KLMONITOR_<OPTION>`` of the
environment; the table ``[klmonitor]`` of the TOML file that ``KLMONITOR_CONFIG`` names. The keys
are the options of `klmonitor.hooks.options.Options`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from klmonitor.hooks.options import Options
from klmonitor.monitor.configuration import GIVEN, layered, value_of, with_penalty

__all__ = ["GIVEN", "gathered", "load_options", "option_names", "value_of"]


def load_options(
    given: Mapping[str, Any] | None = None, environ: Mapping[str, str] | None = None
) -> Options:
    """Options from everywhere, see this module.

    Args:
        given: what the trainer's command line says, by option.
        environ: variables; None: the process's own.

    Raises:
        ValueError: an option is unknown (the message has the nearest), or its value or the file
            cannot be used; the message says where it came from.
    """
    return Options.parse(with_penalty(gathered(given, environ)))


def gathered(
    given: Mapping[str, Any] | None = None, environ: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """The options that were given anywhere, as they were written; see `load_options`."""
    return layered(option_names(), given or {}, "the command line", environ)


def option_names() -> list[str]:
    """Names of all options."""
    return [field.name for field in dataclasses.fields(Options)]
