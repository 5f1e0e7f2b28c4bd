"""What is muted: which alerts a mute holds for, and that ranks agree on it."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from klmonitor.pairs import PAIR_INDEX
from klmonitor.record.mutes import Mute, in_force, mute_from_row, mute_to_row
from klmonitor.replay import backtest
from klmonitor.replay.curve import Curve
from klmonitor.replay.scoring import score
from klmonitor.rules import describe_rules, parse_rules, settings_to_row
from klmonitor.rules.mutes import NOT_MUTED, decode, encode, marked
from klmonitor.rules.table import RULES
from tests.helpers.reports import make_alert

mutes = st.builds(
    Mute,
    st.sampled_from([rule.kind for rule in RULES]),
    st.sampled_from([None, *PAIR_INDEX]),
    st.integers(0, 10**6).map(float) | st.just(math.inf),
)


@given(st.lists(mutes))
def test_every_rank_learns_what_the_main_rank_has_read(some):
    known = in_force(some)
    largest = [max(both) for both in zip(encode(known), encode([]), strict=True)]
    assert set(decode(largest)) == set(known)
    assert set(encode([])) == {NOT_MUTED}


@given(mutes)
def test_a_mute_comes_back_from_its_row(mute):
    assert mute_from_row(mute_to_row(mute)) == mute


@pytest.mark.parametrize(
    ("mute", "muted"),
    [
        (Mute("spike"), True),
        (Mute("spike", "policy_ref"), True),
        (Mute("spike", "policy_ref", 7), True),
        (Mute("spike", "policy_ref", 6), False),
        (Mute("spike", "old_ref"), False),
        (Mute("surge"), False),
    ],
)
def test_a_mute_holds_for_its_kind_its_pair_and_up_to_its_step(mute, muted):
    [alert] = marked([make_alert(7)], [Mute("drift"), mute])
    assert alert.muted is muted
    assert ("nobody was told" in alert.text()) is muted


def test_the_last_word_on_a_kind_and_pair_counts():
    first, again = Mute("gap", "rollout_old"), Mute("gap", "rollout_old", 5)
    assert in_force([first, Mute("gap")], [again]) == (again, Mute("gap"))


def test_a_mute_in_the_settings_is_replayed_and_counts_for_nothing():
    table = {"limit": {"policy_ref": 0.1}, "mute": [{"kind": "limit", "until_step": 20}]}
    alerts = [a for a in backtest([0.2] + [0.01] * 99 + [0.2], rules=table) if "limit" in a.kinds]
    assert [(alert.step, alert.muted) for alert in alerts] == [(0, True), (100, False)]
    assert score(Curve("a", []), alerts).false == (alerts[1],)


def test_an_alert_is_muted_where_all_that_it_tells_is():
    alert = make_alert(7, kind="spike", kinds=("spike", "limit"))
    for mutes, muted in ((["limit"], False), (["spike"], False), (["spike", "limit"], True)):
        assert marked([alert], [Mute(kind) for kind in mutes])[0].muted is muted


def test_a_record_says_what_was_muted():
    rows = [{"kind": "gap"}, {"kind": "spike", "pair": "old_ref", "until_step": 9}]
    row = settings_to_row(parse_rules({"mute": rows}))
    assert describe_rules(row)[1:] == ["gap muted", "spike of old_ref muted up to step 9"]


@pytest.mark.parametrize(
    ("mute", "message"),
    [
        ({"kind": "gap"}, "give a list of tables of kind, pair, until_step"),
        ("gap", "mute is 'gap': give a list"),
        (["gap"], "mute has 'gap': give a table with kind"),
        ([{"pair": "old_ref"}], "give a table with kind"),
        ([{"kind": "gaps"}], "unknown kind in mute 'gaps': did you mean 'gap'"),
        ([{"kind": "gap", "pair": "ref"}], "unknown pair in mute 'ref'"),
        ([{"kind": "gap", "until": 3}], "unknown key of mute 'until': did you mean 'until_step'"),
        ([{"kind": "gap", "until_step": "soon"}], "until_step in mute is 'soon'"),
    ],
)
def test_a_mute_that_cannot_be_is_named(mute, message):
    with pytest.raises(ValueError, match=message):
        parse_rules({"mute": mute})
