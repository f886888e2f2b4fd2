"""A saved state as a directory in the Hugging Face layout, which `from_pretrained` reads: config, weights, index."""

import json
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wantrain.errors import CheckpointError
from wantrain.peers.description import read_config
from wantrain.peers.export import check_dtypes, explained, size_bytes, values_of, write_tensors
from wantrain.peers.layout import tensor_elements
from wantrain.peers.messages import TensorSpec
from wantrain.peers.saved_state import SavedState

CONFIG_FILE = "config.json"
GENERATION_FILE = "generation_config.json"
WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
SHARD_BYTES = 5_000_000_000


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written."""

    tensors: int
    size_bytes: int
    """Of all tensors."""
    files: tuple[str, ...]
    """Those with tensors."""


def export_hf(
    path: Path,
    saved: SavedState,
    out: Path,
    dtype: str | None,
    *,
    config: str | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> Exported:
    """Write phi of a saved state, which `checkpoint.scan` has found whole, with the model's config.

    Tied weights are there once, under the name that comes first in the model, as transformers writes them.

    Args:
        path: directory of the saved state.
        saved: its manifest.
        out: the directory to make; it appears when it is complete.
        dtype: one of `export.DTYPES` for all tensors; None: those of the model.
        config: text of a config.json; None: what the trainer has said.
        shard_bytes: no file has more bytes of tensors, unless one tensor alone has.

    Raises:
        CheckpointError: there is no config, or one that cannot be used; the layout has tensors that the run has not;
            the directory is there, or cannot be written; or as of `export`.
    """
    described = saved.described
    if config is None and described is None:
        raise CheckpointError(
            f"no config is kept with {path}: the trainers' model had none",
            hint="give one by --config config.json, or export without --hf",
        )
    if described is not None and described.absent:
        raise CheckpointError(
            f"the run does not hold all of the model: {', '.join(described.absent[:3])} "
            f"{'and others ' if len(described.absent) > 3 else ''}are frozen, or buffers that are not exchanged, "
            "and from_pretrained would begin them anew",
            hint="export without --hf and load that over the whole model: model.load_state_dict(…, strict=False)",
        )
    if out.exists():
        raise CheckpointError(f"{out} exists already", hint="name a directory that does not exist yet")
    check_dtypes(saved.model, dtype)
    try:
        about = read_config(config if config is not None else described.config if described is not None else "")
    except ValueError as error:
        raise CheckpointError(f"the config is {error}", hint="give a config.json by --config") from None
    written_as = dtype or _most(saved.model)
    about |= {key: written_as for key in ("dtype", "torch_dtype") if key in about} or {"dtype": written_as}
    prefix = "" if described is None else described.prefix
    shards = _shards(saved.model, dtype, shard_bytes)
    names = [WEIGHTS_FILE] if len(shards) == 1 else [_shard_name(k, len(shards)) for k in range(len(shards))]
    total = sum(size_bytes(tensor, dtype) for tensor in saved.model)
    out = out.absolute()
    unfinished = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        with explained(path, out), values_of(path, saved) as there:
            unfinished.mkdir()
            places: dict[str, str] = {}
            for name, shard in zip(names, shards, strict=True):
                tensors = {tensor.name.removeprefix(prefix): tensor for tensor in shard}
                places |= dict.fromkeys(tensors, name)
                with (unfinished / name).open("xb") as file:
                    write_tensors(file, path, saved, there, tensors, dtype)
            if len(shards) > 1:
                sizes = {"total_parameters": sum(map(tensor_elements, saved.model)), "total_size": total}
                _write_json(unfinished / INDEX_FILE, {"metadata": sizes, "weight_map": dict(sorted(places.items()))})
            _write_json(unfinished / CONFIG_FILE, about)
            if described is not None and described.generation_config:
                _write_json(unfinished / GENERATION_FILE, read_config(described.generation_config))
            unfinished.rename(out)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return Exported(len(saved.model), total, tuple(names))


def _shards(model: Iterable[TensorSpec], dtype: str | None, most_bytes: int) -> list[list[TensorSpec]]:
    """The tensors in their order, cut before the one with which a file would exceed `most_bytes`."""
    shards: list[list[TensorSpec]] = [[]]
    filled = 0
    for tensor in model:
        size = size_bytes(tensor, dtype)
        if shards[-1] and filled + size > most_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(tensor)
        filled += size
    return shards


def _shard_name(number: int, count: int) -> str:
    return f"model-{number + 1:05}-of-{count:05}.safetensors"


def _most(model: Iterable[TensorSpec]) -> str:
    """The dtype that most values have."""
    elements: dict[str, int] = {}
    for tensor in model:
        elements[tensor.dtype] = elements.get(tensor.dtype, 0) + tensor_elements(tensor)
    return max(elements, key=lambda dtype: elements[dtype])


def _write_json(path: Path, content: dict[str, Any]) -> None:
    with path.open("x", encoding="utf-8") as file:
        json.dump(content, file, indent=2, sort_keys=True)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
