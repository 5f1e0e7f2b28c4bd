"""Builds bring the chart library along: npm fetches it, by the lock file, into the package.

It is a dependency, not a copy of ours: git ignores it, wheels and sdists carry it. Where npm is
not installed the build goes on without, and the page then says what is missing.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

FILES = ("dist/uPlot.iife.min.js", "dist/uPlot.min.css", "LICENSE")
VENDOR = Path("klmonitor/dashboard/static/vendor")


class ChartLibrary(BuildHookInterface[Any]):
    """Puts uPlot beside the page, for every kind of build."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Fetch it, unless the version of the lock file is there already."""
        root = Path(self.root)
        lock = json.loads((root / "package-lock.json").read_text(encoding="utf-8"))
        wanted = lock["packages"]["node_modules/uplot"]["version"]
        stamp = root / VENDOR / "VERSION"
        if stamp.exists() and stamp.read_text(encoding="utf-8") == wanted:
            return
        npm = shutil.which("npm")
        if npm is None:
            self.app.display_warning("npm is not installed: the dashboard comes without charts")
            return
        with tempfile.TemporaryDirectory() as place:
            for name in ("package.json", "package-lock.json"):
                shutil.copy(root / name, place)
            command = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
            done = subprocess.run(command, cwd=place, capture_output=True, text=True, check=False)
            if done.returncode:
                self.app.display_warning(f"npm ci failed, no charts: {done.stderr.strip()[-500:]}")
                return
            stamp.parent.mkdir(parents=True, exist_ok=True)
            for name in FILES:
                shutil.copy(Path(place) / "node_modules" / "uplot" / name, stamp.parent)
        stamp.write_text(wanted, encoding="utf-8")
