"""Memory of a peer: large tensors on large pages, buffers that are used again, and how much the process has taken."""

import contextlib
import ctypes
import mmap
import re
import resource
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from wantrain.errors import WantrainError
from wantrain.transport.wire import Buffer

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Names of mallopt's parameters in glibc's malloc.h."""


def big(elements: int) -> Tensor:
    """fp32[elements] of zeros in a mapping of its own: large pages where there are any, none before it is written.

    It is given back to the system when the last tensor over it goes.

    Raises:
        WantrainError: the system has not got the memory.
    """
    if not elements:
        return torch.zeros(0)
    try:
        memory = mmap.mmap(-1, 4 * elements, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except (OSError, OverflowError) as error:
        raise WantrainError(
            f"cannot get {4 * elements / 2**20:,.0f} MiB of memory for the run's state: {error}",
            hint="a peer needs about 4 times the fp32 size of the model; free memory, or use a larger machine",
        ) from error
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without large pages; small ones do, only slower at first touch
            memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.float32, count=elements)


class Pool:
    """Byte buffers that are lent and come back: writing into fresh memory costs several times as much as the work.

    Not thread-safe. A buffer is never given back to the system, so the pool is as large as the most that was lent.
    """

    def __init__(self) -> None:
        self.size_bytes = 0
        """Of all buffers, lent or not."""
        self._free: dict[int, list[Tensor]] = {}
        self._lent: dict[int, tuple[memoryview, Tensor]] = {}
        """By id of what was lent, which cannot be used anew as long as it is here."""

    @property
    def lent(self) -> int:
        """How many buffers are lent now."""
        return len(self._lent)

    def lend(self, size_bytes: int, fill: Callable[[Tensor], int]) -> memoryview:
        """The front of a buffer, to be given back through `take_back`.

        Args:
            size_bytes: how large the buffer has to be.
            fill: writes into uint8[size_bytes] and says how many bytes it has written; if it raises, nothing is lent.
        """
        free = self._free.setdefault(size_bytes, [])
        if not free:
            free.append(torch.empty(size_bytes, dtype=torch.uint8))
            self.size_bytes += size_bytes
        payload = bytes_of(free[-1][: fill(free[-1])])
        self._lent[id(payload)] = payload, free.pop()
        return payload

    def take_back(self, payload: Buffer) -> None:
        """Nobody reads `payload` any more: its buffer may be lent again. What is not from here is left alone."""
        lent = self._lent.pop(id(payload), None)
        if lent is not None:
            buffer = lent[1]
            self._free[buffer.numel()].append(buffer)


def bytes_of(tensor: Tensor) -> memoryview:
    """The memory of a contiguous tensor as bytes, kept alive by the view."""
    return tensor.view(torch.uint8).numpy().data


def peak_bytes() -> int:
    """Most memory that this process has had resident so far, shared memory that it has touched included."""
    status = Path("/proc/self/status")
    found = re.search(r"^VmHWM:\s+(\d+) kB$", status.read_text(), re.MULTILINE) if status.exists() else None
    if found is not None:
        return int(found[1]) * 1024
    # Where there is no such file. On Linux this would include what the parent had before it started us.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def keep_freed_memory() -> bool:
    """Let malloc keep big blocks for reuse: fresh pages cost more than the work done on them.

    Returns:
        Whether this C library does so (glibc).
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    # More than 32 MiB would be refused, and a threshold set by hand ends the one that adapts by itself.
    return bool(mallopt(_MMAP_THRESHOLD, 32 << 20)) and bool(mallopt(_TRIM_THRESHOLD, 256 << 20))
