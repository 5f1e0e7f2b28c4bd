"""Which numbers of a report a tracker gets: trackers drown long before a record does."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from functools import lru_cache

from klmonitor.numbers.metrics import CORE, NAMES
from klmonitor.numbers.runvalues import PREFIX, TABLE
from klmonitor.pairs import PAIRS
from klmonitor.report import Report, of_groups, possible

Metrics = str | Sequence[str]
"""``"core"``, ``"full"``, or a list of globs, in which those two words may stand as well."""

RUN_CORE = frozenset({"kl/alerts"})
"""The core of what belongs to the run and not to a pair."""
RUN_NAMES = (
    "kl/alerts",
    *(f"klmonitor/{name}" for name in ("active", "errors", "dropped", "rule_errors")),
    *(PREFIX + name for name in TABLE),
)
"""What belongs to the run."""
GROUP_CORE = "/k3/mean"
"""The end of the one metric of a group that is in the core."""
FIRST = ("policy_ref", "old_ref", *(pair.name for pair in PAIRS))
"""The first of these that there is has its groups in the core: how far each is from the ref."""
EVAL_CORE = frozenset(name for name in CORE if name.endswith(("/mean", "/se")))
"""The core of an evaluation: the means and their errors."""


def check_metrics(metrics: Metrics) -> tuple[str, ...]:
    """The choice as a tuple of globs.

    Raises:
        ValueError: it is neither a known word nor a list of globs.
    """
    if isinstance(metrics, str):
        if metrics not in ("core", "full"):
            raise ValueError(
                f'metrics={metrics!r}: choose "core", "full" or a list of globs '
                'such as ["core", "k3/*", "kl/policy_ref/gap*"]'
            )
        return (metrics,)
    globs = tuple(metrics)
    if not all(isinstance(glob, str) and glob for glob in globs):
        raise ValueError(f'metrics={metrics!r}: a list of globs such as ["core", "k3/*"] is needed')
    for glob in globs:
        if not _matches_any(glob):
            near = difflib.get_close_matches(glob, NAMES, n=1)
            hint = f", did you mean {near[0]!r}?" if near else ": see docs/metrics.md"
            raise ValueError(f"metrics: {glob!r} matches no metric{hint}")
    return globs


@lru_cache(256)
def _matches_any(glob: str) -> bool:
    """Whether a glob can choose anything: a metric, of a group too, or a value of the run."""
    if glob in ("core", "full"):
        return True
    of_groups = [f"group/*/{k}/{what}" for k in ("k1", "k3") for what in ("mean", "se")]
    if "group/" in glob:
        return any(name.endswith(glob.rpartition("/")[2]) for name in of_groups) or "*" in glob
    full = (f"kl/{pair.name}/{name}" for pair in PAIRS for name in NAMES)
    return any(fnmatchcase(name, glob) for name in (*NAMES, *RUN_NAMES, *full))


def select(metrics: Metrics, report: Report) -> dict[str, float]:
    """The chosen numbers of a report under their full names.

    A glob is matched against the full name (``kl/policy_ref/k3/mean``) and against the name
    without the pair (``k3/mean``). What an evaluation found is prefixed ``eval/``. Numbers that
    are nan are left out.
    """
    globs = check_metrics(metrics)
    training = report.phase == "train"
    prefix = "" if training else f"{report.phase}/"
    core = globs == ("core",)
    found = {}
    for start, values in (
        *((f"kl/{name}/", pair.values) for name, pair in report.pairs.items()),
        ("", report.run_values),
    ):
        names = NAMES if core and start else possible(values)
        for full, short in _choice(globs, start, names, training):
            found[prefix + full] = values.get(short, math.nan)
    first = next((one for one in FIRST if one in report.pairs), None)
    if first is not None and "core" in globs:
        values = report.pairs[first].values
        found |= {f"{prefix}kl/{first}/{one}": values[one] for one in _of_groups(values)}
    return {name: value for name, value in found.items() if not math.isnan(value)}


def _of_groups(values: Mapping[str, float]) -> list[str]:
    """One series a declared group: the mean of k3 in it.

    They come on top of the core's budget of series: whoever declares a group wants to see it.
    """
    ours = (one for one in of_groups(values) if one.endswith(GROUP_CORE))
    return [one for one in ours if one != f"group/other{GROUP_CORE}"]


def is_chosen(metrics: Metrics, full: str, short: str, training: bool = True) -> bool:
    """Whether a choice holds a metric.

    Args:
        metrics: the choice.
        full: the metric's name.
        short: its name without the pair.
        training: False: as an evaluation's number.
    """
    globs = (metrics,) if isinstance(metrics, str) else tuple(metrics)
    return _is_chosen(globs, full, short, training)


@lru_cache(2**14)
def _is_chosen(globs: tuple[str, ...], full: str, short: str, training: bool) -> bool:
    core = CORE if training else EVAL_CORE
    run_core = RUN_CORE if training else frozenset()
    for glob in globs:
        if glob == "full" or (glob == "core" and (short in core or full in run_core)):
            return True
        if fnmatchcase(full, glob) or fnmatchcase(short, glob):
            return True
    return False


@lru_cache(256)
def _choice(
    globs: tuple[str, ...], start: str, names: tuple[str, ...], training: bool
) -> tuple[tuple[str, str], ...]:
    """Those of some names that are chosen: with the start, and without."""
    named = ((start + name, name) for name in names)
    return tuple(both for both in named if _is_chosen(globs, *both, training))
