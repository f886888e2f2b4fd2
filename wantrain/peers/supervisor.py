"""The training process beside a peer: started, watched, started again after a crash, ended."""

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from wantrain.peers.orphan import UNKNOWN, Orphan, note_trainer

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
        if self._process is not None:
            self._process.kill()

    def end(self) -> None:
        """End the process: SIGTERM, then SIGKILL."""
        self._start_at = None
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(END_PATIENCE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self.exit_code, self._process = self._process.returncode, None

    def wait(self) -> None:
        """Wait until the process ends by itself."""
        if self._process is not None:
            self.exit_code = self._process.wait()
            self._process = None

    def describe_exit(self) -> str:
        """How the last process ended, in words."""
        code = self.exit_code
        if code is None:
            return "still runs"
        if code == UNKNOWN:
            return "ended, and only the daemon that had started it would know how"
        if code < 0:
            return f"was killed by {signal.Signals(-code).name}"
        return f"ended with exit code {code}"
