"""Local SGD, also FedAvg: train apart, average the weights every H steps (arXiv 1602.05629)."""

from dataclasses import dataclass
from typing import Annotated, Literal

from wantrain.optimizers.options import Range
from wantrain.optimizers.schedule import RoundOptions, schedule_of
from wantrain.optimizers.stream import Stream, Wire


@dataclass(frozen=True, slots=True)
class LocalSgdOptions(RoundOptions):
    """Options of `local-sgd`."""

    outer_lr: Annotated[float, Range(0, 1000, open_low=True)] = 1.0
    """Step towards the mean of the weights; 1 goes there."""
    late: Literal["rebase", "adopt"] = "rebase"
    """A peer that missed a sync takes over the others' movement and keeps its own progress, or drops it."""
    weight: Literal["equal", "tokens"] = "equal"
    """What a contribution counts: as much as any other, or by the tokens it was trained on."""


def local_sgd(options: LocalSgdOptions, wire: Wire) -> tuple[Stream, ...]:
    """One stream: phi <- phi - outer_lr * mean of (phi - theta_i) every H steps; theta_i <- phi.

    With outer_lr 1 this is w <- sum of (n_k / n) * w_k, algorithm 1 of the paper.
    """
    return (
        Stream(
            name="param",
            **schedule_of("local-sgd", options, options.weight),
            merge="mean",
            merge_options=(("lr", options.outer_lr),),
            codec=wire.codec,
            down=wire.down,
            topology=wire.topology,
            late=options.late,
            weight=options.weight,
        ),
    )
