"""What every adapter can be told: the keyword arguments of `klmonitor.attach`."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What `attach` and `KLMonitorCallback` can be told.

    Attributes:
        run_dir: where the record goes; True is ``<the trainer's output dir>/klmonitor``, False or
            None keeps nothing on disk.
        metrics: what the trainer's own log gets: ``"core"``, ``"full"`` or a list of globs.
        rules: the alert rules, as `Monitor` takes them.
        groups: names that the data set's `group_column` may hold; any other counts as ``other``.
        group_column: the column of the data set that names a prompt's group.
        log_tokens: ``"local"``, True or False: where the text of tokens may go.
        max_disk: bytes that the run may take on disk, as `Monitor` takes it.
        reference: ``"auto"`` (the trainer's own; with adapters and no reference of its own, the
            model without its adapters), a model, or None for no other than the trainer's own.
        reference_every: a reference of ours is evaluated on every so many generation batches.
        recompute: where the loss computes no log-probs (Liger), compute the policy's once more.
        half_life: of the running statistics, optimizer steps.
        sinks: more receivers of reports, as `Monitor` takes them.
        notify: who is told of alerts, as `Monitor` takes it (see `klmonitor.notify`).
        on_alert: what training does about alerts: ``"stop"``, ``"checkpoint"``, a function, or a
            table of these by kind and severity (see `klmonitor.hooks.actions`).
        penalty: the KL term of the objective, as `Monitor` takes it; None: what the trainer's
            options tell of it.
        audit_every: look at logits of policy and reference at some positions every so many
            optimizer steps, for the exact KL and the exact pull of the KL term; 50 is
            recommended. None: never.
        audit_positions: how many, on each rank.
        strict: raise errors of the monitor into training instead of counting them; not those of the
            text of tokens, which is made on the record's thread.
    """

    run_dir: str | os.PathLike[str] | bool | None = True
    metrics: str | Sequence[str] = "core"
    rules: Any = "default"
    groups: Sequence[str] = ()
    group_column: str = "group"
    log_tokens: str | bool = "local"
    max_disk: int = 10**9
    reference: Any = "auto"
    reference_every: int = 10
    recompute: bool = False
    half_life: float = 100
    sinks: Collection[Any] = ()
    notify: Any = None
    on_alert: Any = None
    penalty: Any = None
    audit_every: int | None = None
    audit_positions: int = 64
    strict: bool = False

    def __post_init__(self) -> None:
        """Refuse what cannot work, before a trainer is touched."""
        if self.reference_every < 1:
            raise ValueError(
                f"reference_every = {self.reference_every}: it counts generation batches, "
                "give 1 or more"
            )
        if self.audit_every is not None and self.audit_every < 1:
            raise ValueError(
                f"audit_every = {self.audit_every}: it counts optimizer steps, give 1 or more, or "
                "None for no audit"
            )
        if self.audit_positions < 1:
            raise ValueError(f"audit_positions = {self.audit_positions}: give 1 or more")

    @classmethod
    def parse(cls, options: Mapping[str, Any]) -> Options:
        """Options from keyword arguments.

        Raises:
            TypeError: an option is unknown; the message lists those that are known.
        """
        known = [field.name for field in dataclasses.fields(cls)]
        unknown = sorted(set(options) - set(known))
        if unknown:
            raise TypeError(f"unknown option {unknown[0]!r}: choose from {', '.join(known)}")
        return cls(**options)

    def directory(self, output_dir: str | os.PathLike[str] | None) -> Path | None:
        """The run directory for a trainer that writes to `output_dir`, None for none."""
        if self.run_dir is None or self.run_dir is False:
            return None
        if self.run_dir is not True:
            return Path(self.run_dir)
        return None if output_dir is None else Path(output_dir) / "klmonitor"


def disabled() -> bool:
    """Whether the environment turns every hook off (``KLMONITOR_DISABLE=1``)."""
    return os.environ.get("KLMONITOR_DISABLE", "0") not in ("", "0")
