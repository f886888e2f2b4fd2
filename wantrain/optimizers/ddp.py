"""Synchronous data parallel: the mean gradient at every step; the baseline the other methods are measured against."""

from dataclasses import dataclass, replace
from typing import Annotated, Literal

from wantrain.optimizers.moments import moments
from wantrain.optimizers.options import Range
from wantrain.optimizers.stream import Stream, Wire


@dataclass(frozen=True, slots=True)
class DdpOptions:
    """Options of `ddp`."""

    resync: Annotated[int, Range(1, 10**9)] = 50
    """Steps between two averages of the weights: newcomers start from them, and replicas cannot drift apart."""
    weight: Literal["equal", "tokens"] = "equal"
    """What a contribution counts: as much as any other, or by the tokens it was trained on."""
    moments: bool = False
    """Newcomers get Adam's moments, too, which are averaged with the weights; for optimizers that keep them."""


def ddp(options: DdpOptions, wire: Wire) -> tuple[Stream, ...]:
    """Streams: g <- mean of g_i before each inner step, and phi <- mean of theta_i every `resync` steps.

    Mini-batch SGD over all peers (e.g. arXiv 1706.02677, equation 2). A late gradient belongs to a step that is over,
    so all streams drop what missed its sync.
    """
    shared = Stream(
        name="param",
        every=options.resync,
        codec=wire.codec,
        down=wire.down,
        topology=wire.topology,
        late="adopt",
        weight=options.weight,
    )
    grad = replace(shared, name="grad", state="grad", every=1)
    return (grad, shared, *(moments(shared, wire, options.resync, options.resync) if options.moments else ()))
