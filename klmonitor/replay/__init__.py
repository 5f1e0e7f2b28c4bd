"""Rules replayed on what is already there: recorded reports, or a series exported from a tracker.

A `RuleSet` is a function of the reports it has seen, so a replay of a run's own record raises
exactly the alerts of the live run, and a change of thresholds can be tried before it is relied on.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import ArrayLike, NDArray

from klmonitor.report import Alert, PairReport, Report
from klmonitor.rules import Rules, RuleSet
from klmonitor.rules.mutes import marked


def replay(reports: Iterable[Report], rules: Rules = "default") -> list[Alert]:
    """The openings and worsenings that `rules` raise on reports, in order.

    Args:
        reports: of one run, in the order of their steps, with their extreme tokens if the alerts
            are to name them.
        rules: a preset's name or a table (see `klmonitor.rules.settings`).
    """
    ruleset = RuleSet(rules)
    mute = ruleset.settings.mute
    return [a for report in reports for a in marked(ruleset.judge(report).alerts, mute)]


def backtest(
    k3: ArrayLike,
    se: ArrayLike | None = None,
    k1: ArrayLike | None = None,
    tokens: ArrayLike | None = None,
    rules: Rules = "default",
    *,
    pair: str = "policy_ref",
) -> list[Alert]:
    """The alerts that `rules` raise on a series of KL, one value a step.

    A nan is a value that was not finite, and fires. Rules whose input is missing are silent.

    Example:
        >>> flat = [0.010, 0.011, 0.009] * 20
        >>> [alert.kinds for alert in backtest(flat + [0.2])]
        [('spike', 'surge')]

    Args:
        k3: (steps,) mean of k3, nats per token.
        se: (steps,) its standard error, nats.
        k1: (steps,) mean of k1, nats per token.
        tokens: (steps,) tokens counted.
        rules: a preset's name or a table (see `klmonitor.rules.settings`).
        pair: the pair that alerts and limits name.

    Returns:
        Openings and worsenings; `Alert.step` is the index into `k3`.

    Raises:
        ValueError: an array is not one-dimensional or of another length; rules are unknown.
    """
    columns = {"k3/mean": _column("k3", k3)}
    steps = len(columns["k3/mean"])
    for name, metric, given in (
        ("se", "k3/se", se),
        ("k1", "k1/mean", k1),
        ("tokens", "tokens", tokens),
    ):
        if given is not None:
            columns[metric] = _column(name, given)
            if len(columns[metric]) != steps:
                raise ValueError(
                    f"{name} has {len(columns[metric])} values and k3 has {steps}: "
                    "give one value a step"
                )
    return replay(_reports(columns, pair), rules)


def _column(name: str, values: ArrayLike) -> NDArray[np.float64]:
    column = np.asarray(values, dtype=np.float64)
    if column.ndim != 1:
        raise ValueError(f"{name} has shape {column.shape}: give one value a step, shape (steps,)")
    return column


def _reports(columns: dict[str, NDArray[np.float64]], pair: str) -> Iterator[Report]:
    names = list(columns)
    for step, row in enumerate(zip(*(column.tolist() for column in columns.values()), strict=True)):
        values = dict(zip(names, row, strict=True))
        yield Report(step=step, first_step=step, pairs={pair: PairReport(pair, values)})
