"""A stream: a fragment of the model plus the rule by which it is exchanged. Data only; methods build lists of these."""

from collections.abc import Iterable
from dataclasses import dataclass


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
    """`param` (exchanged as the difference to the last committed value) or `grad` (as it is, before the inner step)."""
    fragment: str = "all"
    """Which tensors: `all`."""
    every: int = 100
    """H: inner steps between two syncs of this stream."""
    offset: int = 0
    """o: shift of the contribute step within the period."""
    delay: int = 0
    """tau: inner steps between contribute and adopt that the trainer goes on training."""
    merge: str = "mean"
    """Outer rule by name; see `wantrain.optimizers.merge.MERGES`."""
    merge_options: tuple[tuple[str, float], ...] = ()
    """Options of the rule as (name, value), sorted, so that a stream can be hashed and compared."""
    topology: str = "auto"
    """Who sends what to whom: `direct`, `ring`, or `auto` to let each sync choose."""
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

    @property
    def codecs(self) -> tuple[str, str]:
        """Codecs of the way up and of the way down."""
        return self.codec, self.down or self.codec

    def due(self, step: int) -> bool:
        """Whether the stream contributes after the trainer's own inner step `step` (>= 1)."""
        return step >= 1 and (step - self.offset) % self.every == 0


def lead(streams: Iterable[Stream]) -> Stream | None:
    """The first `param` stream: its syncs are the run's rounds, and what they contain of the data has been used."""
    return next((stream for stream in streams if stream.state == "param"), None)
