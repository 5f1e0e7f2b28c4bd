"""Delivery of alerts to webhooks, chat, e-mail and pagers, never on the training thread.

    Monitor(run_dir="runs/math", notify=["env:KLM_WEBHOOK", {"to": "file:/run/secrets/pager",
                                                             "severity": "critical"}])

Each target has a bounded queue, a thread and a process of its own. The process does the talking:
one that hangs is killed, so that neither a slow answer nor a library's threads can hold up
training or its exit. Delivery is at least once: an answer that got lost is a message sent twice,
with the same ``id``.

Addresses are secrets. They come from the environment or from a file, go to the process through a
pipe, and are in no message, log, exception or command line of ours: a target is called by the name
of its variable or file.
"""

from klmonitor.notify.notifier import Notifier
from klmonitor.notify.targets import Notify, Target, parse_targets

__all__ = ["Notifier", "Notify", "Target", "parse_targets"]
