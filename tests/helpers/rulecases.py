"""Small series and reports for the tests of the rules."""

import math

from klmonitor.report import ExtremeToken, PairReport, Report

ORDINARY = {
    "k3/se": 1e-5,
    "k1/se": 1e-5,
    "tokens": 4096.0,
    "sequences": 64.0,
    "nonfinite": 0.0,
    "on_policy": 1.0,
}


def report(step, *, extremes=(), pair="policy_ref", **values):
    """A report of one pair; two underscores in a name stand for a slash."""
    named = {name.replace("__", "/"): value for name, value in values.items()}
    one = PairReport(pair, {**ORDINARY, **named}, extremes=tuple(extremes))
    return Report(step=step, first_step=step, pairs={pair: one})


def wobble(step, level=0.01):
    """A level with a spread of some per cent, nats."""
    return level * math.exp(0.08 * math.sin(1.7 * step) + 0.05 * math.sin(0.31 * step))


def ordinary(steps, start=0, level=0.01):
    """So many steps of `wobble`."""
    return [wobble(step, level) for step in range(start, start + steps)]


def judged(rules, k3, start=0, **values):
    """Judge k3 values, one a step (k1 equal to them), and return openings and worsenings."""
    return [
        alert
        for step, value in enumerate(k3, start)
        for alert in rules.judge(
            report(step, k3__mean=value, **{"k1__mean": value} | values)
        ).alerts
    ]


def carried(step, k3, without, tokens, **values):
    """A report whose k3, nats, is that of so many tokens; `without` them it is small."""
    return report(
        step,
        k3__mean=k3,
        k3__mean_without_top=without,
        dominance__k3__level=2.0,
        dominance__k3__j=900.0,
        dominance__k3__tokens=tokens,
        **values,
    )


def kinds(alerts):
    """All kinds that tell of something."""
    return {kind for alert in alerts for kind in alert.kinds}


def found(alerts):
    """(kind, step) of each alert."""
    return [(alert.kind, alert.step) for alert in alerts]


def token(log_ratio, position=7):
    """An extreme token with a text that must never leave."""
    return ExtremeToken(
        pair="policy_ref",
        tail="left" if log_ratio < 0 else "right",
        log_ratio=log_ratio,
        log_q=-1.0 - max(log_ratio, 0.0),
        log_p=-1.0 + min(log_ratio, 0.0),
        rank=0,
        micro_batch=0,
        sequence=3,
        position=position,
        token_id=11,
        text="secret",
    )
