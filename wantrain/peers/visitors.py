"""Visitors of a peer: `wantrain doctor` may measure the way here for some seconds, and is heard in nothing else."""

from contextlib import suppress
from dataclasses import dataclass

from wantrain.errors import ConfigError
from wantrain.peers.messages import Visitor
from wantrain.transport.link import Link, LinkEvent

PREFIX = "visitor-"
MOST = 4
"""Visitors at a time; one more takes the place of the oldest, so that nothing grows with their number."""
NAMES = tuple(f"{PREFIX}{k}" for k in range(MOST))


@dataclass(slots=True)
class _Visit:
    name: str
    curve_key: bytes
    until: float


class Visitors:
    """Who may measure now.

    Args:
        link: this peer's.
        members: names of those whom the link admits, by CURVE key; visitors are added and taken away.
    """

    def __init__(self, link: Link, members: dict[bytes, str]) -> None:
        self._link = link
        self._members = members
        self._visits: list[_Visit] = []

    def concerns(self, event: LinkEvent) -> bool:
        """Whether an event is of a visitor's connection, and so of no interest."""
        who = getattr(event, "source", "") or getattr(event, "peer", "")
        return str(who).startswith(PREFIX)

    def announced(self, record: Visitor, now: float) -> None:
        """The coordinator has announced one."""
        known = next((visit for visit in self._visits if visit.curve_key == record.curve_key), None)
        if known is not None:
            known.until = now + record.seconds
            return
        if record.curve_key in self._members:
            return
        if len(self._visits) >= MOST:
            self._end(self._visits.pop(0))
        taken = {visit.name for visit in self._visits}
        name = next(name for name in NAMES if name not in taken)
        self._visits.append(_Visit(name, record.curve_key, now + record.seconds))
        self._members[record.curve_key] = name
        if record.address:
            with suppress(ConfigError):  # whoever gave a bad address finds that nobody dials it
                self._link.connect(name, record.address, record.curve_key)

    def tick(self, now: float) -> None:
        """Time has passed."""
        for visit in [visit for visit in self._visits if now >= visit.until]:
            self._visits.remove(visit)
            self._end(visit)

    def _end(self, visit: _Visit) -> None:
        self._members.pop(visit.curve_key, None)
        self._link.disconnect(visit.name)
