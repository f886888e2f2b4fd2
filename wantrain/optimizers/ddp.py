"""Synchronous data parallel: the mean gradient at every step; the baseline the other methods are measured against."""

from dataclasses import dataclass, replace
from typing import Annotated, Literal

from wantrain.optimizers.options import Range
from wantrain.optimizers.stream import Stream, Wire


@dataclass(frozen=True, slots=True)
class DdpOptions:
    """Options of `ddp`."""

    resync: Annotated[int, Range(1, 10**9)] = 50
    """Steps between two averages of the weights: newcomers start from them, and replicas cannot drift apart."""
    weight: Literal["equal", "tokens"] = "equal"
    """What a contribution counts: as much as any other, or by the tokens it was trained on."""


def ddp(options: DdpOptions, wire: Wire) -> tuple[Stream, ...]:
    """Two streams: g <- mean of g_i before each inner step, and phi <- mean of theta_i every `resync` steps.

    Mini-batch SGD over all peers (e.g. arXiv 1706.02677, equation 2). A late gradient belongs to a step that is over,
    so both streams drop what missed its sync.
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
    return replace(shared, name="grad", state="grad", every=1), shared
