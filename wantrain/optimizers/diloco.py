"""DiLoCo: long inner runs, one averaged outer gradient each, outer SGD with momentum (arXiv 2311.08105)."""

from dataclasses import dataclass
from typing import Annotated, Literal

from wantrain.errors import ConfigError
from wantrain.optimizers.options import Range
from wantrain.optimizers.schedule import RoundOptions, schedule_of
from wantrain.optimizers.stream import Stream, Wire


@dataclass(frozen=True, slots=True)
class DilocoOptions(RoundOptions):
    """Options of `diloco`. The paper's: every 500, outer_lr 0.7, momentum 0.9, Nesterov; inner optimizer AdamW."""

    delay: Annotated[int, Range(0, 10**9)] = 0
    """tau: inner steps for which training goes on while a sync is under way; what they did is kept. At most `every`."""
    outer_lr: Annotated[float, Range(0, 1000, open_low=True)] = 0.7
    """Learning rate of the outer SGD."""
    momentum: Annotated[float, Range(0, 1, open_high=True)] = 0.9
    """mu of the outer SGD; the steady gain is outer_lr / (1 - momentum)."""
    nesterov: bool = True
    """Nesterov momentum; false for heavy ball."""
    momentum_every: Annotated[int, Range(1, 10**6)] = 1
    """N: the momentum moves at every N-th sync only, by the mean of N; each sync counts one N-th (2401.09135)."""
    momentum_share: Annotated[float, Range(0, 1)] = 0.0
    """c: what of the momentum is used at each sync between, at most 1 / momentum_every."""
    late: Literal["rebase", "adopt"] = "rebase"
    """A peer that missed a sync takes over the others' movement and keeps its own progress, or drops it."""
    weight: Literal["equal", "tokens"] = "equal"
    """What a contribution counts: as much as any other, or by the tokens it was trained on."""


def diloco(options: DilocoOptions, wire: Wire) -> tuple[Stream, ...]:
    """One stream: delta_i = phi - theta_i every H steps; phi <- OuterSGD(phi, mean of delta_i); theta_i <- phi.

    Algorithm 1 of the paper, lines 10 to 14. With a delay, theta_i <- phi + (theta_i - theta_i at staging), tau steps
    later at most (arXiv 2501.18512 overlaps so, one fragment after the other).

    Raises:
        ConfigError: options that do not fit each other.
    """
    if options.delay > options.every:
        raise ConfigError(
            f"diloco: delay is {options.delay}; allowed: a whole number >= 0 and <= every, which is {options.every}",
            hint="the next sync begins when this one is over: raise every, or lower delay",
        )
    merge = "nesterov" if options.nesterov else "heavy-ball"
    merge_options = {"lr": options.outer_lr, "momentum": options.momentum}
    if options.momentum_every > 1:
        if not options.nesterov:
            raise ConfigError(
                f"diloco: momentum_every is {options.momentum_every} with nesterov = false; allowed: 1",
                hint="set nesterov = true",
            )
        merge = "delayed-nesterov"
        merge_options |= {"share": options.momentum_share, "wait": float(options.momentum_every)}
    if options.momentum_share * options.momentum_every > (options.momentum_every > 1):
        raise ConfigError(
            f"diloco: momentum_share is {options.momentum_share}; allowed: a number >= 0 and <= 1 / momentum_every, "
            f"which is 1 / {options.momentum_every}, and 0 if that is 1",
            hint="lower momentum_share",
        )
    return (
        Stream(
            name="param",
            **schedule_of("diloco", options, options.weight),
            delay=options.delay,
            merge=merge,
            merge_options=tuple(sorted(merge_options.items())),
            codec=wire.codec,
            down=wire.down,
            topology=wire.topology,
            late=options.late,
            weight=options.weight,
        ),
    )
