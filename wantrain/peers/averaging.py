"""The sum of a chunk where its rule has to see all contributions at once; memory for them is made once and kept."""

from collections.abc import Sequence

import torch
from torch import Tensor

from wantrain.optimizers.average import average
from wantrain.optimizers.norm_clip import clip_to_median
from wantrain.optimizers.stream import Stream
from wantrain.peers.vector import Vector
from wantrain.transport.collective import Payload
from wantrain.transport.memory import big

Inputs = Sequence[tuple[float, Payload | None]]
"""Weight and encoded values of each contribution, in contributor order; None for the own one."""


def sees_all(stream: Stream) -> bool:
    """Whether the stream's rule needs all contributions to a chunk at once; else they are summed as they come."""
    return stream.average != "mean" or stream.clip != "none"


class Averager:
    """Decodes the contributions to one chunk side by side and averages them."""

    def __init__(self) -> None:
        self._rows = big(0)

    @property
    def size_bytes(self) -> int:
        """Memory that is held: 4 bytes for each value of the longest chunk, of each of the most contributors."""
        return 4 * self._rows.numel()

    def combine(self, vector: Vector, chunk: int, inputs: Inputs, out: Tensor, scratch: Tensor) -> None:
        """The chunk's average by the rule of its stream into `out`, fp32[n]; `scratch` is like it. Weights are ignored.

        Args:
            vector: the stream.
            chunk: number in its grid.
            inputs: all contributions, found good.
            out: fp32[n].
            scratch: fp32[n]; its content is lost.
        """
        rows = self._decoded(vector, chunk, inputs, scratch)
        if vector.stream.clip == "median":
            clip_to_median(rows)
        average(vector.stream.average).combine(rows, vector.stream.trim, out)

    def longest(self, vector: Vector, chunk: int, inputs: Inputs, scratch: Tensor) -> int:
        """Which of the weighted contributions has the largest value: whose fault it is that their sum overflows."""
        extremes = []
        for weight, payload in inputs:
            (row,) = self._decoded(vector, chunk, [(1.0, payload)], scratch)
            low, high = torch.aminmax(row)
            extremes.append(weight * max(-low.item(), high.item()))
        return extremes.index(max(extremes))

    def _decoded(self, vector: Vector, chunk: int, inputs: Inputs, scratch: Tensor) -> Tensor:
        start, stop = vector.bounds[chunk]
        count = len(inputs) * (stop - start)
        if self._rows.numel() < count:
            self._rows = big(count)
        rows = self._rows[:count].view(len(inputs), stop - start)
        for row, (_, payload) in zip(rows, inputs, strict=True):
            vector.begin(chunk, 1.0, payload, row, scratch)
        return rows
