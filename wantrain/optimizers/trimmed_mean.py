"""trimmed-mean: of each element the largest and smallest values are left out (Yin et al. 2018, arXiv 1803.01498)."""

import math

import torch
from torch import Tensor

from wantrain.optimizers.sorting import PIECE_ELEMENTS, sorted_rows


def trimmed(contributors: int, trim: float) -> int:
    """How many values are left out at each end: trim * k, rounded up, and at least one value stays.

    Rounded up, so that as large a share of liars as was asked for is always outvoted where that is possible: of 3 or 4
    contributors one at each end for any trim above 0; of 1 or 2 none, which is their mean.
    """
    return min(math.ceil(trim * contributors - 1e-9), (contributors - 1) // 2)


class TrimmedMean:
    """The mean of what is left of each element once the `trimmed` largest and smallest values are gone.

    Definition 2 of the paper, with beta = trim. The error stays bounded while fewer contributors lie than are left out
    at one end; every contribution has weight 1.
    """

    name = "trimmed-mean"

    def combine(self, rows: Tensor, trim: float, out: Tensor) -> None:
        cut = trimmed(len(rows), trim)
        spare = torch.empty(min(PIECE_ELEMENTS, out.numel()))
        for start in range(0, out.numel(), PIECE_ELEMENTS):
            piece = out[start : start + PIECE_ELEMENTS]
            kept = sorted_rows(
                rows[:, start : start + PIECE_ELEMENTS], cut, len(rows) - cut, spare[: piece.numel()]
            )  # fmt: skip
            piece.copy_(kept[0])
            for row in kept[1:]:
                piece.add_(row)
            if len(kept) > 1:
                piece.div_(len(kept))
