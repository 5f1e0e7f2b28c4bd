"""What the actor does with parts; through Ray itself it is tested with verl."""

from __future__ import annotations

from klmonitor.hooks.mailbox import MOST, Box, Letter


def test_letters_are_handed_over_once_in_their_order():
    box = Box()
    box.begin({"watch": True})
    box.put(("actor-1", 2, b"a"))
    box.put(("actor-0", 2, b"b"))
    assert box.drain() == ([Letter("actor-1", 2, b"a"), Letter("actor-0", 2, b"b")], 0)
    assert box.drain() == ([], 0)
    assert box.settings() == {"watch": True}


def test_a_driver_that_begins_finds_nothing_of_another_one():
    box = Box()
    box.put(("actor-0", 1, b"old"))
    box.begin({})
    assert box.drain() == ([], 0)


def test_what_nobody_comes_for_is_bounded_and_counted():
    box = Box()
    for number in range(MOST + 3):
        box.put(("actor-0", 1, str(number).encode()))
    letters, lost = box.drain()
    assert (len(letters), lost, letters[0].part) == (MOST, 3, b"3")
