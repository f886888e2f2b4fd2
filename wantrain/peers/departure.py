"""How a peer leaves in order, as its participant decides it: what it waits for before it goes, and how long; pure.

A part of `participant.py`, which alone calls it: first what is in flight is decided, then somebody else has the state,
then it is on this peer's disk, then an heir has what this peer owes.
"""

from wantrain.peers.attempts import Attempts
from wantrain.peers.contributions import Contributions
from wantrain.peers.effects import Effect, HandOver
from wantrain.peers.neighbours import Neighbours
from wantrain.peers.recovery import Recovery
from wantrain.peers.saving import Saving

LEAVE_PATIENCE_S = 10.0
"""How long a leaving peer waits for what it has in flight to be decided, and for others to take over the state."""
RETURN_PATIENCE_S = 3.0
"""For how long a leaving peer takes a connection to the coordinator that broke for one that comes back."""
SAVE_PATIENCE_S = 60.0
"""How long a leaving peer waits for its state to be on disk."""
HEIR_PATIENCE_S = 60.0
"""How long it waits for somebody to take over what nobody else has: over a slow link that takes a while."""


class Departure:
    """From the wish to leave until nothing is left to wait for.

    Args:
        recovery, attempts, mine, saving, neighbours: parts of the same participant.
        saves: whether it saves its state before it leaves.
    """

    def __init__(
        self,
        recovery: Recovery,
        attempts: Attempts,
        mine: Contributions,
        saving: Saving,
        neighbours: Neighbours,
        *,
        saves: bool,
    ) -> None:
        self.reason: str | None = None
        """Why it leaves; None: it does not."""
        self._since = 0.0
        self._recovery = recovery
        self._attempts = attempts
        self._mine = mine
        self._saving = saving
        self._neighbours = neighbours
        self._saves = saves
        self._heir = ""
        """Who gets what is kept of earlier contributions."""
        self._handed_over = False
        self._free_at: float | None = None
        """Since when it may leave but for what it hands over."""
        self._bequest = -1
        """The state that somebody else is to have before it leaves; -1: not known yet."""
        self._inherited, self._revision = -1, 0
        """Up to which log number somebody who stays has the state, as the coordinator says, and when it said so."""
        self._fresh = 0
        """First report of this peer that only the coordinator as it is connected now can have heard."""

    @property
    def begun(self) -> bool:
        """Whether it leaves."""
        return self.reason is not None

    @property
    def parting(self) -> bool:
        """Whether it leaves, alone, and has begun to save what it has done: what it began now would be in no state."""
        return self.begun and self._saving.last_wished and not self._neighbours.sources

    def in_words(self, now: float) -> str:
        """For how long it has been leaving, and what it waits for."""
        what = "what is in flight to be decided"
        if self._free_at is not None:
            what = f"{self._neighbours.name_of(self._heir)} to take over what it owes"
        elif self._saving.last_wish_open:
            what = "its state to be on disk"
        elif not self._mine.outstanding and not self._attempts.running:
            what = f"another peer to hold the state at log number {self._bequest}"
        return f"leaving for {now - self._since:.1f} s: waits for {what}"

    # ---- what happens

    def ask(self, reason: str, now: float) -> None:
        """It is to leave; the first reason counts."""
        if self.reason is None:
            self.reason, self._since = reason, now

    def inherited(self, number: int, revision: int, heard: int) -> None:
        """Somebody who stays has the state up to `number`, says a coordinator that last has `heard` that report."""
        if heard >= self._fresh:
            self._believe(number, revision)

    def welcomed(self, revision: int) -> None:
        """Who says Welcome begins anew to hear who is there: what was said before may hold no longer."""
        self._believe(-1, revision)

    def _believe(self, number: int, revision: int) -> None:
        if revision > self._revision:
            self._inherited, self._revision = number, revision

    def link_changed(self, reported: int) -> None:
        """The next process of the coordinator may know of others than this one did, whose word may still be on its way.

        Args:
            reported: number of the last report that was made.
        """
        self._inherited, self._fresh = -1, reported + 1

    def applied(self, number: int) -> None:
        """Line `number` with a contribution of this peer is applied.

        If that is later than what it wanted to bequeath, an attempt that was given up then was made once more.
        """
        if self._bequest >= 0:
            self._bequest = number

    def handed_over(self) -> None:
        """The heir has what this peer owes."""
        self._handed_over = True

    # ---- what it waits for

    def step(self, now: float, *, away_s: float, up: bool, heard_at: float) -> list[Effect] | None:
        """What is to be done before it goes; None: nothing any more.

        Args:
            now: time in seconds.
            away_s: for how long there has been no connection to the coordinator.
            up: whether there is one.
            heard_at: when the coordinator last said anything.
        """
        recovery, waited_s = self._recovery, now - self._since
        # The last report is to say what state was reached.
        undigested = recovery.complete and recovery.state_digest[0] != recovery.applied
        in_flight = bool(self._attempts.running) or (self._mine.outstanding and not self.parting)
        if (in_flight or undigested) and waited_s < LEAVE_PATIENCE_S and up:
            return []
        if away_s < RETURN_PATIENCE_S and self._is_needed(now, heard_at):
            return []
        if (
            self._saves
            and recovery.complete
            and waited_s < SAVE_PATIENCE_S
            and self._saving.last_wish(recovery.applied, alone=not self._neighbours.sources)
        ):
            return []
        self._free_at = now if self._free_at is None else self._free_at
        if not self._handed_over and now - self._free_at < LEAVE_PATIENCE_S:
            heir = next((peer for peer in self._neighbours.sources if peer not in self._neighbours.suspects), "")
            if self._heir or heir:
                effects: list[Effect] = [] if self._heir else [HandOver(heir)]
                self._heir = self._heir or heir
                return effects
        return None

    def _is_needed(self, now: float, heard_at: float) -> bool:
        """Whether a state might be lost with this peer, and it is not too long that it waits for an heir.

        What is committed from here on is others' work, and theirs to bequeath. A state that is false somewhere, and is
        being repaired, counts: it comes with updates that nobody else may have.
        """
        recovery = self._recovery
        if self._bequest < 0:
            self._bequest = recovery.stands_at
        else:
            self._bequest = min(self._bequest, recovery.applied if recovery.complete else recovery.head)
        answered = now - max(self._since, heard_at) < LEAVE_PATIENCE_S
        return self._inherited < self._bequest and answered and now - self._since < HEIR_PATIENCE_S
