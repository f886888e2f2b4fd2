"""What a tracker is: something that is given a peer's numbers, point by point, on a thread of its own."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeAlias


@dataclass(frozen=True, slots=True)
class Point:
    """The numbers of one moment."""

    time_unix: float
    step: int
    """The run's step count, as the trainer has it."""
    round: int
    """Syncs of the first parameter stream that were applied."""
    numbers: Mapping[str, float]
    """Those of `swarm.log` by their names, the daemon's own as "wantrain/…" (see docs/metrics.md)."""


@dataclass(frozen=True, slots=True)
class Source:
    """Whose numbers they are."""

    run: str
    """Identity of the run, 16 hex digits."""
    peer: str
    """Identity of the peer."""
    name: str
    """Name of the peer."""
    home: Path
    """Directory of the peer, in which trackers may write."""

    @property
    def title(self) -> str:
        """What the peer's numbers are called: run id/peer name."""
        return f"{self.run}/{self.name}"


class Tracker(Protocol):
    """Open until `close`. May take its time, and may raise anything: it is then given up."""

    def write(self, point: Point) -> None:
        """Take one point."""

    def close(self) -> None:
        """Write out what is left."""


Open: TypeAlias = Callable[[], Tracker]
"""Opens a tracker whose package is there; on the tracker's thread, as it may have to wait for a server."""
Load: TypeAlias = Callable[[Source, str], Open]
"""Imports a tracker's package (ImportError if it is not installed); the text is what the user wrote after its name."""
