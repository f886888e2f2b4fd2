"""The switch as a pure core: frames in from hosts, frames out when they are due; it reads no clock and no device."""

import heapq
from collections.abc import Callable, Iterator

from wantrain.lab.frames import burst, cut
from wantrain.lab.path import PairStats, Path, Wire
from wantrain.lab.shape import Shape

LARGEST_LAB = 64
"""Hosts; their directed pairs grow with the square."""


def address(host: int) -> str:
    """IPv4 address of a host, counted from 0."""
    return f"10.77.0.{host + 1}"


class Fabric:
    """All directed pairs of `hosts` hosts, with the same shape to begin with.

    Args:
        dice: makes the random numbers of the pair (source, destination), evenly from [0, 1).
    """

    def __init__(self, hosts: int, shape: Shape, dice: Callable[[int, int], Callable[[], float]]) -> None:
        self._paths = {(a, b): Path(shape, dice(a, b)) for a in range(hosts) for b in range(hosts) if a != b}
        self._hosts = {bytes(map(int, address(k).split("."))): k for k in range(hosts)}
        self._uplinks: dict[int, Wire] = {}
        self._due: list[tuple[float, int, int, bytes]] = []
        self._count = 0  # orders frames that are due at once, so that they are never compared

    def reshape(self, source: int, destination: int, shape: Shape) -> None:
        """Another shape for one direction; it holds for what is sent from now on."""
        self._paths[source, destination].reshape(shape)

    def limit(self, host: int, rate_bytes_per_s: float, queue_bytes: int) -> None:
        """Cap on the sum of what a host sends, as a site's upload has it; applies before the pairs' own rates."""
        uplink = self._uplinks.setdefault(host, Wire(rate_bytes_per_s, queue_bytes))
        uplink.rate_bytes_per_s, uplink.queue_bytes = rate_bytes_per_s, queue_bytes

    def send(self, source: int, frame: bytes, now_s: float) -> None:
        """Take a frame from a host. What is no IPv4 or goes to no other host of the lab is dropped without a count."""
        sent = burst(frame)
        destination = self._hosts.get(sent.destination) if sent else None
        if sent is None or destination is None or destination == source:
            return
        path = self._paths[source, destination]
        path.stats.packets += sent.packets
        path.stats.size_bytes += sent.total_bytes
        count, total_bytes = sent.packets, sent.total_bytes
        uplink = self._uplinks.get(source)
        if uplink is not None:
            count = uplink.take(now_s, count, sent.each_bytes, total_bytes)
            now_s = uplink.free_s
            path.stats.dropped += sent.packets - count
            if count == 0:
                return
            if count < sent.packets:
                total_bytes = count * sent.each_bytes
        due_s, runs = path.offer(now_s, count, sent.each_bytes, total_bytes)
        for first, last in runs:
            self._count += 1
            heapq.heappush(self._due, (due_s, self._count, destination, cut(sent, first, last)))

    def next_due_s(self) -> float | None:
        """When the next frame has to be handed over; None if nothing is under way."""
        return self._due[0][0] if self._due else None

    def receive(self, now_s: float) -> Iterator[tuple[int, bytes]]:
        """Frames that are due, each with the host that gets it."""
        while self._due and self._due[0][0] <= now_s:
            _, _, destination, frame = heapq.heappop(self._due)
            yield destination, frame

    def stats(self) -> dict[tuple[int, int], PairStats]:
        """By (source, destination)."""
        return {pair: path.stats for pair, path in self._paths.items()}
