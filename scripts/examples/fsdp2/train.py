"""Trains a small network on several ranks with FSDP2: torchrun --nproc-per-node 2 plain.py"""

import argparse

import torch
import torch.distributed as dist
import wantrain
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

parser = argparse.ArgumentParser()
parser.add_argument("--seed", type=int, default=42)
parser.add_argument("--out", default="model.pt")
parser.add_argument("--max-steps", type=int, default=1000)
options = parser.parse_args()
torch.set_num_threads(1)

dist.init_process_group("gloo")
torch.manual_seed(options.seed * dist.get_world_size() + dist.get_rank())
mesh = init_device_mesh("cpu", (dist.get_world_size(),))
model = nn.Sequential(nn.Linear(16, 64), nn.GELU(), nn.Linear(64, 1))
for layer in (model[0], model[2]):
    fully_shard(layer, mesh=mesh)
fully_shard(model, mesh=mesh)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
swarm = wantrain.join(model, optimizer)

step = 0
while step < options.max_steps and swarm.round < 3:
    x = torch.randn(32, 16)
    loss = (model(x) - x.sin().sum(dim=1, keepdim=True)).square().mean()
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    swarm.log(loss=loss)
    step += 1

swarm.leave()
weights = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
if dist.get_rank() == 0:
    torch.save(weights, options.out)
dist.destroy_process_group()
