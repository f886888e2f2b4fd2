"""Local Adam: weights and both moments averaged every H steps (arXiv 2505.22549, algorithm 1 with equal periods)."""

from dataclasses import dataclass
from typing import Annotated, Literal

from wantrain.optimizers.moments import moments
from wantrain.optimizers.options import Range
from wantrain.optimizers.stream import Stream, Wire


@dataclass(frozen=True, slots=True)
class LocalAdamOptions:
    """Options of `local-adam`."""

    every: Annotated[int, Range(1, 10**9)] = 100
    """H: inner steps between two syncs."""
    late: Literal["rebase", "adopt"] = "rebase"
    """A peer that missed a sync takes over the others' movement and keeps its own progress, or drops it."""
    weight: Literal["equal", "tokens"] = "equal"
    """What a contribution counts: as much as any other, or by the tokens it was trained on."""


def local_adam(options: LocalAdamOptions, wire: Wire) -> tuple[Stream, ...]:
    """Three streams: x, m and v become the means over the contributors, every H steps, before the step that follows.

    The inner optimizer has to keep exp_avg and exp_avg_sq, as Adam and AdamW do.
    """
    param = Stream(
        name="param",
        every=options.every,
        merge_options=(("lr", 1.0),),
        codec=wire.codec,
        down=wire.down,
        topology=wire.topology,
        late=options.late,
        weight=options.weight,
    )
    return param, *moments(param, wire, options.every, options.every)
