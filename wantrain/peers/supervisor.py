"""The training process beside a peer: started, watched, started again after a crash, ended."""

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from wantrain.peers.orphan import UNKNOWN, Orphan, descends, note_trainer, started_at

BACK_OFF_FIRST_S = 1.0
BACK_OFF_LAST_S = 30.0
FORGIVE_AFTER_S = 600.0
"""A process that ran this long starts with a clean record of restarts."""
END_PATIENCE_S = 10.0
"""How long an ended process may take to go after SIGTERM."""


class Supervisor:
    """One command, at most one process of it at a time.

    Args:
        command: program and arguments.
        environment: variables added to this process's own.
        max_restarts: how often in a row it may fail and be started again.
        notes: directory in which it is written down which process runs.
    """

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str], max_restarts: int, notes: Path | None = None
    ) -> None:
        self.restarts = 0
        self.exit_code: int | None = None
        """How the last process ended; None while one runs."""
        self._command = list(command)
        self._environment = {**os.environ, **environment}
        self._max_restarts = max_restarts
        self._notes = notes
        self._process: subprocess.Popen[bytes] | Orphan | None = None
        self._trainer: Orphan | None = None
        """The process that trains, if the command is a wrapper that has started it."""
        self._started_at = 0.0
        self._start_at: float | None = 0.0

    @property
    def running(self) -> bool:
        """Whether there is a process."""
        return self._process is not None

    @property
    def speaks(self) -> bool:
        """Whether it writes to this process's terminal, as a child does, and tells for itself why it waits."""
        return isinstance(self._process, subprocess.Popen)

    def attached(self, pid: int) -> None:
        """This process trains: it ends with the command, although a shell script between does not pass signals on."""
        command = self._process
        wrapped = command is not None and pid != command.pid and descends(pid, command.pid)
        self._trainer = Orphan(pid, started_at(pid)) if wrapped else None

    def adopt(self, orphan: Orphan, now: float) -> None:
        """Take over a process that a former daemon had started."""
        self._process, self._started_at, self._start_at, self.exit_code = orphan, now, None, None

    def start_if_due(self, now: float) -> bool:
        """Start the process if it is time to; whether it was started.

        Raises:
            OSError: the program cannot be started.
        """
        if self._process is not None or self._start_at is None or now < self._start_at:
            return False
        self._started_at, self._start_at, self.exit_code = now, None, None
        self._process = subprocess.Popen(self._command, env=self._environment)
        if self._notes is not None:
            note_trainer(self._notes, self._process.pid)
        return True

    def ended(self, now: float) -> bool:
        """Whether the process has ended since the last call; its exit code is then in `exit_code`."""
        if self._process is None or self._process.poll() is None:
            return False
        self.exit_code = self._process.returncode
        if now - self._started_at >= FORGIVE_AFTER_S:
            self.restarts = 0
        self._process = None
        if self._trainer is not None and self.exit_code:
            self._trainer.kill()  # before another one is started
        self._trainer = None
        return True

    def restart_later(self, now: float) -> bool:
        """Plan another start, with back-off; False if it has failed too often."""
        if self.restarts >= self._max_restarts:
            return False
        self._start_at = now + min(BACK_OFF_LAST_S, BACK_OFF_FIRST_S * 2**self.restarts)
        self.restarts += 1
        return True

    def kill(self) -> None:
        """SIGKILL to the process, if there is one, without waiting for it."""
        for process in self._processes:
            process.kill()

    def end(self) -> None:
        """End the process: SIGTERM, then SIGKILL."""
        self._start_at = None
        if self._process is None:
            return
        deadline = time.monotonic() + END_PATIENCE_S
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self.exit_code, self._process, self._trainer = self._process.returncode, None, None

    @property
    def _processes(self) -> list[subprocess.Popen[bytes] | Orphan]:
        return [process for process in (self._process, self._trainer) if process is not None]

    def describe_exit(self) -> str:
        """How the last process ended, in words."""
        code = self.exit_code
        if code is None:
            return "still runs"
        if code == UNKNOWN:
            return "ended, and only the daemon that had started it would know how"
        if code < 0:
            known = {one.value: one.name for one in signal.Signals}
            return f"was killed by {known.get(-code, f'signal {-code}')}"
        return f"ended with exit code {code}"
