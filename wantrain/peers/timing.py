"""Deadlines from what was seen: a running mean and deviation of durations, clamped between a floor and a ceiling."""

from dataclasses import dataclass

GAIN = 0.125
"""Weight of the newest sample in the mean, and twice that in the deviation (as TCP does: RFC 6298)."""
DEVIATIONS = 4.0
"""How many mean deviations above the mean still count as usual."""


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
