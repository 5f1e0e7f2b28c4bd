"""What training does about alerts: stop, save a checkpoint, call a function.

    on_alert="stop"                                       # on any critical alert
    on_alert={"nonfinite:critical": "stop", "critical": "checkpoint"}
    on_alert={"runaway": ["checkpoint", "stop"], "surge": my_function}

A key is ``kind:severity``, a kind, a severity or ``"*"``; the first of these that is in the table
decides (of an alert of several kinds any that is), so a more specific key overrules a more general
one (give None to do nothing). An action
alone stands for critical alerts, a function alone for all. A function takes the `Alert` and may
return an action, several, or a table such as ``{"stop": True}``; it is called on every rank. Of
several ranks all do at the next step what any has asked for (`klmonitor.hooks.watch`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from klmonitor.report import Alert
from klmonitor.rules import parse_rules
from klmonitor.rules.file import load_rules
from klmonitor.rules.settings import unknown
from klmonitor.rules.table import RULES

STOP, CHECKPOINT = "stop", "checkpoint"
ACTIONS = (CHECKPOINT, STOP)
SEVERITIES = ("info", "warn", "critical")
EVERY = "*"

Action = str | Callable[[Alert], Any]
OnAlert = Action | Sequence[Action] | Mapping[str, Action | Sequence[Action] | None] | None


def _plainly(function: Callable[..., Any], *args: Any) -> Any:
    return function(*args)


class Actions:
    """Says what is to be done about a step's alerts.

    Example:
        >>> alert = Alert(step=3, kind="surge", severity="critical", pair=None, message="")
        >>> sorted(Actions({"critical": ["checkpoint", "stop"]})([alert]))
        ['checkpoint', 'stop']

    Args:
        on_alert: see this module.
        rules: the rules in use, whose kinds a key may name.

    Raises:
        ValueError: an action, a kind or a severity is unknown.
    """

    def __init__(self, on_alert: OnAlert = None, rules: Any = "default") -> None:
        self._table = {key: _actions(key, value) for key, value in _table(on_alert).items()}
        kinds = [rule.kind for rule in RULES]
        if self._table:
            kinds += parse_rules(load_rules(rules)).own
        for key in self._table:
            _check_key(key, kinds)

    def __call__(
        self, alerts: Iterable[Alert], guarded: Callable[..., Any] = _plainly
    ) -> frozenset[str]:
        """The actions that alerts ask for, after the functions among them were called.

        Args:
            alerts: of one step; those that are muted ask for nothing.
            guarded: calls a function: ``guarded(function, alert)``; None where it failed.
        """
        told = [alert for alert in alerts if not alert.muted]
        return frozenset(action for alert in told for action in self._about(alert, guarded))

    def _about(self, alert: Alert, guarded: Callable[..., Any]) -> Iterator[str]:
        for action in self._chosen(alert):
            if isinstance(action, str):
                yield action
            else:
                yield from guarded(_answer, action, alert) or ()

    def _chosen(self, alert: Alert) -> Sequence[Action]:
        of_kinds = (*(f"{kind}:{alert.severity}" for kind in alert.kinds), *alert.kinds)
        for key in (*of_kinds, alert.severity, EVERY):
            if key in self._table:
                return self._table[key]
        return ()


def _table(on_alert: OnAlert) -> Mapping[str, Any]:
    if on_alert is None:
        return {}
    if isinstance(on_alert, Mapping):
        return on_alert
    return {EVERY if callable(on_alert) else "critical": on_alert}


def _actions(key: str, value: Any) -> tuple[Action, ...]:
    if value is None:
        return ()
    several = [value] if isinstance(value, str) or callable(value) else list(value)
    for action in several:
        if not callable(action) and action not in ACTIONS:
            raise ValueError(
                f"on_alert[{key!r}] is {action!r}: give {' or '.join(map(repr, ACTIONS))}, "
                "a function of an Alert, or a list of these"
            )
    return tuple(several)


def _answer(function: Callable[[Alert], Any], alert: Alert) -> list[str]:
    """The actions that a user's function returns.

    Raises:
        ValueError: it returned something else.
    """
    said = function(alert)
    if isinstance(said, Mapping):
        said = [name for name, wanted in said.items() if wanted]
    names = [said] if isinstance(said, str) else list(said or ())
    for name in names:
        if name not in ACTIONS:
            raise ValueError(f"a function of on_alert returned {name!r}: choose from {ACTIONS}")
    return names


def _check_key(key: str, kinds: Sequence[str]) -> None:
    if key in (EVERY, *SEVERITIES):
        return
    kind, colon, severity = key.partition(":")
    if kind not in kinds:
        raise ValueError(unknown("key of on_alert", kind, [*kinds, *SEVERITIES, EVERY]))
    if colon and severity not in SEVERITIES:
        raise ValueError(unknown("severity in on_alert", severity, SEVERITIES))
