"""A report as one value of a TensorBoard event: what the "KL" tab draws, tokens without text."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from klmonitor.record.rows import (
    alert_to_row,
    encode_row,
    recorded,
    report_to_row,
    shown_tokens,
    token_to_row,
)
from klmonitor.record.runfile import PENALTY
from klmonitor.report import Report

PLUGIN = "klmonitor"
TAG = "klmonitor/step"
TENSOR_DATA = 2
"""``DataClass.DATA_CLASS_TENSOR``: without it loaders drop the value."""


def step_bytes(report: Report) -> bytes:
    """The report as JSON: what the run's own record holds of it, but for the text of tokens."""
    row = report_to_row(replace(recorded(report), run_values={}))
    row["tokens"] = [token_to_row(replace(token, text=None)) for token in shown_tokens(report)]
    row[PENALTY] = {name: pair.penalty for name, pair in report.pairs.items() if pair.penalty}
    row["alerts"] = [alert_to_row(alert) for alert in report.alerts]
    return encode_row(row)


def step_value(report: Report) -> Any:
    """The report as a ``Summary.Value`` of the plugin."""
    return tensor_value(TAG, PLUGIN, step_bytes(report))


def tensor_value(tag: str, plugin: str, content: bytes) -> Any:
    """Bytes as a ``Summary.Value`` that a plugin of TensorBoard reads."""
    from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
    from tensorboard.compat.proto.tensor_pb2 import TensorProto
    from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
    from tensorboard.compat.proto.types_pb2 import DT_STRING

    tensor = TensorProto(dtype=DT_STRING, string_val=[content], tensor_shape=TensorShapeProto())
    metadata = SummaryMetadata(
        plugin_data=SummaryMetadata.PluginData(plugin_name=plugin), data_class=TENSOR_DATA
    )
    return Summary.Value(tag=tag, tensor=tensor, metadata=metadata)
