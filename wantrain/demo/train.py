"""The demo's training script: an ordinary PyTorch loop, and the three lines that let it train with others."""

import argparse
import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from wantrain.demo import corpus, model

HELD_OUT_WINDOWS = 32
WARM_UP_STEPS = 40
LEARNING_RATE = 1e-3
BATCH = 4


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The options of one trainer."""
    parser = argparse.ArgumentParser(prog="python -m wantrain.demo.train", description=__doc__)
    parser.add_argument("--shard", type=int, default=0, help="which part of the corpus this trainer reads")
    parser.add_argument("--shards", type=int, default=5, help="into how many parts the corpus is split")
    parser.add_argument("--seed", type=int, default=1, help="initial weights, split and windows")
    parser.add_argument("--batch", type=int, default=BATCH, help="windows per inner step")
    parser.add_argument("--lr", type=float, default=LEARNING_RATE, help="learning rate of AdamW after the warm-up")
    parser.add_argument("--rounds", type=int, default=25, help="stop at this round of the run")
    parser.add_argument("--evaluate", action="store_true", help="log the held-out loss after each round")
    parser.add_argument("--save", type=Path, help="write the final weights here, float32 .npy")
    parser.add_argument("--alone", type=int, metavar="STEPS", help="train without wantrain and print losses as JSON")
    parser.add_argument("--compare", type=Path, help="with --alone: also evaluate the weights in this .npy")
    return parser.parse_args(arguments)


def flat(parameters: Iterable[Tensor]) -> Tensor:
    """All parameters in one float32 vector, in the model's order."""
    return torch.cat([parameter.detach().reshape(-1).float() for parameter in parameters])


class Loop:
    """Model, data and AdamW; `step` is one inner step."""

    def __init__(self, options: argparse.Namespace, device: torch.device | None = None) -> None:
        self.options = options
        self.device = device or torch.device("cpu")
        self.model = model.build(options.seed).to(self.device)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=options.lr, betas=(0.9, 0.95), weight_decay=0.1)
        data = corpus.load(options.shards, options.seed)
        context = self.model.config.context
        self.batches = data.batches(options.shard, batch=options.batch, context=context, seed=options.seed)
        self.held_out = data.held_out_batch(batch=HELD_OUT_WINDOWS, context=context)
        self.steps = 0
        self.tokens = 0

    def step(self) -> float:
        """Train on one batch; the loss in nats per byte before the step."""
        tokens, targets = (part.to(self.device) for part in next(self.batches))
        for group in self.optimizer.param_groups:
            group["lr"] = self.options.lr * min(1.0, (self.steps + 1) / WARM_UP_STEPS)
        self.optimizer.zero_grad()
        loss = self.model(tokens, targets)
        loss.backward()
        clip_grad_norm_(self.model.parameters(), 1.0)
        # Before the optimizer's step, in whose hook the trainer may wait for others and others may ask how far it is.
        self.steps += 1
        self.tokens += tokens.numel()
        self.optimizer.step()
        return float(loss.detach())

    def evaluate(self) -> float:
        """Loss on the fixed held-out windows, in nats per byte."""
        with torch.no_grad():
            return float(self.model(*self.held_out))


def train(options: argparse.Namespace) -> None:
    """Train with the others until the run has reached `options.rounds`."""
    import wantrain

    loop = Loop(options)
    swarm = wantrain.join(loop.model, loop.optimizer)
    seen = -1
    parent = os.getppid()
    while swarm.round < options.rounds:
        if options.evaluate and swarm.round != seen:
            # The step before has just adopted the round's result, so the model is phi now.
            seen = swarm.round
            swarm.log(heldout=loop.evaluate(), heldout_round=seen, heldout_tokens=loop.tokens)
        loss = loop.step()
        swarm.log(loss=loss, tokens=loop.tokens)
        if os.getppid() != parent:
            sys.exit("the peer daemon is gone")  # in the demo nobody restarts it, and an orphan would train for ever
    if options.evaluate:
        swarm.log(heldout=loop.evaluate(), heldout_round=swarm.round, heldout_tokens=loop.tokens)
    if options.save:
        np.save(options.save, flat(loop.model.parameters()).numpy())
    swarm.leave()


def train_alone(options: argparse.Namespace) -> dict[str, float]:
    """The same loop without wantrain; held-out losses at the start, at its end, and of the weights in --compare."""
    loop = Loop(options)
    result = {"parameters": sum(p.numel() for p in loop.model.parameters()), "start": loop.evaluate()}
    for _ in range(options.alone):
        loop.step()
    result |= {"alone": loop.evaluate(), "steps": loop.steps, "tokens": loop.tokens}
    if options.compare:
        weights = torch.from_numpy(np.load(options.compare, allow_pickle=False))
        torch.nn.utils.vector_to_parameters(weights, loop.model.parameters())
        result["swarm"] = loop.evaluate()
    return result


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    torch.set_num_threads(1)
    os.nice(5)  # several sites share this machine; the daemons, which on real sites have a core to spare, go first
    if options.alone is None:
        train(options)
    else:
        print(json.dumps(train_alone(options)))


if __name__ == "__main__":
    main()
