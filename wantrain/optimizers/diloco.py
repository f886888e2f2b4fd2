"""DiLoCo: long inner runs, one averaged outer gradient each, outer SGD with momentum (arXiv 2311.08105)."""

from dataclasses import dataclass
from typing import Annotated, Literal

from wantrain.errors import ConfigError
from wantrain.optimizers.options import Range
from wantrain.optimizers.stream import Stream, Wire


@dataclass(frozen=True, slots=True)
class DilocoOptions:
    """Options of `diloco`. The paper's: every 500, outer_lr 0.7, momentum 0.9, Nesterov; inner optimizer AdamW."""

    every: Annotated[int, Range(1, 10**9)] = 100
    """H: inner steps between two syncs; 30 to 100 for small runs."""
    delay: Annotated[int, Range(0, 10**9)] = 0
    """tau: inner steps for which training goes on while a sync is under way; what they did is kept. At most `every`."""
    outer_lr: Annotated[float, Range(0, 1000, open_low=True)] = 0.7
    """Learning rate of the outer SGD."""
    momentum: Annotated[float, Range(0, 1, open_high=True)] = 0.9
    """mu of the outer SGD; the steady gain is outer_lr / (1 - momentum)."""
    nesterov: bool = True
    """Nesterov momentum; false for heavy ball."""
    late: Literal["rebase", "adopt"] = "rebase"
    """A peer that missed a sync takes over the others' movement and keeps its own progress, or drops it."""
    weight: Literal["equal", "tokens"] = "equal"
    """What a contribution counts: as much as any other, or by the tokens it was trained on."""


def diloco(options: DilocoOptions, wire: Wire) -> tuple[Stream, ...]:
    """One stream: delta_i = phi - theta_i every H steps; phi <- OuterSGD(phi, mean of delta_i); theta_i <- phi.

    Algorithm 1 of the paper, lines 10 to 14. With a delay, theta_i <- phi + (theta_i - theta_i at staging), tau steps
    later at most (arXiv 2501.18512 overlaps so, one fragment after the other).

    Raises:
        ConfigError: the delay is longer than the time between two syncs.
    """
    if options.delay > options.every:
        raise ConfigError(
            f"diloco: delay is {options.delay}; allowed: a whole number >= 0 and <= every, which is {options.every}",
            hint="the next sync begins when this one is over: raise every, or lower delay",
        )
    return (
        Stream(
            name="param",
            every=options.every,
            delay=options.delay,
            merge="nesterov" if options.nesterov else "heavy-ball",
            merge_options=(("lr", options.outer_lr), ("momentum", options.momentum)),
            codec=wire.codec,
            down=wire.down,
            topology=wire.topology,
            late=options.late,
            weight=options.weight,
        ),
    )
