"""State from outside, mutated: refused whole, or equal after a round trip; never half of it."""

from __future__ import annotations

import copy
import json
import math
import random
from pathlib import Path

import pytest
import torch

from klmonitor import Monitor
from klmonitor.rules import parse_rules
from klmonitor.rules.file import load_rules

STATE = json.loads(
    (Path(__file__).parents[1] / "data" / "v1" / "state.json").read_text(encoding="utf-8")
)
NUMBER = 100
ODD = (
    None, True, -1, 0, 2**70, 10**400, -3.5, math.inf, -math.inf, math.nan, "", "spike", [], {},
    [1.0], [None], [[[]]], {"a": 1}, [1e308] * 5, ["x"] * 3, list(range(50_000)),
)  # fmt: skip


def leaves(value, path=()):
    """Every place in a state, inner ones too."""
    yield path
    items = value.items() if isinstance(value, dict) else ()
    items = enumerate(value[:3]) if isinstance(value, list) else items
    for key, item in items:
        yield from leaves(item, (*path, key))


def somewhere(tree, rng):
    """A place in a tree, drawn: what holds it, and under which key."""
    *path, key = rng.choice([place for place in leaves(tree) if place])
    for step in path:
        tree = tree[step]
    return tree, key


def mutated(seed):
    """The state with one place replaced, removed or doubled."""
    rng = random.Random(seed)
    state = copy.deepcopy(STATE)
    owner, key = somewhere(state, rng)
    how = rng.choice(("replace", "replace", "replace", "remove", "double"))
    if how == "remove":
        del owner[key]
    elif how == "double" and isinstance(owner, list):
        owner.extend(owner * 3)
    else:
        owner[key] = rng.choice(ODD)
    return key, how, state


def plain(state):
    """A state in which nan equals itself."""
    return json.dumps(state, sort_keys=True)


def judge(monitor):
    """A step, whose rules must work with whatever was loaded."""
    lp = -torch.rand(8, 24, generator=torch.Generator().manual_seed(0))
    monitor.observe(policy=lp, ref=lp + 0.1, old=lp - 0.01)
    report = monitor.step(100)
    assert not monitor.errors, report.health
    return report


@pytest.mark.parametrize("seed", range(NUMBER))
def test_a_mutated_state_is_refused_whole_or_kept(seed):
    path, how, state = mutated(seed)
    monitor = Monitor()
    before = plain(monitor.state_dict())
    try:
        monitor.load_state_dict(state)
    except ValueError:
        assert plain(monitor.state_dict()) == before, "half of it was loaded"
        judge(monitor)
        return
    saved = monitor.state_dict()
    again = Monitor()
    again.load_state_dict(json.loads(json.dumps(saved)))
    assert plain(again.state_dict()) == plain(saved), (path, how)
    judge(monitor)


def test_a_state_that_holds_itself_is_refused():
    state = copy.deepcopy(STATE)
    state["rules"]["tracks"] = state
    with pytest.raises(ValueError, match="more than any state of ours"):
        Monitor().load_state_dict(state)


TABLE = {"preset": "quiet", "spike": {"z": 7.0}, "surge": False, "limit": {"policy_ref": 0.1}}


@pytest.mark.parametrize("seed", range(50))
def test_a_mutated_file_of_rules_is_refused_whole_or_parsed(seed, tmp_path):
    rng = random.Random(seed)
    table = copy.deepcopy(TABLE)
    owner, key = somewhere(table, rng)
    owner[key] = rng.choice(ODD)
    file = tmp_path / "rules.json"
    text = json.dumps(table)
    if rng.random() < 0.3:
        at = rng.randrange(len(text))
        text = text[:at] + rng.choice(("", "}", "[" * 3000, "1e999", "\x00")) + text[at:]
    file.write_text(text, encoding="utf-8")
    try:
        settings = parse_rules(load_rules(file))
    except (ValueError, TypeError):
        return
    for limits in settings.thresholds.values():
        assert all(limit >= 0 for limit in limits.values())
    Monitor(rules=file).close()
