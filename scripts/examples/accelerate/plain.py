"""Trains a small network with Hugging Face accelerate."""

import argparse

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

parser = argparse.ArgumentParser()
parser.add_argument("--seed", type=int, default=42)
parser.add_argument("--out", default="out")
parser.add_argument("--max-steps", type=int, default=1000)
options = parser.parse_args()
torch.set_num_threads(1)

set_seed(options.seed)
accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
x = torch.randn(4096, 16)
data = DataLoader(TensorDataset(x, x.sin().sum(dim=1, keepdim=True)), batch_size=32, shuffle=True)
model = nn.Sequential(nn.Linear(16, 64), nn.GELU(), nn.Linear(64, 1))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.max_steps)
model, optimizer, data, scheduler = accelerator.prepare(model, optimizer, data, scheduler)

step = 0
while step < options.max_steps:
    for inputs, targets in data:
        with accelerator.accumulate(model):
            loss = (model(inputs) - targets).square().mean()
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
        if accelerator.sync_gradients:
            step += 1
        if step >= options.max_steps:
            break

accelerator.save_model(model, options.out)
