"""Ranks of a site that save the inner state of a sharded model and go on from it, as many as are told; without a run.

Arguments: a folder, then for each turn "save:RANKS" or "load:RANKS". The first turn saves after some steps and goes on;
the others begin with its weights and its inner state. Each writes all values at the end to RANKS.npz of its kind.
"""

import sys
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from wantrain import inner_checkpoint

BEFORE, IN_ALL = 3, 6


def whole(value: Tensor) -> Tensor:
    return value.full_tensor() if isinstance(value, DTensor) else value


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    """With gradients that do not depend on how the model is sharded."""
    for step in steps:
        for k, parameter in enumerate(model.parameters()):
            assert isinstance(parameter, DTensor)
            drawn = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(100 * step + k))
            parameter.grad = distribute_tensor(drawn, parameter.device_mesh, parameter.placements)
        optimizer.step()


def values(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, np.ndarray]:
    found = {}
    for name, parameter in model.named_parameters():
        found[name] = whole(parameter.detach()).numpy()
        found |= {f"{name}:{key}": whole(value).numpy() for key, value in optimizer.state[parameter].items()}
    return found


def work(folder: Path, kind: str, rank: int, ranks: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/{kind}-{ranks}", rank=rank, world_size=ranks)
    torch.manual_seed(0)
    # 7 and 1 rows cannot be shared out evenly: some ranks hold less, or nothing.
    model: nn.Module = nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 1))
    if kind == "load":
        weights = np.load(folder / "weights.npz")
        model.load_state_dict({name: torch.from_numpy(weights[name]) for name in weights})
    mesh = init_device_mesh("cpu", (ranks,))
    for layer in model.children():
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    if kind == "save":
        train(model, optimizer, range(BEFORE))
        for turn in ("former", "last"):  # the second takes the first one's place
            inner_checkpoint.save(folder / "inner", model, [optimizer], counts={"turn": turn})
        state = {name: whole(parameter.detach()).numpy() for name, parameter in model.named_parameters()}
        if rank == 0:
            np.savez(folder / "weights.npz", **state)
    else:
        counts: list[dict[str, str]] = []
        inner_checkpoint.load(folder / "inner", model, [optimizer], accept=counts.append)
        assert counts == [{"turn": "last"}]
    train(model, optimizer, range(BEFORE, IN_ALL))
    found = values(model, optimizer)
    if rank == 0:
        np.savez(folder / f"{kind}-{ranks}.npz", **found)
    dist.destroy_process_group()


def main() -> None:
    folder = Path(sys.argv[1])
    forked = get_context("fork")
    for turn in sys.argv[2:]:
        kind, ranks = turn.split(":")
        workers = [forked.Process(target=work, args=(folder, kind, k, int(ranks))) for k in range(int(ranks))]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        if any(worker.exitcode for worker in workers):
            sys.exit(f"{turn}: exit codes {[worker.exitcode for worker in workers]}")


if __name__ == "__main__":
    main()
