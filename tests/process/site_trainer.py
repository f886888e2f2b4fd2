"""The training script of the tests of sites: a tiny model on several ranks, sharded in one way or another.

    python site_trainer.py FOLDER NAME [--ranks N] [--kind fsdp|ddp|tp|2d|plain] …        # starts N ranks of itself
    torchrun --standalone --nproc-per-node N site_trainer.py FOLDER NAME --kind fsdp …

FOLDER/pause holds all back and FOLDER/stop ends them, as rank 0 sees it. FOLDER/NAME.RANK.pid is a rank's process. What
it had when it had joined and has in the end, and what it drew, is in FOLDER/NAME.RANK.json.
"""

import argparse
import json
import os
import sys
import time
import zlib
from datetime import timedelta
from multiprocessing import get_context
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

import wantrain
from wantrain import ranked_replica
from wantrain.local_shard import is_sharded

STEP_S = 0.004


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("name")
    parser.add_argument("--ranks", type=int, default=0)
    parser.add_argument("--kind", default="fsdp")
    parser.add_argument("--rounds", type=int, default=sys.maxsize)
    parser.add_argument("--samples", type=int, default=0)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--far", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if not options.ranks:
        train(options)
        return
    store = options.folder / f"{options.name}.{os.getpid()}.store"
    ranks = [get_context("fork").Process(target=_rank, args=(options, rank, store)) for rank in range(options.ranks)]
    for rank in ranks:
        rank.start()
    while all(rank.exitcode in (None, 0) for rank in ranks) and any(rank.exitcode is None for rank in ranks):
        time.sleep(0.02)
    for rank in ranks:
        rank.kill() if any(rank.exitcode for rank in ranks) else rank.join()
        rank.join()
    sys.exit(any(rank.exitcode for rank in ranks))


def _rank(options: argparse.Namespace, rank: int, store: Path) -> None:
    """What torchrun does for a rank, without its seconds of imports."""
    os.environ.update({"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(options.ranks)})
    limit = timedelta(seconds=60)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=options.ranks, timeout=limit)
    train(options)


def made(kind: str) -> tuple[nn.Module, nn.Module]:
    """The model, and what it is called through."""
    torch.manual_seed(7)
    model: nn.Module = nn.Sequential(nn.Linear(16, 33), nn.Tanh(), nn.Linear(33, 4))
    if kind == "plain":
        return model, model
    if not dist.is_initialized():
        dist.init_process_group("gloo")
    if kind == "ddp":
        return model, nn.parallel.DistributedDataParallel(model)
    from torch.distributed.device_mesh import init_device_mesh

    size = dist.get_world_size()
    if kind == "fsdp":
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh("cpu", (size,))
        for layer in model.children():
            if isinstance(layer, nn.Linear):
                fully_shard(layer, mesh=mesh)
        return fully_shard(model, mesh=mesh), model
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    mesh = init_device_mesh("cpu", (size,))
    return (parallelize_module(model, mesh, {"0": ColwiseParallel(), "2": RowwiseParallel()}),) * 2


def train(options: argparse.Namespace) -> None:
    model, called = made(options.kind)
    several = dist.is_initialized() and dist.get_world_size() > 1
    rank = dist.get_rank() if several else 0
    if options.far:
        ranked_replica.host_id = lambda: f"host {rank}"
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, foreach=False)
    seed = zlib.crc32(options.name.encode()) + (0 if options.kind == "tp" else rank)
    generator = torch.Generator().manual_seed(seed)
    inputs, targets = torch.randn(64, 16, generator=generator), torch.randn(64, 4, generator=generator)
    drawn: list[int] = []
    with wantrain.join(called, optimizer) as swarm:
        joined = _values(model)
        (options.folder / f"{options.name}.{rank}.pid").write_text(str(os.getpid()))
        samples = swarm.shard(range(options.samples), epochs=1, batch=options.batch) if options.samples else None
        while swarm.round < options.rounds and not _any(rank, options.folder / "stop"):
            time.sleep(STEP_S)
            if os.getppid() == 1:
                sys.exit("whoever has started this is gone")
            if _any(rank, options.folder / "pause"):
                continue
            if samples is not None:
                if (batch := next(samples, None)) is None:
                    break
                drawn += batch.tolist()
            loss = nn.functional.mse_loss(called(inputs), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            swarm.tokens(64)
            swarm.log(loss=loss.item())
        phi = {}
        if samples is None and options.rounds < sys.maxsize:
            with swarm.evaluating(), torch.no_grad():
                if options.kind == "fsdp":  # it leaves gathered weights behind
                    called(inputs)
                phi = _values(model)
        known = [swarm.round, swarm.global_step, swarm.own_steps, swarm.peer]
    told = {"joined": joined, "values": _values(model), "phi": phi, "known": known, "drawn": drawn}
    (options.folder / f"{options.name}.{rank}.json").write_text(json.dumps(told))


def _any(rank: int, path: Path) -> bool:
    """Whether rank 0 sees a file: all ranks go the same way."""
    found = torch.tensor([rank == 0 and path.exists()])
    if dist.is_initialized():
        dist.broadcast(found, 0)
    return bool(found)


def _values(model: nn.Module) -> dict[str, list[float]]:
    return {name: _all_of(parameter).flatten().tolist() for name, parameter in model.named_parameters()}


def _all_of(parameter: nn.Parameter) -> Tensor:
    value: Tensor = parameter.detach()
    return value.full_tensor() if is_sharded(value) else value  # type: ignore[attr-defined, no-any-return]


if __name__ == "__main__":
    main()
