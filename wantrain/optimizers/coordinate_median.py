"""median: of each element the value in the middle (Yin et al. 2018, arXiv 1803.01498)."""

import torch
from torch import Tensor

from wantrain.optimizers.sorting import PIECE_ELEMENTS, sorted_rows


class CoordinateMedian:
    """The median of each element by itself; of an even number, half of either of the two in the middle.

    Definition 1 of the paper. Bounded by honest values while fewer than half lie; of two contributors it is the mean,
    of one its own value. Every contribution has weight 1. For data that differ between contributors it is biased: what
    only a minority has learned does not show in it.
    """

    name = "median"

    def combine(self, rows: Tensor, trim: float, out: Tensor) -> None:
        low, high = (len(rows) - 1) // 2, len(rows) // 2
        spare = torch.empty(min(PIECE_ELEMENTS, out.numel()))
        for start in range(0, out.numel(), PIECE_ELEMENTS):
            piece = out[start : start + PIECE_ELEMENTS]
            middle = sorted_rows(rows[:, start : start + PIECE_ELEMENTS], low, high + 1, spare[: piece.numel()])
            piece.copy_(middle[0])
            if high > low:  # halves before the sum, which could overflow
                piece.mul_(0.5)
                piece.add_(middle[1].mul_(0.5))
