"""The vectors that are reduced in a benchmark, and how far a result is from their mean; any block can be made again.

Every block of every peer is Gaussian with a seed and a scale of its own, so that a block that is lost, counted twice or
put in the wrong place shows.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

BLOCK_ELEMENTS = 2**16
"""Blocks do not depend on how a topology cuts the vector."""


def fill(out: Tensor, peer: int, sign: float = 1.0) -> None:
    """Write the whole vector of `peer`, times `sign`, into fp32[n] `out`."""
    for block, start in enumerate(range(0, out.numel(), BLOCK_ELEMENTS)):
        _block(out[start : start + BLOCK_ELEMENTS], peer, block).mul_(sign)


def distance(result: Tensor, peers: Sequence[int], sign: float = 1.0) -> tuple[float, float]:
    """How far fp32[n] `result` is from sign * (sum of the peers' vectors) / (number of them).

    Returns:
        Relative root mean square error over the vector, and of its worst block.
    """
    expected, term = torch.empty(BLOCK_ELEMENTS), torch.empty(BLOCK_ELEMENTS)
    wrong, whole, worst = 0.0, 0.0, 0.0
    for block, start in enumerate(range(0, result.numel(), BLOCK_ELEMENTS)):
        found = result[start : start + BLOCK_ELEMENTS]
        mean, value = expected[: found.numel()], term[: found.numel()]
        mean.zero_()
        for peer in peers:
            mean.add_(_block(value, peer, block))
        mean.mul_(sign / len(peers))
        square = float(torch.linalg.vector_norm(mean, dtype=torch.float64)) ** 2
        off = float(torch.linalg.vector_norm(torch.sub(found, mean, out=value), dtype=torch.float64)) ** 2
        wrong, whole = wrong + off, whole + square
        worst = max(worst, math.sqrt(off / square) if square > 0 else math.sqrt(off))
    return (math.sqrt(wrong / whole) if whole else 0.0), worst


def bits_sum(values: Tensor) -> int:
    """A sum over the bit patterns of fp32[n]: differs if the values do, but for rare accidents."""
    # By blocks: the sum of the whole would first make an int64 copy of it, and be seen as memory of the peer.
    starts = range(0, values.numel(), BLOCK_ELEMENTS)
    blocks = (values[start : start + BLOCK_ELEMENTS].view(torch.int32) for start in starts)
    return sum(int(block.sum(dtype=torch.int64).item()) for block in blocks)


def _block(out: Tensor, peer: int, block: int) -> Tensor:
    generator = torch.Generator().manual_seed(1_000_003 * peer + block)
    return out.normal_(0.0, 0.01 * (1 + block % 5), generator=generator)
