"""Theirs, ours and the truth of a real run, step by step, from tensors that were written down."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from klmonitor.record import read_run

EXACT = 1e-9


@dataclass(frozen=True)
class Line:
    """One number of one step.

    Attributes:
        step: the trainer's.
        metric: ours, ``pair/estimator``.
        ours, truth: nats a token.
        tokens: that were counted, by us and in truth.
        theirs: name and value of the trainer's metric that is meant to be this; None: it has none.
    """

    step: int
    metric: str
    ours: float
    truth: float
    tokens: tuple[float, int]
    theirs: tuple[str, float] | None = None

    def __str__(self):
        theirs = "" if self.theirs is None else f"{self.theirs[0]} {self.theirs[1]:+.6e}"
        return (
            f"{self.step} {self.metric:18} ours {self.ours:+.9e} truth {self.truth:+.9e} "
            f"tokens {self.tokens[0]:.0f} {self.tokens[1]}  {theirs}"
        )


def compared(report, pair, d, native, row):
    """Lines of a pair's k1 and k3 at one step.

    Args:
        report: ours of the step.
        pair: its name.
        d: log p - log q of the tokens that count, [N], float64.
        native: ``pair/estimator`` -> the trainer's metric of that meaning.
        row: the trainer's metrics of the step.
    """
    found = []
    for name, truth in (("k1", -d.mean()), ("k3", (np.expm1(d) - d).mean())):
        key = native.get(f"{pair}/{name}")
        theirs = (key, row[key]) if key in row else None
        ours, tokens = report.pairs[pair], (report.pairs[pair].tokens, d.size)
        values = ours[f"{name}/mean"], float(truth)
        found.append(Line(report.step, f"{pair}/{name}", *values, tokens, theirs))
    return found


def exact_lines(name, done, lines, steps):
    """Lines of all steps, 1 to `steps`, in which ours is the truth to 1e-9; printed (``-rP``).

    Args:
        name: of the run.
        done: what is left of it.
        lines: gives its lines.
        steps: their number.
    """
    assert done.rc == 0, done.log[-2000:]
    found = lines(name, done)
    for line in found:
        print(line)
    assert {line.step for line in found} == set(range(1, steps + 1))
    for line in found:
        assert line.tokens[0] == line.tokens[1], line
        assert line.ours == pytest.approx(line.truth, rel=EXACT, abs=1e-18), line
    return found


def assert_mailbox_was_told_of_once(done):
    """The mailbox died after step 1: the workers' numbers end, the driver's and training go on."""
    assert done.rc == 0
    reports = read_run(done.run_dir).reports
    assert ["old_policy" in report.pairs for report in reports] == [True, False, False]
    assert all("rollout_old" in report.pairs for report in reports)
    assert [report.run_values["klmonitor/active"] for report in reports] == [1, 0, 0]
    assert len([line for line in done.said if "mailbox is gone" in line]) == 2  # driver and worker
