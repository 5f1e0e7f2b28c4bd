"""The subcommands of ``klmonitor``: one module each, listed in `COMMANDS`.

A command's module docstring is its help. It defines `NAME`, `configure` (its arguments) and `run`
(its exit status), and imports what it needs inside `run`, so that ``klmonitor --help`` is quick
and no command needs what another one does.
"""

from __future__ import annotations

import argparse
from typing import Protocol

from klmonitor.commands import (
    backtests,
    demo,
    doctor,
    explain,
    export,
    mute,
    note,
    notify_test,
    read,
    report,
    serve,
    simulate,
    status,
    tune,
    wandb_dashboard,
    watch,
)


class Command(Protocol):
    """What a command's module defines."""

    NAME: str
    __doc__: str | None

    def configure(self, parser: argparse.ArgumentParser) -> None:
        """Declare the arguments."""

    def run(self, args: argparse.Namespace) -> int:
        """Do it; the exit status."""


COMMANDS: tuple[Command, ...] = (
    demo,
    read,
    status,
    explain,
    report,
    serve,
    watch,
    backtests,
    tune,
    export,
    note,
    mute,
    simulate,
    doctor,
    notify_test,
    wandb_dashboard,
)
"""In the order of the help."""
