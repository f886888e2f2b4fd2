"""What a peer's daemon shows of itself beside its events: metrics for Prometheus, and points for trackers."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Self

from wantrain.metrics.endpoint import Endpoint
from wantrain.metrics.families import PEER
from wantrain.metrics.peer_meter import Measured, PeerMeter
from wantrain.tracking.feed import Feed
from wantrain.tracking.tracker import Point, Source
from wantrain.tracking.trackers import feeds

MEASURE_EVERY_S = 1.0
POINT_EVERY_S = 5.0
"""Between two points while training goes on."""
IDLE_POINT_EVERY_S = 60.0
"""While it does not."""
CLOSE_S = 10.0
"""How long all trackers together may take to write out what is left."""
OWN = "wantrain/"
"""Before the names of the daemon's own numbers, so that they cannot be mistaken for the trainer's."""

OnEvent = Callable[[dict[str, Any]], None]


@dataclass(frozen=True, slots=True)
class Watch:
    """What the user asked for."""

    track: tuple[str, ...] = ()
    """Trackers beside the JSON lines: "tensorboard", "wandb:PROJECT", …"""
    metrics: str = ""
    """Where to serve metrics, "HOST:PORT"; "" for nowhere."""


class Monitor:
    """Used in a `with` statement by the daemon's thread. Nothing here waits but its end, and that not for long.

    Args:
        watch: what the user asked for.
        source: whose numbers they are.
        on_event: hears of the endpoint's address and of trackers that fail.

    Raises:
        ConfigError, AddressInUseError: see `Endpoint` and `feeds`.
    """

    def __init__(self, watch: Watch, source: Source, on_event: OnEvent) -> None:
        self.meter = PeerMeter()
        self._on_event = on_event
        self._feeds: Sequence[Feed] = feeds(watch.track, source)
        self._endpoint = Endpoint(watch.metrics, PEER) if watch.metrics else None
        self._measure_at, self._point_at = 0.0, -math.inf
        self._last: Point | None = None
        """What was measured and not offered."""
        self._offered_step = -1
        if self._endpoint is not None:
            on_event({"event": "metrics", "address": self._endpoint.address})

    def __enter__(self) -> Self:
        for feed in self._feeds:
            feed.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._last is not None:
            self._offer(self._last)
        for feed in self._feeds:
            feed.end()
        deadline = time.monotonic() + CLOSE_S
        for feed in self._feeds:
            if not feed.join(max(0.0, deadline - time.monotonic())):
                self._on_event({"event": "tracker-late", "name": feed.name, "reason": f"not done in {CLOSE_S:.0f} s"})
        self._tell_troubles()
        if self._endpoint is not None:
            with suppress(OSError):
                self._endpoint.close()

    def due(self, now: float) -> bool:
        """Whether it is time to measure."""
        return now >= self._measure_at

    def measure(self, measured: Measured, logged: Mapping[str, float], now: float) -> None:
        """Take what is known now; `logged`: the newest numbers of the trainer's `swarm.log`."""
        self._measure_at = now + MEASURE_EVERY_S
        ledger = self.meter.ledger
        self.meter.measured(measured)
        for feed in self._feeds:
            ledger.put("wantrain_tracker_drops_total", float(feed.dropped), feed.name)
        snapshot = ledger.snapshot()
        if self._endpoint is not None:
            self._endpoint.snapshot = snapshot
        own = {f"{OWN}{name}": number for name, number in snapshot.flat().items()}
        point = Point(time.time(), measured.global_step, measured.round, {**logged, **own})
        self._last = point
        if now >= self._point_at + (POINT_EVERY_S if point.step != self._offered_step else IDLE_POINT_EVERY_S):
            self._point_at = now
            self._offer(point)
        self._tell_troubles()

    def _offer(self, point: Point) -> None:
        self._last, self._offered_step = None, point.step
        for feed in self._feeds:
            feed.offer(point)

    def _tell_troubles(self) -> None:
        for feed in self._feeds:
            if reason := feed.trouble():
                self._on_event({"event": "tracker-failed", "name": feed.name, "reason": reason})
