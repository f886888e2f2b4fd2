"""DES-LOC: weights and moments averaged each at its own pace, as each changes at its own (arXiv 2505.22549)."""

from dataclasses import dataclass
from typing import Annotated, Literal

from wantrain.optimizers.moments import moments
from wantrain.optimizers.options import Range
from wantrain.optimizers.stream import Stream, Wire


@dataclass(frozen=True, slots=True)
class DesLocOptions:
    """Options of `des-loc`."""

    every: Annotated[int, Range(1, 10**9)] = 100
    """Kx: inner steps between two averages of the weights."""
    every_exp_avg: Annotated[int, Range(0, 10**9)] = 0
    """Ku: the same for the first moments; 0: three times as many."""
    every_exp_avg_sq: Annotated[int, Range(0, 10**9)] = 0
    """Kv: the same for the second moments; 0: six times as many."""
    outer_lr: Annotated[float, Range(0, 1000, open_low=True)] = 1.0
    """Step of the weights towards their mean; 1 goes there."""
    momentum: Annotated[float, Range(0, 1, open_high=True)] = 0.0
    """mu of the weights' outer SGD with Nesterov momentum; 0: the mean alone."""
    late: Literal["rebase", "adopt"] = "rebase"
    """A peer that missed a sync of the weights takes over the others' movement and keeps its own progress, or not."""
    weight: Literal["equal", "tokens"] = "equal"
    """What a contribution counts: as much as any other, or by the tokens it was trained on."""


def des_loc(options: DesLocOptions, wire: Wire) -> tuple[Stream, ...]:
    """Three streams: x every Kx, m every Ku, v every Kv steps, each averaged before the step that follows.

    Algorithm 1 of the paper; with Kx = Ku = Kv it is Local Adam. The clipping of each coordinate of the gradient to
    rho, which its analysis asks for, is the training loop's: torch.nn.utils.clip_grad_value_.
    """
    nesterov = options.momentum > 0
    param = Stream(
        name="param",
        every=options.every,
        merge="nesterov" if nesterov else "mean",
        merge_options=(("lr", options.outer_lr), *((("momentum", options.momentum),) if nesterov else ())),
        codec=wire.codec,
        down=wire.down,
        topology=wire.topology,
        late=options.late,
        weight=options.weight,
    )
    every = options.every_exp_avg or 3 * options.every
    return param, *moments(param, wire, every, options.every_exp_avg_sq or 6 * options.every)
