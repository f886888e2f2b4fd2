"""The callbacks for other libraries' trainers, beside a daemon that is a thread: counts, checkpoints, the end."""

import importlib
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.unit.test_session import DEADLINE_S, GRAD, MEAN, Daemon, served
from wantrain.errors import ConfigError
from wantrain.optimizers.stream import Stream
from wantrain.peers.messages import Contribute, Describe, Detach, Log

torch.set_num_threads(1)
pytestmark = pytest.mark.filterwarnings("ignore")  # what the libraries warn of is theirs
TOKENS = 2 * 8
"""Of a step."""


def needs(library: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(find_spec(library) is None, reason=f"{library} is not installed: scripts/setup does that")


@pytest.fixture
def beside(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Daemon]]:
    """Starts a daemon that the next `join` finds."""
    with ExitStack() as folders:

        def start(*streams: Stream, **options: Any) -> Daemon:
            daemon = folders.enter_context(served(Daemon))(*streams, **options)
            daemon.start()
            assert daemon.listening.wait(DEADLINE_S)
            monkeypatch.setenv("WANTRAIN_DAEMON", daemon.address)
            return daemon

        yield start


def logged(daemon: Daemon) -> dict[str, float]:
    """The newest of each number."""
    return {name: value for record in daemon.of(Log) for name, value in record.values.items()}


@pytest.mark.parametrize(("module", "library"), [("hf", "transformers"), ("lightning", "lightning.pytorch")])
def test_without_the_library_the_error_names_the_extra(
    module: str, library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    monkeypatch.delitem(sys.modules, f"wantrain.integrations.{module}", raising=False)
    with pytest.raises(ConfigError, match=rf"pip install 'wantrain\[{module}\]'"):
        importlib.import_module(f"wantrain.integrations.{module}")


# ---- Hugging Face


def hf_trainer(out: Path, callbacks: list[Any], **options: Any) -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

    config = GPT2Config(vocab_size=16, n_positions=8, n_embd=8, n_layer=1, n_head=1, bos_token_id=0, eos_token_id=0)
    args = TrainingArguments(
        output_dir=str(out), per_device_train_batch_size=2, logging_steps=2, use_cpu=True, report_to="none",
        disable_tqdm=True, **options,
    )  # fmt: skip
    data = [{"input_ids": row, "labels": row} for row in torch.arange(16 * 8).view(16, 8) % 16]
    return Trainer(model=GPT2LMHeadModel(config), args=args, train_dataset=data, callbacks=callbacks)


@needs("transformers")
def test_a_hf_trainer_takes_part_and_a_checkpoint_goes_on_counting(
    beside: Callable[..., Daemon], tmp_path: Path
) -> None:
    from wantrain.integrations.hf import SwarmCallback

    daemon, callback = beside(MEAN), SwarmCallback()
    hf_trainer(tmp_path, [callback], max_steps=6, save_steps=4).train()
    assert len(daemon.of(Contribute)) == 6 // MEAN.every
    assert len(daemon.of(Detach)) == 1
    assert callback.swarm is None
    assert json.loads(daemon.of(Describe)[0].config)["model_type"] == "gpt2"
    assert logged(daemon)["tokens"] == 6 * TOKENS
    assert logged(daemon)["loss"] > 0
    state = json.loads((tmp_path / "checkpoint-4" / "trainer_state.json").read_text())
    kept = state["stateful_callbacks"]["SwarmCallback"]["attributes"]["saved"]
    assert (kept["own_steps"], kept["tokens"]) == (4, 4 * TOKENS)

    daemon, callback = beside(MEAN), SwarmCallback()
    trainer = hf_trainer(tmp_path, [callback], max_steps=7, save_steps=7)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert len(daemon.of(Contribute)) == 3 // MEAN.every
    assert logged(daemon)["tokens"] == 7 * TOKENS
    state = json.loads((tmp_path / "checkpoint-7" / "trainer_state.json").read_text())
    assert state["stateful_callbacks"]["SwarmCallback"]["attributes"]["saved"]["own_steps"] == 7


@needs("transformers")
def test_a_hf_trainer_ends_after_so_many_rounds_also_from_a_checkpoint_of_another_kind(
    beside: Callable[..., Daemon], tmp_path: Path
) -> None:
    from wantrain.integrations.hf import SwarmCallback

    hf_trainer(tmp_path, [], max_steps=2, save_steps=2).train()
    daemon, callback = beside(MEAN), SwarmCallback(rounds=6)  # it is at 4 now
    trainer = hf_trainer(tmp_path, [callback], max_steps=100, save_steps=4)
    trainer.train(resume_from_checkpoint=True)
    assert len(daemon.of(Contribute)) == 2
    assert trainer.state.global_step == 2 + 2 * MEAN.every
    state = json.loads((tmp_path / "checkpoint-4" / "trainer_state.json").read_text())
    assert state["stateful_callbacks"]["SwarmCallback"]["args"] == {"rounds": 6}


# ---- Lightning


def lightning_trainer(out: Path, callback: Any, **options: Any) -> Any:
    from lightning.pytorch import Trainer

    return Trainer(
        default_root_dir=out, callbacks=[callback], accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, log_every_n_steps=1, max_epochs=-1, **options,
    )  # fmt: skip


def lightning_module() -> Any:
    from lightning.pytorch import LightningModule

    class Sum(LightningModule):
        """The gradient of its loss is 1, and a step subtracts it."""

        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.full((3,), 10.0))

        def training_step(self, *_: Any) -> torch.Tensor:
            return self.weight.sum()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=1.0)

    return Sum()


BATCHES = [torch.zeros(1)] * 3


@needs("lightning")
def test_a_lightning_trainer_takes_part_and_a_checkpoint_goes_on_counting(
    beside: Callable[..., Daemon], tmp_path: Path
) -> None:
    from wantrain.integrations.lightning import SwarmCallback

    daemon, callback = beside(MEAN), SwarmCallback(rounds=6)  # it is at 4 now
    trainer = lightning_trainer(tmp_path, callback, max_steps=100)
    trainer.fit(lightning_module(), BATCHES)
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    assert trainer.global_step == 2 * MEAN.every
    assert len(daemon.of(Contribute)) == 2
    assert len(daemon.of(Detach)) == 1
    assert callback.swarm is None
    assert "loss" in logged(daemon)

    daemon, callback = beside(MEAN), SwarmCallback()
    trainer = lightning_trainer(tmp_path, callback, max_steps=2 * MEAN.every + 1)
    trainer.fit(lightning_module(), BATCHES, ckpt_path=tmp_path / "one.ckpt")
    assert callback.state_dict()["own_steps"] == 2 * MEAN.every + 1


@needs("lightning")
def test_gradients_of_lightnings_closure_are_exchanged(beside: Callable[..., Daemon], tmp_path: Path) -> None:
    from wantrain.integrations.lightning import SwarmCallback

    beside(GRAD, Stream("param", every=10, merge="mean", codec="fp32"), answer=lambda _: "grad", foreign=0.5)
    module = lightning_module()
    lightning_trainer(tmp_path, SwarmCallback(), max_steps=1).fit(module, BATCHES)
    assert torch.equal(module.weight.detach(), torch.full((3,), 1.0 - (1.0 + 0.5) / 2))  # it had begun with the run's 1


@needs("lightning")
def test_a_lightning_trainer_that_fails_does_not_leave(beside: Callable[..., Daemon], tmp_path: Path) -> None:
    from wantrain.integrations.lightning import SwarmCallback

    daemon, callback, module = beside(MEAN), SwarmCallback(), lightning_module()
    module.training_step = lambda *_: 1 / 0
    with pytest.raises(ZeroDivisionError):
        lightning_trainer(tmp_path, callback, max_steps=2).fit(module, BATCHES)
    assert callback.swarm is None
    assert not daemon.of(Detach)
