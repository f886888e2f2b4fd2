"""Saved inner state: training goes on bit for bit, all or nothing, no pickle, and only where it belongs."""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from torch import nn

from wantrain import inner_checkpoint
from wantrain.errors import CheckpointError, ConfigError
from wantrain.inner_checkpoint import INDEX, load, save
from wantrain.plain_values import alike, plain

torch.set_num_threads(1)

Optimizers = Sequence[torch.optim.Optimizer]


class Net(nn.Module):
    """With statistics of its own, a frozen parameter, a scalar one and one that does not lie in order."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(2, 3, 2).to(memory_format=torch.channels_last)
        self.norm = nn.BatchNorm2d(3)
        self.head = nn.Linear(3, 4, bias=False)
        self.scale = nn.Parameter(torch.ones(()))
        self.frozen = nn.Parameter(torch.randn(3), requires_grad=False)
        self.register_buffer("scratch", torch.zeros(2), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = self.norm(self.conv(x)).mean((2, 3)) * self.frozen
        out: torch.Tensor = self.head(features) * self.scale
        return out


def trained(model: nn.Module) -> list[nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad]


def matrices(model: nn.Module, *, plain: bool) -> list[nn.Parameter]:
    return [p for p in trained(model) if (p.dim() == 2) != plain]


KINDS: dict[str, Callable[[nn.Module], Optimizers]] = {
    "adamw": lambda m: [torch.optim.AdamW(trained(m), lr=0.01, amsgrad=True)],
    "sgd": lambda m: [torch.optim.SGD(trained(m), lr=0.01)],
    "momentum": lambda m: [torch.optim.SGD(trained(m), lr=0.01, momentum=0.9, nesterov=True)],
    "nadam": lambda m: [torch.optim.NAdam(trained(m), lr=0.01)],
    "adafactor": lambda m: [torch.optim.Adafactor(trained(m), lr=0.01)],
    "groups": lambda m: [
        torch.optim.AdamW([{"params": trained(m)[:2], "lr": 0.02}, {"params": trained(m)[2:], "weight_decay": 0.3}])
    ],
    "muon": lambda m: [
        torch.optim.Muon(matrices(m, plain=False), lr=0.01),
        torch.optim.AdamW(matrices(m, plain=True), lr=0.01),
    ],
}
SCHEDULERS: dict[str, Callable[[torch.optim.Optimizer], Any]] = {
    "multi-step": lambda o: torch.optim.lr_scheduler.MultiStepLR(o, [2, 5, 5], gamma=0.3),
    "cosine": lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 20),
    "one-cycle": lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.1, total_steps=30),
    "sequential": lambda o: torch.optim.lr_scheduler.SequentialLR(
        o,
        [torch.optim.lr_scheduler.LinearLR(o), torch.optim.lr_scheduler.LambdaLR(o, lambda step: 0.9**step)],
        milestones=[3],
    ),
    "plateau": lambda o: torch.optim.lr_scheduler.ReduceLROnPlateau(o, patience=1),
}


def train(model: nn.Module, optimizers: Optimizers, steps: range, scheduler: Any = None) -> None:
    for step in steps:
        rng = torch.Generator().manual_seed(step)
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss = model(torch.randn(5, 2, 4, 4, generator=rng)).square().mean()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
            scheduler.step(1.0)
        elif scheduler is not None:
            scheduler.step()


def everything(model: nn.Module, optimizers: Optimizers) -> dict[str, torch.Tensor]:
    found = dict(model.state_dict())
    for k, optimizer in enumerate(optimizers):
        for number, state in optimizer.state_dict()["state"].items():
            found |= {
                f"{k} {number} {key}": torch.as_tensor(value) for key, value in state.items() if value is not None
            }
    return found


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        one[key].dtype == other[key].dtype and torch.equal(one[key], other[key]) for key in one
    )


def counts(path: Path, model: nn.Module, optimizers: Optimizers) -> dict[str, Any]:
    """Load all; the counts."""
    found: list[dict[str, Any]] = []
    load(path, model, optimizers, accept=found.append)
    return found[0]


def with_weights_of(model: nn.Module) -> nn.Module:
    """As `join` leaves a model of the same run: the weights are there, and nothing else."""
    fresh = Net()
    with torch.no_grad():
        for parameter, value in zip(fresh.parameters(), model.parameters(), strict=True):
            parameter.copy_(value)
    return fresh


@pytest.mark.parametrize("kind", KINDS)
def test_training_goes_on_bit_for_bit_as_if_it_had_not_been_interrupted(kind: str, tmp_path: Path) -> None:
    model = Net()
    optimizers = KINDS[kind](model)
    train(model, optimizers, range(4))
    save(tmp_path / "inner", model, optimizers, counts={"tokens": 17})
    again = with_weights_of(model)
    others = KINDS[kind](again)
    assert counts(tmp_path / "inner", again, others) == {"tokens": 17}
    assert equal(everything(model, optimizers), everything(again, others))
    train(model, optimizers, range(4, 8))
    train(again, others, range(4, 8))
    assert equal(everything(model, optimizers), everything(again, others))


@pytest.mark.parametrize("kind", SCHEDULERS)
def test_a_scheduler_goes_on_where_it_was(kind: str, tmp_path: Path) -> None:
    model = Net()
    optimizers = KINDS["momentum"](model)
    scheduler = SCHEDULERS[kind](optimizers[0])
    train(model, optimizers, range(4), scheduler)
    save(tmp_path, model, optimizers, scheduler=scheduler)
    again = with_weights_of(model)
    others = KINDS["momentum"](again)
    other = SCHEDULERS[kind](others[0])
    load(tmp_path, again, others, scheduler=other)
    train(model, optimizers, range(4, 9), scheduler)
    train(again, others, range(4, 9), other)
    assert equal(everything(model, optimizers), everything(again, others))
    assert optimizers[0].param_groups[0]["lr"] == others[0].param_groups[0]["lr"]


def test_what_the_run_exchanges_is_left_to_it(tmp_path: Path) -> None:
    model = Net()
    optimizers = KINDS["adamw"](model)
    train(model, optimizers, range(3))
    save(tmp_path, model, optimizers, exchanged=("exp_avg", "step"))
    again = with_weights_of(model)
    others = KINDS["adamw"](again)
    train(again, others, range(1))
    before = {key: value.clone() for key, value in everything(again, others).items()}
    load(tmp_path, again, others, exchanged=("exp_avg", "step"))
    after, saved = everything(again, others), everything(model, optimizers)
    for key in (key for key in after if key.startswith("0 ")):
        theirs = key.endswith(("exp_avg", "step"))
        assert torch.equal(after[key], (before if theirs else saved)[key]), key


def test_state_is_filled_in_place(tmp_path: Path) -> None:
    """Others may hold the tensors, as a captured graph does."""
    model = Net()
    optimizers = KINDS["adamw"](model)
    train(model, optimizers, range(2))
    save(tmp_path, model, optimizers)
    held = [optimizers[0].state[p]["exp_avg"] for p in trained(model)]
    wanted = [value.clone() for value in held]
    train(model, optimizers, range(2, 4))
    load(tmp_path, model, optimizers)
    assert all(torch.equal(a, b) for a, b in zip(held, wanted, strict=True))
    assert all(a is optimizers[0].state[p]["exp_avg"] for a, p in zip(held, trained(model), strict=True))


def test_there_are_only_safetensors_and_json_and_of_former_states_nothing(tmp_path: Path) -> None:
    model = Net()
    optimizers = KINDS["adamw"](model)
    for step in range(3):
        train(model, optimizers, range(step, step + 1))
        save(tmp_path, model, optimizers)
    index = json.loads((tmp_path / INDEX).read_text())
    assert {entry.name for entry in tmp_path.iterdir()} == {INDEX, "000003"}
    for file in (tmp_path / "000003").iterdir():
        with safe_open(file, framework="pt") as shards:
            assert set(shards.keys()) == set(index["tensors"])


@pytest.mark.parametrize("fails", ["_digests", "_sync"])
def test_a_save_that_fails_leaves_the_one_before(fails: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Net()
    optimizers = KINDS["adamw"](model)
    train(model, optimizers, range(2))
    save(tmp_path, model, optimizers, counts={"tokens": 1})
    wanted = {key: value.clone() for key, value in everything(model, optimizers).items()}
    train(model, optimizers, range(2, 3))

    def full(_: Path) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(inner_checkpoint, fails, full)
        with pytest.raises(CheckpointError, match="No space left"):
            save(tmp_path, model, optimizers, counts={"tokens": 2})
    again = Net()
    others = KINDS["adamw"](again)
    assert counts(tmp_path, again, others) == {"tokens": 1}
    found = everything(again, others)
    assert all(torch.equal(found[key], wanted[key]) for key in wanted if key.startswith("0 "))
    save(tmp_path, model, optimizers, counts={"tokens": 3})
    assert counts(tmp_path, again, others) == {"tokens": 3}


def damage_index(folder: Path) -> None:
    (folder / INDEX).write_text((folder / INDEX).read_text()[:-1])


def damage_parts(folder: Path) -> None:
    index = json.loads((folder / INDEX).read_text())
    (folder / INDEX).write_text(json.dumps(index | {"values": []}))


def damage_tensors(folder: Path) -> None:
    (file,) = (folder / "000001").iterdir()
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


def lose_tensors(folder: Path) -> None:
    (file,) = (folder / "000001").iterdir()
    file.unlink()


def leave_the_folder(folder: Path) -> None:
    index = json.loads((folder / INDEX).read_text())
    (folder / INDEX).write_text(json.dumps(index | {"data": "../elsewhere"}))


def another_version(folder: Path) -> None:
    (folder / INDEX).write_text('{"format": "wantrain inner state 9"}')


def nothing_there(folder: Path) -> None:
    (folder / INDEX).unlink()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (damage_index, "no JSON"),
        (damage_parts, "lacks a part"),
        (damage_tensors, "not those that were written"),
        (lose_tensors, "not those that were written"),
        (leave_the_folder, "not those that were written"),
        (another_version, "is no wantrain inner state 1"),
        (nothing_there, "there is no inner state"),
    ],
)
def test_a_damaged_state_is_not_loaded(change: Callable[[Path], None], said: str, tmp_path: Path) -> None:
    model = Net()
    optimizers = KINDS["adamw"](model)
    train(model, optimizers, range(2))
    save(tmp_path, model, optimizers)
    change(tmp_path)
    before = {key: value.clone() for key, value in everything(model, optimizers).items()}
    with pytest.raises(CheckpointError, match=said):
        load(tmp_path, model, optimizers)
    assert equal(before, everything(model, optimizers))


def test_a_state_of_something_else_is_refused(tmp_path: Path) -> None:
    model = Net()
    optimizers = KINDS["adamw"](model)
    train(model, optimizers, range(2))
    save(tmp_path, model, optimizers)
    wider = Net()
    wider.head = nn.Linear(3, 5, bias=False)
    with pytest.raises(CheckpointError, match=r"state:head.weight:exp_avg is \[\[4, 3\], .*here it is \[\[5, 3\]"):
        load(tmp_path, wider, KINDS["adamw"](wider))
    with pytest.raises(CheckpointError, match="exp_avg is .*here it is not there"):
        load(tmp_path, model, KINDS["momentum"](model))
    two = torch.optim.AdamW([{"params": trained(model)[:1]}, {"params": trained(model)[1:]}], amsgrad=True)
    with pytest.raises(
        CheckpointError, match=r"\[1\] parameter groups and no scheduler, here there are \[2\] and none"
    ):
        load(tmp_path, model, [two])
    with pytest.raises(CheckpointError, match="no scheduler, here there are .* and one"):
        load(tmp_path, model, optimizers, scheduler=SCHEDULERS["cosine"](optimizers[0]))


def test_counts_that_are_refused_leave_all_as_it_was(tmp_path: Path) -> None:
    model = Net()
    optimizers = KINDS["adamw"](model)
    train(model, optimizers, range(2))
    save(tmp_path, model, optimizers)
    train(model, optimizers, range(2, 3))
    before = {key: value.clone() for key, value in everything(model, optimizers).items()}

    def refuse(_: dict[str, Any]) -> None:
        raise CheckpointError("of another run")

    with pytest.raises(CheckpointError, match="of another run"):
        load(tmp_path, model, optimizers, accept=refuse)
    assert equal(before, everything(model, optimizers))


def test_what_json_cannot_hold_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    model = Net()
    optimizers = KINDS["sgd"](model)
    optimizers[0].param_groups[0]["callback"] = print
    with pytest.raises(ConfigError, match="param_groups.callback is of type builtin_function_or_method"):
        save(tmp_path / "inner", model, optimizers)
    assert not (tmp_path / "inner").exists()


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: (
        st.lists(inner) | st.lists(inner).map(tuple) | st.dictionaries(st.text(), inner)
        | st.dictionaries(st.integers(), inner) | st.dictionaries(st.integers(), st.integers()).map(Counter)
    ),
    max_leaves=12,
)  # fmt: skip


@given(values)
def test_values_come_back_as_they_were(value: Any) -> None:
    def kinds(one: Any) -> Any:
        inside = one.values() if isinstance(one, dict) else one if isinstance(one, (list, tuple)) else ()
        return type(one), [kinds(item) for item in inside]

    back = alike(json.loads(json.dumps(plain(value, "it"))), value)
    assert back == value
    assert kinds(back) == kinds(value)
