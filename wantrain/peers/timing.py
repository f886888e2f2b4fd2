"""Deadlines from what was seen, within floor and ceiling: of durations, of silence, and of bytes that move; pure."""

from collections import deque
from dataclasses import dataclass, field
from math import log, sqrt

GAIN = 0.125
"""Weight of the newest sample in the mean, and twice that in the deviation (as TCP does: RFC 6298)."""
DEVIATIONS = 4.0
"""How many mean deviations above the mean still count as usual."""
INTERVALS_KEPT = 100
"""Times between reports that are remembered of each peer."""
PHI_LOST = 8.0
"""Suspicion at which a silent peer counts as lost: by what was seen of it, one in 10^8 reports comes so late."""
PHI_HINTED = 2.0
"""Enough once another peer has seen its connection break."""
LEAST_DEVIATION = 0.1
"""Of the times between reports, as a share of their mean: however regular a peer was, its host can be busy."""
AGAIN = 1.5
"""A silence that was harmless once is no reason for suspicion when it comes again, and this much longer."""
MODEL_ERROR = 3.0
"""The cost model is good to a factor: bytes that take this many times what was predicted are still on their way."""
REDIAL_S = 5.0
"""Who has lost its connection dials again this often at least (`zmq_sockets.REDIAL_LAST_S`)."""


@dataclass(slots=True)
class Duration:
    """Running mean and mean deviation of a repeated duration, in seconds."""

    mean_s: float | None = None
    deviation_s: float = 0.0

    def add(self, sample_s: float) -> None:
        """Take in one observed duration."""
        if self.mean_s is None:
            self.mean_s, self.deviation_s = sample_s, sample_s / 2
        else:
            self.deviation_s += 2 * GAIN * (abs(sample_s - self.mean_s) - self.deviation_s)
            self.mean_s += GAIN * (sample_s - self.mean_s)

    def usual_s(self, floor_s: float, ceiling_s: float, *, times: float = 1.0) -> float:
        """`times` the longest duration that would be usual, within floor and ceiling; the floor if none was seen."""
        if self.mean_s is None:
            return floor_s
        return min(ceiling_s, max(floor_s, times * (self.mean_s + DEVIATIONS * self.deviation_s)))


@dataclass(slots=True)
class Arrivals:
    """How suspicious a peer's silence is: the phi accrual failure detector over the times between its reports.

    phi(t) = -log10 P(the next report comes later than t after the last) (Hayashibara, Défago, Yared, Katayama: The phi
    accrual failure detector, SRDS 2004, section 4). There the times between reports are normal; queues and losses on
    the internet have longer tails, so here P = exp(-(t - mean) / deviation), of the last of them. `silence_s` is the
    inverse: when phi reaches a threshold.

    A peer reports at least once in a heartbeat, and at once when something changes: that two reports came shortly after
    each other says nothing about how late one may be, so only longer times count.
    """

    heartbeat_s: float
    _intervals_s: deque[float] = field(default_factory=lambda: deque(maxlen=INTERVALS_KEPT))
    _known: dict[float, float] = field(default_factory=dict)
    """Silence by threshold, until the next interval."""

    def add(self, interval_s: float) -> None:
        """A report came so long after the one before."""
        if interval_s >= self.heartbeat_s / 2:
            self._intervals_s.append(interval_s)
            self._known.clear()

    def silence_s(self, phi: float) -> float:
        """After how long a silence the suspicion reaches `phi`; 0 if nothing is known."""
        if not self._intervals_s:
            return 0.0
        if phi not in self._known:
            seen = self._intervals_s
            mean_s = sum(seen) / len(seen)
            deviation_s = sqrt(sum((interval_s - mean_s) ** 2 for interval_s in seen) / len(seen))
            deviation_s = max(deviation_s, LEAST_DEVIATION * mean_s)
            self._known[phi] = max(mean_s + phi * log(10) * deviation_s, AGAIN * max(seen))
        return self._known[phi]


@dataclass(frozen=True, slots=True)
class Policy:
    """How long the coordinator waits, in seconds: sections [sync] and [liveness] of the run spec."""

    quorum: float = 0.5
    grace_floor_s: float = 2.0
    grace_ceiling_s: float = 30.0
    deadline_floor_s: float = 10.0
    deadline_ceiling_s: float = 600.0
    heartbeat_s: float = 1.0
    suspect_floor_s: float = 5.0
    suspect_ceiling_s: float = 30.0

    @property
    def heard_within_s(self) -> float:
        """In which time everybody is heard of who is well."""
        return self.grace_floor_s + 2 * self.heartbeat_s

    @property
    def back_within_s(self) -> float:
        """The same after a restart of the coordinator: a peer may have dialled in vain just before."""
        return REDIAL_S + self.heard_within_s

    def lost_after_s(self, arrivals: Arrivals) -> float:
        """After how long a silence a peer counts as lost."""
        return min(self.suspect_ceiling_s, max(self.suspect_floor_s, arrivals.silence_s(PHI_LOST)))

    def stalled_after_s(self, attempts: Duration, predicted_s: float, message_s: float) -> float:
        """How long a peer may hold nothing new of an attempt before it counts as stalled.

        Twice what attempts usually take, or three times what the cost model said of this one (`predicted_s`; 0 if
        unknown) and of one message on its slowest link (`message_s`: until that is here, nothing moves on).
        """
        usual_s = attempts.usual_s(self.deadline_floor_s, self.deadline_ceiling_s, times=2.0)
        return min(self.deadline_ceiling_s, max(usual_s, MODEL_ERROR * (predicted_s + message_s)))
