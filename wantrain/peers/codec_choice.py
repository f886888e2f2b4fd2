"""The codec of a stream's contributions where the run leaves it to each sync: as many bits as the link hides; pure.

An exchange may take as long as its stream waits for it anyway, or a small share of the round:

    slack = max(delay, SHARE * every) * seconds of an inner step

8 bits if the exchange is over in the slack, else 3.6, else 2.6 with error feedback; what comes back always has 8 bits.
"""

from collections.abc import Iterable, Sequence

from wantrain.optimizers.stream import Stream
from wantrain.transport.codec.names import AUTO_CODECS, choices

SHARE = 0.1
"""Of the time of a round's steps. The fewest bits up, with 8 down, move two thirds of the bytes of 8 up: below this
share they save at most a thirtieth of the round, and the error that they add costs more."""
SAVES = 0.9
"""If nothing fits, fewer bits have to take at most this part of the time of 8; where round trips are most of it they
save nothing."""
MARGIN = 0.75
"""To go back to more bits they have to fit into this part of the slack: rates within a fifth of each other count as
equal, so that noise alone does not get that far."""
CALM_PLANS = 8
"""So many plans in a row have to allow more bits before they are used; fewer bits are used at once."""


def codecs_of(streams: Iterable[Stream]) -> set[str]:
    """All codecs that a run with these streams may use, both ways."""
    ways = [stream.codecs for stream in streams]
    return {name or up for up, _ in ways for name in choices(up)} | {down for _, down in ways}


def slack_s(stream: Stream, step_s: float) -> float:
    """How long an exchange of the stream may take, in seconds; `step_s` is of an inner step, 0 if unknown."""
    return max(stream.delay, SHARE * stream.every) * step_s


def coding_s(codec: str, elements: int) -> float:
    """Least time of an exchange, in seconds: what one core takes for the values, however fast the links are."""
    return AUTO_CODECS[codec] * elements


class CodecChoice:
    """The choice for one stream. It remembers its last one: what depends on measurements must not flicker."""

    def __init__(self) -> None:
        self._codecs = tuple(AUTO_CODECS)
        self._chosen = 0
        """Position in `_codecs`."""
        self._calm = 0
        """Plans in a row that would have allowed more bits."""

    def choose(self, times_s: Sequence[float], slack_s: float) -> tuple[str, str]:
        """The codec, and the reason in words.

        Args:
            times_s: predicted for each codec of `AUTO_CODECS`, in their order; 0 if unknown.
            slack_s: how long the exchange may take, 0 if unknown.
        """
        now = self._codecs[self._chosen]
        if not all(times_s):
            return now, f"{now} as no link has been measured"
        if not slack_s:
            return now, f"{now} as no step has been timed"
        best = self._best(times_s, slack_s)
        if best >= self._chosen:
            self._calm = 0
        else:
            self._calm += 1
            if self._calm < CALM_PLANS:
                return now, f"{now} until {self._codecs[best]} has been enough {CALM_PLANS - self._calm} more times"
        self._chosen, self._calm = best, 0
        codec, time_s = self._codecs[best], times_s[best]
        if time_s <= slack_s:
            than = f", {self._codecs[best - 1]} in {times_s[best - 1]:.2g} s" if best else ""
            return codec, f"{codec} is over in {time_s:.2g} s of a slack of {slack_s:.2g} s{than}"
        few = "fewer bits save too little" if not best else f"{self._codecs[0]} would take {times_s[0]:.2g} s"
        return codec, f"{codec} as the slack is {slack_s:.2g} s and {few}"

    def _best(self, times_s: Sequence[float], slack_s: float) -> int:
        for k, time_s in enumerate(times_s):
            if time_s <= slack_s * (1.0 if k >= self._chosen else MARGIN):
                return k
        return len(times_s) - 1 if times_s[-1] <= SAVES * times_s[0] else 0
