"""Fetching what is missing from those who have it: the state in chunks, or one committed update; a pure core.

The sources never freeze or copy their state: each chunk of a snapshot comes with the log number it was taken at, and
the participant replays every chunk from its own number (a fuzzy snapshot with a redo log). A fetch has a small window
per source, asks again elsewhere when a source is silent, and drops a source that does not hold what it was asked for.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from wantrain.peers.timing import Duration

WINDOW_CHUNKS = 4
"""Chunks asked from one source at a time: enough to keep a link busy, little enough to lose with it."""
SILENCE_FLOOR_S = 2.0
SILENCE_CEILING_S = 30.0


# ---- events


@dataclass(frozen=True, slots=True)
class Sources:
    """Peers that may hold what is wanted, best first; replaces the earlier list."""

    peers: tuple[str, ...]


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


class Fetch:
    """One thing to fetch, in chunks 0 … chunks - 1; done when `missing` is empty."""

    def __init__(self, chunks: Sequence[int]) -> None:
        self.missing = dict.fromkeys(chunks)
        self.denied: set[str] = set()
        self._sources: tuple[str, ...] = ()
        self._asked: dict[int, tuple[str, float]] = {}
        self._answer = Duration()

    def handle(self, event: FetchEvent, now: float) -> list[FetchEffect]:
        """React to an event at time `now` in seconds."""
        match event:
            case Sources(peers):
                self._sources = peers
                self._asked = {c: asked for c, asked in self._asked.items() if asked[0] in peers}
            case Reachable(source):
                self._asked = {c: asked for c, asked in self._asked.items() if asked[0] != source}
            case Came(source, chunk):
                asked = self._asked.pop(chunk, None)
                self.missing.pop(chunk, None)
                if asked is not None and asked[0] == source:
                    self._answer.add(now - asked[1])
            case Denied(source):
                self.denied.add(source)
                self._asked = {c: asked for c, asked in self._asked.items() if asked[0] != source}
            case Tick():
                silence_s = self._answer.usual_s(SILENCE_FLOOR_S, SILENCE_CEILING_S, times=4.0)
                silent = {source for source, at in self._asked.values() if now - at >= silence_s}
                self._asked = {c: asked for c, asked in self._asked.items() if asked[0] not in silent}
                # A silent source goes to the end of the line: it may only be slow.
                self._sources = tuple(sorted(self._sources, key=lambda source: source in silent))
        return self._ask(now)

    @property
    def sources(self) -> tuple[str, ...]:
        """Sources that have not denied."""
        return tuple(source for source in self._sources if source not in self.denied)

    def _ask(self, now: float) -> list[FetchEffect]:
        sources = self.sources
        if not self.missing:
            return []
        if not sources:
            self.denied.clear()
            return [Exhausted()] if self._sources else []
        load = dict.fromkeys(sources, 0)
        for source, _ in self._asked.values():
            load[source] = load.get(source, 0) + 1
        wants: dict[str, list[int]] = {}
        for chunk in self.missing:
            if chunk in self._asked:
                continue
            source = min(sources, key=lambda s: load[s])
            if load[source] >= WINDOW_CHUNKS:
                break
            load[source] += 1
            self._asked[chunk] = (source, now)
            wants.setdefault(source, []).append(chunk)
        return [Want(source, tuple(chunks)) for source, chunks in wants.items()]
