"""The file in which a daemon lays down the run's common weights for its trainer to look at: one fp32 vector a stream.

The vectors follow each other in the order of the streams, each at a multiple of a page. Both sides know the lengths, so
the file has no header. The daemon makes it, the trainer removes it as soon as it has mapped it.
"""

import mmap
from collections.abc import Mapping
from itertools import accumulate
from pathlib import Path

from torch import Tensor

from wantrain.peers.mapped_file import PAGE_BYTES, create_mapped, damaged, open_mapped, region, region_bytes


def create_vectors(path: Path, elements: Mapping[str, int]) -> dict[str, Tensor]:
    """Make the file, readable by its owner only, with all of its memory reserved; fp32[elements] views by stream.

    Raises:
        WantrainError: there is not enough room, or the file cannot be made.
    """
    return _views(create_mapped(path, _size_bytes(elements)), elements)


def take_vectors(path: Path, elements: Mapping[str, int]) -> dict[str, Tensor]:
    """Map the file and remove it: fp32[elements] views by stream, whose memory is freed with the last of them.

    Raises:
        WantrainError: there is no such file, or it is of another length.
    """
    memory = open_mapped(path)
    if len(memory) != _size_bytes(elements):
        raise damaged(path, f"it has {len(memory)} bytes where {_size_bytes(elements)} belong")
    path.unlink(missing_ok=True)
    return _views(memory, elements)


def _starts(elements: Mapping[str, int]) -> list[int]:
    """Where each vector begins, in bytes, and at last where the last one ends."""
    return list(accumulate(map(region_bytes, elements.values()), initial=0))


def _size_bytes(elements: Mapping[str, int]) -> int:
    return max(_starts(elements)[-1], PAGE_BYTES)


def _views(memory: mmap.mmap, elements: Mapping[str, int]) -> dict[str, Tensor]:
    starts = _starts(elements)
    return {name: region(memory, start, count) for (name, count), start in zip(elements.items(), starts, strict=False)}
