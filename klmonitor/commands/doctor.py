"""Say what is installed, which trainers and sinks can be used, and what would be bound.

Exit status: 0 if klmonitor can watch a trainer here; 1 if it cannot (torch or every trainer is
missing or cannot be imported, or KLMONITOR_DISABLE is set).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from dataclasses import asdict, dataclass
from importlib import import_module
from importlib.metadata import EntryPoint, PackageNotFoundError, entry_points, version
from importlib.util import find_spec

NAME = "doctor"
INTEGRATIONS = "klmonitor.integrations"
PACKAGES = ("torch", "numpy", "numba", "transformers", "accelerate", "peft", "rich")


@dataclass(frozen=True)
class Line:
    """One line of the report.

    Attributes:
        part: ``"installed"``, ``"trainers"``, ``"sinks"`` or ``"settings"``.
        name: what it is about.
        text: what was found.
        good: whether it can be used; None where that is not the question.
        needed: whether the exit status depends on it.
    """

    part: str
    name: str
    text: str
    good: bool | None = None
    needed: bool = False


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("--json", action="store_true", help="one JSON object, for scripts")


def run(args: argparse.Namespace) -> int:
    """Look around; 0 if something can be watched."""
    findings = [*_installed(), *_trainers(), *_sinks(), *_settings()]
    trainers = [one for one in findings if one.part == "trainers"]
    good = all(one.good for one in findings if one.needed) and any(one.good for one in trainers)
    if args.json:
        rows = [asdict(one) for one in findings]
        sys.stdout.write(json.dumps({"good": good, "findings": rows}, indent=1) + "\n")
    else:
        sys.stdout.write(_text(findings, good))
    return 0 if good else 1


def _text(findings: list[Line], good: bool) -> str:
    lines, part = [], ""
    for one in findings:
        if one.part != part:
            part = one.part
            lines.append(part)
        mark = {True: "ok", False: "no", None: "  "}[one.good]
        lines.append(f"  {mark} {one.name:18} {one.text}")
    lines.append("klmonitor can be used here" if good else "klmonitor cannot watch a trainer here")
    return "\n".join(lines) + "\n"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _installed() -> list[Line]:
    found = [
        Line("installed", "klmonitor", str(_version("klmonitor"))),
        Line("installed", "python", platform.python_version()),
    ]
    for package in PACKAGES:
        number, needed = _version(package), package in ("torch", "numpy")
        good = number is not None if needed else None
        found.append(Line("installed", package, number or "not installed", good, needed))
    return found


def _trainers() -> list[Line]:
    found = []
    for entry in sorted(entry_points(group=INTEGRATIONS), key=lambda entry: entry.name):
        number = _version(entry.name) or "of unknown version"
        if find_spec(entry.name) is None:
            found.append(Line("trainers", entry.name, "not installed"))
        else:
            found += _bound(entry, f"{entry.name} {number}")
    return found


def _bound(entry: EntryPoint, package: str) -> list[Line]:
    """What an integration says of the trainers that its package has."""
    try:
        lines = import_module(f"{entry.module}.doctor").report()
    except ModuleNotFoundError as error:
        if error.name == f"{entry.module}.doctor":
            return [Line("trainers", entry.name, f"{package}: bound when it runs")]
        return [Line("trainers", entry.name, f"{package}: {error}", good=False, needed=True)]
    except Exception as error:  # noqa: BLE001  # a broken installation is what this looks for
        text = f"{package} cannot be imported: {type(error).__name__}: {error}".splitlines()[0]
        return [Line("trainers", entry.name, text, good=False, needed=True)]
    return [Line("trainers", name, f"{package}: {text}", good) for name, text, good in lines]


def _sinks() -> list[Line]:
    from klmonitor.sinks.table import TABLE

    needs = [(kind.name, kind.package, kind.extra) for kind in TABLE]
    found = [Line("sinks", "record", "files in the run directory", good=True)]
    for sink, package, extra in (*needs, ("notify", "apprise", "notify")):
        number = _version(package)
        remedy = f'needs {package}: pip install "klmonitor[{extra}]"'
        text = f"{package} {number}" if number else remedy
        found.append(Line("sinks", sink, text, good=number is not None))
    return found


def _settings() -> list[Line]:
    off = os.environ.get("KLMONITOR_DISABLE", "0") not in ("", "0")
    text = "set: every hook is off" if off else "not set"
    return [Line("settings", "KLMONITOR_DISABLE", text, good=not off, needed=True)]
