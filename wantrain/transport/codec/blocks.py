"""What the codecs share: the size of their working pieces, scratch memory per thread, and the check of sizes."""

import sys
import threading
from collections.abc import Iterator

import torch
from torch import Tensor

from wantrain.errors import CodecError, WantrainError

if sys.byteorder != "little":  # codecs view memory as it lies, and the wire is little-endian
    raise WantrainError(
        "wantrain's codecs need a little-endian processor, this one is big-endian",
        hint="run the peer on an x86-64 or ARM64 machine",
    )

PIECE = 1 << 19
"""Elements worked on at a time: a chunk at once (measured best), and 2 MB of scratch still lie in the cache."""

NOT_FINITE_HINT = "look for the step where the loss became NaN; clip gradients or lower the inner learning rate"


class _Scratch(threading.local):
    """One buffer per thread: fresh large memory costs more than the arithmetic done in it."""

    def __init__(self) -> None:
        self.values = torch.empty(PIECE, dtype=torch.float32)


_SCRATCH = _Scratch()


def scratch(elements: int) -> Tensor:
    """fp32[elements], at most PIECE of them, of undefined content; the calling thread's until its next call."""
    return _SCRATCH.values[:elements]


def pieces(elements: int) -> Iterator[slice]:
    """Consecutive slices of at most PIECE elements that cover a chunk."""
    for start in range(0, elements, PIECE):
        yield slice(start, min(start + PIECE, elements))


def size_reason(encoded: Tensor, size_bytes: int) -> str | None:
    """Why `encoded` has the wrong size, or None."""
    return None if encoded.numel() == size_bytes else f"{encoded.numel()} bytes where {size_bytes} belong"


def require_size(codec: str, encoded: Tensor, size_bytes: int) -> None:
    """
    Raises:
        CodecError: `encoded` has another size.
    """
    if reason := size_reason(encoded, size_bytes):
        raise CodecError(f"{codec}: {reason}", hint="both sides must hold the same model, codec and chunk size")


def not_finite(codec: str) -> CodecError:
    """The error for input that no codec may encode."""
    return CodecError(f"{codec}: a value to encode is NaN or infinite", hint=NOT_FINITE_HINT)
