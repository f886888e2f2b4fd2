"""The codec of a stream's contributions where the run leaves it to each sync: as many bits as the link hides; pure.

An exchange may take as long as its stream waits for it anyway, or a small share of the round:

    slack = max(delay, SHARE * every) * seconds of an inner step

8 bits if the exchange is over in the slack, else 3.6, else 2.6 with error feedback; what comes back always has 8 bits.
How long it takes is the prediction from measured links, times what earlier exchanges took as a multiple of theirs.
"""

from collections import deque
from collections.abc import Iterable, Sequence
from statistics import median

from wantrain.optimizers.stream import Stream
from wantrain.transport.codec.names import AUTO_CODECS, choices

SHARE = 0.1
"""Of the time of a round's steps. The fewest bits up, with 8 down, move two thirds of the bytes of 8 up: below this
share they save at most a thirtieth of the round, and the error that they add costs more."""
SAVES = 0.9
"""If nothing fits, fewer bits have to take at most this part of the time of 8; where round trips are most of it they
save nothing."""
MARGIN = 2 / 3
"""To go back to more bits they have to fit into this part of the slack: with all bytes they may take 1.5 times as long
as the fewest, and rates within a fifth of each other count as equal."""
CALM_PLANS = 8
"""So many plans in a row have to allow more bits before they are used; fewer bits are used at once."""
COUNTED = 3
"""The median of so many exchanges corrects what is predicted: one that somebody held up counts for nothing."""
USELESS_PLANS = 256
"""Fewer bits that have turned out to save nothing are not tried again for so many plans."""


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
        self._plans = 0
        self._took: deque[tuple[float, float]] = deque(maxlen=COUNTED)
        """Exchanges in the chosen codec: what they took as a multiple of what was predicted, and in seconds."""
        self._ratio = 1.0
        """The usual multiple; that of the former codec until the chosen one's is known."""
        self._before_s = 0.0
        """What exchanges took in 8 bits, 0 if unknown; to tell whether fewer bits have saved anything."""
        self._useless_until = 0
        """Up to which plan fewer bits are not tried, as they have not."""

    def took(self, codec: str, predicted_s: float, time_s: float) -> None:
        """An exchange in this codec has taken `time_s` seconds; `predicted_s` as in `choose`."""
        if not predicted_s or codec != self._codecs[self._chosen]:
            return
        self._took.append((time_s / predicted_s, time_s))
        if len(self._took) == COUNTED:
            self._ratio = median(ratio for ratio, _ in self._took)

    def choose(self, predicted_s: Sequence[float], slack_s: float) -> tuple[str, str]:
        """The codec, and the reason in words.

        Args:
            predicted_s: for each codec of `AUTO_CODECS`, in their order; 0 if unknown.
            slack_s: how long the exchange may take, 0 if unknown.
        """
        now = self._codecs[self._chosen]
        self._plans += 1
        if not all(predicted_s):
            return now, f"{now} as no link has been measured"
        if not slack_s:
            return now, f"{now} as no step has been timed"
        times_s = self._corrected(predicted_s)
        if self._saves_nothing():
            self._useless_until = self._plans + USELESS_PLANS
            return self._change(0), f"{self._codecs[0]} as {now} has not been faster"
        best = self._best(times_s, slack_s) if self._plans > self._useless_until else 0
        if best >= self._chosen:
            self._calm = 0
        else:
            self._calm += 1
            if self._calm < CALM_PLANS:
                return now, f"{now} until {self._codecs[best]} has been enough {CALM_PLANS - self._calm} more times"
        codec, time_s = self._change(best), times_s[best]
        if time_s <= slack_s:
            than = f", {self._codecs[best - 1]} in {times_s[best - 1]:.2g} s" if best else ""
            return codec, f"{codec} is over in {time_s:.2g} s of a slack of {slack_s:.2g} s{than}"
        few = "fewer bits save too little" if not best else f"{self._codecs[0]} would take {times_s[0]:.2g} s"
        return codec, f"{codec} as the slack is {slack_s:.2g} s and {few}"

    def _change(self, chosen: int) -> str:
        if chosen != self._chosen:
            self._before_s = 0.0 if self._chosen else self._usual_s()
            self._chosen, self._calm = chosen, 0
            self._took.clear()
        return self._codecs[chosen]

    def _usual_s(self) -> float:
        """What the last exchanges took, 0 if there were too few."""
        return median(time_s for _, time_s in self._took) if len(self._took) == COUNTED else 0.0

    def _saves_nothing(self) -> bool:
        return bool(self._chosen and self._before_s) and self._usual_s() > SAVES * self._before_s

    def _corrected(self, predicted_s: Sequence[float]) -> list[float]:
        """What exchanges took beyond the prediction may be due to bytes, or to anything else.

        Of the chosen codec and fewer bits it counts as due to bytes, so that they are tried, of more bits as not.
        """
        ratio, here_s = self._ratio, predicted_s[self._chosen]
        beyond_s = max(ratio - 1, 0.0) * here_s
        return [
            time_s * ratio if k >= self._chosen else time_s * min(ratio, 1.0) + beyond_s
            for k, time_s in enumerate(predicted_s)
        ]

    def _best(self, times_s: Sequence[float], slack_s: float) -> int:
        for k, time_s in enumerate(times_s):
            if time_s <= slack_s * (1.0 if k >= self._chosen else MARGIN):
                return k
        return len(times_s) - 1 if times_s[-1] <= SAVES * times_s[0] else 0
