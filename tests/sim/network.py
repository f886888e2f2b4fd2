"""A virtual clock and a network on it that delays, reorders, loses, duplicates, partitions and freezes."""

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(slots=True)
class Weather:
    """How the network behaves between any two nodes, in seconds and probabilities."""

    delay_s: tuple[float, float] = (0.001, 0.02)
    spike: float = 0.0
    """Share of messages that take spike_s longer; this is what reorders."""
    spike_s: float = 1.0
    loss: float = 0.0
    duplicate: float = 0.0


class Network:
    """Runs callbacks in the order of virtual time and carries messages between named nodes."""

    def __init__(self, rng: random.Random, weather: Weather) -> None:
        self.now = 0.0
        self.rng = rng
        self.weather = weather
        self.cut: set[tuple[str, str]] = set()
        """Directed pairs between which everything vanishes."""
        self.frozen: dict[str, list[Callable[[], None]]] = {}
        """Frozen nodes, and what waits for them to thaw."""
        self.delivered = 0
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0
        self._settled = False

    def becomes(self, weather: Weather, *, for_good: bool = False) -> None:
        """Change the weather; what was planned before it changed for good changes nothing any more."""
        if not self._settled:
            self.weather = weather
        self._settled = self._settled or for_good

    def at(self, delay_s: float, action: Callable[[], None]) -> None:
        """Run an action after delay_s seconds of virtual time."""
        self._count += 1
        heapq.heappush(self._queue, (self.now + delay_s, self._count, action))

    def on(self, node: str, delay_s: float, action: Callable[[], None]) -> None:
        """Like `at`, for something that happens on a node: a frozen node does it when it thaws."""

        def run() -> None:
            if node in self.frozen:
                self.frozen[node].append(run)
            else:
                action()

        self.at(delay_s, run)

    def carry(self, source: str, target: str, deliver: Callable[[], None]) -> None:
        """Carry a message, or not."""
        weather, rng = self.weather, self.rng
        if (source, target) in self.cut or rng.random() < weather.loss:
            return
        copies = 2 if rng.random() < weather.duplicate else 1
        for _ in range(copies):
            delay_s = rng.uniform(*weather.delay_s)
            if rng.random() < weather.spike:
                delay_s += rng.uniform(0.0, weather.spike_s)
            self.on(target, delay_s, deliver)

    def thaw(self, node: str) -> None:
        """Let a frozen node do what has waited for it."""
        for action in self.frozen.pop(node, []):
            self.at(0.0, action)

    def run_until(self, time_s: float) -> None:
        """Let virtual time pass."""
        while self._queue and self._queue[0][0] <= time_s:
            self.now, _, action = heapq.heappop(self._queue)
            self.delivered += 1
            action()
        self.now = time_s


@dataclass(slots=True)
class Trace:
    """The last things that happened, for the report of a failing seed."""

    lines: list[str] = field(default_factory=list)
    keep: int = 4000

    def add(self, now: float, who: str, what: str) -> None:
        """Note a line."""
        self.lines.append(f"{now:9.3f} {who:12} {what}")
        if len(self.lines) > 2 * self.keep:
            del self.lines[: self.keep]
