"""Trains a small network with Lightning's Trainer."""

import argparse

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from wantrain.integrations.lightning import SwarmCallback

parser = argparse.ArgumentParser()
parser.add_argument("--seed", type=int, default=42)
parser.add_argument("--out", default="model.ckpt")
parser.add_argument("--max-steps", type=int, default=1000)
options = parser.parse_args()
torch.set_num_threads(1)


class Regression(LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(16, 64), nn.GELU(), nn.Linear(64, 1))

    def training_step(self, batch, _):
        x, y = batch
        loss = (self.net(x) - y).square().mean()
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


seed_everything(options.seed)
x = torch.randn(4096, 16)
data = DataLoader(TensorDataset(x, x.sin().sum(dim=1, keepdim=True)), batch_size=32, shuffle=True)
trainer = Trainer(
    max_steps=options.max_steps,
    max_epochs=-1,
    accelerator="cpu",
    log_every_n_steps=5,
    logger=False,
    enable_checkpointing=False,
    enable_progress_bar=False,
    enable_model_summary=False,
    callbacks=[SwarmCallback(rounds=3)],
)
trainer.fit(Regression(), data)
trainer.save_checkpoint(options.out)
