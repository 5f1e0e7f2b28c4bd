"""Builds bring the chart library along, and make a wheel small.

npm fetches uPlot, by the lock file, into the package: a dependency, not a copy of ours, which git
ignores and wheels and sdists carry. In a wheel our own scripts come as one file, minified
by terser from the same lock file, and everything is deflated by zopfli. Where npm is not installed
the build goes on without: the page then says what is missing, and the scripts are as they were
written.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from pathlib import Path
from runpy import run_path
from typing import Any
from zipfile import ZIP_DEFLATED, ZipFile

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

STATIC = Path("klmonitor/dashboard/static")
VENDOR = STATIC / "vendor"
FILES = ("dist/uPlot.iife.min.js", "dist/uPlot.min.css", "LICENSE")


class Page(BuildHookInterface[Any]):
    """What the dashboard's page needs of a build."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Put uPlot beside the page; for a wheel, minify the scripts."""
        self._place = Path(tempfile.mkdtemp())
        wheel = self.target_name == "wheel" and version == "standard"
        modules = None
        if wheel or not self._has_library():
            modules = self._fetch()
        if modules is not None:
            self._copy_library(modules)
        if wheel:
            for name, scripts in self._scripts(bundled=modules is not None).items():
                script = scripts[0] if modules is None else self._minified(name, scripts, modules)
                build_data["force_include"][str(script)] = str(STATIC / name)

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Deflate a wheel's files anew, and clean up."""
        if self.target_name == "wheel" and version == "standard":
            _deflate(Path(artifact_path))
        shutil.rmtree(self._place, ignore_errors=True)

    def _wanted(self) -> str:
        lock = json.loads((Path(self.root) / "package-lock.json").read_text(encoding="utf-8"))
        return str(lock["packages"]["node_modules/uplot"]["version"])

    def _has_library(self) -> bool:
        stamp = Path(self.root) / VENDOR / "VERSION"
        return stamp.exists() and stamp.read_text(encoding="utf-8") == self._wanted()

    def _fetch(self) -> Path | None:
        """What npm installs, None where it does not."""
        npm = shutil.which("npm")
        if npm is None:
            self.app.display_warning(
                "npm is not installed: the dashboard comes "
                + ("with larger scripts" if self._has_library() else "without charts")
            )
            return None
        for name in ("package.json", "package-lock.json"):
            shutil.copy(Path(self.root) / name, self._place)
        command = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
        done = subprocess.run(command, cwd=self._place, capture_output=True, text=True, check=False)
        if done.returncode:
            self.app.display_warning(f"npm ci failed: {done.stderr.strip()[-500:]}")
            return None
        return self._place / "node_modules"

    def _copy_library(self, modules: Path) -> None:
        vendor = Path(self.root) / VENDOR
        vendor.mkdir(parents=True, exist_ok=True)
        for name in FILES:
            shutil.copy(modules / "uplot" / name, vendor)
        (vendor / "VERSION").write_text(self._wanted(), encoding="utf-8")

    def _scripts(self, *, bundled: bool) -> dict[str, list[Path]]:
        """What the wheel gets -> which scripts of ours it is made of."""
        static = Path(self.root) / STATIC
        parts = [static / name for name in _parts(Path(self.root))] if bundled else []
        others = {path.name: [path] for path in sorted(static.glob("*.js")) if path not in parts}
        return {"page.js": parts, **others} if bundled else others

    def _minified(self, name: str, scripts: list[Path], modules: Path) -> Path:
        small = self._place / name
        terser = modules / "terser" / "bin" / "terser"
        sources = map(str, scripts)
        command = ["node", str(terser), *sources, "--compress", "--mangle", "-o", str(small)]
        subprocess.run(command, check=True, capture_output=True)
        return small


def _parts(root: Path) -> list[str]:
    """The page's scripts in the order in which they run."""
    return list(run_path(str(root / STATIC.parent / "assets.py"))["PARTS"])


def _deflate(wheel: Path) -> None:
    """Write a wheel again, its files as they are, deflated as far as deflate goes."""
    try:
        from zopfli import ZipFile as SmallZipFile
    except ImportError:
        return
    written = wheel.with_suffix(".small")
    with ZipFile(wheel) as old, SmallZipFile(written, "w", compression=ZIP_DEFLATED) as new:
        for entry in old.infolist():
            new.writestr(entry, old.read(entry))
    written.replace(wheel)
