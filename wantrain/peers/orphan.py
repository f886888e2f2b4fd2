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
    return _told(pid, 19, "lstart")


def descends(pid: int, ancestor: int) -> bool:
    """Whether a live process is `ancestor`, or was started by it or by those that it has started."""
    while pid > 1 and pid != ancestor:
        parent = _told(pid, 1, "ppid")
        pid = int(parent) if parent.isdecimal() else 0
    return pid == ancestor


def _told(pid: int, field: int, word: str) -> str:
    """What the system tells of a live process: a field of its line in /proc, or, without that, a word of `ps`."""
    try:
        # The name in brackets may have anything in it; behind it come the state, the parent and so on.
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        return "" if fields[0] in "ZX" else fields[field]
    except (FileNotFoundError, ProcessLookupError):
        if Path("/proc/self/stat").exists():
            return ""
    told = subprocess.run(["ps", "-o", f"{word}=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return told.stdout.strip()


@dataclass(slots=True)
class Orphan:
    """The process, with as much of the interface of `subprocess.Popen` as a supervisor needs."""

    pid: int
    started: str
    """When it was started; "" if it was gone already when somebody asked."""
    returncode: int | None = None

    def poll(self) -> int | None:
        """None while it runs, then `UNKNOWN`."""
        if self.returncode is None and not (self.started and started_at(self.pid) == self.started):
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
