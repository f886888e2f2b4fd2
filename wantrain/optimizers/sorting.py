"""Sorting each element over a few contributions: a network of minima and maxima of whole rows, without branches."""

from collections.abc import Iterator
from functools import lru_cache

import torch
from torch import Tensor

PIECE_ELEMENTS = 1 << 14
"""Elements worked on at a time, so that the rows of a dozen contributors stay in the processor's cache."""


def _exchanges(rows: int) -> Iterator[tuple[int, int]]:
    """Pairs (i, j), i < j, to put in order one after another: Batcher's merge exchange (Knuth, 5.2.2, algorithm M)."""
    top = 1 << max(rows - 1, 0).bit_length() >> 1
    p = top
    while p:
        q, r, d = top, 0, p
        while d:
            yield from ((i, i + d) for i in range(rows - d) if i & p == r)
            d, q, r = (q - p, q >> 1, p) if q != p else (0, q, r)
        p >>= 1


@lru_cache(maxsize=256)
def network(rows: int, low: int, high: int) -> tuple[tuple[int, int], ...]:
    """The exchanges after which rows low to high - 1 are what a complete sort would have there."""
    needed, kept = set(range(low, high)), []
    for i, j in reversed(list(_exchanges(rows))):
        if needed & {i, j}:
            needed |= {i, j}
            kept.append((i, j))
    return tuple(reversed(kept))


def sorted_rows(rows: Tensor, low: int, high: int, spare: Tensor) -> list[Tensor]:
    """Ranks low to high - 1 (0 is the smallest) of each element over the rows.

    Args:
        rows: fp32[k, n], finite; their content is lost.
        low: first rank that is wanted.
        high: end of the ranks that are wanted.
        spare: fp32[n], not part of `rows`; its content is lost.

    Returns:
        high - low tensors fp32[n] in `rows` or `spare`.
    """
    ranks = list(rows)
    for i, j in network(len(ranks), low, high):
        torch.minimum(ranks[i], ranks[j], out=spare)
        torch.maximum(ranks[i], ranks[j], out=ranks[j])
        ranks[i], spare = spare, ranks[i]
    return ranks[low:high]
