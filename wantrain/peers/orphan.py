"""A training process that has outlived the daemon that had started it: found again, watched, ended, though no child.

Process ids are used again, so a process is known by its id and its start time. The note of it lies in the daemon's
scratch directory, where the next daemon at the same place looks.
"""

import json
import os
import signal
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

NOTE = "trainer.json"
UNKNOWN = 256
"""Exit code of a process of which it cannot be known: only its parent is told. No process ends with this."""
WATCH_S = 0.02


def started_at(pid: int) -> str:
    """When a live process was started, as the system tells it; "" if there is no such process, or only its remains."""
    try:
        # The name in brackets may have anything in it; behind it come the state and, 19 fields on, the start time.
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        return "" if fields[0] in "ZX" else fields[19]
    except (FileNotFoundError, ProcessLookupError):
        if Path("/proc/self/stat").exists():
            return ""
    told = subprocess.run(["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return told.stdout.strip()


@dataclass(slots=True)
class Orphan:
    """The process, with as much of the interface of `subprocess.Popen` as a supervisor needs."""

    pid: int
    started: str
    returncode: int | None = None

    def poll(self) -> int | None:
        """None while it runs, then `UNKNOWN`."""
        if self.returncode is None and started_at(self.pid) != self.started:
            self.returncode = UNKNOWN
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait until it has ended.

        Raises:
            subprocess.TimeoutExpired: it has not, within `timeout` seconds.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while (code := self.poll()) is None:
            if deadline is not None and time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(str(self.pid), timeout or 0.0)
            time.sleep(WATCH_S)
        return code

    def terminate(self) -> None:
        """SIGTERM."""
        self._send(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL."""
        self._send(signal.SIGKILL)

    def _send(self, number: int) -> None:
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)


def note_trainer(directory: Path, pid: int) -> None:
    """Write down which process trains, whole or not at all."""
    draft = directory / f"{NOTE}.new"
    draft.write_text(json.dumps({"pid": pid, "started": started_at(pid)}), encoding="utf-8")
    draft.replace(directory / NOTE)


def forget_trainer(directory: Path) -> None:
    """Take the note away: that process does not train any more, though it may live."""
    (directory / NOTE).unlink(missing_ok=True)


def find_orphan(directory: Path) -> Orphan | None:
    """The process that was noted down there, if it lives."""
    try:
        noted = json.loads((directory / NOTE).read_text(encoding="utf-8"))
        orphan = Orphan(int(noted["pid"]), str(noted["started"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return orphan if orphan.pid > 1 and orphan.started and orphan.poll() is None else None
