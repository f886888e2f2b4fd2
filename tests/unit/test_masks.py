"""Masks of coordinates: a partition that every peer has, its parts as streams, saved states of them, and SPARTA."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor, nn

from tests.unit.lockstep import Lockstep, Worker, take_over
from wantrain.errors import ConfigError
from wantrain.optimizers.mask import below, between
from wantrain.optimizers.mask_indices import indices
from wantrain.optimizers.method import build
from wantrain.optimizers.stream import Stream, Wire
from wantrain.peers.checkpoint import Shelf, read, read_initial, saved_streams
from wantrain.peers.effects import BeginSave
from wantrain.peers.engine import Engine
from wantrain.peers.export import export
from wantrain.peers.layout import check_streams
from wantrain.peers.messages import TensorSpec
from wantrain.transport.digest import state_digest

torch.set_num_threads(1)

EXACT = Wire("fp32", "fp32")
MODEL = (TensorSpec("w", (7, 5), "float32"), TensorSpec("b", (3,), "float32"), TensorSpec("s", (), "float32"))
SIZE = 39


@settings(max_examples=30)
@given(parts=st.integers(1, 40), start=st.integers(0, 5000), length=st.integers(0, 500))
def test_the_parts_are_a_partition_and_counted_without_being_made(parts: int, start: int, length: int) -> None:
    found = [indices(part, parts, start, start + length) for part in range(parts)]
    assert torch.equal(torch.cat(found).sort().values, torch.arange(length))
    assert [len(one) for one in found] == [between(part, parts, start, start + length) for part in range(parts)]
    assert all(bool((one.diff() > 0).all()) for one in found)


def test_every_peer_has_the_same_masks() -> None:
    """Recorded: another version with other masks could not train with this one."""
    assert indices(0, 5, 0, 30).tolist() == [4, 7, 13, 16, 22, 26]
    assert below(0, 200, 10**12) == 5 * 10**9


def test_coordinates_of_one_part_are_spread_at_random() -> None:
    places = indices(3, 50, 0, 50 * 4000) % 50
    counts = torch.bincount(places, minlength=50).float()
    assert abs(float(counts.mean()) - 80) < 1e-3
    assert 50 < float((counts - 80).square().sum() / 80) + 25 < 125  # chi-squared of 49 degrees of freedom


def streams(parts: int) -> tuple[Stream, ...]:
    return build("sparta", {"parts": parts}, EXACT)


def test_sparta_takes_one_part_after_the_other() -> None:
    rows = build("sparta", {"parts": 4, "every": 3}, EXACT)
    assert [row.fragment for row in rows] == ["mask:0/4", "mask:1/4", "mask:2/4", "mask:3/4"]
    assert [[step for step in range(1, 25) if row.due(step)] for row in rows] == [[3, 15], [6, 18], [9, 21], [12, 24]]
    with pytest.raises(ConfigError, match="delay is 13"):
        build("sparta", {"parts": 4, "every": 3, "delay": 13}, EXACT)


def test_parts_that_do_not_make_a_whole_are_refused() -> None:
    check_streams(streams(7), MODEL)
    with pytest.raises(ConfigError, match="no stream of param covers w, b, s"):
        check_streams(streams(7)[1:], MODEL)
    with pytest.raises(ConfigError, match="w is in two streams"):
        check_streams([*streams(7), Stream("whole")], MODEL)
    with pytest.raises(ConfigError, match="w is in two streams"):
        check_streams([*streams(7), Stream("again", fragment="mask:0/7")], MODEL)
    with pytest.raises(ConfigError, match="39 values, fewer than the 40 parts"):
        check_streams(streams(40), MODEL)


# ---- training


class Model(nn.Module):
    """39 values, of which one tensor does not lie in memory in its order."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(5, 7).t())
        self.b, self.s = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(()))

    def values(self) -> Tensor:
        return torch.cat([p.detach().reshape(-1) for p in self.parameters()])


def make(_: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    model = Model()
    return model, torch.optim.SGD(model.parameters(), lr=1.0)


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Lockstep]:
    lockstep = Lockstep(make, 2, streams(4), tmp_path / "run")
    yield lockstep
    lockstep.close()


def drift(lockstep: Lockstep) -> None:
    """One step: worker 0 goes down by 1 everywhere, worker 1 up by 3."""

    def gradients(k: int) -> None:
        for parameter in lockstep.workers[k].model.parameters():
            parameter.grad = torch.full_like(parameter, 1.0 if k == 0 else -3.0)

    lockstep.step(gradients)


def test_only_the_coordinates_of_the_turn_are_averaged(pair: Lockstep) -> None:
    expected = [torch.zeros(SIZE), torch.zeros(SIZE)]
    for step in range(9):
        drift(pair)
        expected[0] -= 1.0
        expected[1] += 3.0
        turn = indices(step % 4, 4, 0, SIZE)
        mean = (expected[0][turn] + expected[1][turn]) / 2
        for value in expected:
            value[turn] = mean
        for worker, value in zip(pair.workers, expected, strict=True):
            assert isinstance(worker.model, Model)
            assert torch.equal(worker.model.values(), value)


def test_a_newcomer_starts_from_what_was_common_last(pair: Lockstep, tmp_path: Path) -> None:
    for _ in range(6):
        drift(pair)
    newcomer = Worker(*make(0), streams(4), tmp_path / "new")
    take_over(pair.workers[0], newcomer)
    for row in streams(4):
        newcomer.grant(row.name, "start", pair.indices[row.name])
    assert isinstance(newcomer.model, Model)
    phi = torch.empty(SIZE)
    for k, row in enumerate(streams(4)):
        phi[indices(k, 4, 0, SIZE)] = pair.workers[0].engine.phi(row.name)
    assert torch.equal(newcomer.model.values(), phi)
    assert phi.unique().numel() > 2


# ---- saved states


def engine(rows: tuple[Stream, ...], seed: int) -> Engine:
    made = Engine(MODEL, rows)
    torch.manual_seed(seed)
    for slots in made.vectors().values():
        for tensor in slots.values():
            tensor.copy_(torch.randn(tensor.shape))
    return made


def save(root: Path, rows: tuple[Stream, ...], state: Engine) -> Path:
    shelf = Shelf(root, b"the run!", b"s" * 32, rows, 2)
    writing = shelf.begin(BeginSave(3, b"c" * 32, b"g" * 32, {row.name: 3 for row in rows}, ""), MODEL)
    *_, chunks = state.save_steps(writing.write)
    writing.finish(state_digest(chunks or ()))
    writing.wait()
    shelf.close()
    return root / f"{3:09}"


def whole(state: Engine, rows: tuple[Stream, ...]) -> Tensor:
    values = torch.empty(SIZE)
    for k, row in enumerate(rows):
        values[indices(k, len(rows), 0, SIZE)] = state.phi(row.name)
    return values


def test_a_saved_state_of_masks_is_exported_whole_and_begins_runs_of_other_methods(tmp_path: Path) -> None:
    rows, others = streams(5), build("diloco", {}, EXACT)
    state = engine(rows, 1)
    path = save(tmp_path / "masks", rows, state)
    out = tmp_path / "model.safetensors"
    assert export(path, read(path), out, None) == 3
    written = load_file(out)
    assert torch.equal(torch.cat([written[tensor.name].reshape(-1) for tensor in MODEL]), whole(state, rows))
    assert written["w"].shape == (7, 5)

    target = Engine(MODEL, others)
    assert not read_initial(path, read(path), saved_streams(others, MODEL), target.vectors(), MODEL)  # no momentum
    assert torch.equal(target.phi("param"), whole(state, rows))

    source = engine(others, 2)
    back = Engine(MODEL, rows)
    path = save(tmp_path / "diloco", others, source)
    assert read_initial(path, read(path), saved_streams(rows, MODEL), back.vectors(), MODEL)
    assert torch.equal(whole(back, rows), source.phi("param"))
