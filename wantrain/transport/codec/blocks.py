"""What the codecs share: working pieces, scratch memory per thread and device, sums in a fixed order, size checks."""

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

FP32_MAX = torch.finfo(torch.float32).max
NORMAL_MIN = torch.finfo(torch.float32).tiny
"""Smallest value with full precision, of fp32 as of bf16."""

NOT_FINITE_HINT = "look for the step where the loss became NaN; clip gradients or lower the inner learning rate"


class _Scratch(threading.local):
    """Buffers of one thread by purpose and device: fresh large memory costs more than the arithmetic done in it."""

    def __init__(self) -> None:
        self.buffers: dict[tuple[str, torch.device], Tensor] = {}


_SCRATCH = _Scratch()


def scratch(purpose: str, elements: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """dtype[elements] of undefined content, the calling thread's until it asks for the same purpose again."""
    size_bytes = elements * dtype.itemsize
    buffer = _SCRATCH.buffers.get((purpose, device))
    if buffer is None or buffer.numel() < size_bytes:
        buffer = torch.empty(max(size_bytes, dtype.itemsize * PIECE), dtype=torch.uint8, device=device)
        _SCRATCH.buffers[purpose, device] = buffer
    return buffer[:size_bytes].view(dtype)


def pieces(elements: int) -> Iterator[slice]:
    """Consecutive slices of at most PIECE elements that cover a chunk."""
    for start in range(0, elements, PIECE):
        yield slice(start, min(start + PIECE, elements))


def block_count(elements: int, block: int) -> int:
    """Blocks of that many elements in a chunk; the last one may be short."""
    return -(-elements // block)


def block_slices(elements: int, block: int) -> Iterator[slice]:
    """The blocks of a chunk in runs of about PIECE elements; a short block at the end is a run of its own."""
    whole, step = elements // block, max(PIECE // block, 1)
    for start in range(0, whole, step):
        yield slice(start, min(start + step, whole))
    if whole * block < elements:
        yield slice(whole, whole + 1)


def block_rows(values: Tensor, blocks: slice, block: int) -> Tensor:
    """fp32[blocks, block] over a run of `block_slices`; a short block is a copy in scratch, filled up with zeros."""
    part = values[blocks.start * block : blocks.stop * block]
    if part.numel() % block:
        padded = scratch("padded", block, torch.float32, values.device)
        padded[: part.numel()] = part
        padded[part.numel() :] = 0
        part = padded
    return part.view(-1, block)


def magnitudes(rows: Tensor) -> Tensor:
    """fp32[r, n] absolute values of fp32[r, n], in scratch."""
    return torch.abs(rows, out=scratch("work", rows.numel(), torch.float32, rows.device).view_as(rows))


def tree_sum(rows: Tensor) -> Tensor:
    """[r], the sums of [r, 2**k] rows, which are overwritten: halves are added elementwise until one column is left.

    The library's own sum adds in an order that differs between devices; this one has the same bits everywhere.
    """
    width = rows.shape[1]
    while width > 1:
        width //= 2
        torch.add(rows[:, :width], rows[:, width : 2 * width], out=rows[:, :width])
    return rows[:, 0]


def root(values: Tensor) -> Tensor:
    """fp32 square roots of fp32 or float64 values, of which the upper 24 bits of precision count; the same everywhere.

    The library's own root of fp32 may be off by one unit on a CPU. A float64 root of 24 bits is never so close to the
    middle between two fp32 values that an error in its last place could show.
    """
    exact = values.to(torch.float64, copy=True)
    exact.view(torch.int64).bitwise_and_(-(1 << 29))
    return exact.sqrt_().float()


def divide(values: Tensor, divisor: float) -> Tensor:
    """values / divisor in place, rounded once: by a plain number CUDA would multiply with the rounded reciprocal."""
    on_gpu = values.device.type != "cpu"
    return values.div_(torch.full((1,), divisor, dtype=values.dtype, device=values.device) if on_gpu else divisor)


def size_reason(encoded: Tensor, size_bytes: int) -> str | None:
    """Why `encoded` has the wrong size, or None."""
    return None if encoded.numel() == size_bytes else f"{encoded.numel()} bytes where {size_bytes} belong"


def require_size(codec: str, encoded: Tensor, size_bytes: int) -> None:
    """
    Raises:
        CodecError: `encoded` has another size.
    """
    if reason := size_reason(encoded, size_bytes):
        raise unfit(codec, reason)


def unfit(codec: str, reason: str) -> CodecError:
    """The error for bytes that are not what an encoder writes."""
    return CodecError(f"{codec}: {reason}", hint="both sides must hold the same model, codec and chunk size")


def not_finite(codec: str) -> CodecError:
    """The error for input that no codec may encode."""
    return CodecError(f"{codec}: a value to encode is NaN or infinite", hint=NOT_FINITE_HINT)
