"""Time as an argument: the monotonic clock of a process, and the fake one of the tests."""

import time
from typing import Protocol


class Clock(Protocol):
    """Seconds on a clock that never jumps; only differences mean anything."""

    def now(self) -> float: ...


class MonotonicClock:
    """The process's monotonic clock, in seconds."""

    def now(self) -> float:
        return time.monotonic()


class FakeClock:
    """A clock that moves only when told to, in seconds."""

    def __init__(self, start: float = 0.0) -> None:
        self._now = start

    def now(self) -> float:
        return self._now

    def advance(self, seconds: float) -> None:
        """Move forward.

        Raises:
            ValueError: seconds is negative.
        """
        if seconds < 0:
            raise ValueError(f"a clock cannot go back by {-seconds} s")
        self._now += seconds
