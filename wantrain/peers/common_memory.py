"""The file in which a daemon lays down the run's common weights for its trainer to look at: one fp32 vector a stream.

The vectors follow each other in the order of the streams, each at a multiple of a page. Both sides know the lengths, so
the file has no header. The daemon makes it, the trainer removes it as soon as it has mapped it.
"""

import mmap
import os
from collections.abc import Mapping
from itertools import accumulate
from pathlib import Path

from torch import Tensor

from wantrain.errors import WantrainError
from wantrain.peers.shared_memory import region, reserve

PAGE_BYTES = 4096


def _starts(elements: Mapping[str, int]) -> list[int]:
    """Where each vector begins, in bytes, and at last the size of the file."""
    sizes = (-(-4 * count // PAGE_BYTES) * PAGE_BYTES for count in elements.values())
    return list(accumulate(sizes, initial=0))


def create_vectors(path: Path, elements: Mapping[str, int]) -> dict[str, Tensor]:
    """Make the file, readable by its owner only, with all of its memory reserved; fp32[elements] views by stream.

    Raises:
        WantrainError: there is not enough room, or the file cannot be made.
    """
    size_bytes = max(_starts(elements)[-1], PAGE_BYTES)
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise WantrainError(f"cannot create shared memory {path}: {error.strerror}") from error
    try:
        reserve(descriptor, path, size_bytes)
        return _views(mmap.mmap(descriptor, size_bytes), elements)
    except BaseException:
        path.unlink()
        raise
    finally:
        os.close(descriptor)


def take_vectors(path: Path, elements: Mapping[str, int]) -> dict[str, Tensor]:
    """Map the file and remove it: fp32[elements] views by stream, whose memory is freed with the last of them.

    Raises:
        WantrainError: there is no such file, or it is of another length.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
    except OSError as error:
        raise WantrainError(
            f"cannot open shared memory {path}: {error.strerror}",
            hint="trainer and daemon must run on one machine and share /dev/shm and the folder for temporary files",
        ) from error
    try:
        found, wanted = os.fstat(descriptor).st_size, max(_starts(elements)[-1], PAGE_BYTES)
        if found != wanted:
            raise WantrainError(f"shared memory {path} has {found} bytes where {wanted} belong")
        path.unlink(missing_ok=True)
        return _views(mmap.mmap(descriptor, wanted), elements)
    finally:
        os.close(descriptor)


def _views(memory: mmap.mmap, elements: Mapping[str, int]) -> dict[str, Tensor]:
    starts = _starts(elements)
    return {name: region(memory, start, count) for (name, count), start in zip(elements.items(), starts, strict=False)}
