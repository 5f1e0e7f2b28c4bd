"""A declared group that makes most of the KL is named, with its numbers and no other group."""

import re

import numpy as np
import pytest

from klmonitor import Monitor
from klmonitor.numbers.carriers import group_apart

ROWS, COLUMNS = 48, 64
GROUPS = ("math", "code", "chat")
NUMBER = re.compile(r"(?<![\w.])-?\d+(?:\.\d+)?(?:e[+-]?\d+)?")


def batch(rng, sizes, groups=GROUPS, prompts=4):
    """Policies of 200 tokens that are a group's size of noise apart, tokens drawn from the first.

    Every sequence has a context of its own; `prompts` a group.
    """
    of_row = np.repeat(groups, ROWS // len(groups))
    size = np.array([sizes.get(group, sizes[""]) for group in of_row])[:, None]
    q = rng.normal(0, 2, (ROWS, 200))
    p = q + size * rng.normal(size=q.shape)
    q, p = (x - np.log(np.exp(x).sum(1, keepdims=True)) for x in (q, p))
    tokens = np.array([rng.choice(200, COLUMNS, p=np.exp(row)) for row in q])
    policy, ref = (np.take_along_axis(x, tokens, 1) for x in (q, p))
    per_prompt = ROWS // len(groups) // prompts
    ids = np.arange(ROWS) // per_prompt
    return {"policy": policy, "ref": ref, "group": list(of_row), "prompt_ids": ids}, of_row


def means(given, of_row, estimator):
    d = given["ref"] - given["policy"]
    values = -d if estimator == "k1" else np.expm1(d) - d
    return {group: values[of_row == group].mean() for group in dict.fromkeys(of_row)}


def stepped(monitor, given, step):
    monitor.observe(**given)
    return monitor.step(step)


def test_the_group_that_makes_a_rise_is_named_in_the_alert_and_in_the_verdict():
    rng = np.random.default_rng(4)
    monitor = Monitor(groups=GROUPS, process_group=False)
    for step in range(30):
        report = stepped(monitor, batch(rng, {"": 0.2})[0], step)
        assert "group" not in report.explain()
    given, of_row = batch(rng, {"": 0.2, "code": 1.2})
    report = stepped(monitor, given, 30)
    (alert,) = [one for one in report.alerts if "spike" in one.kinds]
    said = group_apart(report.pairs["policy_ref"].values)
    estimator = said[:2]
    exact = means(given, of_row, estimator)
    code = exact.pop("code")
    assert said == (
        f"{estimator} of group code is {code:.3g} nats, the others' "
        f"{max(exact.values()):.3g} at most"
    )
    assert alert.message.endswith(f"; {said}")
    assert said in report.explain()


def test_of_two_groups_both_are_named():
    rng = np.random.default_rng(5)
    monitor = Monitor(groups=GROUPS[:2], process_group=False)
    given, of_row = batch(rng, {"": 0.2, "code": 1.2}, GROUPS[:2])
    said = group_apart(stepped(monitor, given, 1).pairs["policy_ref"].values)
    exact = means(given, of_row, said[:2])
    assert said.endswith(f"group code is {exact['code']:.3g} nats, math's {exact['math']:.3g}")


@pytest.mark.parametrize("prompts", [2, 4, 16])
@pytest.mark.parametrize("size", [0.01, 0.2, 1.0])
def test_groups_alike_are_never_named(size, prompts):
    """Whatever the level: k1's mean near 0 may be any multiple of another's."""
    rng = np.random.default_rng(6)
    monitor = Monitor(groups=GROUPS, process_group=False, rules={"preset": "quiet"})
    for step in range(40):
        given, _ = batch(rng, {"": size}, prompts=prompts)
        report = stepped(monitor, given, step)
        assert group_apart(report.pairs["policy_ref"].values) == ""


def test_a_small_group_that_makes_little_of_it_is_not_named():
    """Far above the others, but of few tokens."""
    rng = np.random.default_rng(7)
    given, of_row = batch(rng, {"": 0.3, "code": 1.2})
    kept = np.ones((ROWS, COLUMNS), bool)
    kept[of_row == "code", 2:] = False
    monitor = Monitor(groups=GROUPS, process_group=False)
    values = stepped(monitor, given | {"mask": kept}, 1).pairs["policy_ref"].values
    others = max(values["group/math/k3/mean"], values["group/chat/k3/mean"])
    assert values["group/code/k3/mean"] > 4 * others
    assert group_apart(values) == ""


def test_a_token_that_makes_it_is_named_and_not_its_group():
    rng = np.random.default_rng(8)
    given, _ = batch(rng, {"": 0.2})
    given["ref"][20, 5] = given["policy"][20, 5] + 9
    monitor = Monitor(groups=GROUPS, process_group=False)
    report = stepped(monitor, given, 1)
    assert "of group" not in report.explain()
    assert "of group" not in report.alerts[0].message
