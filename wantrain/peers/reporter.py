"""What a peer reports to the coordinator, and when: with every heartbeat, and at once if it is urgent; pure.

A part of `participant.py`, which alone calls it.
"""

from collections.abc import Callable
from dataclasses import dataclass

from wantrain.peers.attempts import Attempts
from wantrain.peers.contributions import Contributions
from wantrain.peers.departure import Departure
from wantrain.peers.events import Progress
from wantrain.peers.messages import Report, SyncReport
from wantrain.peers.neighbours import Neighbours
from wantrain.peers.recovery import Recovery
from wantrain.peers.reports import PathNews, sync_key, sync_line
from wantrain.peers.saving import Saving
from wantrain.peers.wants import Wants


@dataclass(frozen=True, slots=True)
class Reported:
    """The parts of a participant that its reports tell of."""

    recovery: Recovery
    attempts: Attempts
    mine: Contributions
    wants: Wants
    neighbours: Neighbours
    saving: Saving
    departure: Departure


class Reporter:
    """Makes the reports.

    Args:
        boot: id of this process.
        heartbeat_s: longest time between two reports.
        about: what they are about.
        waiting: for whom or what this peer waits at a time, in words.
    """

    def __init__(self, boot: bytes, heartbeat_s: float, about: Reported, waiting: Callable[[float], str]) -> None:
        self.progress = Progress(-1.0)
        """The trainer's, as of late."""
        self.view = 0
        """Number of the newest view that has come."""
        self.revision = 0
        """Of the newest Welcome."""
        self._boot = boot
        self._heartbeat_s = heartbeat_s
        self._about = about
        self._waiting = waiting
        self._path_news = PathNews()
        self.sequence = 0
        """Number of the last report that was made."""
        self._last: Report | None = None
        self._last_key: object = None
        self._last_at = -heartbeat_s

    def renew(self) -> None:
        """The next one is due at once, whatever it says."""
        self._last = None

    def due(self, now: float) -> Report | None:
        """A report, if one is due."""
        last, key = self._last, self._urgent()
        heartbeat = last is None or now - self._last_at >= self._heartbeat_s
        if last is not None and not heartbeat and key == self._last_key:
            reached_again = last.unreached and not set(last.unreached) <= set(self._about.neighbours.unreached)
            if not reached_again:
                return None
        self._last, self._last_key = self.make(now, heartbeat=heartbeat), key
        self._last_at = now
        return self._last

    def make(self, now: float, *, heartbeat: bool = True) -> Report:
        """A report of how things are now; only with a heartbeat it tells of paths."""
        about = self._about
        recovery, wants, neighbours = about.recovery, about.wants, about.neighbours
        self.sequence += 1
        number, digest = recovery.state_digest
        # A trainer without data will not contribute, and nobody is to wait for it.
        trainer = "dry" if about.mine.trainer_state == "training" and wants.dry else about.mine.trainer_state
        return Report(
            boot=self._boot,
            sequence=self.sequence,
            log_number=recovery.held,
            chain=recovery.chain if recovery.complete else b"",
            state_number=number,
            state_digest=digest,
            trainer=trainer,
            syncs=tuple(self._sync_lines()),
            suspects=dict(neighbours.suspects),
            eta_s=self.progress.eta_s if trainer == "training" else -1.0,
            waiting=self._waiting(now),
            stats=self.progress.stats,
            view=self.view,
            paths=self._path_news.choose(self.progress.paths) if heartbeat else {},
            unreached=neighbours.unreached,
            behind=recovery.behind,
            reader=wants.reader,
            wants=wants.lines,
            saved=about.saving.saved,
            step_s=self.progress.step_s,
            revision=self.revision,
            leaving=about.departure.begun,
        )

    def _sync_lines(self) -> list[SyncReport]:
        staged = {} if self._about.departure.parting else self._about.mine.staged
        running, indices = self._about.attempts.running, self._about.recovery.indices
        lines = (sync_line(s, k + 1, staged.get(s), running.get(s)) for s, k in indices.items())
        return [line for line in lines if line is not None]

    def _urgent(self) -> object:
        """What of a report is worth sending at once when it changes; the rest can wait for the next heartbeat."""
        about = self._about
        recovery, mine, wants, running = about.recovery, about.mine, about.wants, about.attempts.running
        offers = not about.departure.parting
        syncs = [sync_key(s, k + 1, offers and mine.has_staged(s), running.get(s)) for s, k in recovery.indices.items()]
        suspects, leaving = list(about.neighbours.suspects), about.departure.begun
        return recovery.held, mine.trainer_state, wants.dry, syncs, suspects, wants.open, about.saving.saved, leaving
