"""Every format as records: an object a line, a row, or a file, each with its place.

JSON lines, also ``.gz`` and ``.zst``, and parquet are streamed; npz, safetensors and ``.pt`` are
one record a file, which is held while it is read.
"""

from __future__ import annotations

import gzip
import io
import json
import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO
from zipfile import BadZipFile

import numpy as np

from klmonitor_dumps.layout import Row
from klmonitor_dumps.pickles import load_pickle, load_torch
from klmonitor_dumps.problems import Problems, RowError

BATCH_ROWS = 64
"""Rows of a parquet file that are held together."""


@dataclass(frozen=True)
class Record:
    """What a file holds at one place.

    Attributes:
        row: column -> value.
        path: of the file.
        line: from 1 on, None where the file is one record.
    """

    row: Row
    path: Path
    line: int | None = None

    @property
    def where(self) -> str:
        """For messages."""
        return str(self.path) if self.line is None else f"{self.path}:{self.line}"


@dataclass
class Reading:
    """How files are read, and how far.

    Attributes:
        problems: takes what is wrong.
        trust: whether pickles are loaded.
        done: called with the bytes of a file that were read since the last time.
    """

    problems: Problems
    trust: bool = False
    done: Callable[[int], None] = lambda count: None


def find_files(given: str) -> list[Path]:
    """The dumps that a path, a directory or a pattern names, ``step_2`` before ``step_10``.

    Raises:
        FileNotFoundError: there are none.
        ValueError: a file is of no known format.
    """
    path = Path(given)
    if path.is_dir():
        found = [file for file in path.rglob("*") if file.is_file() and format_of(file)]
    elif path.exists():
        if format_of(path) is None:
            raise ValueError(f"{path} is of no format that is read: {', '.join(FORMATS)}")
        found = [path]
    else:
        anchor = Path(path.anchor)
        pattern = str(path.relative_to(anchor)) if path.anchor else given
        found = [f for f in anchor.glob(pattern) if f.is_file() and format_of(f)] if given else []
    if not found:
        raise FileNotFoundError(f"{given}: there is no dump: none of {', '.join(FORMATS)}")
    return sorted(found, key=natural)


def natural(path: Path) -> list[tuple[int, str]]:
    """An order in which numbers count as numbers."""
    parts = re.split(r"(\d+)", str(path))
    return [(int(part), "") if part.isdigit() else (-1, part) for part in parts]


def format_of(path: Path) -> str | None:
    """The suffix by which a file is read; None: it is not."""
    name = path.name.lower()
    return next((suffix for suffix in FORMATS if name.endswith(suffix)), None)


def read_records(path: Path, reading: Reading) -> Iterator[Record]:
    """What a file holds; what cannot be read of it goes to `Reading.problems`."""
    suffix = format_of(path)
    try:
        yield from FORMATS[suffix or ""](path, reading)
    except RowError as error:
        reading.problems.left_out(error, str(path))
    except (OSError, EOFError, BadZipFile, zlib.error, ValueError, KeyError) as error:
        text = " ".join(str(error).split())
        reading.problems.add("unreadable file", str(path), f"cannot be read ({text}); left out")


# --- lines ---------------------------------------------------------------------------------------
def _plain(path: Path, reading: Reading) -> Iterator[Record]:
    with path.open("rb") as file:
        yield from _lines(path, file, file, reading)


def _gzip(path: Path, reading: Reading) -> Iterator[Record]:
    with path.open("rb") as raw, gzip.open(raw) as file:
        yield from _lines(path, io.BufferedReader(file), raw, reading)


def _zstd(path: Path, reading: Reading) -> Iterator[Record]:
    zstandard = needed("zstandard", "klmonitor[dumps]")
    with path.open("rb") as raw, zstandard.ZstdDecompressor().stream_reader(raw) as file:
        yield from _lines(path, io.BufferedReader(file), raw, reading)


def _lines(path: Path, file: Any, raw: BinaryIO, reading: Reading) -> Iterator[Record]:
    before, number = 0, 0
    while True:
        number += 1
        try:
            line = file.readline()
        except (OSError, EOFError, zlib.error, _ZstdError()) as error:
            text = f"the file breaks off ({error}): what comes after is lost"
            reading.problems.add("truncated file", f"{path}:{number}", text)
            return
        if not line:
            return
        here = raw.tell()
        reading.done(here - before)
        before = here
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            reading.problems.left_out(_broken(line, error), f"{path}:{number}")
            continue
        if isinstance(row, dict):
            yield Record(row, path, number)
        else:
            wrong = RowError("no JSON object", "is no JSON object")
            reading.problems.left_out(wrong, f"{path}:{number}")


def _broken(line: bytes, error: ValueError) -> RowError:
    if not line.endswith(b"\n"):
        text = "the last row is torn: it was still being written, or the writer was killed"
        return RowError("torn last row", text)
    return RowError("no JSON", f"is no JSON ({error})")


def _ZstdError() -> type[Exception]:  # noqa: N802  # a class
    try:
        from zstandard import ZstdError
    except ImportError:
        return EOFError
    return ZstdError  # type: ignore[no-any-return]


# --- columns -------------------------------------------------------------------------------------
def _parquet(path: Path, reading: Reading) -> Iterator[Record]:
    parquet = needed("pyarrow.parquet", "klmonitor[parquet]")
    with parquet.ParquetFile(path, memory_map=True) as file:
        size, number = path.stat().st_size, 0
        for batch in file.iter_batches(batch_size=BATCH_ROWS):
            columns = {name: _values(batch.column(name)) for name in batch.schema.names}
            for index in range(batch.num_rows):
                number += 1
                yield Record(
                    {name: column(index) for name, column in columns.items()}, path, number
                )
            reading.done(size * batch.num_rows // max(file.metadata.num_rows, 1))


def _values(column: Any) -> Callable[[int], Any]:
    """A column of a batch by row: lists of numbers as arrays, without a copy."""
    import pyarrow

    kind = column.type
    lists = pyarrow.types.is_list(kind) or pyarrow.types.is_large_list(kind)
    number = lists and (
        pyarrow.types.is_floating(kind.value_type) or pyarrow.types.is_integer(kind.value_type)
    )
    if not number or column.null_count:
        return lambda index: column[index].as_py()
    offsets = column.offsets.to_numpy()
    values = column.values
    flat = values.to_numpy(zero_copy_only=False)  # a null is nan
    return lambda index: flat[offsets[index] : offsets[index + 1]]


def _npz(path: Path, reading: Reading) -> Iterator[Record]:
    with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
        row = {name: file[name] for name in file.files}
    yield Record(row, path)
    reading.done(path.stat().st_size)


def _safetensors(path: Path, reading: Reading) -> Iterator[Record]:
    torch = needed("safetensors.torch", "klmonitor[dumps]")
    try:
        row = torch.load_file(path)
    except Exception as error:  # noqa: BLE001  # its own kind of error, from Rust
        raise RowError("unreadable file", f"cannot be read ({error})") from None
    yield Record(row, path)
    reading.done(path.stat().st_size)


def _torch(path: Path, reading: Reading) -> Iterator[Record]:
    yield from _objects(path, load_torch(path, reading.trust))
    reading.done(path.stat().st_size)


def _pickle(path: Path, reading: Reading) -> Iterator[Record]:
    yield from _objects(path, load_pickle(path, reading.trust))
    reading.done(path.stat().st_size)


def _objects(path: Path, found: Any) -> Iterator[Record]:
    """An object of columns, or a list of them."""
    if isinstance(found, Mapping):
        yield Record(found, path)
        return
    if not isinstance(found, (list, tuple)) or not all(isinstance(x, Mapping) for x in found):
        kind = type(found).__name__
        raise RowError("no columns", f"holds a {kind}, not columns by name or a list of rows")
    for number, row in enumerate(found, 1):
        yield Record(row, path, number)


def needed(module: str, extra: str) -> Any:
    """A library that is imported where it is used.

    Raises:
        RowError: it is not installed.
    """
    from importlib import import_module

    try:
        return import_module(module)
    except ImportError:
        package = module.partition(".")[0]
        text = f"needs {package}: pip install '{extra}'"
        raise RowError(f"needs {package}", text) from None


FORMATS: dict[str, Callable[[Path, Reading], Iterator[Record]]] = {
    ".jsonl": _plain,
    ".ndjson": _plain,
    ".jsonl.gz": _gzip,
    ".jsonl.zst": _zstd,
    ".parquet": _parquet,
    ".npz": _npz,
    ".safetensors": _safetensors,
    ".pt": _torch,
    ".pth": _torch,
    ".pkl": _pickle,
    ".pickle": _pickle,
}
"""Suffix -> what reads it."""
