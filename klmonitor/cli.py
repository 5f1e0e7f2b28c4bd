"""The command line: ``klmonitor COMMAND``. The commands are in `klmonitor.commands`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from contextlib import nullcontext

from klmonitor import __version__
from klmonitor.commands import COMMANDS
from klmonitor.terminal import inert_output

DRAWN = ("watch", "demo")
"""Commands that draw in colour, and see to text themselves."""


def make_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="klmonitor",
        description="KL estimates you can trust, or distrust, while an LLM is trained with RL.",
    )
    parser.add_argument("--version", action="version", version=f"klmonitor {__version__}")
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    for command in COMMANDS:
        summary = (command.__doc__ or "").partition("\n")[0]
        aliases = getattr(command, "ALIASES", ())
        sub = subparsers.add_parser(
            command.NAME, aliases=aliases, help=summary, description=command.__doc__
        )
        command.configure(sub)
        sub.set_defaults(run=command.run, command=command.NAME)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: arguments without the program's name; None: those of the process.

    Returns:
        The exit status: 0 fine; 1 where a command answers yes or no and the answer is no; 2 bad
        usage or nothing readable; 130 after an interrupt.
    """
    try:
        args = make_parser().parse_args(argv)
        with nullcontext() if args.command in DRAWN else inert_output():
            status: int = args.run(args)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader of our output has left: not an error of ours
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return status
