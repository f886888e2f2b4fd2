"""Synchronous data parallel: the mean gradient at every step; the baseline the other methods are measured against."""

from dataclasses import dataclass
from typing import Annotated, Literal

from wantrain.optimizers.options import Range
from wantrain.optimizers.stream import Stream


@dataclass(frozen=True, slots=True)
class DdpOptions:
    """Options of `ddp`."""

    resync: Annotated[int, Range(1, 10**9)] = 50
    """Steps between two averages of the weights: newcomers start from them, and replicas cannot drift apart."""
    weight: Literal["equal", "tokens"] = "equal"
    """What a contribution counts: as much as any other, or by the tokens it was trained on."""


def ddp(options: DdpOptions, codec: str) -> tuple[Stream, ...]:
    """Two streams: g <- mean of g_i before each inner step, and phi <- mean of theta_i every `resync` steps.

    Mini-batch SGD over all peers (e.g. arXiv 1706.02677, equation 2). A late gradient belongs to a step that is over,
    so both streams drop what missed its sync.
    """
    return (
        Stream(name="grad", state="grad", every=1, codec=codec, late="adopt", weight=options.weight),
        Stream(name="param", every=options.resync, codec=codec, late="adopt", weight=options.weight),
    )
