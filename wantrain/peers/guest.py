"""A training process that its peer's daemon has not started: a script that attaches by itself, watched but never ended.

It has as much of the interface of a `Supervisor` as the daemon needs.
"""

from pathlib import Path

from wantrain.peers.orphan import Orphan, forget_trainer, note_trainer, started_at


class Guest:
    """At most one process at a time.

    Args:
        owner: id of the process that has started this daemon for itself, and with which it ends; None: scripts come
            and go, and the daemon stays.
        notes: directory in which it is written down which process trains.
    """

    restarts = 0
    speaks = False
    """What it says goes to another terminal."""

    def __init__(self, owner: int | None, notes: Path) -> None:
        self.stays = owner is None
        self.exit_code: int | None = None
        self._notes = notes
        self._process = Orphan(owner, started_at(owner)) if owner is not None else None
        self._why = ""

    @property
    def running(self) -> bool:
        """Whether a process has attached, or has started this daemon, and has neither ended nor let go."""
        return self._process is not None

    def admits(self, pid: int) -> bool:
        """Whether this process may attach now: one at a time."""
        return self._process is None or self._process.pid == pid or self._process.poll() is not None

    def attached(self, pid: int) -> None:
        """It has; a daemon that comes after this one finds it by the note."""
        self._process, self._why = Orphan(pid, started_at(pid)), ""
        note_trainer(self._notes, pid)

    def adopt(self, orphan: Orphan, _: float) -> None:
        """Go on with a process that had attached to a former daemon."""
        self._process = orphan

    def let_go(self, why: str) -> None:
        """It has said that it is done here, although it may live on."""
        self._why = why

    def start_if_due(self, _: float) -> bool:
        """False: it starts by itself."""
        return False

    def ended(self, _: float) -> bool:
        """Whether it has ended or let go since the last call."""
        if self._process is None:
            return False
        if not self._why and self._process.poll() is not None:
            self._why = f"process {self._process.pid} has ended"
        if not self._why:
            return False
        self._process = None
        forget_trainer(self._notes)
        self.exit_code = None if self.stays else 0
        return True

    def restart_later(self, _: float) -> bool:
        """Whether to wait for another."""
        return self.stays

    def describe_exit(self) -> str:
        """What became of it, in words."""
        return self._why

    def kill(self) -> None:
        """Nothing: it is not this daemon's to end; so with the next."""

    end = kill
