"""One run of the study: GPTs on the source of Python's standard library, in this process, on virtual time."""

import math
import time
from functools import cache
from statistics import fmean
from typing import Any

import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_

from wantrain import sim
from wantrain.demo import corpus, model
from wantrain.sim import Join, Kill, Pace, Worker
from wantrain.study.plan import H, Run, Size

SHARDS = 8
"""Parts of the text, whatever the number of workers: all runs of a seed are measured on the same held-out text."""
HELD_OUT_WINDOWS = 256
CHURN_ROUNDS = 4
"""Rounds from one kill to the next, where there is churn."""

Json = dict[str, Any]


def measure(run: Run) -> Json:
    """Train, and say what came of it.

    Returns:
        {loss: of phi on held-out text at the end, in nats per byte; curve: [[step, loss], …]; sync_bytes, tokens: in
        the mean over workers that were there at the end; syncs, aborts; waited: share of virtual time, in the mean;
        seconds: of this machine}.
    """
    torch.set_num_threads(1)
    began = time.monotonic()
    size, setting = run.size, run.setting
    text = _text(run.seed)
    held_out = text.held_out_batch(batch=HELD_OUT_WINDOWS, context=size.model.context)

    every = setting.options.get("every", H)
    turns = range(CHURN_ROUNDS, size.steps // every, CHURN_ROUNDS) if setting.churn else ()
    joins = [Join(at=turn * every) for turn in turns]
    kills = [Kill(worker=k, sync=turn) for k, turn in enumerate(turns)]
    paces = [Pace(worker=k, pace=pace, at=0) for k, pace in enumerate(setting.paces) if pace != 1.0]

    def worker(number: int) -> Worker:
        pace = setting.paces[number] if number < len(setting.paces) else 1.0
        begun = joins[number - run.peers].at if number >= run.peers else 0.0
        return _worker(size, text, number, run.seed, begun=begun, pace=pace)

    def evaluate(gpt: nn.Module) -> float:
        with torch.no_grad():
            return float(gpt(*held_out))

    result = sim.train(
        worker,
        peers=run.peers,
        steps=size.steps,
        method=setting.method,
        options=setting.options,
        codec=setting.codec,
        down=setting.down,
        evaluate=evaluate,
        evaluate_every=max(1, size.steps // 12 // every),
        churn=[*paces, *kills, *joins],
        seed=run.seed,
    )
    stayed = [one for one in result.workers if one.ended == "finished"]
    final = with_phi(size, result.state_dict)
    return {
        "loss": evaluate(final),
        "curve": [[entry.step, round(entry.loss, 4)] for entry in result.rounds if entry.loss is not None],
        "sync_bytes": round(fmean(one.sync_bytes for one in stayed)),
        "tokens": size.tokens * round(fmean(len(one.losses) for one in stayed)),
        "syncs": len(result.commits),
        "aborts": len(result.aborts),
        "waited": round(fmean(one.waited_s / one.step_times_s[-1] for one in stayed), 4),
        "seconds": round(time.monotonic() - began, 1),
    }


@cache
def _text(seed: int) -> corpus.Corpus:
    return corpus.load(SHARDS, seed)


def with_phi(size: Size, values: dict[str, torch.Tensor]) -> nn.Module:
    """A model with the common weights in it."""
    gpt = model.GPT(size.model)
    missing, unknown = gpt.load_state_dict(values, strict=False)
    assert not unknown
    assert not set(missing) & {name for name, _ in gpt.named_parameters()}
    return gpt


def _worker(
    size: Size, text: corpus.Corpus, number: int, seed: int, *, begun: float = 0.0, pace: float = 1.0
) -> Worker:
    """Worker `number`, which came when the run had made `begun` steps and makes `pace` steps to each of the run's."""
    gpt = model.build(seed, size.model)
    optimizer = torch.optim.AdamW(gpt.parameters(), lr=size.lr, betas=(0.9, 0.95), weight_decay=0.1)
    batches = text.batches(number % SHARDS, batch=size.batch, context=size.model.context, seed=seed + 1000 * number)
    steps = 0

    def step() -> torch.Tensor:
        nonlocal steps
        steps += 1
        tokens, targets = next(batches)
        for group in optimizer.param_groups:
            group["lr"] = size.lr * _schedule((begun + steps / pace) / size.steps)
        optimizer.zero_grad()
        loss: torch.Tensor = gpt(tokens, targets)
        loss.backward()  # type: ignore[no-untyped-call]
        clip_grad_norm_(gpt.parameters(), 1.0)
        optimizer.step()
        return loss.detach()

    return Worker(gpt, optimizer, step, tokens=size.tokens)


def _schedule(done: float) -> float:
    """Share of the peak learning rate after this share of the steps."""
    return min(done / 0.1, 0.1 + 0.45 * (1 + math.cos(math.pi * min(1.0, done))))
