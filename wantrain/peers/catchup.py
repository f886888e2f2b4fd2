"""Fetching what is missing from those who have it, in chunks from several of them at once; a pure core.

The sources never freeze or copy their state: each chunk of a snapshot comes with the log number it was taken at, and
the participant replays every chunk from its own number (a fuzzy snapshot with a redo log). Each source is asked for as
much as it will give within a second by its own pace. What a slow one still owes when nothing else is left is asked of a
second one; who is silent, has denied or has lied is asked after all others.
"""

from collections.abc import Container, Iterable
from dataclasses import dataclass, field

from wantrain.peers.timing import Duration

FIRST_WINDOW_CHUNKS = 2
"""Chunks asked from a source of unknown pace: one that is on its way and one that waits behind it."""
MAX_WINDOW_CHUNKS = 16
"""Most chunks asked from one source at a time: what can be lost with it, and what its queue has to hold."""
AHEAD_S = 1.0
"""A source is asked for what it gives within this time: it spans any round trip, and is little to lose."""
SILENCE_FLOOR_S = 4.0
"""What a source of unknown pace may take: the time of 4 MiB on 8 Mbit/s."""
SILENCE_CEILING_S = 30.0


# ---- events


@dataclass(frozen=True, slots=True)
class Sources:
    """Peers that may hold what is wanted, best first; replaces the earlier list. Those in `last` have lied before."""

    peers: tuple[str, ...]
    last: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Came:
    """A wanted chunk came from `source` and was stored."""

    source: str
    chunk: int


@dataclass(frozen=True, slots=True)
class Reachable:
    """The connection to `source` came up: what was asked before may never have reached it."""

    source: str


@dataclass(frozen=True, slots=True)
class Denied:
    """`source` does not hold it, or sent something false: it is not asked again before all others were."""

    source: str


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


FetchEvent = Sources | Reachable | Came | Denied | Tick


# ---- effects


@dataclass(frozen=True, slots=True)
class Want:
    """Ask `source` for chunks."""

    source: str
    chunks: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Exhausted:
    """Every known source has denied. The denials are forgotten: the sources may come to hold it and are asked again."""


FetchEffect = Want | Exhausted


@dataclass(slots=True)
class _Source:
    """What is asked of one source, and how it has answered so far."""

    asked: dict[int, float] = field(default_factory=dict)
    """Chunks that it owes, and when each was asked for."""
    answer: Duration = field(default_factory=Duration)
    """From asking to having."""
    pace: Duration = field(default_factory=Duration)
    """From one chunk to the next while it owes some."""
    heard_at: float = 0.0
    """When it gave a chunk, or was asked while it owed none."""
    late: bool = False
    """It owes something, and has been silent for longer than it usually is."""
    patience: float = 1.0
    """Grows with every vain wait: on a slow way the first chunk may take long."""

    @property
    def window(self) -> int:
        """Chunks that it may owe."""
        if self.pace.mean_s is None:
            return FIRST_WINDOW_CHUNKS
        return max(1, min(MAX_WINDOW_CHUNKS, int(AHEAD_S / max(self.pace.mean_s, 1e-3)) + 1))

    @property
    def ends_in_s(self) -> float:
        """When it would have given one chunk more than it owes; 0 if its pace is unknown."""
        return (len(self.asked) + 1) * (self.pace.mean_s or 0.0)

    def ask(self, chunk: int, now: float) -> None:
        if not self.asked:
            self.heard_at = now
        self.asked[chunk] = now

    def came(self, chunk: int, now: float, missing: Container[int]) -> None:
        asked_at = self.asked.pop(chunk, None)
        if asked_at is not None:
            self.answer.add(now - asked_at)
            self.pace.add(now - max(asked_at, self.heard_at))
        if self.late:
            self.asked = {chunk: at for chunk, at in self.asked.items() if chunk in missing}
        self.heard_at, self.late, self.patience = now, False, 1.0

    def overdue(self, now: float) -> bool:
        silence_s = self.patience * self.answer.usual_s(SILENCE_FLOOR_S, SILENCE_CEILING_S, times=2.0)
        return bool(self.asked) and now - self.heard_at >= min(silence_s, SILENCE_CEILING_S)

    def restart(self) -> None:
        self.asked, self.late, self.patience = {}, False, 1.0


class Fetch:
    """One thing to fetch, in chunks; done when `missing` is empty."""

    def __init__(self, chunks: Iterable[int]) -> None:
        self.missing = dict.fromkeys(chunks)
        self.denied: set[str] = set()
        self._peers: tuple[str, ...] = ()
        self._last: frozenset[str] = frozenset()
        self._known: dict[str, _Source] = {}

    def handle(self, event: FetchEvent, now: float) -> list[FetchEffect]:
        """React to an event at time `now` in seconds."""
        wants: dict[str, list[int]] = {}
        match event:
            case Sources(peers, last):
                self._peers, self._last = peers, last
                self._known = {peer: self._known.get(peer) or _Source() for peer in peers}
            case Reachable(source):
                if source in self._known:
                    self._known[source].restart()
            case Came(source, chunk):
                self.missing.pop(chunk, None)
                for peer, known in self._known.items():
                    if peer == source:
                        known.came(chunk, now, self.missing)
                    elif not known.late:  # who is late has it in its queue still
                        known.asked.pop(chunk, None)
            case Denied(source):
                self.denied.add(source)
                if source in self._known:
                    self._known[source].restart()
            case Tick():
                self._remind(wants, now)
                if wants and self.denied:  # whoever has not denied is silent; the others may hold it by now
                    self.denied.clear()
                    return [*self._ask(wants, now), Exhausted()]
        return self._ask(wants, now)

    @property
    def sources(self) -> tuple[str, ...]:
        """Whom it may ask: who has not denied, and who has lied only if there is nobody else."""
        willing = tuple(peer for peer in self._peers if peer not in self.denied)
        return tuple(peer for peer in willing if peer not in self._last) or willing

    def _remind(self, wants: dict[str, list[int]], now: float) -> None:
        """Find out who is late. If all are, the question may have been lost: ask again."""
        for source in self.sources:
            known = self._known[source]
            if not known.overdue(now):
                continue
            if known.late and self.missing.keys().isdisjoint(known.asked):
                known.asked, known.late = {}, False  # others have given what it owed: it gets another chance
                continue
            known.late, known.heard_at = True, now
            known.patience *= 2
            if all(self._known[other].late for other in self.sources):
                wants[source] = [chunk for chunk in known.asked if chunk in self.missing]

    def _ask(self, wants: dict[str, list[int]], now: float) -> list[FetchEffect]:
        sources = self.sources
        if not self.missing:
            return []
        if not sources:
            self.denied.clear()
            return [Exhausted()] if self._peers else []
        prompt = [source for source in sources if not self._known[source].late] or list(sources)
        owed = {chunk for source in prompt for chunk in self._known[source].asked}
        room = [source for source in prompt if len(self._known[source].asked) < self._known[source].window]
        for chunk in self.missing if room else ():
            if chunk in owed:
                continue
            # Who will be through first; among those of unknown pace, who owes least.
            source = min(room, key=lambda s: (self._known[s].ends_in_s, len(self._known[s].asked)))
            known = self._known[source]
            known.ask(chunk, now)
            owed.add(chunk)
            wants.setdefault(source, []).append(chunk)
            if len(known.asked) >= known.window:
                room.remove(source)
                if not room:
                    break
        if owed >= self.missing.keys():
            self._double(prompt, wants, now)
        return [Want(source, tuple(chunks)) for source, chunks in wants.items() if chunks]

    def _double(self, prompt: list[str], wants: dict[str, list[int]], now: float) -> None:
        """Nothing is left to ask for: ask who owes nothing for what it would have given twice over by now."""
        for source in prompt:
            known = self._known[source]
            if known.asked or known.answer.mean_s is None:
                continue
            holders = [other for other in prompt if other != source]
            late = [
                (asked_at, chunk)
                for other in holders
                for chunk, asked_at in self._known[other].asked.items()
                if now - asked_at >= 2 * known.answer.mean_s and self._owing(chunk) == 1
            ]
            for _, chunk in sorted(late)[: known.window]:
                known.ask(chunk, now)
                wants.setdefault(source, []).append(chunk)

    def _owing(self, chunk: int) -> int:
        """How many sources owe this chunk."""
        return sum(chunk in known.asked for known in self._known.values())
