"""What was dropped, counted by who sent it, and said so seldom that a flood of it fills no log; pure."""

from dataclasses import dataclass, field

SAY_EVERY_S = 1.0
MAX_SOURCES = 8192
"""Sources that are told apart: twice as many as a run can have peers."""


@dataclass(slots=True)
class _Said:
    at: float
    times: int = 0


@dataclass(slots=True)
class Drops:
    """The counter of one process."""

    total: int = 0
    _said: dict[tuple[str, str], _Said] = field(default_factory=dict)

    def count(self, kind: str, source: str, now: float) -> int:
        """Count one; how many to say now that there were of this kind from this source, 0 to say nothing yet.

        The first is said at once, what follows within a second with the next one after that second.
        """
        self.total += 1
        key = kind, source
        if key not in self._said and len(self._said) >= MAX_SOURCES:
            key = kind, ""
        said = self._said.setdefault(key, _Said(now - SAY_EVERY_S))
        said.times += 1
        if now - said.at < SAY_EVERY_S:
            return 0
        times, said.times, said.at = said.times, 0, now
        return times
