"""Trains a small GPT-2 with the Trainer of Hugging Face transformers."""

import argparse
import os
from pathlib import Path

import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments
from wantrain.integrations.hf import SwarmCallback

parser = argparse.ArgumentParser()
parser.add_argument("--seed", type=int, default=42)
parser.add_argument("--out", default="out")
parser.add_argument("--max-steps", type=int, default=1000)
parser.add_argument("--resume", action="store_true")
options = parser.parse_args()
torch.set_num_threads(1)

# Text that every machine has: a file of Python's library, byte by byte.
text = torch.frombuffer(bytearray(Path(os.__file__).read_bytes()), dtype=torch.uint8).long()
windows = text[: len(text) // 64 * 64].view(-1, 64)
dataset = [{"input_ids": window, "labels": window} for window in windows]

config = GPT2Config(vocab_size=256, n_positions=64, n_embd=64, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=0)
model = GPT2LMHeadModel(config)
args = TrainingArguments(
    output_dir=options.out,
    seed=options.seed,
    max_steps=options.max_steps,
    per_device_train_batch_size=8,
    learning_rate=1e-3,
    logging_steps=5,
    save_steps=10,
    use_cpu=True,
    report_to="none",
    disable_tqdm=True,
)
trainer = Trainer(
    model=model,
    args=args,
    train_dataset=dataset,
    callbacks=[SwarmCallback(rounds=3)],
)
trainer.train(resume_from_checkpoint=options.resume)
trainer.save_model(options.out)
