"""Files that only Python can read, and what is needed to trust them.

A pickle is a program: loading it runs what its writer put there. ``.pt`` files are loaded as
weights (`torch.load` with ``weights_only=True``), which runs nothing; a ``.pkl`` is loaded with
``--trust`` alone. SkyRL's batches are taken apart without SkyRL.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from klmonitor_dumps.problems import RowError

RISK = (
    "loading it runs whatever code the file holds, with your rights: give --trust if you or your "
    "own trainer wrote it"
)
SKYRL = "skyrl"
"""How the names of SkyRL's modules begin (``skyrl_train`` before 0.3)."""


def load_torch(path: Path, trust: bool) -> Any:
    """What ``torch.save`` wrote.

    Raises:
        RowError: it needs more than tensors and plain objects and is not trusted, or is damaged.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=not trust)
    except pickle.UnpicklingError:
        text = f"holds more than tensors and plain objects, so it is a pickle: {RISK}"
        raise RowError("pickle", text) from None
    except (RuntimeError, EOFError, AttributeError, ImportError) as error:
        raise RowError("unreadable file", f"cannot be read ({_line(error)})") from None


def load_pickle(path: Path, trust: bool) -> Any:
    """What ``pickle.dump`` wrote.

    Raises:
        RowError: it is not trusted, or damaged.
    """
    if not trust:
        raise RowError("pickle", f"is a pickle: {RISK}")
    try:
        with path.open("rb") as file:
            return _Unpickler(file).load()
    except Exception as error:  # noqa: BLE001  # a pickle may raise anything
        raise RowError("unreadable file", f"cannot be read ({_line(error)})") from None


class _Batch(dict[str, Any]):
    """What a batch of SkyRL becomes where SkyRL is not installed."""

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        for name, value in state["batch_dict"].items():
            if value is not None and value.get("format") != "tensor_list":
                self[name] = _tensor(value)


def _tensor(value: Mapping[str, Any]) -> Any:
    if value.get("format") == "torch":
        return torch.load(io.BytesIO(value["data"]), weights_only=True)
    return np.frombuffer(value["data"], dtype=np.dtype(value["dtype"])).reshape(value["shape"])


def _rebuild(cls: type, state: Mapping[str, Any]) -> _Batch:
    """What SkyRL's pickles call."""
    batch = _Batch()
    batch.__setstate__(state)
    return batch


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module.partition(".")[0].startswith(SKYRL):
            return _rebuild if name.startswith("_rebuild") else _Batch
        return super().find_class(module, name)


def _line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}"
