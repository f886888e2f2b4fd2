"""A virtual clock and a network on it that delays, reorders, loses, duplicates, replays, partitions and freezes."""

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass, field

KEPT = 256
"""Messages kept to be delivered once more, a sample of all that were carried."""


@dataclass(frozen=True, slots=True)
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
        self.usual = weather
        """The weather without what a fault does to it."""
        self.links: dict[tuple[str, str], Weather] = {}
        """Directed pairs with a weather of their own."""
        self.times: dict[str, float] = {}
        """Nodes whose messages take so many times as long."""
        self.late_s: dict[str, float] = {}
        """Nodes whose messages come so much later."""
        self.cut: set[tuple[str, str]] = set()
        """Directed pairs between which everything vanishes."""
        self.frozen: dict[str, list[Callable[[], None]]] = {}
        """Frozen nodes, and what waits for them to thaw."""
        self.delivered = 0
        self._queue: list[tuple[float, int, str, Callable[[], None]]] = []
        self._count = 0
        self._kept: list[tuple[str, Callable[[], None]]] = []
        self._carried = 0

    def at(self, delay_s: float, action: Callable[[], None]) -> None:
        """Run an action after delay_s seconds of virtual time."""
        self.on("", delay_s, action)

    def on(self, node: str, delay_s: float, action: Callable[[], None]) -> None:
        """Like `at`, for something that happens on a node: a frozen node does it when it thaws."""
        self._count += 1
        heapq.heappush(self._queue, (self.now + delay_s, self._count, node, action))

    def carry(self, source: str, target: str, deliver: Callable[[], None]) -> None:
        """Carry a message, or not."""
        weather, rng = self.weather, self.rng
        if self.links:
            weather = self.links.get((source, target), weather)
        if (source, target) in self.cut or (weather.loss and rng.random() < weather.loss):
            return
        self._keep(target, deliver)
        copies = 2 if weather.duplicate and rng.random() < weather.duplicate else 1
        least_s, most_s = weather.delay_s
        for _ in range(copies):
            delay_s = least_s + (most_s - least_s) * rng.random()
            if weather.spike and rng.random() < weather.spike:
                delay_s += weather.spike_s * rng.random()
            if self.times:
                delay_s *= self.times.get(source, 1.0) * self.times.get(target, 1.0)
            if self.late_s:
                delay_s += self.late_s.get(source, 0.0) + self.late_s.get(target, 0.0)
            self.on(target, delay_s, deliver)

    def _keep(self, target: str, deliver: Callable[[], None]) -> None:
        """Keep one message in eight, and a fair sample of those."""
        self._carried += 1
        if self._carried % 8:
            return
        if len(self._kept) < KEPT:
            self._kept.append((target, deliver))
        else:
            place = self.rng.randrange(self._carried // 8)
            if place < KEPT:
                self._kept[place] = (target, deliver)

    def replay(self, count: int) -> None:
        """Deliver so many kept messages again, within the next second."""
        for target, deliver in self.rng.sample(self._kept, min(count, len(self._kept))):
            self.on(target, self.rng.random(), deliver)

    def freeze(self, node: str) -> None:
        """From now on nothing happens on the node, and what comes waits."""
        self.frozen.setdefault(node, [])

    def thaw(self, node: str) -> None:
        """Let a frozen node do what has waited for it, in that order."""
        for action in self.frozen.pop(node, []):
            self.on(node, 0.0, action)

    def run_until(self, time_s: float) -> None:
        """Let virtual time pass."""
        queue, frozen = self._queue, self.frozen
        while queue and queue[0][0] <= time_s:
            self.now, _, node, action = heapq.heappop(queue)
            if node in frozen:
                frozen[node].append(action)
            else:
                self.delivered += 1
                action()
        self.now = time_s


class Clocks:
    """What each node takes for the time: virtual time, but for jumps ahead and times in which it stands still."""

    def __init__(self, net: Network) -> None:
        self._net = net
        self._ahead_s: dict[str, float] = {}
        self._stopped_at: dict[str, float] = {}

    def of(self, node: str) -> float:
        """The node's clock, in seconds; it never goes back."""
        if node in self._stopped_at:
            return self._stopped_at[node]
        return self._net.now + self._ahead_s[node] if node in self._ahead_s else self._net.now

    def jump(self, node: str, ahead_s: float) -> None:
        """The node's clock jumps ahead, for good."""
        self._ahead_s[node] = self._ahead_s.get(node, 0.0) + ahead_s

    def stop(self, node: str) -> None:
        """The node's clock stands still."""
        self._stopped_at.setdefault(node, self.of(node))

    def go_on(self, node: str) -> None:
        """It goes on, with the time that it would have had."""
        self._stopped_at.pop(node, None)

    def all_go_on(self) -> None:
        """No clock stands still any more."""
        self._stopped_at.clear()


@dataclass(slots=True)
class Trace:
    """The last things that happened, for the report of a failing seed."""

    on: bool = False
    """Whether anybody wants to know; whoever words a line asks first."""
    lines: list[str] = field(default_factory=list)
    keep: int = 4000

    def add(self, now: float, who: str, what: str) -> None:
        """Note a line."""
        self.lines.append(f"{now:9.3f} {who:12} {what}")
        if len(self.lines) > 2 * self.keep:
            del self.lines[: self.keep]
