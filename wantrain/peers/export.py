"""A saved state as plain safetensors: phi under the model's own names, for whatever comes after training."""

import os
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from wantrain.errors import CheckpointError
from wantrain.peers.layout import tensor_elements
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
    entries, begin = [], 0
    for tensor in saved.model:
        kind = dtype or tensor.dtype
        if kind not in DTYPES:
            allowed = ", ".join(DTYPES)
            raise CheckpointError(
                f"{tensor.name} is {kind}, allowed is {allowed}", hint="choose one of them by --dtype"
            )
        end = begin + tensor_elements(tensor) * getattr(torch, kind).itemsize
        entries.append((tensor.name, DTYPES[kind], tensor.shape, begin, end))
        begin = end
    about = {"format": "pt", "run": saved.run.hex(), "number": str(saved.number), "chain": saved.chain.hex()}
    unfinished = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        with safe_open(path / STATE_FILE, framework="pt") as state, unfinished.open("xb") as file:
            file.write(header(entries, about))
            there = SavedValues(state, saved)
            for tensor in saved.model:
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
        unfinished.replace(out)
    except SafetensorError as error:
        raise damaged(path / STATE_FILE, str(error)) from None
    except OSError as error:
        raise CheckpointError(f"{out} cannot be written: {error.strerror}", hint="choose another file") from None
    finally:
        unfinished.unlink(missing_ok=True)
    return len(entries)
