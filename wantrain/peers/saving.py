"""What a peer keeps on disk, as its participant decides it: what to begin with, when to save, what to hold back; pure.

A part of `participant.py`, which alone calls it. While a state is being written (`holds`) no update is applied to it:
what is committed meanwhile waits, for as long as it takes to hand the rest of the state to the operating system.
"""

from collections.abc import Mapping, Sequence

from wantrain.peers.effects import BeginSave, DropSave, Effect, Note
from wantrain.peers.messages import Welcome
from wantrain.peers.saved_state import SavedState


class Saving:
    """What is on disk, what is being written, and what was asked for.

    Args:
        found: saved states that this peer may begin with, the best first.
        streams: names of the run's streams.
    """

    def __init__(self, found: Sequence[SavedState], streams: Sequence[str]) -> None:
        self.saved = -1
        """Newest log number whose state this process has on disk; -1 if none."""
        self.number: int | None = None
        """Of the state that is being saved."""
        self.holds = False
        """Whether the state must stay as it is."""
        self._found = list(found)
        self._told: set[tuple[int, str]] = set()
        """What was said of those that do not fit."""
        self._streams = set(streams)
        self._wanted = -1
        self._extra = ""
        self._last: int | None = None
        """The log number that this peer wanted on disk before it leaves."""

    # ---- to begin with

    def candidate(self, welcome: Welcome) -> tuple[list[Effect], SavedState | None]:
        """A saved state that fits the run now, and what is to be said, once, of those that do not. Each is tried once.

        Those that do not fit are kept: an old Welcome may have come late, and the next one is of the run as it is.
        """
        notes: list[Effect] = []
        for saved in list(self._found):
            if not (reason := self._misfit(saved, welcome)):
                self._found.remove(saved)
                return notes, saved
            if (saved.number, reason) not in self._told:
                self._told.add((saved.number, reason))
                notes.append(Note("saved-state-unusable", {"number": saved.number, "reason": reason}))
        return notes, None

    def _misfit(self, saved: SavedState, welcome: Welcome) -> str:
        if saved.genesis != welcome.genesis:
            return "it is of another beginning of the run"
        if saved.number > welcome.head:
            return "it is beyond the run's log"
        if saved.model != welcome.manifest or set(saved.indices) != self._streams:
            return "its model or its streams are not the run's"
        return ""

    def moved_on(self) -> None:
        """The state at hand has been confirmed: older ones are of no use any more."""
        self._found = []

    # ---- saving

    def asked(self, number: int, extra: str) -> None:
        """The state at log number `number`, or a later one, is wanted on disk."""
        if self.saved < number and (self.number is None or self.number < number):
            self._wanted, self._extra = number, extra

    def last_wish(self, number: int, *, alone: bool) -> bool:
        """Whether to wait for the state at `number` to be on disk before leaving.

        Who is not `alone` saves once: what others commit meanwhile they hold.
        """
        if self._last is None or (alone and self._last < number and not self.last_wish_open):
            self._last = number
            self.asked(number, self._extra)
        return self.last_wish_open

    @property
    def last_wished(self) -> bool:
        """Whether this peer has begun to save what it leaves with."""
        return self._last is not None

    @property
    def last_wish_open(self) -> bool:
        """Whether this peer would leave but for its state, which is not on disk yet."""
        return self._last is not None and self.saved < self._last and (self._wanted >= 0 or self.number is not None)

    def begin(self, number: int, chain: bytes, genesis: bytes, indices: Mapping[str, int]) -> list[Effect]:
        """Begin to save the state at hand, if that is wanted; it is complete."""
        if self._wanted < 0 or self._wanted > number or self.number is not None:
            return []
        self._wanted, self.number, self.holds = -1, number, True
        return [BeginSave(number, chain, genesis, dict(indices), self._extra)]

    def captured(self, number: int) -> None:
        """All of it is written, though not durable: the state may change."""
        self.holds = self.holds and number != self.number

    def done(self, number: int) -> list[Effect]:
        """It is durable."""
        if number != self.number:
            return []
        self.saved, self.number, self.holds = max(self.saved, number), None, False
        return [Note("saved", {"number": number})]

    def failed(self, number: int) -> bool:
        """It cannot be written; whether this is the one that is being saved."""
        if number != self.number:
            return False
        self.number, self.holds = None, False
        return True

    def reset(self) -> list[Effect]:
        """The state was not the run's."""
        effects: list[Effect] = [] if self.number is None else [DropSave()]
        self.saved, self.number, self.holds, self._wanted = -1, None, False, -1
        return effects
