"""Norm clipping: no contribution to a chunk may be longer than the median one (after arXiv 1911.07963, section 4)."""

import torch
from torch import Tensor


def clip_to_median(rows: Tensor) -> list[float]:
    """Scale every row down to the median of the rows' L2 norms, in place; the others stay as they are.

    The paper limits norms to a constant that somebody has to know; the median of what is there follows the run. Norms
    are sums in float64 of the values themselves, the median of an even number is the lower one, so that of two rows
    the longer is cut to the shorter. What lies is bounded in length, not in direction.

    Args:
        rows: fp32[k, n], k >= 1, finite.

    Returns:
        The factors, 1.0 where nothing was changed.
    """
    norms = [torch.linalg.vector_norm(row, dtype=torch.float64).item() for row in rows]
    limit = sorted(norms)[(len(norms) - 1) // 2]
    factors = [limit / norm if norm > limit else 1.0 for norm in norms]
    for row, factor in zip(rows, factors, strict=True):
        if factor != 1.0:
            row.mul_(factor)
    return factors
