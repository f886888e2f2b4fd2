"""A stream: a fragment of the model plus the rule by which it is exchanged. Data only; methods build lists of these."""

from collections.abc import Iterable
from dataclasses import dataclass

MOST_STREAMS = 200
"""What the memory shared with a trainer has room to list, and messages have."""


@dataclass(frozen=True, slots=True)
class Wire:
    """How a run writes and moves values; given to every method."""

    codec: str = "int8"
    """Codec of the way up: contributions; `auto` leaves the choice to each sync."""
    down: str = ""
    """Codec of the way down: the mean; "" for the same as up."""
    topology: str = "auto"
    """`direct` or `ring`; `auto` leaves the choice to each sync."""


@dataclass(frozen=True, slots=True)
class Stream:
    """One row of a method (see the table of streams in docs/architecture.md).

    Steps are a trainer's own inner steps, counted from 1. A stream is due after step t when t >= 1 and
    (t - offset) mod every = 0.
    """

    name: str
    state: str = "param"
    """What of each parameter: `param` (itself) or the name of what the inner optimizer keeps for it, such as `exp_avg`,
    both exchanged as the difference to the last committed value; or `grad` (as it is, before the inner step)."""
    fragment: str = "all"
    """Which tensors; see `wantrain.optimizers.fragment.FRAGMENTS`."""
    every: int = 100
    """H: inner steps between two syncs of this stream, as its schedule makes more or less of it."""
    schedule: str = "fixed"
    """When a round ends, by name; see `wantrain.optimizers.schedule.SCHEDULES`. All but `fixed` have offset 0."""
    schedule_options: tuple[tuple[str, float], ...] = ()
    """Options of the schedule as (name, value), sorted; of any schedule `total`, the inner steps of the run."""
    offset: int = 0
    """o: shift of the contribute step within the period."""
    delay: int = 0
    """tau: inner steps between contribute and adopt that the trainer goes on training."""
    answer: str = "result"
    """What a contribution is answered with: the `result` of its sync; or at once, with what is committed by then
    (`delayed`), or that and a guess at what its own sync will add (`eager`). Those wait for the sync before instead."""
    overdue: str = "wait"
    """What the trainer does when the delay is over: `wait`, or `continue` and adopt when it comes."""
    adopt: str = "rebase"
    """What it takes over: `rebase` (theta <- phi + own steps since staging) or `mix` (theta <- alpha * theta +
    (1 - alpha) * phi)."""
    alpha: float = 0.5
    """Share of its own weights that `mix` keeps."""
    merge: str = "mean"
    """Outer rule by name; see `wantrain.optimizers.merge.MERGES`."""
    merge_options: tuple[tuple[str, float], ...] = ()
    """Options of the rule as (name, value), sorted, so that a stream can be hashed and compared."""
    topology: str = "auto"
    """Who sends what to whom: `direct`, `ring`, or `auto` to let each sync choose; `pair`: in random pairs."""
    codec: str = "int8"
    """Codec of the way up: contributions; `auto` leaves the choice to each sync."""
    down: str = ""
    """Codec of the way down: the mean; "" for the same as up."""
    average: str = "mean"
    """How contributions become one value; see `wantrain.optimizers.average.AVERAGES`. All but `mean` go directly."""
    trim: float = 0.2
    """Share of the contributions that `trimmed-mean` leaves out at each end."""
    clip: str = "none"
    """`median`: a contribution's norm in each chunk is limited to the contributors' median one."""
    late: str = "rebase"
    """A peer that missed a sync: `rebase` (take the others' movement, keep own unsent progress), `adopt` (drop it)."""
    weight: str = "equal"
    """What a contribution counts: `equal` or `tokens` (since its last contribution)."""
    last: int = 0
    """Of a stream that is exchanged in pairs: the sync with which the run ends: in it all come to one; 0: none."""

    @property
    def held(self) -> bool:
        """Whether peers hold a committed value of it (phi) that newcomers take over: of all but gradients."""
        return self.state != "grad"

    @property
    def nonnegative(self) -> bool:
        """Whether no value of it may be below 0."""
        return self.merge == "nonnegative-mean"

    @property
    def codecs(self) -> tuple[str, str]:
        """Codecs of the way up and of the way down."""
        return self.codec, self.down or self.codec

    @property
    def uneven(self) -> bool:
        """Whether rounds differ in length, so that the commit log has to say how far the run is."""
        return self.schedule != "fixed" or bool(self.schedule_options)

    @property
    def gossip(self) -> bool:
        """Whether every peer has a phi of its own: a sync is an exchange of two, and of no others' concern."""
        return self.topology == "pair"

    def due(self, step: int) -> bool:
        """Whether a stream of even rounds contributes after the trainer's own inner step `step` (>= 1)."""
        return step >= 1 and (step - self.offset) % self.every == 0

    def steps(self, index: int) -> int:
        """After which inner step of the run its sync `index` is due, counted from 1; 0 for none."""
        return (index - 1) * self.every + (self.offset % self.every or self.every) if index > 0 else 0


def lead(streams: Iterable[Stream]) -> Stream | None:
    """The first `param` stream: its syncs are the run's rounds, and what they contain of the data has been used."""
    return next((stream for stream in streams if stream.state == "param"), None)
