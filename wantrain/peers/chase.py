"""Whether a peer that catches up gains on the run at all, or updates come faster than its link carries them; pure.

Where it does not, the peer says so in its reports, and the coordinator waits with each sync for it, as long as for
others that are late: otherwise it would chase the head of the log for ever.
"""

from dataclasses import dataclass, field

from wantrain.peers.timing import Duration

GAIN_S = 5.0
"""A replay that has come no nearer to the head of the log for so long does not gain on it."""
SHORTER = 1.5
"""A snapshot is fetched instead of updates if those would take so many times as long."""
VAIN_SNAPSHOTS = 2
"""Times in a row that updates after a snapshot were no longer kept when it came to them: the first may be bad luck."""


class Chase:
    """Looks at how far behind the head a peer is, from when it has no state at hand until it is at the head."""

    def __init__(self) -> None:
        self.losing = False
        self.snapshot = Duration()
        """How long it takes to fetch the state."""
        self.update = Duration()
        """How long it takes to fetch an update."""
        self._leapt = False
        self._least: int | None = None
        """Fewest commits that it was behind so far."""
        self._gained_at = 0.0
        self._vain = 0

    def look(self, applied: int, head: int, *, complete: bool, now: float) -> None:
        """How things are: the last commit in the state at hand (-1: there is none), and the run's."""
        behind = head - applied
        if complete and behind <= 1:
            self.losing, self._least, self._vain, self._leapt = False, None, 0, False
        elif applied >= 0 and (self._least is None or behind < self._least):
            self._least, self._gained_at = behind, now
        elif self._least is not None and now - self._gained_at >= GAIN_S:
            self.losing = True

    def leap(self, behind: int) -> bool:
        """Whether to fetch the state again rather than so many updates: once in a chase, when the others wait.

        While they do not, the log grows during a snapshot by as much as it spares.
        """
        snapshot_s, update_s = self.snapshot.mean_s, self.update.mean_s
        if not self.losing or self._leapt or snapshot_s is None or update_s is None:
            return False
        self._leapt = behind * update_s > SHORTER * snapshot_s
        return self._leapt

    def vain(self) -> None:
        """An update that is needed is no longer kept by anybody: a snapshot has to be fetched."""
        self._vain += 1
        self.losing = self.losing or self._vain >= VAIN_SNAPSHOTS


@dataclass(slots=True)
class Chasers:
    """The coordinator's side: for whom syncs wait, and for how long at most in all.

    Args:
        most_s: after so long without having come to the head of the log a peer is not waited for any more.
    """

    most_s: float
    _since: dict[str, float] = field(default_factory=dict)
    _behind: dict[str, int] = field(default_factory=dict)

    def reported(self, peer: str, behind: int, now: float) -> bool:
        """How many commits a peer is behind without gaining, 0 if it gains or is there; whether that is news."""
        if not behind:
            self._behind.pop(peer, None)
            return self._since.pop(peer, None) is not None
        news = peer not in self._since
        self._since.setdefault(peer, now)
        self._behind[peer] = behind
        return news

    def gone(self, peer: str) -> None:
        """A peer has left."""
        self._behind.pop(peer, None)
        self._since.pop(peer, None)

    def waited_for(self, now: float) -> dict[str, int]:
        """Whom syncs wait for, and how many commits each is behind."""
        return {peer: behind for peer, behind in self._behind.items() if now - self._since[peer] < self.most_s}
