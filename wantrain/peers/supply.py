"""A trainer's side of its data leases: what it may draw, how far it is, and when it asks for more; a pure core."""

import math
from collections import deque

from wantrain.errors import ConfigError
from wantrain.peers.messages import Leased, Span, WantLease

LEASE_S = 60.0
"""A lease lasts about this long, and a trainer holds up to two: the coordinator may be away for a minute."""
LEAST_S = 1.0
"""A lease is not to be used up sooner than this, however small the data set is."""
FIRST_SAMPLES = 64
"""Wanted while the pace is not known; then twice what was used so far."""
PACE_WINDOW_S = 1.0
PACE_SMOOTHING = 0.3
ASK_AGAIN_S = 2.0
"""A question without an answer is repeated this often."""
LATER_S = 0.5
"""After so long it is asked again for what may come back."""


class Supply:
    """The leases of one trainer process on one data set.

    Args:
        data: name of the data set.
        length: its samples.
        seed: of its order.
        epochs: how often it is gone through, 0 for ever.
        reader: this trainer's id for leases, 8 random bytes.
    """

    def __init__(self, data: str, length: int, seed: int, epochs: int, reader: bytes) -> None:
        self.data = data
        self.length = length
        self.seed = seed
        self.epochs = epochs
        self.drawn = 0
        """Samples drawn, of all leases of this reader."""
        self.settled = 0
        """Those of them that were drawn before the last inner step: the weights contain them."""
        self.ended = False
        """Whether all epochs are used up, for everybody."""
        self.scarce = False
        """Whether nothing was to be had when it asked last, but some may come back."""
        self.reason = ""
        """For what it waits, when it is dry."""
        self._reader = reader
        self._spans: deque[Span] = deque()
        self._taken = 0
        self._last = 0
        """Where the lease that it got last begins, in samples of all leases."""
        self._serial = 1
        self._asked_at: float | None = None
        self._not_before = -math.inf
        self._pace = 0.0
        """Samples per second."""
        self._mark: tuple[float, int] | None = None
        self._refused = ""

    @property
    def left(self) -> int:
        """Samples that may be drawn now."""
        return self._taken - self.drawn

    @property
    def dry(self) -> bool:
        """Whether there is nothing to draw, and there may be nothing for a while."""
        return self.left == 0 and self.scarce

    def draw(self, now: float) -> tuple[int, int] | None:
        """Epoch and position of the next sample, or None if no lease is left."""
        if not self._spans:
            self._mark = None  # waiting is no pace
            return None
        began, before = self._mark = self._mark or (now, self.drawn)
        if now - began >= PACE_WINDOW_S:
            pace = (self.drawn - before) / (now - began)
            self._pace += (pace - self._pace) * (PACE_SMOOTHING if self._pace else 1.0)
            self._mark = (now, self.drawn)
        span = self._spans.popleft()
        if span.count > 1:
            self._spans.appendleft(Span(span.epoch, span.first + 1, span.count - 1))
        self.drawn += 1
        return span.epoch, span.first

    def stepped(self) -> None:
        """An inner step was made with what was drawn."""
        self.settled = self.drawn

    def restart(self, reader: bytes) -> None:
        """The weights were replaced by the run's: what was drawn and is in no commit goes back, under the old id."""
        self._reader, self._serial = reader, self._serial + 1
        self._spans.clear()
        self.drawn = self.settled = self._taken = self._last = 0
        self._asked_at, self.ended, self.scarce = None, False, False

    def ask(self, now: float) -> WantLease | None:
        """The question for more, if it is time for it: before the lease after next is needed, and again until answered.

        Raises:
            ConfigError: another data set of the run has this name.
        """
        if self._refused:
            raise ConfigError(self._refused, hint=f"give this one another name: shard(…, name={self.data + '-2'!r})")
        if self.ended or now < self._not_before or (self.drawn < self._last and self._spans):
            return None
        if self._asked_at is not None and now - self._asked_at < ASK_AGAIN_S:
            return None
        self._asked_at = now
        samples = math.ceil(self._pace * LEASE_S) if self._pace else max(FIRST_SAMPLES, 2 * self.drawn)
        least = math.ceil(self._pace * LEAST_S) or 1
        return WantLease(
            self.data, self.length, self.seed, self.epochs, self._reader, self._serial, self._taken, self.left,
            samples, least, self.drawn - self.settled, self.dry,
        )  # fmt: skip

    def leased(self, record: Leased, now: float) -> None:
        """An answer has come; one to another question than the last changes nothing."""
        if (record.data, record.reader, record.serial) != (self.data, self._reader, self._serial):
            return
        self._serial += 1
        self._asked_at, self.scarce, self.reason = None, False, record.reason
        match record.answer:
            case "granted":
                self._last = self._taken
                self._spans.extend(record.spans)
                self._taken += sum(span.count for span in record.spans)
            case "later":
                self.scarce, self._not_before = True, now + LATER_S
            case "end":
                self.ended = True
            case "void":
                self._spans.clear()
                self._taken = self._last = self.drawn
            case "refused":
                self._refused = record.reason
