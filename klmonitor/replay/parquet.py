"""A run's numbers as one parquet table, and back.

One row a report: ``step``, ``first_step``, ``phase``, ``time`` and every metric under its full name
(``kl/policy_ref/k3/mean``) as float64, null where the report has none.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from klmonitor.report import Report, Row

SOURCE = b"klmonitor"
"""Key of the table's metadata under which it says what wrote it."""


def write_parquet(reports: Sequence[Report], path: str | os.PathLike[str]) -> int:
    """Write the reports; the number of rows.

    Raises:
        ValueError: pyarrow is not installed, or there is no report.
        OSError: it cannot be written.
    """
    pyarrow, parquet = _pyarrow()
    if not reports:
        raise ValueError("no step is recorded yet")
    rows = [report.scalars() for report in reports]
    names = list(dict.fromkeys(name for row in rows for name in row))
    columns: dict[str, Any] = {
        "step": pyarrow.array([report.step for report in reports], pyarrow.int64()),
        "first_step": pyarrow.array([report.first_step for report in reports], pyarrow.int64()),
        "phase": pyarrow.array([report.phase for report in reports], pyarrow.string()),
        "time": pyarrow.array([report.time for report in reports], pyarrow.float64()),
    }
    for name in names:
        values = [_there(row.get(name)) for row in rows]
        columns[name] = pyarrow.array(values, pyarrow.float64())
    table = pyarrow.table(columns).replace_schema_metadata({SOURCE: b"klmonitor.steps/1"})
    parquet.write_table(table, os.fspath(path))
    return len(rows)


def parquet_rows(path: Path) -> list[Row]:
    """The rows of a table, those of evaluation left out, without what is null.

    Raises:
        ValueError: pyarrow is not installed, or the file is damaged.
    """
    pyarrow, parquet = _pyarrow()
    try:
        rows = parquet.read_table(path).to_pylist()
    except pyarrow.ArrowException as error:
        raise ValueError(f"{path} cannot be read: {error}") from None
    held = ({name: value for name, value in row.items() if value is not None} for row in rows)
    return [row for row in held if row.get("phase", "train") == "train"]


def _there(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else value


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise ValueError("parquet needs pyarrow: pip install 'klmonitor[parquet]'") from None
    return pyarrow, parquet
