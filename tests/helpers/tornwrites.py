"""A disk on which a write ends in its middle."""

import os

from klmonitor.record import jsonl

real_write = os.write


def torn_writes(code):
    """An ``os.write`` whose second and third rows get 10 bytes in, then the error (0: none)."""
    calls = 0

    def write(fd, data):
        nonlocal calls
        calls += 1
        if calls in (2, 4):
            return real_write(fd, data[:10])
        if calls in (3, 5):
            if code:
                raise OSError(code, os.strerror(code))
            return 0
        return real_write(fd, data)

    return write


def forbid_cutting(monkeypatch):
    """Files cannot be cut to size."""

    def no_cut(fd, size):
        raise OSError(22, "no")

    monkeypatch.setattr(jsonl.os, "ftruncate", no_cut)
