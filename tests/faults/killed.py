"""A run that is killed again and again and resumed from its checkpoints: the process of it.

    python -m tests.faults.killed RUN_DIR STATE_FILE ACKNOWLEDGED_FILE SEED

Steps of a writer; every few steps a checkpoint; each row that was acknowledged is noted, by its
number, in a file of the test's before the next step.
"""

from __future__ import annotations

import json
import os
import random
import sys
from pathlib import Path

from klmonitor.record import RecordWriter
from tests.helpers.reports import make_alert, make_token, small_report


def main(run_dir: str, state_file: str, acknowledged: str, seed: str) -> None:
    rng = random.Random(int(seed))
    state = json.loads(Path(state_file).read_text()) if Path(state_file).exists() else None
    writer = RecordWriter(run_dir)
    step = 0
    if state is not None:
        writer.resume(state["step"], state["run_id"])
        step = state["step"]
    told = os.open(acknowledged, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    while True:
        step += 1
        writer.step(small_report(step, x=step + float(seed) / 1000))
        writer.tokens(step, [make_token(step)])
        if step % 7 == 0:
            writer.alert(make_alert(step, message=f"of start {seed}"))
        if rng.random() < 0.5:
            assert writer.flush(60)
        os.write(told, f"{writer.acknowledged} {writer.written}\n".encode())
        if step % 5 == 0:
            writer.checkpoint()
            writer.flush(0.0 if rng.random() < 0.5 else 60)
            fresh = Path(f"{state_file}.{os.getpid()}")
            fresh.write_text(json.dumps({"step": step, "run_id": writer.run_id}))
            fresh.replace(state_file)


if __name__ == "__main__":
    main(*sys.argv[1:])
