"""The lab as its user has it: hosts to run commands on, links to change, figures to read; all gone when it is left."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

from wantrain.errors import ConfigError, WantrainError
from wantrain.lab import enter, namespaces
from wantrain.lab.fabric import LARGEST_LAB, address
from wantrain.lab.path import PairStats
from wantrain.lab.shape import Shape, default_queue_bytes

STOP_TIMEOUT_S = 2.0
"""For what runs on the hosts to end by itself after SIGTERM, all together."""
SWITCH_TIMEOUT_S = 15.0
UPLINK_BUFFER_S = 0.1
"""A site's uplink buffers what it carries in this time."""


class Lab:
    """Hosts 0 to hosts - 1, every pair joined in both directions by links of one shape, until it is changed.

    For one thread. Use it as a context manager; nothing is made before. Everything on the hosts ends with it, also when
    this process is killed: then the switch, a process of its own, kills what it finds in its namespaces.

    Args:
        hosts: 1 to 64.
        shape: of every link, each direction.
        seed: of losses and jitter.
        congestion: TCP's congestion control on the hosts where a socket asks for none; "" is this machine's.

    Raises:
        ConfigError: hosts is out of range.
    """

    def __init__(self, hosts: int, shape: Shape, seed: int = 0, congestion: str = "") -> None:
        if not 1 <= hosts <= LARGEST_LAB:
            raise ConfigError(
                f"a lab of {hosts} hosts, allowed are 1 to {LARGEST_LAB}", hint="run several processes on one host"
            )
        self.hosts = hosts
        self._start = {"hosts": hosts, "shape": asdict(shape), "seed": seed, "congestion": congestion}
        self._stack = contextlib.ExitStack()
        self._children: list[subprocess.Popen[Any]] = []
        self._namespaces: list[int] = []

    def __enter__(self) -> Self:
        """Start the switch and the hosts.

        Raises:
            WantrainError: this machine cannot run a lab, with the reason.
        """
        if why := namespaces.available():
            raise WantrainError(why, hint="run as root on Linux; without root, measure over loopback")
        with contextlib.ExitStack() as stack:
            self._socket, theirs = socket.socketpair()
            stack.enter_context(self._socket)
            with theirs:
                self._switch = subprocess.Popen(
                    [sys.executable, "-m", "wantrain.lab.switch", str(theirs.fileno())],
                    stdin=subprocess.DEVNULL,
                    cwd=Path(__file__).parents[2],  # the package is found there, installed or not
                    pass_fds=(theirs.fileno(),),
                    start_new_session=True,  # a Ctrl-C is for the user's process, which then ends the switch
                )
            stack.callback(self._end_switch)
            self._lines = stack.enter_context(self._socket.makefile("rb"))
            for descriptor in self._ask(self._start)["namespaces"]:
                self._namespaces.append(os.open(f"/proc/{self._switch.pid}/fd/{descriptor}", os.O_RDONLY))
            stack.callback(self._end_children)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def check(self, *hosts: int) -> None:
        """Are these different hosts of the lab.

        Raises:
            ConfigError: one is not, or is named twice.
        """
        for host in hosts:
            if not 0 <= host < self.hosts:
                raise ConfigError(f"host {host}, allowed are 0 to {self.hosts - 1}", hint="hosts are counted from 0")
        if len(set(hosts)) < len(hosts):
            raise ConfigError(f"a link from host {hosts[0]} to itself", hint="name two hosts")

    def address(self, host: int) -> str:
        """IP address of a host, which the others reach it by."""
        self.check(host)
        return address(host)

    def popen(self, host: int, argv: Sequence[str], **kwargs: Any) -> subprocess.Popen[Any]:
        """Start a command on a host; options as of subprocess.Popen. It sees this machine but for the network.

        The process is the command itself once it has started: its id and exit code are the command's.
        """
        self.check(host)
        namespace = self._namespaces[host]
        kwargs["pass_fds"] = (*kwargs.get("pass_fds", ()), namespace)
        command = [sys.executable, "-I", "-S", enter.__file__, str(namespace), *argv]
        child: subprocess.Popen[Any] = subprocess.Popen(command, **kwargs)
        self._children.append(child)
        return child

    def shape(self, source: int, destination: int, shape: Shape) -> None:
        """Change one direction of one link, for what is sent from now on; Shape(loss=1) cuts it."""
        self.check(source, destination)
        self._ask({"do": "shape", "source": source, "destination": destination, "shape": asdict(shape)})

    def limit(self, host: int, rate_bytes_per_s: float) -> None:
        """Cap the sum of what a host sends to all others, as the upload of a site; buffers 0.1 s of it."""
        self.check(host)
        queue_bytes = default_queue_bytes(rate_bytes_per_s, UPLINK_BUFFER_S)
        shape = Shape(rate_bytes_per_s, queue_bytes=queue_bytes)
        self._ask(
            {"do": "limit", "host": host, "rate_bytes_per_s": shape.rate_bytes_per_s, "queue_bytes": shape.queue_bytes}
        )

    def stats(self) -> dict[tuple[int, int], PairStats]:
        """What happened so far on each directed pair, by (source, destination)."""
        pairs = self._ask({"do": "stats"})["pairs"]
        return {(source, destination): PairStats(**stats) for source, destination, stats in pairs}

    def switch_cpu_s(self) -> float:
        """Processor seconds that the switch has used so far, the kernel's work for it included."""
        return float(self._ask({"do": "stats"})["cpu_s"])

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        try:
            self._socket.sendall(json.dumps(request).encode() + b"\n")
            line = self._lines.readline()
        except ConnectionError:
            line = b""
        if not line:
            raise WantrainError("the lab's switch has ended", hint="its last words are on stderr; start a new lab")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise WantrainError(answer["error"], hint=answer["hint"])
        return answer

    def _end_children(self) -> None:
        running = [child for child in self._children if child.poll() is None]
        for child in running:
            child.terminate()
        deadline_s = time.monotonic() + STOP_TIMEOUT_S
        for child in running:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(max(0.0, deadline_s - time.monotonic()))
        for child in running:
            child.kill()
            child.wait()

    def _end_switch(self) -> None:
        self._socket.close()
        for descriptor in self._namespaces:
            os.close(descriptor)
        self._namespaces.clear()
        try:
            self._switch.wait(SWITCH_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._switch.kill()
            self._switch.wait()
