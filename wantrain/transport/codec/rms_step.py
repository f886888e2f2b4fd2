"""rms-step: blocks of 1024 values, the step is a fixed part of their root mean square; made to be entropy coded."""

import torch
from torch import Tensor

from wantrain.transport.codec.blocks import divide, magnitudes, root, tree_sum
from wantrain.transport.codec.blockwise import Blockwise

SAFE_LOW, SAFE_HIGH = 2.0**-50, 2.0**50
"""Largest magnitudes of a block between which its squares and their sum neither overflow nor lose what counts."""


def unsafe(largest: Tensor) -> Tensor:
    """bool[r], for fp32[r] largest magnitudes: whose sums take float64, where nothing in fp32 can overflow."""
    return ~((largest == 0) | ((largest >= SAFE_LOW) & (largest <= SAFE_HIGH)))  # NaN is unsafe, too


class RmsStep(Blockwise):
    """Scale = step * sqrt(mean of squares); code = round_half_even(value / scale) as int8, clipped to -127 ... 127.

    At equal error this needs fewer bits than a fixed 4-bit format, and heavy tails do not widen its step. The sum of
    squares is a tree over the block filled up with zeros, so that every device has the same bits.
    """

    block = 1024
    code_bits = 8
    peak = 127

    def __init__(self, step: float) -> None:
        self.name = f"rms{step:g}"
        self.step = step

    def _measure(self, rows: Tensor, width: int, out: Tensor) -> None:
        squares = magnitudes(rows)
        odd = unsafe(torch.amax(squares, 1))
        squares.mul_(squares)
        out.copy_(root(divide(tree_sum(squares), width)))
        if odd.any().item():
            exact = rows[odd].double()
            out[odd] = root(divide(tree_sum(exact.mul_(exact)), width))

    def _store_scales(self, measures: Tensor, scales: Tensor) -> Tensor:
        torch.mul(measures, self.step, out=scales).clamp_(max=self.scale_max)
        return torch.where(scales == 0, 1.0, scales)

    def _pack(self, quotients: Tensor, packed: Tensor) -> None:
        packed.view(torch.int8).copy_(quotients.round_().clamp_(-127, 127))

    def _unpack(self, packed: Tensor, out: Tensor) -> None:
        out.copy_(packed.view(torch.int8))

    def _codes_reason(self, codes: Tensor) -> str | None:
        return "a code is -128" if codes.view(torch.int8).amin().item() == -128 else None
