"""How far a run is in inner steps, and how fast its fastest trainer is, as the lines of the commit log say; pure."""

from collections.abc import Iterable, Mapping, Sequence

from wantrain.optimizers.stream import Stream
from wantrain.peers.messages import CommitRecord, Welcome

MOST_STEPS = 10**9
"""Of one contribution: what a peer says of itself must not take the run's count out of its range."""


class Tempo:
    """What is known of each stream's last sync.

    Args:
        streams: the run's streams.
    """

    def __init__(self, streams: Sequence[Stream]) -> None:
        self._streams = {stream.name: stream for stream in streams}
        self._steps: dict[str, int] = {}
        self._pace_s: dict[str, float] = {}

    def welcomed(self, welcome: Welcome) -> None:
        """The coordinator has said where the run is."""
        self._steps, self._pace_s = dict(welcome.steps), dict(welcome.paces_s)

    def committed(self, record: CommitRecord) -> None:
        """A line of the log, the newest of its stream."""
        self._steps[record.sync.stream], self._pace_s[record.sync.stream] = record.steps, record.pace_s

    def pace_s(self, stream: str) -> float:
        """Seconds that an inner step took the fastest contributor to the stream's last sync; 0 if unknown."""
        return self._pace_s.get(stream, 0.0)

    def global_step(self, indices: Mapping[str, int]) -> int:
        """The run's step count: that of the stream that is furthest."""
        return max(self.step_of(name, indices[name]) for name in self._streams)

    def step_of(self, stream: str, index: int) -> int:
        """The run's step count at a stream's sync `index`; where rounds are not even, at its last one."""
        rule = self._streams[stream]
        return self._steps.get(stream, 0) if rule.uneven else rule.steps(index)


def steps_of(contributed: Iterable[int]) -> int:
    """How far a sync takes the run, from the inner steps of each contribution: as far as the longest of them."""
    return min(max(contributed, default=0), MOST_STEPS)


def pace_of(step_s: Iterable[float]) -> float:
    """Seconds of an inner step of the fastest trainer, from those of each; those who do not know theirs say 0."""
    return min((seconds for seconds in step_s if seconds > 0.0), default=0.0)
