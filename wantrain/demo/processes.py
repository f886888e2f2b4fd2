"""Child processes of a run on this machine: each in a group of its own, with log and event file; none outlives it."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from wantrain.peers.place import remove_leftovers, segment_directory

STOP_TIMEOUT_S = 10.0


class Children:
    """Child processes by name; output goes to NAME.log in `folder`, events are read from NAME.events.jsonl there.

    Use it as a context manager: leaving it kills every process group that was started.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._offsets: dict[str, int] = {}

    def __enter__(self) -> "Children":
        return self

    def __exit__(self, *_: object) -> None:
        interrupt: KeyboardInterrupt | None = None
        left = list(self._running)
        while left:
            try:
                self.kill(left[-1])
                left.pop()
            except KeyboardInterrupt as second:  # all the same nothing may outlive the demo
                interrupt = second
        if interrupt is not None:
            raise interrupt

    def start(
        self,
        name: str,
        command: Sequence[str],
        environment: Mapping[str, str] | None = None,
        popen: Callable[..., "subprocess.Popen[bytes]"] = subprocess.Popen,
    ) -> None:
        """Start a process in a session of its own, so that a Ctrl-C on the terminal reaches only us.

        `popen` is called as subprocess.Popen is; it may put the process on another host.
        """
        # Several sites share this machine: one thread each, or they fight over its cores.
        env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", **(environment or {})}
        with self.log(name).open("wb") as log:
            self._running[name] = popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=env, start_new_session=True
            )

    def wantrain(self, name: str, *words: str, environment: Mapping[str, str] | None = None) -> None:
        """Start a wantrain command under a name, with its event file."""
        command, *rest = words
        events = ["--events", str(self.event_file(name))]
        self.start(name, [sys.executable, "-m", "wantrain", command, *events, *rest], environment)

    def log(self, name: str) -> Path:
        """Where a process's stdout and stderr go."""
        return self.folder / f"{name}.log"

    def event_file(self, name: str) -> Path:
        """The path that a process is given as --events."""
        return self.folder / f"{name}.events.jsonl"

    def exit_code(self, name: str) -> int | None:
        """Exit code, negative for a signal; None while it runs."""
        return self._running[name].poll()

    def started(self, name: str) -> bool:
        """Whether a process of this name was started."""
        return name in self._running

    def interrupt(self, name: str) -> None:
        """SIGINT to the process itself, if it still runs."""
        if self._running[name].poll() is None:
            self._running[name].send_signal(signal.SIGINT)

    def pid(self, name: str) -> int:
        """Process id, which is also that of its group."""
        return self._running[name].pid

    def kill(self, name: str) -> None:
        """SIGKILL to the whole group, also when its leader is gone already."""
        process = self._running[name]
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        except PermissionError:  # macOS says so when only a zombie is left of the group
            pass
        process.wait()

    def stop(self, name: str) -> None:
        """SIGINT, so that it can end in order; SIGKILL if it has not after a while."""
        process = self._running[name]
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self.kill(name)

    def new_events(self, name: str) -> list[dict[str, Any]]:
        """Lines that were added to a process's event file since the last call; what is no JSON object is left out."""
        path = self.event_file(name)
        if not path.exists():
            return []
        with path.open("rb") as file:
            file.seek(self._offsets.get(name, 0))
            data = file.read()
        complete = data[: data.rfind(b"\n") + 1]
        self._offsets[name] = self._offsets.get(name, 0) + len(complete)
        return json_lines(complete)

    def last_lines(self, name: str, count: int = 5) -> str:
        """The end of a process's log, for error messages."""
        lines = self.log(name).read_text(encoding="utf-8", errors="replace").splitlines()
        return "\n".join(lines[-count:])

    def wait_for(self, name: str, event: str, timeout_s: float) -> dict[str, Any] | None:
        """The first JSON line with that event on a process's output; None if it ends or the time is over."""
        deadline = time.monotonic() + timeout_s
        while True:
            ended = self.exit_code(name) is not None
            for line in json_lines(self.log(name).read_bytes()):
                if line.get("event") == event:
                    return line
            if ended or time.monotonic() > deadline:
                return None
            time.sleep(0.05)


def json_lines(data: bytes) -> list[dict[str, Any]]:
    """The JSON objects among the lines; other lines (warnings, a line half written) are left out."""
    found = []
    for line in data.splitlines():
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict):
            found.append(value)
    return found


@contextmanager
def nothing_left_in_memory(folder: Path) -> Iterator[None]:
    """At the end, remove what killed peers had shared with their trainers: no process comes after them to do it."""
    try:
        yield
    finally:
        for home in folder.glob("peer-*/"):
            remove_leftovers(home, segment_directory())


@contextmanager
def terminated_like_ctrl_c() -> Iterator[None]:
    """Let SIGTERM and SIGHUP unwind like Ctrl-C, so that the children are ended on the way out."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    old = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
