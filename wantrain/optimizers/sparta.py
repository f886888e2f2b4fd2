"""SPARTA: a random half per cent of the weights averaged after every step (Baioumy and Cheema 2025)."""

from dataclasses import dataclass
from typing import Annotated, Literal

from wantrain.errors import ConfigError
from wantrain.optimizers.options import Range
from wantrain.optimizers.stream import MOST_STREAMS, Stream, Wire


@dataclass(frozen=True, slots=True)
class SpartaOptions:
    """Options of `sparta`."""

    parts: Annotated[int, Range(2, MOST_STREAMS)] = 200
    """n: each exchange takes one n-th of the coordinates at random; 200 is half a per cent."""
    every: Annotated[int, Range(1, 10**6)] = 1
    """Inner steps between two exchanges."""
    delay: Annotated[int, Range(0, 10**9)] = 0
    """Inner steps for which training goes on while an exchange is under way; what they did is kept."""
    late: Literal["rebase", "adopt"] = "rebase"
    """A peer that missed an exchange takes over the others' movement and keeps its own progress, or drops it."""
    weight: Literal["equal", "tokens"] = "equal"
    """What a contribution counts: as much as any other, or by the tokens it was trained on."""


def sparta(options: SpartaOptions, wire: Wire) -> tuple[Stream, ...]:
    """n streams, one for each part of a random partition of the coordinates: theta_i <- mean of theta_i there.

    The paper draws a mask anew for every exchange. Here (ours) the masks of n exchanges are a partition: as random, but
    no coordinate is left out for longer than the others, and the value that was common last is known for all of them,
    which is what a newcomer starts from.

    Raises:
        ConfigError: the delay is longer than the time between two exchanges of one part.
    """
    period = options.parts * options.every
    if options.delay > period:
        raise ConfigError(
            f"sparta: delay is {options.delay}; allowed: a whole number >= 0 and <= parts * every, which is {period}",
            hint="a part's next exchange begins when its last one is over: lower delay",
        )
    return tuple(
        Stream(
            name=f"param-{k}",
            fragment=f"mask:{k}/{options.parts}",
            every=period,
            offset=(k + 1) * options.every % period,
            delay=options.delay,
            codec=wire.codec,
            down=wire.down,
            topology=wire.topology,
            late=options.late,
            weight=options.weight,
        )
        for k in range(options.parts)
    )
