"""Reads the file that an offline wandb run leaves: what really arrived, row by row.

The file is a LevelDB log behind a header of 7 bytes. It consists of blocks of 32 KiB; in them,
fragments of (crc32 of type and data, uint32; length, uint16; type, uint8; data), which never
cross a block's end. A record is one fragment (FULL) or several (FIRST, MIDDLE..., LAST).
"""

import json
import struct
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

BLOCK = 32768
HEADER = struct.Struct("<4sHB")
FRAGMENT = struct.Struct("<IHB")
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


@dataclass
class WandbFile:
    """What a run logged.

    Attributes:
        rows: history, as logged, with ``_step``.
        metrics: name of a defined metric -> its step metric.
        alerts: as protocol buffers.
        finished: whether the run's exit is on file.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    metrics: dict[str, str] = field(default_factory=dict)
    alerts: list[Any] = field(default_factory=list)
    finished: bool = False

    def column(self, key: str) -> list[Any]:
        """The values of a key in the rows that have it."""
        return [row[key] for row in self.rows if key in row]


def records(data: bytes, ident: bytes = b":W&B", magic: int = 0xBEE1) -> Iterator[bytes]:
    """The whole records of a file; a torn tail ends the iteration."""
    assert HEADER.unpack_from(data)[:2] == (ident, magic)
    at, parts = HEADER.size, b""
    while True:
        room = BLOCK - at % BLOCK
        if room < FRAGMENT.size:
            at += room
        if at + FRAGMENT.size > len(data):
            return
        crc, length, kind = FRAGMENT.unpack_from(data, at)
        at += FRAGMENT.size
        body = data[at : at + length]
        at += length
        if kind not in (FULL, FIRST, MIDDLE, LAST) or len(body) < length:
            return
        assert crc == zlib.crc32(bytes([kind]) + body)
        parts = body if kind in (FULL, FIRST) else parts + body
        if kind in (FULL, LAST):
            yield parts


def read_wandb(path: Path, patience: float = 60.0) -> WandbFile:
    """The one finished run below a directory.

    Its last rows reach the file after ``finish`` has returned: waits for the record of its exit,
    `patience` seconds at most.
    """
    [file] = path.rglob("*.wandb")
    deadline = time.monotonic() + patience
    while not (found := _read(file.read_bytes())).finished:
        assert time.monotonic() < deadline, "the run was not finished"
        time.sleep(0.02)
    return found


def _read(content: bytes) -> WandbFile:
    from wandb.proto import wandb_internal_pb2

    found = WandbFile()
    for data in records(content):
        record = wandb_internal_pb2.Record.FromString(data)
        kind = record.WhichOneof("record_type")
        if kind == "history":
            items = record.history.item
            found.rows.append(
                {"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in items}
            )
        elif kind == "metric":
            name = record.metric.name or record.metric.glob_name
            found.metrics[name] = record.metric.step_metric
        elif kind == "alert":
            found.alerts.append(record.alert)
        elif kind == "exit":
            found.finished = True
    return found
