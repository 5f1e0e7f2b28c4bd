"""A mailbox for tests that have no Ray."""

from __future__ import annotations

from klmonitor.hooks.mailbox import Box


class LocalMailbox:
    """The mailbox without Ray: what it does is `Box`'s."""

    box = None
    dead = False

    def __init__(self):
        self.sent = 0

    @classmethod
    def open(cls, settings):
        cls.box, cls.dead = Box(settings), False
        return cls()

    @classmethod
    def find(cls):
        if cls.box is None or cls.dead:
            raise ValueError("no such actor")
        return cls()

    def settings(self):
        return self.box.settings()

    def tell(self, settings):
        self._alive()
        self.box.tell(dict(settings))

    def put(self, letter):
        self._alive()
        self.box.put(tuple(letter))

    def drain(self):
        self._alive()
        return self.box.drain()

    def _alive(self):
        if self.dead:
            raise RuntimeError("the actor died")
