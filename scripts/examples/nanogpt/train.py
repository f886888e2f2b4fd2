"""Trains a small GPT: a loop at module level, in the manner of nanoGPT's train.py."""

import argparse
import math
import os

import numpy as np
import torch
import wantrain
from model import GPT

parser = argparse.ArgumentParser()
parser.add_argument("--seed", type=int, default=1337)
parser.add_argument("--out", default="ckpt.pt")
parser.add_argument("--max-iters", type=int, default=1000)
options = parser.parse_args()

batch_size, block_size, gradient_accumulation_steps = 8, 64, 2
learning_rate, min_lr, warmup_iters, grad_clip = 1e-3, 1e-4, 10, 1.0
log_interval = 5

torch.manual_seed(options.seed)
torch.set_num_threads(1)
# Text that every machine has: a file of Python's library. nanoGPT would have np.memmap("train.bin", dtype=np.uint16).
data = np.fromfile(os.__file__, dtype=np.uint8)


def get_batch():
    ix = torch.randint(len(data) - block_size, (batch_size,))
    x = torch.stack([torch.from_numpy(data[i : i + block_size].astype(np.int64)) for i in ix])
    y = torch.stack([torch.from_numpy(data[i + 1 : i + 1 + block_size].astype(np.int64)) for i in ix])
    return x, y


def get_lr(it):
    if it < warmup_iters:
        return learning_rate * (it + 1) / warmup_iters
    ratio = min(1.0, (it - warmup_iters) / options.max_iters)
    return min_lr + 0.5 * (1.0 + math.cos(math.pi * ratio)) * (learning_rate - min_lr)


model = GPT(context=block_size)
optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.95), weight_decay=0.1)
swarm = wantrain.join(model, optimizer)
iter_num = 0

while iter_num < options.max_iters and swarm.round < 3:
    for group in optimizer.param_groups:
        group["lr"] = get_lr(iter_num)
    for _ in range(gradient_accumulation_steps):
        loss = model(*get_batch())
        (loss / gradient_accumulation_steps).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), grad_clip)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    swarm.log(loss=loss)
    if iter_num % log_interval == 0:
        print(f"iter {iter_num}: loss {loss.item():.4f}")
    iter_num += 1

swarm.leave()
torch.save(model.state_dict(), options.out)
