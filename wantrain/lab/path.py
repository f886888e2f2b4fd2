"""The lab's queues as pure arithmetic: a wire with a rate and a byte limit, a path with delay, jitter and loss.

Nothing here holds packets: what is offered is told when it arrives, and which of it. The caller brings time and dice.
"""

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from wantrain.lab.shape import Shape

Runs = list[tuple[int, int]]
"""Packets [first, last) of a burst, in order and apart from each other."""

NEVER = 1 << 62
"""More packets than any lab carries."""


@dataclass(slots=True)
class PairStats:
    """What happened on one directed pair since the lab began; a packet that is neither lost nor dropped arrives."""

    packets: int = 0
    """Offered by the sender."""
    size_bytes: int = 0
    """Of these, with IP headers."""
    lost: int = 0
    """Packets that the loss rate took, after they had used the wire."""
    dropped: int = 0
    """Packets that found the queue full, at this pair or at the sender's uplink."""


class Wire:
    """Carries one packet after the other at its rate; at most `queue_bytes` wait for it or are on it (drop tail).

    A burst is `count` packets sent at once: all of `each_bytes`, but for a shorter last one.
    """

    def __init__(self, rate_bytes_per_s: float, queue_bytes: int) -> None:
        self.rate_bytes_per_s = rate_bytes_per_s
        self.queue_bytes = queue_bytes
        self.free_s = 0.0
        """When all that was taken so far has left."""
        self._waiting: deque[tuple[float, int]] = deque()  # when it has left, bytes
        self._queued_bytes = 0

    def take(self, now_s: float, count: int, each_bytes: int, total_bytes: int) -> int:
        """How many packets of a burst, from its front, find room at `now_s` (never less than at the last call)."""
        while self._waiting and self._waiting[0][0] <= now_s:
            self._queued_bytes -= self._waiting.popleft()[1]
        room = self.queue_bytes - self._queued_bytes
        if total_bytes > room and not math.isinf(self.rate_bytes_per_s):
            count = max(0, min(count - 1, room // each_bytes))
            total_bytes = count * each_bytes
            if count == 0:
                return 0
        self.free_s = max(self.free_s, now_s) + total_bytes / self.rate_bytes_per_s
        self._waiting.append((self.free_s, total_bytes))
        self._queued_bytes += total_bytes
        return count


class Path:
    """One direction between two hosts: a wire, then loss, then delay.

    Args:
        draw: random numbers, evenly from [0, 1).
    """

    def __init__(self, shape: Shape, draw: Callable[[], float]) -> None:
        self.stats = PairStats()
        self._draw = draw
        self._wire = Wire(shape.rate_bytes_per_s, shape.queue_bytes)
        self._last_due_s = 0.0
        self._shape = shape
        self._until_loss = self._next_loss()

    def reshape(self, shape: Shape) -> None:
        """Another shape for what is offered from now on; what is under way keeps its time and stays ahead of it."""
        self._shape = shape
        self._until_loss = self._next_loss()
        self._wire.rate_bytes_per_s = shape.rate_bytes_per_s
        self._wire.queue_bytes = shape.queue_bytes

    def offer(self, now_s: float, count: int, each_bytes: int, total_bytes: int) -> tuple[float, Runs]:
        """When a burst arrives at the other end, and what of it; a burst arrives at once, with its last packet."""
        taken = self._wire.take(now_s, count, each_bytes, total_bytes)
        self.stats.dropped += count - taken
        runs = self._without_losses(taken)
        jitter_s = self._shape.jitter_s and self._shape.jitter_s * (2 * self._draw() - 1)
        self._last_due_s = max(self._last_due_s, self._wire.free_s + self._shape.delay_s + jitter_s)
        return self._last_due_s, runs

    def _without_losses(self, count: int) -> Runs:
        runs: Runs = []
        first = 0
        while self._until_loss < count - first:
            lost = first + self._until_loss
            if lost > first:
                runs.append((first, lost))
            self.stats.lost += 1
            self._until_loss = self._next_loss()
            first = lost + 1
        self._until_loss -= count - first
        if first < count:
            runs.append((first, count))
        return runs

    def _next_loss(self) -> int:
        """Packets that pass before the next loss: geometric, the same as dice for each but drawn once per loss."""
        loss = self._shape.loss
        if loss == 0:
            return NEVER
        if loss == 1:
            return 0
        return int(math.log(1 - self._draw()) / math.log1p(-loss))
