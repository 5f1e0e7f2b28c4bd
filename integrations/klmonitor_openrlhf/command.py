"""OpenRLHF's own command, with klmonitor in every process of the run.

    python -m klmonitor_openrlhf ARGUMENTS [--klmonitor.OPTION VALUE ...]

The arguments are those of ``python -m openrlhf.cli.train_ppo_ray``, which is run in this process
with ours taken out. Ours are checked before anything starts. OpenRLHF's call of ``ray.init`` is
left as it is, its variables too, and gets one thing more: the function that installs our hooks.
"""

from __future__ import annotations

import functools
import json
import os
import runpy
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any

from klmonitor.hooks.actions import Actions
from klmonitor.hooks.configuration import (
    GIVEN,
    gathered,
    load_options,
    option_names,
    value_of,
)
from klmonitor.hooks.options import Options, disabled
from klmonitor.hooks.remote import refuse
from klmonitor.monitor import Monitor
from klmonitor.sinks import check_metrics
from klmonitor_openrlhf.settings import NOT_HERE, WHY

TRAINER = "openrlhf.cli.train_ppo_ray"
SETUP = "klmonitor_openrlhf.setup"
OURS = "--klmonitor."
USAGE = 2
CARRIED = ("KLMONITOR_CACHE_DIR",)
"""Variables that processes of a cluster that runs already are given; none may hold a secret."""


def main(arguments: Sequence[str]) -> int:
    """Run OpenRLHF; its own exit status, or 2 where an option of ours cannot work."""
    try:
        own, theirs = split(arguments)
        given = gathered(own)
        check(load_options(own))
    except (ValueError, TypeError, OSError) as error:
        return _refused(str(error))
    if find_spec(TRAINER.partition(".")[0]) is None:
        return _refused(f"openrlhf is not installed for {sys.executable}")
    if {"-h", "--help"} & set(theirs):
        sys.stdout.write(f"klmonitor: {OURS}OPTION VALUE, of {', '.join(option_names())}\n\n")
    if not disabled():
        _hook_ray(given)
    sys.argv = [TRAINER, *theirs]
    runpy.run_module(TRAINER, run_name="__main__", alter_sys=True)
    return 0


def split(arguments: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """Ours by option, and OpenRLHF's as they are: ``--klmonitor.x y``, ``--klmonitor.x=y``.

    An option without a value is true.

    Raises:
        ValueError: an option is given twice.
    """
    own: dict[str, Any] = {}
    theirs: list[str] = []
    rest = list(arguments)
    while rest:
        one = rest.pop(0)
        if not one.startswith(OURS):
            theirs.append(one)
            continue
        name, equals, text = one.removeprefix(OURS).partition("=")
        if name in own:
            raise ValueError(f"{OURS}{name} is given twice")
        if not equals:
            text = rest.pop(0) if rest and not rest[0].startswith("--") else "true"
        own[name] = value_of(name, text)
    return own, theirs


def check(options: Options) -> None:
    """Refuse what cannot work, as far as that can be told before the run's own processes start.

    Raises:
        ValueError, TypeError: the message names the option and the remedy.
    """
    refuse(options, NOT_HERE, WHY)
    check_metrics(options.metrics)
    Actions(options.on_alert, options.rules)
    Monitor(
        rules=options.rules,
        log_tokens=options.log_tokens,
        max_disk=options.max_disk,
        half_life=options.half_life,
        penalty=options.penalty,
        process_group=False,
    ).close()


def _hook_ray(given: dict[str, Any]) -> None:
    """Let the next ``ray.init`` give every process of the run our hooks."""
    import ray

    if ray.is_initialized():
        sys.stderr.write("klmonitor: Ray was started before, so nothing is watched\n")
        return
    variables = {name: os.environ[name] for name in CARRIED if name in os.environ}
    variables[GIVEN] = json.dumps(given, default=str)
    ray.init = _with_hooks(ray.init, variables)


def _with_hooks(init: Callable[..., Any], variables: dict[str, str]) -> Callable[..., Any]:
    @functools.wraps(init)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        env = dict(kwargs.get("runtime_env") or {})
        theirs = env.get("env_vars") or {}
        env |= {"env_vars": {**variables, **theirs}, "worker_process_setup_hook": SETUP}
        return init(*args, **{**kwargs, "runtime_env": env})

    return wrapper


def _refused(why: str) -> int:
    sys.stderr.write(f"klmonitor: {why}\n")
    return USAGE
