"""A benchmark's worker process: one peer of one contestant, told what to do by JSON lines on stdin, answers on stdout.

The first line is its configuration (`Setup`), then come commands, each answered by one line: `meet` (the others are
there), `prepare` (an all-reduce, not timed), `run` (at a moment on the monotonic clock, which all processes of a
machine share), `verify` and `end`. An error is answered by a line, too, and ends the process.
"""

import json
import queue
import resource
import sys
import threading
import time
from dataclasses import dataclass
from typing import Any, Protocol

from wantrain.errors import WantrainError

Json = dict[str, Any]
SERVE_S, REST_S = 0.01, 0.05
"""How long one look after the links lasts while others may still need something, and between all-reduces."""


@dataclass(frozen=True, slots=True)
class Setup:
    """What a worker is told at the start."""

    kind: str
    """wantrain, gloo or raw."""
    index: int
    """Its place among the peers, from 0."""
    peers: int
    elements: int
    """Of the fp32 vector."""
    codec: str
    down: str
    topology: str
    encrypt: bool
    host: str
    """Address of this host to listen on."""
    timeout_s: float
    """Longest that an all-reduce, or meeting the others, may take."""
    traffic: list[list[float]]
    """[from, to, bytes] of one all-reduce; for raw."""
    variants: list[Json]
    """Ways to be run, with a "name" each."""


class Contestant(Protocol):
    """One way to do an all-reduce, in one process per peer."""

    serves: bool
    """Whether `wait` has something to do between commands."""

    def listen(self) -> Json:
        """Open what the others connect to; what they have to know of it."""

    def meet(self, roster: list[Json]) -> None:
        """Connect to all others, whose `listen` is given in order of the peers; returns when all are there."""

    def prepare(self, number: int, variant: str, watch: bool) -> None:
        """Make the input of all-reduce `number` (1, 2, …); `watch`: find out what its time goes to."""

    def run(self, at: float) -> Json:
        """Do the all-reduce from the moment `at`; "end" says when this peer had its result, on the same clock."""

    def wait(self, seconds: float) -> None:
        """Serve others that have no result yet, for about that long."""

    def verify(self, full: bool) -> Json:
        """Check the result of the last all-reduce; `full` compares every value with what it should be."""

    def close(self) -> None:
        """End."""


def wait_until(at: float) -> None:
    """Sleep until a moment of the monotonic clock."""
    while (left_s := at - time.monotonic()) > 0:
        time.sleep(left_s if left_s > 0.001 else 0)


def cpu_seconds() -> float:
    """What all threads of this process have used of the processors."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def peak_bytes() -> int:
    """Most memory of this process that was resident at once; not inherited from its parent, as ru_maxrss is."""
    try:
        with open("/proc/self/status", encoding="ascii") as file:
            lines = file.read().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def contestant(setup: Setup) -> Contestant:
    """The contestant of that kind; imports only what it needs."""
    if setup.kind == "wantrain":
        from wantrain.bench.swarm import Swarm

        return Swarm(setup)
    if setup.kind == "gloo":
        from wantrain.bench.gloo import Gloo

        return Gloo(setup)
    from wantrain.bench.raw import Raw

    return Raw(setup)


def serve(made: Contestant, commands: "queue.SimpleQueue[str]") -> None:
    """Do what is told until `end`, or until there is nobody left to tell."""
    cpu_before_s, busy = 0.0, False
    while True:
        if made.serves and commands.empty():
            made.wait(SERVE_S if busy else REST_S)
            continue
        line = commands.get()
        command: Json = json.loads(line) if line else {"do": "end"}
        answer: Json = {}
        match command["do"]:
            case "meet":
                made.meet(command["roster"])
            case "prepare":
                made.prepare(command["number"], command["variant"], command["watch"])
                busy, cpu_before_s = True, cpu_seconds()
            case "run":
                answer = made.run(command["at"])
            case "verify":
                busy, used_s = False, cpu_seconds() - cpu_before_s
                answer = {"cpu_s": used_s, "peak_bytes": peak_bytes(), **made.verify(command["full"])}
            case "end":
                return
        say({"did": command["do"], **answer})


def say(answer: Json) -> None:
    """One line for the parent."""
    print(json.dumps(answer), flush=True)


def main() -> None:
    """Run one worker."""
    setup = Setup(**json.loads(sys.stdin.readline()))
    commands: queue.SimpleQueue[str] = queue.SimpleQueue()

    def listen() -> None:
        while True:
            line = sys.stdin.readline()
            commands.put(line)
            if not line:
                return

    try:
        made = contestant(setup)
        try:
            say({"did": "listen", "baseline_bytes": peak_bytes(), **made.listen()})
            threading.Thread(target=listen, daemon=True).start()
            serve(made, commands)
        finally:
            made.close()
    except WantrainError as error:
        say({"failed": error.message, "hint": error.hint, "code": error.exit_code})
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
