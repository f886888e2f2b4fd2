"""Runs a training script as it is, and writes what its steps took: whole ones, and wantrain's hooks in them.

Arguments: the file for the figures, the steps of a round (0: the script is one without wantrain), the script, its
arguments. Beside it, in a thread, is a peer that answers each contribution with itself. A step is what lies between the
ends of two steps of the optimizer; of waiting for the peer nothing is counted. Of several ranks the first one writes.
"""

import json
import os
import runpy
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import fmean, median
from typing import Any

from torch.optim.optimizer import register_optimizer_step_post_hook

from wantrain.bench.trainer import _Beside
from wantrain.optimizers.stream import Stream
from wantrain.session import Swarm

WARM_UP_STEPS = 10

out, every, script, *words = sys.argv[1:]
first = os.environ.get("RANK", "0") == "0"
accompanied = first and int(every) > 0
steps_s: list[float] = []
hooks_s: list[float] = []
"""Of each step."""
mark = 0.0
spent_s = 0.0
waited_s = 0.0


def timed(hook: Callable[[Swarm], None]) -> Callable[[Swarm], None]:
    def run(swarm: Swarm) -> None:
        global spent_s, waited_s
        before_s, began = swarm.waited_s, time.perf_counter()
        hook(swarm)
        waiting_s = swarm.waited_s - before_s
        spent_s += time.perf_counter() - began - waiting_s
        waited_s += waiting_s

    return run


def stepped(*_: Any) -> None:
    """After all hooks of the optimizer's own."""
    global mark, spent_s, waited_s
    now = time.perf_counter()
    steps_s.append(now - mark - waited_s)
    hooks_s.append(spent_s)
    mark, spent_s, waited_s = now, 0.0, 0.0


Swarm._before_step = timed(Swarm._before_step)  # type: ignore[method-assign]
Swarm._after_step = timed(Swarm._after_step)  # type: ignore[method-assign]
register_optimizer_step_post_hook(stepped)
sys.argv = [script, *words]
sys.path[0] = str(Path(script).parent)
with tempfile.TemporaryDirectory(prefix="wantrain-") as folder:
    beside = _Beside(Path(folder), Stream("param", every=max(1, int(every)), merge="nesterov", codec="int8"))
    if accompanied:
        beside.start()
        os.environ["WANTRAIN_DAEMON"] = beside.address
    runpy.run_path(script, run_name="__main__")
    if accompanied:
        beside.stop()
ends = [hook for k, hook in enumerate(hooks_s, 1) if int(every) and k % int(every) == 0 and k > WARM_UP_STEPS]
figures = {
    "steps": len(steps_s),
    "step_ms": 1e3 * median(steps_s[WARM_UP_STEPS:]),
    "hooks_ms": 1e3 * fmean(hooks_s[WARM_UP_STEPS:]),
    "round_ms": 1e3 * median(ends) if ends else 0.0,
}
if first:
    Path(out).write_text(json.dumps(figures))
