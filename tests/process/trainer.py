"""The training script of the process tests: a tiny model, a few ms a step, steered by files in the run's directory.

    python trainer.py FOLDER NAME [--rounds N] [--hidden N] [--samples N] [--adam]

FOLDER/pause holds all trainers back and FOLDER/stop ends them; FOLDER/NAME.raise and FOLDER/NAME.nan, taken away when
seen, make this one fail or spoil its weights. FOLDER/NAME.steps tells how many inner steps it has made. With --samples
each step draws one of so many samples, which are gone through once; their numbers go to FOLDER/NAME.samples.
"""

import argparse
import sys
import time
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

import wantrain

STEP_S = 0.004
TOLD_EVERY = 25
"""Inner steps between two writes of the count."""


class Descent(torch.optim.Optimizer):
    """Plain gradient descent. PyTorch's own imports its compiler when it is first used, which takes seconds."""

    def __init__(self, parameters: Iterable[torch.Tensor], lr: float) -> None:
        super().__init__(parameters, {"lr": lr})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        self.param_groups.append({**self.defaults, "params": list(param_group["params"])})

    def zero_grad(self, set_to_none: bool = True) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.grad = None

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.sub_(parameter.grad, alpha=group["lr"])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("name")
    parser.add_argument("--rounds", type=int, default=sys.maxsize)
    parser.add_argument("--hidden", type=int, default=32)
    parser.add_argument("--samples", type=int, default=0)
    parser.add_argument("--adam", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(zlib.crc32(options.name.encode()))
    layers = [torch.nn.Linear(16, options.hidden), torch.nn.Tanh(), torch.nn.Linear(options.hidden, 4)]
    model = torch.nn.Sequential(*layers)
    optimizer: torch.optim.Optimizer = Descent(model.parameters(), lr=1.6 / options.hidden)  # wider ones bear less
    if options.adam:
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    inputs, targets = torch.randn(64, 16), torch.randn(64, 4)
    torch.nn.functional.mse_loss(
        model(inputs), targets
    ).backward()  # the first pass takes long, and nobody waits for it
    swarm = wantrain.join(model, optimizer)
    samples = swarm.shard(range(options.samples), epochs=1) if options.samples else None
    stop, pause = options.folder / "stop", options.folder / "pause"
    steps = 0
    while swarm.round < options.rounds and not stop.exists():
        time.sleep(STEP_S)
        if pause.exists():
            continue
        if samples is not None:
            if (sample := next(samples, None)) is None:
                break
            with (options.folder / f"{options.name}.samples").open("a") as drawn:
                drawn.write(f"{sample}\n")
        if _asked(options.folder / f"{options.name}.raise"):
            raise RuntimeError("a mistake in the training script")
        if _asked(options.folder / f"{options.name}.nan"):
            torch.nn.init.constant_(layers[0].weight, float("nan"))
        loss = torch.nn.functional.mse_loss(model(inputs), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        swarm.log(loss=loss.item(), waited_s=swarm.waited_s)
        steps += 1
        if steps % TOLD_EVERY == 0:
            (options.folder / f"{options.name}.steps").write_text(str(steps))
    swarm.leave()


def _asked(path: Path) -> bool:
    if not path.exists():
        return False
    path.unlink()
    return True


if __name__ == "__main__":
    main()
