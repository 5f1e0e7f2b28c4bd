"""A build brings the chart library along.

npm fetches uPlot, by the lock file, into the package: a dependency, not a copy of ours, which git
ignores and wheels and sdists carry. Where npm is not installed the build goes on without: the page
then says what is missing.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

VENDOR = Path("klmonitor/dashboard/static/vendor")
FILES = ("dist/uPlot.iife.min.js", "dist/uPlot.min.css", "LICENSE")


class Page(BuildHookInterface[Any]):
    """What the dashboard's page needs of a build."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Put uPlot beside the page, unless the version wanted is there."""
        lock = json.loads((Path(self.root) / "package-lock.json").read_text(encoding="utf-8"))
        wanted = str(lock["packages"]["node_modules/uplot"]["version"])
        stamp = Path(self.root) / VENDOR / "VERSION"
        if stamp.exists() and stamp.read_text(encoding="utf-8") == wanted:
            return
        with tempfile.TemporaryDirectory() as place:
            if self._fetch(Path(place)):
                stamp.parent.mkdir(parents=True, exist_ok=True)
                for name in FILES:
                    shutil.copy(Path(place) / "node_modules" / "uplot" / name, stamp.parent)
                stamp.write_text(wanted, encoding="utf-8")

    def _fetch(self, place: Path) -> bool:
        """Whether npm installed the library in a folder."""
        npm = shutil.which("npm")
        if npm is None:
            self.app.display_warning("npm is not installed: the dashboard comes without charts")
            return False
        for name in ("package.json", "package-lock.json"):
            shutil.copy(Path(self.root) / name, place)
        command = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
        done = subprocess.run(command, cwd=place, capture_output=True, text=True, check=False)
        if done.returncode:
            self.app.display_warning(f"npm ci failed: {done.stderr.strip()[-500:]}")
        return done.returncode == 0
