"""A saved state as plain safetensors: phi under the model's own names, for whatever comes after training."""

import os
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from wantrain.errors import CheckpointError
from wantrain.peers.layout import tensor_elements
from wantrain.peers.saved_state import PHI, STATE_FILE, SavedState, damaged, header, spans
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
    entries, sources, begin = [], [], 0
    phi = [stream.name for stream in saved.streams if stream.state == "param"]
    found = {
        span.tensor.name: span for span in spans(saved.streams, saved.model) if span.slot == PHI and span.stream in phi
    }
    if absent := [tensor.name for tensor in saved.model if tensor.name not in found]:
        raise CheckpointError(
            f"{path} holds no value of {', '.join(absent[:3])}" + (", …" if absent[3:] else ""),
            hint="it is not a whole state of a model; use another one",
        )
    for tensor in saved.model:
        span, name = found[tensor.name], tensor.name
        wanted = dtype or span.tensor.dtype
        if wanted not in DTYPES:
            allowed = ", ".join(DTYPES)
            raise CheckpointError(f"{name} is {wanted}, allowed is {allowed}", hint="choose one of them by --dtype")
        end = begin + tensor_elements(span.tensor) * getattr(torch, wanted).itemsize
        entries.append((name, DTYPES[wanted], span.tensor.shape, begin, end))
        sources.append((span.key, name, getattr(torch, wanted)))
        begin = end
    about = {"format": "pt", "run": saved.run.hex(), "number": str(saved.number), "chain": saved.chain.hex()}
    unfinished = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        with safe_open(path / STATE_FILE, framework="pt") as state, unfinished.open("xb") as file:
            file.write(header(entries, about))
            for key, name, kind in sources:
                values = state.get_tensor(key).to(kind)
                if not torch.isfinite(values).all():
                    raise CheckpointError(f"{name} has values that {kind} cannot hold", hint="choose another --dtype")
                file.write(bytes_of(values.reshape(-1)))
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(out)
    except SafetensorError as error:
        raise damaged(path / STATE_FILE, str(error)) from None
    except OSError as error:
        raise CheckpointError(f"{out} cannot be written: {error.strerror}", hint="choose another file") from None
    finally:
        unfinished.unlink(missing_ok=True)
    return len(sources)
