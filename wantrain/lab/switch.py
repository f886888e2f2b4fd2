"""The lab's switch as a process: makes the hosts, then moves frames between their devices until its starter is gone.

It is given one socket. First line in: {"hosts", "shape", "seed", "congestion"}; first line out: {"namespaces"}, the
descriptors under /proc/PID/fd, or {"error", "hint"}. Then one line out for each line in: see `_Switch.answer`. At the
end of the socket it kills every process in its namespaces, which ends these, too.
"""

import errno
import json
import os
import random
import select
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from wantrain.errors import WantrainError
from wantrain.lab.enter import enter
from wantrain.lab.fabric import Fabric, address
from wantrain.lab.frames import LARGEST_BYTES
from wantrain.lab.namespaces import current_namespace, members, new_device, new_namespace
from wantrain.lab.shape import Shape

BATCH_FRAMES = 64
"""Read from one host before the next has its turn."""
LEAST_WAIT_S = 0.0002
"""Frames that are due within this time of each other are handed over together: fewer wake-ups."""
LONGEST_WAIT_S = 60.0
KILL_TIMEOUT_S = 5.0
PRIORITY = -10
"""Busy hosts share the processors with the switch; a link must not get slower because they compute."""


class _Switch:
    def __init__(self, starter: socket.socket, fabric: Fabric, devices: list[int]) -> None:
        self._starter = starter
        self._fabric = fabric
        self._devices = devices
        self._line = b""

    def run(self) -> None:
        """Returns when the starter has closed its end."""
        fabric, devices = self._fabric, self._devices
        hosts = {device: host for host, device in enumerate(devices)}
        watched = [self._starter.fileno(), *devices]
        while True:
            due_s = fabric.next_due_s()
            wait_s = LONGEST_WAIT_S if due_s is None else max(due_s - time.monotonic(), LEAST_WAIT_S)
            ready, _, _ = select.select(watched, (), (), min(wait_s, LONGEST_WAIT_S))
            for descriptor in ready:
                if descriptor == watched[0]:
                    if not self._serve():
                        return
                    continue
                now_s = time.monotonic()
                for frame in _frames(descriptor):
                    fabric.send(hosts[descriptor], frame, now_s)
            for host, frame in fabric.receive(time.monotonic()):
                try:
                    os.write(devices[host], frame)
                except OSError as error:
                    if error.errno != errno.EIO:  # a host that has taken its device down gets nothing
                        raise

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Do "shape" (source, destination, shape), "limit" (host, rate_bytes_per_s, queue_bytes) or "stats"."""
        if request["do"] == "shape":
            self._fabric.reshape(request["source"], request["destination"], Shape(**request["shape"]))
            return {}
        if request["do"] == "limit":
            self._fabric.limit(request["host"], request["rate_bytes_per_s"], request["queue_bytes"])
            return {}
        pairs = [[*pair, asdict(stats)] for pair, stats in self._fabric.stats().items()]
        return {"pairs": pairs, "cpu_s": time.process_time()}

    def _serve(self) -> bool:
        data = self._starter.recv(65536)
        *lines, self._line = (self._line + data).split(b"\n")
        for line in lines:
            self._starter.sendall(json.dumps(self.answer(json.loads(line))).encode() + b"\n")
        return data != b""


def _frames(device: int) -> list[bytes]:
    frames: list[bytes] = []
    try:
        while len(frames) < BATCH_FRAMES:
            frames.append(os.read(device, LARGEST_BYTES))
    except BlockingIOError:
        pass
    return frames


def _dice(seed: int) -> Callable[[int, int], Callable[[], float]]:
    """Dice of their own for every pair: what one link loses does not depend on what others carry."""
    return lambda source, destination: random.Random(f"{seed} {source} {destination}").random


def _end(namespaces: list[int]) -> None:
    """Kill all that still runs on the hosts, also what the starter knows nothing of."""
    deadline_s = time.monotonic() + KILL_TIMEOUT_S
    while (inside := members(namespaces)) and time.monotonic() < deadline_s:
        for process in inside:
            try:
                os.kill(process, signal.SIGKILL)
            except ProcessLookupError:
                continue
        time.sleep(0.01)


def main() -> None:
    """Run the switch for the socket whose descriptor is the only argument."""
    starter = socket.socket(fileno=int(sys.argv[1]))
    with starter, starter.makefile("rb", buffering=0) as lines:
        given = json.loads(lines.readline())
        own = current_namespace()
        namespaces: list[int] = []
        devices: list[int] = []
        try:
            for host in range(given["hosts"]):
                namespaces.append(new_namespace())
                devices.append(new_device(address(host), given["congestion"]))
        except (WantrainError, OSError) as error:
            message, hint = (error.message, error.hint) if isinstance(error, WantrainError) else (str(error), "")
            starter.sendall(json.dumps({"error": message, "hint": hint}).encode() + b"\n")
            return
        enter(own)
        try:
            os.nice(PRIORITY)
        except PermissionError:
            print("netlab: the switch gets no higher priority here; busy hosts may slow the links", file=sys.stderr)
        starter.sendall(json.dumps({"namespaces": namespaces}).encode() + b"\n")
        try:
            _Switch(starter, Fabric(given["hosts"], Shape(**given["shape"]), _dice(given["seed"])), devices).run()
        finally:
            _end(namespaces)


if __name__ == "__main__":
    main()
