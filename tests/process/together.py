"""Runs a training script as it is, but `wantrain.join` returns only when as many trainers as told have joined.

Arguments: a folder that they share, how many they are, the script, its arguments.
"""

import os
import runpy
import sys
import time
from pathlib import Path
from typing import Any

from wantrain import session

DEADLINE_S = 90.0
POLL_S = 0.02

folder, count, script, *words = sys.argv[1:]
join = session.join


def join_together(*arguments: Any, **options: Any) -> session.Swarm:
    swarm = join(*arguments, **options)
    (Path(folder) / f"joined-{os.getpid()}").touch()
    deadline = time.monotonic() + DEADLINE_S
    while len(list(Path(folder).glob("joined-*"))) < int(count):
        if time.monotonic() > deadline:
            raise TimeoutError(f"not all of {count} have joined")
        time.sleep(POLL_S)
    return swarm


session.join = join_together
sys.argv = [script, *words]
sys.path[0] = str(Path(script).parent)
runpy.run_path(script, run_name="__main__")
