"""A saved state as plain safetensors: phi under the model's own names, for whatever comes after training."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import torch
from safetensors import SafetensorError, safe_open

from wantrain.errors import CheckpointError
from wantrain.peers.layout import tensor_elements
from wantrain.peers.messages import TensorSpec
from wantrain.peers.saved_state import STATE_FILE, SavedState, damaged, header
from wantrain.peers.saved_values import SavedValues
from wantrain.transport.memory import bytes_of

DTYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16", "float64": "F64"}
"""What phi can be written as: torch's names, and those of safetensors."""


def export(path: Path, saved: SavedState, out: Path, dtype: str | None) -> int:
    """Write phi of a saved state, which `checkpoint.scan` has found whole, tensor by tensor.

    Args:
        path: directory of the saved state.
        saved: its manifest.
        out: the file to write; it appears when it is complete.
        dtype: one of DTYPES for all tensors; None: those of the model.

    Returns:
        The number of tensors.

    Raises:
        CheckpointError: a dtype that cannot be written, values that it cannot hold, or a file that cannot be written.
    """
    check_dtypes(saved.model, dtype)
    out = out.absolute()
    if out.is_dir():
        raise CheckpointError(f"{out} is a directory", hint=f"name a file, {out / 'model.safetensors'} for example")
    unfinished = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        with explained(path, out), values_of(path, saved) as there, unfinished.open("xb") as file:
            write_tensors(file, path, saved, there, {tensor.name: tensor for tensor in saved.model}, dtype)
            unfinished.replace(out)
    finally:
        unfinished.unlink(missing_ok=True)
    return len(saved.model)


def check_dtypes(model: Sequence[TensorSpec], dtype: str | None) -> None:
    """See that all tensors can be written.

    Raises:
        CheckpointError: one has a dtype that is not in DTYPES.
    """
    for tensor in model:
        if (kind := dtype or tensor.dtype) not in DTYPES:
            allowed = ", ".join(DTYPES)
            raise CheckpointError(
                f"{tensor.name} is {kind}, allowed is {allowed}", hint="choose one of them by --dtype"
            )


def size_bytes(tensor: TensorSpec, dtype: str | None) -> int:
    """What a tensor takes in a file, when all are written as `dtype`, or each as it is."""
    size: int = tensor_elements(tensor) * getattr(torch, dtype or tensor.dtype).itemsize
    return size


@contextmanager
def values_of(path: Path, saved: SavedState) -> Iterator[SavedValues]:
    """What a saved state holds, while its file is open."""
    with safe_open(path / STATE_FILE, framework="pt") as state:
        yield SavedValues(state, saved)


@contextmanager
def explained(path: Path, out: Path) -> Iterator[None]:
    """What can go wrong between a saved state and what is written, as CheckpointError."""
    try:
        yield
    except SafetensorError as error:
        raise damaged(path / STATE_FILE, str(error)) from None
    except OSError as error:
        raise CheckpointError(f"{out} cannot be written: {error.strerror}", hint="choose another place") from None


def write_tensors(
    file: BinaryIO,
    path: Path,
    saved: SavedState,
    there: SavedValues,
    tensors: Mapping[str, TensorSpec],
    dtype: str | None,
) -> None:
    """Write phi of some tensors as one safetensors file, down to the disk.

    Args:
        file: open for writing, empty.
        path: directory of the saved state.
        saved: its manifest.
        there: what it holds.
        tensors: which of its tensors, by the names that they get.
        dtype: one of DTYPES for all; None: those of the model.

    Raises:
        CheckpointError: it lacks one, or there are values that the dtype cannot hold.
    """
    entries, begin = [], 0
    for name, tensor in tensors.items():
        end = begin + size_bytes(tensor, dtype)
        entries.append((name, DTYPES[dtype or tensor.dtype], tensor.shape, begin, end))
        begin = end
    about = {"format": "pt", "run": saved.run.hex(), "number": str(saved.number), "chain": saved.chain.hex()}
    file.write(header(entries, about))
    for tensor in tensors.values():
        values = there.read(tensor, "param")
        if values is None:
            raise damaged(path, f"it holds no value of {tensor.name}")
        values = values.to(getattr(torch, dtype or tensor.dtype))
        if not torch.isfinite(values).all():
            raise CheckpointError(
                f"{tensor.name} has values that {values.dtype} cannot hold", hint="choose another --dtype"
            )
        file.write(bytes_of(values))
    file.flush()
    os.fsync(file.fileno())
