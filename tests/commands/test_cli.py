"""The command line's frame: commands are found, errors are one line."""

import re
import subprocess
import sys

import pytest

from klmonitor import __version__
from klmonitor.cli import main, make_parser
from klmonitor.commands import COMMANDS


def test_help_lists_every_command(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    said = capsys.readouterr().out
    for command in COMMANDS:
        assert re.search(rf"\n    {command.NAME}\s", said)


def test_version(capsys):
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out.strip() == f"klmonitor {__version__}"


def test_a_command_is_needed(capsys):
    with pytest.raises(SystemExit) as stop:
        main([])
    assert stop.value.code == 2
    assert "COMMAND" in capsys.readouterr().err


def test_the_status_is_the_commands(monkeypatch):
    monkeypatch.setattr("klmonitor.commands.demo.run", lambda args: 7)
    assert main(["demo"]) == 7


def test_an_interrupt_is_130(monkeypatch):
    def interrupted(args):
        raise KeyboardInterrupt

    monkeypatch.setattr("klmonitor.commands.demo.run", interrupted)
    assert main(["demo"]) == 130


def test_what_is_not_installed_is_named(monkeypatch, capsys):
    monkeypatch.setattr("klmonitor_trl.demo.command.NEEDED", ("no_such_trainer",))
    assert main(["demo"]) == 2
    assert "needs no_such_trainer: pip install 'klmonitor[all]'" in capsys.readouterr().err


def test_the_parser_imports_no_trainer():
    code = (
        "import sys; from klmonitor.cli import make_parser; make_parser(); "
        "sys.exit(bool({'torch', 'trl', 'transformers', 'rich', 'wandb'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_defaults():
    args = make_parser().parse_args(["demo"])
    assert (args.scenario, args.steps, args.out) == ("spike", 80, "klmonitor-demo")
