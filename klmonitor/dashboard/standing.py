"""Where runs are, for people on one screen and for programs as one stable object.

A run is ``"critical"`` or ``"warn"`` where an alert of that severity is open and not muted, or
``"warn"`` where klmonitor misses log-probs or k3 never came back from a rise that was told
(`klmonitor.dashboard.events.raised`); else ``"fine"``. A path without a readable record is
``"unreadable"``. The object's form is `klmonitor.dashboard.statusschema`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

from klmonitor.dashboard.events import SEVERITIES, Raised, open_alerts, raised
from klmonitor.dashboard.source import find_records, run_names
from klmonitor.record import MUTES, RunRecord, read_run
from klmonitor.record.mutes import Mute, MuteFile
from klmonitor.record.rows import finite_or_none
from klmonitor.report import Alert, PairReport, Report, Row

SCHEMA = "klmonitor.status/1"
"""Of the object. What is added later keeps it; what changes or goes makes it ``/2``."""
LEVELS = ("fine", "warn", "critical")
EXITS = {"fine": 0, "warn": 10, "critical": 11, "unreadable": 2}
"""Level of the worst run -> exit status; runs that are unreadable count only where all are."""
NUMBERS = {
    "k1": "k1/mean",
    "k1_se": "k1/se",
    "k2": "k2/mean",
    "k3": "k3/mean",
    "k3_se": "k3/se",
    "tokens": "tokens",
    "sequences": "sequences",
    "dominance": "dominance/level",
    "spike_z": "spike/z",
}
"""Key of a pair -> metric."""


def standing(paths: Sequence[str | os.PathLike[str]], now: float | None = None) -> Row:
    """The object for some paths, each a run directory or one that holds several.

    Args:
        paths: of runs.
        now: seconds since the epoch, for the age of the last row.
    """
    moment = time.time() if now is None else now
    found: list[Path] = []
    runs: list[Row] = []
    for path in paths:
        records, wrong = _records(path)
        found += [one for one in records if one not in found]
        runs += wrong
    names = run_names(found) if found else []
    runs += [
        _of_path(directory, name, moment) for directory, name in zip(found, names, strict=True)
    ]
    levels = [run["level"] for run in runs]
    readable = [level for level in levels if level in LEVELS]
    level = max(readable, key=LEVELS.index) if readable else "unreadable"
    return {"schema": SCHEMA, "level": level, "exit": EXITS[level], "runs": runs}


def _records(path: str | os.PathLike[str]) -> tuple[list[Path], list[Row]]:
    """The records of a path, or what is wrong with it."""
    try:
        return find_records(Path(path)), []
    except OSError as error:
        return [], [_unreadable(str(path), str(path), error)]


def _of_path(directory: Path, name: str, now: float) -> Row:
    try:
        mutes = MuteFile(directory / MUTES).mutes
        return run_standing(read_run(directory), name, str(directory), now, mutes)
    except (OSError, ValueError, KeyError, TypeError) as error:
        return _unreadable(name, str(directory), error)


def _unreadable(name: str, path: str, error: Exception) -> Row:
    return run_standing(RunRecord(), name, path, 0.0) | {
        "level": "unreadable",
        "error": " ".join(str(error).split()) or type(error).__name__,
        "do": ["give the directory that was the run's run_dir"],
    }


def run_standing(
    run: RunRecord, name: str, path: str, now: float, mutes: Sequence[Mute] = ()
) -> Row:
    """The object of one run."""
    steps = [report for report in run.reports if report.phase == "train"]
    last = steps[-1] if steps else None
    kinds = {n: pair.open_kinds for n, (_, pair) in _newest(steps).items()}
    opened = open_alerts(run.alerts, kinds)
    still = still_raised(run, opened, mutes)
    health = {} if last is None else last.run_values
    active = health.get("klmonitor/active", 1.0) != 0
    told = [alert for alert in run.alerts if alert.phase != "end"]
    return {
        "run": name,
        "path": path,
        "level": _level(opened, active and not still),
        "error": None,
        "steps": len(steps),
        "first_step": steps[0].step if steps else None,
        "last_step": None if last is None else last.step,
        "last_time": finite_or_none(last.time) if last is not None and last.time else None,
        "age_s": max(now - last.time, 0.0) if last is not None and last.time and now else None,
        "pairs": {} if last is None else {n: _pair(p) for n, p in _newest(steps).items()},
        "open_alerts": [_alert(alert, kinds) for alert, kinds in opened],
        "raised": [_raised(one) for one in still],
        "alerts": {one: sum(alert.severity == one for alert in told) for one in SEVERITIES},
        "health": {
            "active": active,
            "errors": int(health.get("klmonitor/errors", 0)),
            "dropped": int(health.get("klmonitor/dropped", 0)),
            "bad_lines": run.bad_lines,
        },
        "remarks": list(run.remarks),
        "do": _to_do(opened, still, active, steps),
    }


def still_raised(
    run: RunRecord,
    opened: Sequence[tuple[Alert, tuple[str, ...]]],
    mutes: Sequence[Mute] = (),
) -> list[Raised]:
    """Every pair's rise that is not open and never came back."""
    found = []
    for name in dict.fromkeys(alert.pair for alert in run.alerts if alert.pair):
        rows = [
            (report.step, report.pairs[name]["k3/mean"])
            for report in run.reports
            if report.phase == "train" and name in report.pairs
        ]
        mine = [one for one in opened if one[0].pair == name]
        alerts = [alert for alert in run.alerts if alert.pair == name]
        found.append(raised(alerts, [r[0] for r in rows], [r[1] for r in rows], mine, mutes))
    return [one for one in found if one]


def _newest(steps: Sequence[Report]) -> dict[str, tuple[int, PairReport]]:
    """Every pair's last numbers, with their step."""
    return {name: (r.step, pair) for r in steps for name, pair in r.pairs.items()}


def _pair(found: tuple[int, PairReport]) -> Row:
    step, pair = found
    return {
        "step": step,
        **{key: finite_or_none(pair[metric]) for key, metric in NUMBERS.items()},
        "believe": pair.verdict.estimator,
        "verdict": pair.verdict.text,
        "cause": pair.cause.text or None,
        "cause_name": pair.cause.name or None,
        "open": list(pair.open_kinds),
    }


def _alert(alert: Alert, kinds: tuple[str, ...]) -> Row:
    return {
        "kind": alert.kind,
        "kinds": list(kinds),
        "severity": alert.severity,
        "pair": alert.pair,
        "since": alert.since or alert.step,
        "step": alert.step,
        "message": alert.message,
        "cause": alert.cause or None,
        "believe": alert.believe or None,
        "do": alert.action or None,
        "muted": alert.muted,
    }


def _raised(found: Raised) -> Row:
    return {
        "pair": found.alert.pair,
        "since": found.since,
        "k3": found.k3,
        "before": found.before,
        "message": found.message,
        "do": found.action,
    }


def _level(opened: Sequence[tuple[Alert, tuple[str, ...]]], calm: bool) -> str:
    loud = [SEVERITIES.index(alert.severity) for alert, _ in opened if not alert.muted]
    return LEVELS[max([*loud, 0 if calm else 1])]


def _to_do(
    opened: Sequence[tuple[Alert, tuple[str, ...]]],
    still: Sequence[Raised],
    active: bool,
    steps: Sequence[Report],
) -> list[str]:
    """What to do first, the most urgent first."""
    if not steps:
        return ["no training step is recorded yet: look again when one is over"]
    told = [a.action for a, _ in opened if a.action and not a.muted and a.severity != "info"]
    lost = [] if active else ["log-probs are not captured on every rank: see the trainer's log"]
    return list(dict.fromkeys([*told, *lost, *(one.action for one in still)]))


def in_words(body: Row) -> str:
    """The object on one screen."""
    return "\n\n".join(_run_in_words(run) for run in body["runs"])


def _run_in_words(run: Row) -> str:
    if run["level"] == "unreadable":
        return f"{run['run']}: unreadable: {run['error']}"
    remarks = [f"  the record: {remark}" for remark in run["remarks"]]
    if run["last_step"] is None:
        return "\n".join([f"{run['run']}: no training step yet", *remarks])
    age = "" if run["age_s"] is None else f", {_age(run['age_s'])} ago"
    lines = [f"{run['run']}: {run['level']}, step {run['last_step']} ({run['steps']} steps{age})"]
    for name, pair in run["pairs"].items():
        late = "" if pair["step"] == run["last_step"] else f" (at step {pair['step']})"
        sizes = ", ".join(
            f"{k} {_number(pair[k], pair.get(f'{k}_se'))}" for k in ("k1", "k2", "k3")
        )
        lines.append(f"  {name}{late}: {sizes} nats per token")
        lines += [f"    cause: {pair['cause']}"] if pair["cause"] else []
        lines += [f"    believe {pair['verdict']}"] if pair["verdict"] else []
    for alert in run["open_alerts"]:
        muted = ", muted" if alert["muted"] else ""
        lines.append(
            f"  [{alert['severity']}{muted}] since step {alert['since']}: {alert['message']}"
        )
    lines += [f"  [warn] since step {one['since']}: {one['message']}" for one in run["raised"]]
    health = run["health"]
    wrong = [f"{health[key]} {key.replace('_', ' ')}" for key in ("errors", "dropped", "bad_lines")
             if health[key]]  # fmt: skip
    lines += [f"  klmonitor itself: {', '.join(wrong)}"] if wrong else []
    lines += remarks
    lines += [f"  do first: {line}" for line in run["do"]]
    return "\n".join(lines)


def _number(value: float | None, se: float | None) -> str:
    if value is None:
        return "unknown"
    return f"{value:.4g}" + ("" if se is None else f" +- {se:.2g}")


def _age(seconds: float) -> str:
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
