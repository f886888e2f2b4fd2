"""fedadam, fedyogi, fedadagrad: outer optimizers with a step size for each value (FedOpt, arXiv 2003.00295)."""

from dataclasses import dataclass
from typing import Annotated, Literal

from wantrain.optimizers.options import Range
from wantrain.optimizers.schedule import RoundOptions, schedule_of
from wantrain.optimizers.stream import Stream, Wire


@dataclass(frozen=True, slots=True)
class FedAdagradOptions(RoundOptions):
    """Options of `fedadagrad`."""

    outer_lr: Annotated[float, Range(0, 1000, open_low=True)] = 0.03
    """Learning rate: about how far a value goes at the first sync at which all peers agree; less and less later."""
    beta1: Annotated[float, Range(0, 1, open_high=True)] = 0.9
    """Decay of the outer momentum."""
    scale: Annotated[float, Range(1e-12, 1000)] = 1e-3
    """Differences below it count as small: added to the root of the second moment, which begins at its square."""
    late: Literal["rebase", "adopt"] = "rebase"
    """A peer that missed a sync takes over the others' movement and keeps its own progress, or drops it."""
    weight: Literal["equal", "tokens"] = "equal"
    """What a contribution counts: as much as any other, or by the tokens it was trained on."""


@dataclass(frozen=True, slots=True)
class FedAdamOptions(FedAdagradOptions):
    """Options of `fedadam` and `fedyogi`."""

    outer_lr: Annotated[float, Range(0, 1000, open_low=True)] = 0.01
    """Learning rate: about how far a value goes at a sync at which all peers agree."""
    beta2: Annotated[float, Range(0, 1, open_high=True)] = 0.99
    """Decay of the outer second moment."""


def fedopt(rule: str, options: FedAdagradOptions, wire: Wire) -> tuple[Stream, ...]:
    """One stream: phi <- phi - lr * m / (sqrt(v) + scale), m and v of the mean of phi - theta_i; theta_i <- phi.

    Algorithm 2 of the paper, with v as `rule` (adam, yogi, adagrad) has it; see `wantrain.optimizers.adaptive`.
    """
    values = {"lr": options.outer_lr, "beta1": options.beta1, "scale": options.scale}
    if isinstance(options, FedAdamOptions):
        values["beta2"] = options.beta2
    return (
        Stream(
            name="param",
            **schedule_of(f"fed{rule}", options, options.weight),
            merge=rule,
            merge_options=tuple(sorted(values.items())),
            codec=wire.codec,
            down=wire.down,
            topology=wire.topology,
            late=options.late,
            weight=options.weight,
        ),
    )
