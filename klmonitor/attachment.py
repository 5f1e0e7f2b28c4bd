"""`attach(trainer)`: find the integration that knows a trainer, and hand it over.

Integrations are entry points of the group ``klmonitor.integrations``. An entry's name is the
import root of the trainers that it knows (``trl``), matched on the classes that the trainer
derives from, so that a user's own subclass is found too and nothing is imported that the
trainer's process has not imported already.
"""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from textwrap import indent
from typing import Any

from klmonitor.hooks.handle import Handle

INTEGRATIONS = "klmonitor.integrations"
RECIPE = """\
from klmonitor import Monitor

monitor = Monitor(run_dir="runs/kl")             # on every rank, after init_process_group()
with monitor.watch(optimizer) as watch:          # each optimizer.step() closes a step
    for batch in batches:
        loss, log_probs = loss_of(batch)         # [B, T], of the sampled tokens
        watch.observe(policy=log_probs, ref=batch["ref_log_probs"], mask=batch["mask"])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
"""
"""What watches a loop that no integration knows; the first recipe of docs/recipes.md."""


def attach(trainer: Any, **options: Any) -> Handle:
    """Watch the KL of a trainer that is about to run.

    Args:
        trainer: the trainer, built and not yet started.
        options: see `klmonitor.hooks.options.Options`.

    Returns:
        A handle with the monitor, `detach()` and `describe()`.

    Raises:
        TypeError: no integration knows this trainer, or an option is unknown.
        ValueError: an option has a value that cannot work, or the trainer is watched already.
    """
    return _integration(trainer).load()(trainer, **options)  # type: ignore[no-any-return]  # a plugin


def _integration(trainer: Any) -> EntryPoint:
    """The integration of the nearest base class that has one."""
    entries = {entry.name: entry for entry in entry_points(group=INTEGRATIONS)}
    for base in type(trainer).__mro__:
        root = base.__module__.partition(".")[0]
        if root in entries:
            return entries[root]
    kind = type(trainer)
    raise TypeError(
        f"klmonitor does not know {kind.__module__}.{kind.__qualname__}: attach() takes trainers "
        f"of {', '.join(sorted(entries)) or 'no installed package'}. docs/recipes.md has lines for "
        f"other trainers; in a loop of your own it is\n\n{indent(RECIPE, '    ')}"
    )
