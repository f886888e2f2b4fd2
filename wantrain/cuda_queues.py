"""The training stream and the copy stream of a CUDA device, and pages of shared memory that it copies from and to."""

import contextlib
import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from wantrain.copy_order import Mark, Work

_PORTABLE = 1
"""cudaHostRegisterPortable: the pages are pinned for all devices of the process."""

logger = logging.getLogger("wantrain")


class CudaQueues:
    """The stream that is current when a method is called, and one more.

    What is allocated in `work` comes from the copy stream's own blocks, so that one piece of memory is used by all
    copies in turn, and nothing of it by the training stream.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._copies = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def copies_wait(self) -> None:
        self._copies.wait_stream(torch.cuda.current_stream(self._device))

    def training_waits(self) -> None:
        torch.cuda.current_stream(self._device).wait_stream(self._copies)

    def copy(self, work: Sequence[Work]) -> None:
        with torch.cuda.stream(self._copies):
            for one in work:
                one()

    def mark(self) -> Mark:
        event: torch.cuda.Event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(self._copies)
        return event


class PinnedPages:
    """Memory of this process whose pages CUDA copies directly and behind the host's back; until `close`.

    Args:
        memory: contiguous, on the host; it is kept alive.
    """

    def __init__(self, memory: Tensor) -> None:
        self._memory: Tensor | None = None
        code = int(_runtime().cudaHostRegister(memory.data_ptr(), memory.nbytes, _PORTABLE))
        if code == 0:
            self._memory = memory
            return
        _forget_error()
        logger.warning(
            "CUDA cannot pin the %.1f MiB shared with the peer daemon (error %d): copies go through its own buffers, "
            "slower, and training waits for them",
            memory.nbytes / 2**20,
            code,
        )

    @property
    def pinned(self) -> bool:
        """Whether they are."""
        return self._memory is not None

    def close(self) -> None:
        """Give the pages back; no copy may be under way. Again is fine."""
        if self._memory is not None:
            code = int(_runtime().cudaHostUnregister(self._memory.data_ptr()))
            self._memory = None
            if code:
                logger.warning("CUDA cannot unpin the memory shared with the peer daemon (error %d)", code)


def _runtime() -> Any:
    """The CUDA runtime, whose functions return an error code instead of raising it."""
    return torch.cuda.cudart()  # type: ignore[no-untyped-call]


def _forget_error() -> None:
    """The runtime keeps an error for whoever asks next, which would be the next kernel of the training loop."""
    with contextlib.suppress(RuntimeError):
        torch.zeros(1, device="cuda")
