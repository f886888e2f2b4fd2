"""Whose turn it is to save the run's state, and whether that was done; a part of the coordinator's core.

One peer at a time is asked: the members in the order of their names take turns, so that the newest states lie on
different machines. Who dies, fails or says nothing for long is replaced by the next one.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from wantrain.peers.pairing import Pairing

ASK_AGAIN_S = 5.0
"""A request that got lost is repeated after so long."""
PATIENCE_S = 600.0
"""Who has not saved within this time is replaced; one that is gone, or says that it cannot, is replaced at once."""
PAUSE_S = 30.0
"""After everybody has failed it is tried again, this much later."""


@dataclass(frozen=True, slots=True)
class Ask:
    """Ask `peer` to save the state at log number `number`, or a later one."""

    peer: str
    number: int


class SaveDuty:
    """Who has which state on disk, which one is due, and who was asked for it.

    Args:
        every: commits between two saved states; 0: only on demand.
    """

    def __init__(self, every: int) -> None:
        self.every = every
        self.writer = ""
        """Who was asked and has not done it yet."""
        self.number = -1
        """What the writer was asked for."""
        self.trouble = ""
        """Why the last one who was asked has not done it."""
        self._saved: dict[str, int] = {}
        self._done = -1
        """Newest number that a writer was asked for and has on disk."""
        self._demanded = -1
        self._slow: dict[str, int] = {}
        """What those were asked for who were replaced as nothing was heard of them: they may be writing it still."""
        self._tried: set[str] = set()
        self._began_at = self._asked_at = self._resume_at = 0.0

    def newest(self, head: int) -> tuple[int, str]:
        """The newest state of the run up to `head` that is on disk, and at whom; (-1, "") if none is known."""
        return max(((number, peer) for peer, number in self._saved.items() if 0 <= number <= head), default=(-1, ""))

    def due(self, head: int) -> int:
        """The log number whose state should be on disk by now; -1 if none."""
        regular = head - head % self.every if self.every and head >= self.every else -1
        return max(regular, min(self._demanded, head))

    def pending(self, head: int) -> bool:
        """Whether a state is due and not on disk yet."""
        return self.due(head) > (self._done if self._done <= head else -1)

    def demand(self, head: int) -> None:
        """The state as it is now is wanted."""
        self._demanded = head
        self._resume_at = 0.0

    def reported(self, peer: str, saved: int) -> None:
        """A peer says what it has on disk."""
        self._saved[peer] = saved
        if not self.awaits(peer, saved):
            return
        # What others say does not count, nor more than was asked for: a liar fails in its own turns only.
        number = self._slow.pop(peer, -1)
        if peer == self.writer and saved >= self.number:
            self.writer, number = "", self.number
        self.trouble, self._tried, self._done = "", set(), max(self._done, number)

    def awaits(self, peer: str, saved: int) -> bool:
        """Whether a peer that has this state on disk has done what it was asked for."""
        slow = self._slow.get(peer, -1)
        return (peer == self.writer and saved >= self.number) or 0 <= slow <= saved

    def failed(self, peer: str, reason: str) -> None:
        """A peer cannot save its state."""
        if peer == self.writer:
            self._replace(reason)

    def ask(self, head: int, members: Sequence[str], pairings: Sequence[Pairing], now: float) -> list[Ask]:
        """Like `tick`, for the state as it is now, as the leases that go with it are those of the number asked for.

        In a gossip run also tell its streams' `pairings` who is in no exchange until it has saved.
        """
        able, least = members, head
        for pairing in pairings:
            able, least = self._agreed(head, members, pairing), pairing.agreed
            if not able:
                return []
        asks = self.tick(head, able, now, least=least)
        for pairing in pairings:
            pairing.held_back = self.writer
        return asks

    def _agreed(self, head: int, members: Sequence[str], pairing: Pairing) -> tuple[str, ...]:
        """Who still is where all replicas have come to one; if nobody is and a state is due, they have to."""
        agreed = pairing.agreed_still(members)
        writing, pending = self.writer in agreed, self.pending(head)
        pairing.held_back = self.writer if pending and writing else ""
        pairing.wants_consensus = pending and not writing and not (agreed and pairing.agreed >= self.due(head))
        return agreed if pending and not pairing.wants_consensus else ()

    def tick(self, head: int, members: Sequence[str], now: float, *, least: int = 0) -> list[Ask]:
        """Ask somebody if a state is due.

        Args:
            head: last committed log number.
            members: who holds the run's state.
            now: time in seconds.
            least: the state is to be one of this log number or a later one, also if an earlier one is due.
        """
        number = self.due(head)
        if self._done > head:  # the log went back
            self._done = -1
        self._demanded = min(self._demanded, head)  # or it would be due anew with every line up to there
        if self.number > head:
            self.writer = ""
        self._slow = {peer: asked for peer, asked in self._slow.items() if asked <= head}
        if number < 0 or self._done >= number:
            return []
        if self.writer and self.writer not in members:
            self._replace("it is gone")
        elif self.writer and now - self._began_at >= PATIENCE_S:
            self._slow.setdefault(self.writer, self.number)
            self._replace(f"nothing was heard of it for {PATIENCE_S:.0f} s")
        if not self.writer and now >= self._resume_at:
            able = [peer for peer in sorted(members) if peer not in self._tried]
            if able:
                turn = number // self.every if self.every else number
                self.writer, self.number = able[turn % len(able)], max(number, least)
                self._began_at = self._asked_at = now
                return [Ask(self.writer, self.number)]
            if self._tried:
                self._tried, self._resume_at = set(), now + PAUSE_S
        if self.writer and now - self._asked_at >= ASK_AGAIN_S:
            self._asked_at = now
            return [Ask(self.writer, self.number)]
        return []

    def _replace(self, reason: str) -> None:
        self._tried.add(self.writer)
        self.writer, self.trouble = "", f"{self.writer}: {reason}"
