"""How fast bulk bytes may go to a peer: credit, receipts, what was measured, limits on upload; pure."""

from collections import deque

from wantrain.errors import WireError

FIRST_WINDOW_BYTES = 4 << 20
"""Bytes that may be under way to a peer of whom nothing is known."""
MIN_WINDOW_BYTES = 512 << 10
MAX_WINDOW_BYTES = 64 << 20
"""Bounds the memory that a peer's unread bytes take at both ends."""
MIN_BULK_BYTES, MAX_BULK_BYTES = 64 << 10, 4 << 20
LOCAL_BULK_BYTES = 1 << 20
"""Size at which sockets of one machine are fastest."""
DISTANT_BULK_BYTES = 256 << 10
"""For a distant path of unknown speed."""
BULK_S = 0.03
"""How long one bulk message may keep a path busy: short beside a distant round trip, long beside a message's cost."""
LOCAL_RTT_S = 0.003
"""Paths with a shorter round trip are one machine's or one local network's."""
TURN_S = 0.005
"""What a near peer may take until it looks at its sockets again; the window has to last for it."""
QUEUE_S, QUEUE_ROUND_TRIPS = 0.25, 8
"""For how long a distant path has to be kept fed: a message counts once it has arrived whole, and each lost segment
of it costs a round trip or more. With less the window itself is the brake, and shrinks with the rate that it causes."""
SPAN_S = 0.1
"""A rate is taken over at least this time: acknowledgements come in bursts."""
EVIDENCE_BYTES = 256 << 10
"""Less than this, sent without anything waiting behind it, says nothing about a rate."""
HINT_BYTES = 16 << 10
"""Once a rate is known, so little may correct it: by being faster, or by taking far longer than the rate explains."""
LATE, LATE_S = 4.0, 0.25
"""Far longer: so many times what rate and round trip explain, and at least this."""
LOSS_SPAN_S = 30.0
LOSS_SEGMENTS = 500
"""Fewer segments than this say nothing about the share that is lost."""
BURST_S = 0.025
"""What a limit saves up while nothing is sent."""


class Credit:
    """What was sent on each lane of a set and not yet acknowledged. Lanes are opened before they are used."""

    def __init__(self) -> None:
        self._sent: dict[int, int] = {}
        self._acked: dict[int, int] = {}
        self.in_flight_bytes = 0

    def open(self, lane: int) -> None:
        """A new connection: nothing has been sent on it."""
        self._sent[lane] = self._acked[lane] = 0

    def close(self, lane: int) -> None:
        """A connection is gone, with whatever was under way on it."""
        if lane in self._sent:
            self.in_flight_bytes -= self._sent.pop(lane) - self._acked.pop(lane)

    def room(self, size_bytes: int, window_bytes: int) -> bool:
        """Whether a message may go: it fits into the window, or there is nothing under way."""
        return self.in_flight_bytes == 0 or self.in_flight_bytes + size_bytes <= window_bytes

    def on_lane(self, lane: int) -> int:
        """Bytes under way on one lane."""
        return self._sent[lane] - self._acked[lane]

    def sent(self, lane: int, size_bytes: int) -> None:
        """A message has gone."""
        self._sent[lane] += size_bytes
        self.in_flight_bytes += size_bytes

    def acked(self, lane: int, total_bytes: int) -> int:
        """The peer says what it has taken of a lane since that was opened.

        Returns:
            Bytes that this acknowledges; 0 for a late or repeated message, or a lane that is gone.

        Raises:
            WireError: it is more than was sent.
        """
        if lane not in self._sent:
            return 0
        if total_bytes > self._sent[lane]:
            raise WireError(f"{total_bytes} bytes of lane {lane} acknowledged, {self._sent[lane]} were sent")
        new = max(0, total_bytes - self._acked[lane])
        self._acked[lane] += new
        self.in_flight_bytes -= new
        return new


class Receipts:
    """What was taken off each lane of a set, and what of it the sender has been told."""

    def __init__(self) -> None:
        self._taken: dict[int, int] = {}
        self._told: dict[int, int] = {}
        self.untold_bytes = 0

    def open(self, lane: int) -> None:
        """A new connection: nothing has come in on it."""
        self._taken[lane] = self._told[lane] = 0

    def close(self, lane: int) -> None:
        """A connection is gone; its sender knows."""
        if lane in self._taken:
            self.untold_bytes -= self._taken.pop(lane) - self._told.pop(lane)

    def taken(self, lane: int, size_bytes: int) -> None:
        """Bytes were handed to the user, or dropped."""
        if lane in self._taken:
            self._taken[lane] += size_bytes
            self.untold_bytes += size_bytes

    def totals(self, *, untold_only: bool) -> list[list[int]]:
        """Lanes with what was taken off each since it was opened, [lane, bytes]."""
        told = self._told
        return [[lane, total] for lane, total in self._taken.items() if not untold_only or total > told[lane]]

    def told(self) -> None:
        """The totals have been sent; if they are lost, the sender will ask."""
        self._told.update(self._taken)
        self.untold_bytes = 0


class Meter:
    """What a path to a peer has been seen to carry, and what follows for window and size of messages.

    The rate is taken from acknowledgement to acknowledgement while something is under way. While the sender had no
    more to send it is only a lower bound, so then it may raise the figure, but lower it only if what went took far
    longer than the figure explains.
    """

    def __init__(self) -> None:
        self.rate_bytes_per_s = 0.0
        self.rtt_s = 0.0
        self.loss = 0.0
        self.held_back = False
        """Something has waited for the path since the last measured span: it was used to the full."""
        self._segments: deque[tuple[float, int, int]] = deque()
        self._busy_since: float | None = None
        self._busy_bytes = 0
        self._span_since: float | None = None
        self._span_bytes = 0

    @property
    def window_bytes(self) -> int:
        """Bytes that may be under way.

        Near: rate * (2 rtt + 5 ms), at least 4 MiB. Distant: rate * (8 rtt + 0.25 s), at least 512 KiB, so that what
        is queued on a slow path is seconds of it at most. Unknown: 4 MiB. Never more than 64 MiB.
        """
        if self.rate_bytes_per_s == 0:
            return FIRST_WINDOW_BYTES
        if self.rtt_s < LOCAL_RTT_S:
            fills = max(self.rate_bytes_per_s * (2 * self.rtt_s + TURN_S), FIRST_WINDOW_BYTES)
        else:
            fills = self.rate_bytes_per_s * (QUEUE_ROUND_TRIPS * self.rtt_s + QUEUE_S)
        return int(min(max(fills, MIN_WINDOW_BYTES), MAX_WINDOW_BYTES))

    def bulk_bytes(self, lanes: int, limit_bytes_per_s: float | None) -> int:
        """Best size of a message's tensor bytes: 64 KiB to 4 MiB.

        30 ms of the path's rate (or of the limit on upload), at most half a lane's share of the window, so that every
        lane has one message under way and one waiting. Within one machine or local network 1 MiB at most, which is
        where sockets are fastest. Of unknown speed: 1 MiB if near or nothing at all is known, else 256 KiB.
        """
        near = self.rtt_s < LOCAL_RTT_S
        if self.rate_bytes_per_s > 0:
            best = min(self.rate_bytes_per_s * BULK_S, self.window_bytes / (2 * max(lanes, 1)))
            best = min(best, LOCAL_BULK_BYTES) if near else best
        else:
            best = LOCAL_BULK_BYTES if near else DISTANT_BULK_BYTES
        if limit_bytes_per_s is not None:
            best = min(best, limit_bytes_per_s * BULK_S)
        return int(min(max(best, MIN_BULK_BYTES), MAX_BULK_BYTES))

    def sent(self, now: float) -> None:
        """Something has gone."""
        if self._busy_since is None:
            self._busy_since, self._busy_bytes = now, 0

    def acked(self, size_bytes: int, now: float, *, idle: bool) -> None:
        """Bytes were acknowledged; idle: nothing is under way any more."""
        if self._busy_since is None:
            return
        self._busy_bytes += size_bytes
        if self._span_since is None:
            self._span_since, self._span_bytes = now, 0
        else:
            self._span_bytes += size_bytes
            span_s = now - self._span_since
            telling = self.held_back or self._span_bytes >= EVIDENCE_BYTES
            if telling and (span_s >= max(SPAN_S, 2 * self.rtt_s) or (idle and span_s >= SPAN_S / 2)):
                self._fold(self._span_bytes / span_s, lower=self.held_back)
                self._span_since, self._span_bytes, self.held_back = now, 0, False
        if idle:
            self._judge(now - self._busy_since)
            self.interrupted()

    def _judge(self, busy_s: float) -> None:
        """Take in what went from when something was under way until nothing was."""
        known, late = self.rate_bytes_per_s, False
        if known > 0 and self._busy_bytes >= HINT_BYTES:
            # Most syncs of a small model fill no window: without this a path that has become slow would keep its rate.
            late = busy_s >= max(LATE_S, LATE * (self._busy_bytes / known + 2 * self.rtt_s))
            telling = True
        else:
            telling = self.held_back or self._busy_bytes >= EVIDENCE_BYTES
        if telling and busy_s > 0:
            self._fold(self._busy_bytes / busy_s, lower=late)

    def interrupted(self) -> None:
        """Nothing is under way: all has arrived, or is lost."""
        self._busy_since = self._span_since = None

    def round_trip(self, rtt_s: float) -> None:
        """Take in a round trip that somebody has measured and that may have waited for others; the least counts."""
        self.rtt_s = min(self.rtt_s or rtt_s, rtt_s)

    def segments(self, sent: int, resent: int, now: float) -> None:
        """Take in how many TCP segments were sent since the last call, and how many of them not for the first time."""
        self._segments.append((now, sent, resent))
        while self._segments[0][0] < now - LOSS_SPAN_S:
            self._segments.popleft()
        total = sum(part[1] for part in self._segments)
        self.loss = sum(part[2] for part in self._segments) / total if total >= LOSS_SEGMENTS else 0.0

    def _fold(self, sample_bytes_per_s: float, *, lower: bool) -> None:
        known = self.rate_bytes_per_s
        if known == 0:
            self.rate_bytes_per_s = sample_bytes_per_s
        elif lower or sample_bytes_per_s > known:
            self.rate_bytes_per_s += 0.5 * (sample_bytes_per_s - known)


class TokenBucket:
    """A limit on upload. A message may go while the balance is positive, and may leave it negative.

    So at most `BURST_S` of the rate and one message go at once, and in the long run exactly the rate.

    Args:
        rate_bytes_per_s: the limit.
        now: seconds on the clock of all other calls.
    """

    def __init__(self, rate_bytes_per_s: float, now: float) -> None:
        self.rate_bytes_per_s = rate_bytes_per_s
        self._balance_bytes = rate_bytes_per_s * BURST_S
        self._at = now

    def ready(self, now: float) -> bool:
        """Whether a bulk message may go now."""
        earned = (now - self._at) * self.rate_bytes_per_s
        self._balance_bytes = min(self._balance_bytes + earned, self.rate_bytes_per_s * BURST_S)
        self._at = now
        return self._balance_bytes > 0

    def spend(self, size_bytes: int) -> None:
        """Count what was sent."""
        self._balance_bytes -= size_bytes


class UploadLimits:
    """A limit on everything a link sends, and one on what it sends to each peer. Control messages count and never wait.

    Args:
        link_bytes_per_s: for all peers together; None for no limit.
        peer_bytes_per_s: for each peer; None for no limit.
    """

    def __init__(self, link_bytes_per_s: float | None, peer_bytes_per_s: float | None) -> None:
        self._link_bytes_per_s = link_bytes_per_s
        self._peer_bytes_per_s = peer_bytes_per_s
        self._buckets: dict[str | None, TokenBucket] = {}

    @property
    def least_bytes_per_s(self) -> float | None:
        """The limit that counts for one peer alone; None if there is none."""
        return min(
            (rate for rate in (self._link_bytes_per_s, self._peer_bytes_per_s) if rate is not None), default=None
        )

    def ready(self, peer: str, now: float) -> bool:
        """Whether a bulk message may go to a peer now."""
        return all(bucket.ready(now) for bucket in self._of(peer, now))

    def spend(self, peer: str, size_bytes: int, now: float) -> None:
        """Count what was sent to a peer."""
        for bucket in self._of(peer, now):
            bucket.spend(size_bytes)

    def _of(self, peer: str, now: float) -> list[TokenBucket]:
        found: list[TokenBucket] = []
        for key, rate in ((None, self._link_bytes_per_s), (peer, self._peer_bytes_per_s)):
            if rate is not None:
                if key not in self._buckets:
                    self._buckets[key] = TokenBucket(rate, now)
                found.append(self._buckets[key])
        return found
