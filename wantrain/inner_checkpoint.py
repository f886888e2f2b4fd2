"""What a run does not keep of a trainer, on disk: its inner optimizers' state, buffers, scheduler and counts.

Tensors are written by torch.distributed.checkpoint as safetensors, each rank its shards, and can be loaded by another
number of ranks; everything else is JSON. Nothing is pickled. A directory holds

    000003/shard-….safetensors    the tensors
    inner.json                    the rest, the digest of each file, and the name of their folder; replaced at once,
                                  after everything that it names is on disk
"""

import contextlib
import json
import os
import re
import shutil
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
import torch.distributed as dist
from blake3 import blake3
from torch import Tensor, nn

from wantrain.errors import CheckpointError, ConfigError, WantrainError
from wantrain.inner_state import make_state
from wantrain.plain_values import alike, plain
from wantrain.wrappers import FullyShardedParts, plain_name, unwrapped

INDEX = "inner.json"
FORMAT = "wantrain inner state 1"
MAX_INDEX_BYTES = 256 << 20
"""Some hundred bytes for each tensor; a larger file is none of ours."""

T = TypeVar("T")


class Scheduler(Protocol):
    """What is saved of a learning rate scheduler, as those of torch have it."""

    def state_dict(self) -> dict[str, Any]:
        """Its state."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over such a state."""


def save(
    path: str | os.PathLike[str],
    model: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    *,
    scheduler: Scheduler | None = None,
    counts: Mapping[str, Any] | None = None,
    exchanged: Collection[str] = (),
) -> None:
    """Save what `load` restores; of several ranks all call it. What `path` held is kept until all is on disk.

    Args:
        path: a directory, on a file system that all ranks share; it is made.
        model: whose parameters the optimizers train; its persistent buffers are saved, its parameters are not.
        optimizers: in the order in which they will be given to `load`.
        scheduler: of the learning rate.
        counts: plain values, which `load` gives to its `accept`.
        exchanged: keys of the optimizers' state that are left out.

    Raises:
        CheckpointError: it cannot be written.
        ConfigError: the state of an optimizer or of the scheduler has a value that JSON cannot hold.
    """
    folder, model = Path(path), _whole(model)
    tensors, values = _parts(model, optimizers, exchanged)
    index = {
        "format": FORMAT,
        "values": {key: plain(value, key) for key, value in values.items()},
        "groups": [[plain(_options(group), "param_groups") for group in one.param_groups] for one in optimizers],
        "scheduler": None if scheduler is None else plain(scheduler.state_dict(), "scheduler"),
        "counts": plain(dict(counts or {}), "counts"),
        "tensors": {key: [list(value.shape), str(value.dtype)] for key, value in tensors.items()},
    }
    data = folder / _at_first(lambda: _begin(folder))
    if tensors:
        from torch.distributed.checkpoint.state_dict_saver import save as save_shards

        whole = {key: value if value.is_contiguous() else value.contiguous() for key, value in tensors.items()}
        with _told(f"cannot save the inner state in {folder}"):
            save_shards(whole, storage_writer=_storage("Writer")(str(data), save_distributed=True))
    _at_first(lambda: _finish(folder, data, index))


def load(
    path: str | os.PathLike[str],
    model: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    *,
    scheduler: Scheduler | None = None,
    exchanged: Collection[str] = (),
    accept: Callable[[dict[str, Any]], None] = lambda _: None,
) -> None:
    """Make everything what it was when it was saved, in place; of several ranks, of any number, all call it.

    An optimizer that has made no step yet gets its state by one that changes nothing.

    Args:
        path: as `save` had it.
        model: of the same parameters by name and shape.
        optimizers: of the same kinds and in the same order, over the same parameters.
        scheduler: as there.
        exchanged: as there.
        accept: takes the counts, before anything is changed. What it raises on rank 0 is the error of all ranks.

    Raises:
        CheckpointError: there is none, it is damaged, or it is of another model, optimizer or scheduler. Nothing has
            changed then.
    """
    folder, model = Path(path), _whole(model)
    index = _at_first(lambda: _read(folder))
    for optimizer in optimizers:
        owned = {id(p) for group in optimizer.param_groups for p in group["params"]}
        saved = {key.split(":", 2)[1] for key in (*index["tensors"], *index["values"]) if key.startswith("state:")}
        named = [p for name, p in _parameters(model) if name in saved and id(p) in owned]
        if fresh := [p for p in named if not optimizer.state[p]]:
            make_state(optimizer, fresh)
    tensors, values = _parts(model, optimizers, exchanged)
    _check(folder, index, tensors, values, optimizers, scheduler)
    _at_first(lambda: accept(index["counts"]))
    if dist.is_available() and dist.is_initialized() and dist.get_rank():
        accept(index["counts"])
    if tensors:
        from torch.distributed.checkpoint.state_dict_loader import load as load_shards

        with _told(f"cannot load the inner state in {folder}"):
            load_shards(dict(tensors), storage_reader=_storage("Reader")(str(folder / index["data"])))
    for key, holder, name in _state(model, optimizers, exchanged):
        if key in values:
            holder[name] = alike(index["values"][key], values[key])
    for optimizer, groups in zip(optimizers, index["groups"], strict=True):
        for group, options in zip(optimizer.param_groups, groups, strict=True):
            group.update({key: alike(value, group.get(key)) for key, value in options.items()})
    if scheduler is not None:
        scheduler.load_state_dict(alike(index["scheduler"], scheduler.state_dict()))


# ---- what there is to save


def _whole(model: nn.Module) -> nn.Module:
    """The model itself, with the shards of its parameters in their places."""
    model = unwrapped(model)
    FullyShardedParts(model).reshard()
    return model


def _parameters(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(plain_name(name), parameter) for name, parameter in model.named_parameters()]


def _state(
    model: nn.Module, optimizers: Sequence[torch.optim.Optimizer], exchanged: Collection[str]
) -> Iterator[tuple[str, dict[str, Any], str]]:
    """Key, and the dictionary and key in it, of every value: optimizers' state by parameter, then buffers."""
    for name, parameter in _parameters(model):
        for optimizer in optimizers:
            if parameter in optimizer.state:
                state = optimizer.state[parameter]
                yield from ((f"state:{name}:{key}", state, key) for key in state if key not in exchanged)
    for name, module in model.named_modules():
        for key in module._buffers.keys() - module._non_persistent_buffers_set:
            yield f"buffer:{plain_name(name)}:{key}", module._buffers, key


def _parts(
    model: nn.Module, optimizers: Sequence[torch.optim.Optimizer], exchanged: Collection[str]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors, and what is better written as text: plain values, and tensors of one number, of which all ranks have
    the same."""
    tensors: dict[str, Tensor] = {}
    values: dict[str, Any] = {}
    for key, holder, name in _state(model, optimizers, exchanged):
        value = holder[name]
        if isinstance(value, Tensor) and value.dim():
            tensors[key] = value.detach()
        else:
            values[key] = value
    return dict(sorted(tensors.items())), values


def _options(group: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in group.items() if key != "params"}


def _check(
    folder: Path,
    index: dict[str, Any],
    tensors: Mapping[str, Tensor],
    values: Mapping[str, Any],
    optimizers: Sequence[torch.optim.Optimizer],
    scheduler: Scheduler | None,
) -> None:
    """See that what was saved goes with what is here."""
    here: dict[str, Any] = {key: [list(value.shape), str(value.dtype)] for key, value in tensors.items()}
    here |= dict.fromkeys(values, "a value")
    there = index["tensors"] | dict.fromkeys(index["values"], "a value")
    if here != there:
        key = min(key for key in here.keys() | there.keys() if here.get(key) != there.get(key))
        raise CheckpointError(
            f"the inner state in {folder} is another one's: {key} is {there.get(key, 'not there')}, "
            f"here it is {here.get(key, 'not there')}",
            hint="make model and optimizers as they were when it was saved",
        )
    counts = [[len(groups) for groups in index["groups"]], [len(one.param_groups) for one in optimizers]]
    if counts[0] != counts[1] or (scheduler is None) != (index["scheduler"] is None):
        raise CheckpointError(
            f"the inner state in {folder} has {counts[0]} parameter groups and "
            f"{'no' if index['scheduler'] is None else 'a'} scheduler, here there are {counts[1]} and "
            f"{'none' if scheduler is None else 'one'}",
            hint="give the optimizers and the scheduler that it was saved with, in that order",
        )


# ---- the directory


def _begin(folder: Path) -> str:
    """Make the folder for the tensors of a new state; its name."""
    folder.mkdir(parents=True, exist_ok=True)
    name = f"{max((int(name) for name in _data_folders(folder)), default=0) + 1:06d}"
    (folder / name).mkdir()
    return name


def _finish(folder: Path, data: Path, index: dict[str, Any]) -> None:
    """Let the new state count, and remove all others."""
    index = {"data": data.name, "files": _digests(data), **index}
    _sync(data)
    written = folder / f"{INDEX}.new"
    with written.open("w", encoding="utf-8") as file:
        json.dump(index, file)
        file.flush()
        os.fsync(file.fileno())
    written.replace(folder / INDEX)
    _sync(folder)
    for name in _data_folders(folder):
        if name != data.name:
            shutil.rmtree(folder / name)


def _read(folder: Path) -> dict[str, Any]:
    """The index, if all that it names is there as it was written."""
    path = folder / INDEX
    if not path.is_file():
        raise CheckpointError(f"there is no inner state in {folder}", hint="give the path that save_inner was given")
    damaged = f"the inner state in {folder} is damaged"
    hint = "use another one; training can go on without, from the run's weights"
    if path.stat().st_size > MAX_INDEX_BYTES:
        raise CheckpointError(f"{damaged}: {INDEX} is larger than {MAX_INDEX_BYTES >> 20} MiB", hint=hint)
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{damaged}: {INDEX} is no JSON: {error}", hint=hint) from None
    kinds = {"format": str, "data": str, "files": dict, "values": dict, "groups": list, "counts": dict, "tensors": dict}
    if not isinstance(index, dict) or index.get("format") != FORMAT:
        raise CheckpointError(f"{path} is no {FORMAT}", hint="it may be of another version of wantrain")
    if not all(isinstance(index.get(key), kind) for key, kind in kinds.items()) or "scheduler" not in index:
        raise CheckpointError(f"{damaged}: {INDEX} lacks a part", hint=hint)
    if index["data"] not in _data_folders(folder) or _digests(folder / index["data"]) != index["files"]:
        raise CheckpointError(f"{damaged}: its tensors are not those that were written", hint=hint)
    return index


def _data_folders(folder: Path) -> list[str]:
    return [entry.name for entry in folder.iterdir() if re.fullmatch("[0-9]{6,12}", entry.name) and entry.is_dir()]


def _digests(data: Path) -> dict[str, str]:
    return {file.name: blake3().update_mmap(file).hexdigest() for file in sorted(data.iterdir())}


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# ---- ranks


def _at_first(work: Callable[[], T]) -> T:
    """What rank 0 has found, on all ranks; if it fails, all do."""
    if not (dist.is_available() and dist.is_initialized()):
        with _told("the inner state"):
            return work()
    box: list[Any] = [None, None]
    if dist.get_rank() == 0:
        try:
            with _told("the inner state"):
                box[0] = work()
        except WantrainError as error:
            box[1] = (error.message, error.hint)
    dist.broadcast_object_list(box, src=0)
    if box[1] is not None:
        raise CheckpointError(box[1][0], hint=box[1][1])
    found: T = box[0]
    return found


@contextlib.contextmanager
def _told(what: str) -> Iterator[None]:
    """What the file system and torch.distributed.checkpoint raise is an error of ours."""
    from torch.distributed.checkpoint.api import CheckpointException

    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled", category=UserWarning)
            yield
    except (OSError, CheckpointException) as error:
        raise CheckpointError(f"{what}: {error}", hint="see to room on the disk and to permissions") from error


def _storage(end: str) -> Any:
    """torch's writer or reader of safetensors."""
    try:
        from torch.distributed.checkpoint import hf_storage
    except ImportError:
        raise ConfigError(
            f"PyTorch {torch.__version__} cannot write shards as safetensors", hint="pip install 'torch>=2.9'"
        ) from None
    return getattr(hf_storage, f"HuggingFaceStorage{end}")
