"""How a vector is cut: a fixed grid of chunks that every peer computes alike, and runs of chunks as shards."""

from collections.abc import Sequence

MAX_CHUNK_ELEMENTS = 2**19
"""2 MiB of fp32 and half a MiB as int8: fast through ZeroMQ and small enough for the processor's caches."""
MIN_CHUNK_ELEMENTS = 2**14
"""Below this the cost per chunk, some tenths of a millisecond at each peer, outweighs that of its bytes."""
CHUNK_ALIGN_ELEMENTS = 2**10
"""A multiple of every codec's block, so that a block never straddles two chunks."""
AIMED_CHUNKS = 32
"""Enough chunks for a fairly even split and for a pipeline to fill; vectors of over 16 M values have more."""


def chunk_elements(elements: int) -> int:
    """Elements in every chunk but the last of a vector of `elements` values; depends on nothing else."""
    per_chunk = -(-elements // AIMED_CHUNKS)
    aligned = -(-per_chunk // CHUNK_ALIGN_ELEMENTS) * CHUNK_ALIGN_ELEMENTS
    return min(MAX_CHUNK_ELEMENTS, max(MIN_CHUNK_ELEMENTS, aligned))


def chunk_bounds(elements: int) -> list[tuple[int, int]]:
    """The chunks of a vector as (start, stop) element ranges, in order; none for an empty vector."""
    size = chunk_elements(elements)
    return [(start, min(start + size, elements)) for start in range(0, elements, size)]


def split_chunks(chunks: int, speeds: Sequence[float]) -> tuple[int, ...]:
    """How many consecutive chunks each owner gets, in proportion to its speed (largest remainder, ties to the first).

    Raises:
        ValueError: a negative speed, or none that is positive.
    """
    if min(speeds, default=0) < 0 or not sum(speeds) > 0:
        raise ValueError(f"shards need owners with positive speeds, not {list(speeds)}")
    total = sum(speeds)
    exact = [chunks * speed / total for speed in speeds]
    counts = [int(share) for share in exact]
    by_remainder = sorted(range(len(speeds)), key=lambda k: (counts[k] - exact[k], k))
    for k in by_remainder[: chunks - sum(counts)]:
        counts[k] += 1
    return tuple(counts)
