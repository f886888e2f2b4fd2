"""Streams over what the inner optimizer keeps: Local Adam and DES-LOC, newcomers, and optimizers that keep none."""

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.unit.lockstep import Lockstep, Worker, take_over
from wantrain.errors import ConfigError
from wantrain.inner_state import InnerState, mu_product
from wantrain.optimizers.merge import merge
from wantrain.optimizers.method import build
from wantrain.optimizers.stream import Stream, Wire

torch.set_num_threads(1)

EXACT = Wire("fp32", "fp32")
MOMENTS = ("exp_avg", "exp_avg_sq")
Make = Callable[[int], tuple[nn.Module, torch.optim.Optimizer]]
Run = Callable[..., Lockstep]


def model_of(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))


def adam(_: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    model = model_of(1)
    return model, torch.optim.AdamW(model.parameters(), lr=0.01)


def batch(step: int, worker: int) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(1000 * step + worker)
    return torch.randn(6, 5, generator=rng), torch.randn(6, 3, generator=rng)


def loss_gradients(model: nn.Module, step: int, worker: int) -> None:
    model.zero_grad()
    inputs, targets = batch(step, worker)
    (model(inputs) - targets).square().mean().backward()


def train(lockstep: Lockstep, steps: range) -> None:
    for step in steps:
        lockstep.step(lambda k, step=step: loss_gradients(lockstep.workers[k].model, step, k))


def flat(tensors: Any) -> Tensor:
    return torch.cat([tensor.detach().reshape(-1) for tensor in tensors])


def moment(worker: Worker, key: str) -> Tensor:
    return flat(worker.optimizer.state[p][key] for p in worker.model.parameters())


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    made: list[Lockstep] = []

    def start(rows: tuple[Stream, ...], peers: int, make: Make = adam) -> Lockstep:
        made.append(Lockstep(make, peers, rows, tmp_path / str(len(made))))
        return made[-1]

    yield start
    for one in made:
        one.close()


def test_local_adam_is_adam_with_weights_and_moments_averaged_every_h_steps(run: Run) -> None:
    """Bit for bit a loop without any of this project in it."""
    lockstep = run(build("local-adam", {"every": 4}, EXACT), 3)
    train(lockstep, range(20))

    def values(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[list[Tensor]]:
        parameters = list(model.parameters())
        return [parameters, *([optimizer.state[p][key] for p in parameters] for key in MOMENTS)]

    peers = [adam(k) for k in range(3)]
    common = [flat(peers[0][0].parameters()), *(torch.zeros(39) for _ in MOMENTS)]
    for step in range(20):
        for k, (model, optimizer) in enumerate(peers):
            loss_gradients(model, step, k)
            optimizer.step()
        if step % 4 < 3:
            continue
        for which, phi in enumerate(common):
            own = [phi - flat(values(*peer)[which]) for peer in peers]
            phi.sub_((own[1] + own[0]).add_(own[2]).div_(3.0))
            for peer in peers:
                for target, part in zip(
                    values(*peer)[which], phi.split([t.numel() for t in values(*peer)[which]]), strict=True
                ):
                    target.data.copy_(part.view_as(target))
    for worker, peer in zip(lockstep.workers, peers, strict=True):
        assert torch.equal(flat(worker.model.parameters()), flat(peer[0].parameters()))
        for which, key in enumerate(MOMENTS, start=1):
            assert torch.equal(moment(worker, key), flat(values(*peer)[which]))


def test_des_loc_with_equal_periods_is_local_adam() -> None:
    periods = {"every": 7, "every_exp_avg": 7, "every_exp_avg_sq": 7}
    assert build("des-loc", periods, EXACT) == build("local-adam", {"every": 7}, EXACT)


def test_moments_have_longer_periods_and_codecs_without_blocks() -> None:
    rows = build("des-loc", {"every": 10}, Wire("int8", "int8"))
    assert [(row.state, row.every, row.codec, row.down) for row in rows] == [
        ("param", 10, "int8", "int8"), ("exp_avg", 30, "bf16", "bf16"), ("exp_avg_sq", 60, "bf16", "bf16"),
    ]  # fmt: skip
    nesterov = build("des-loc", {"outer_lr": 0.7, "momentum": 0.9}, EXACT)[0]
    assert (nesterov.merge, nesterov.merge_options) == ("nesterov", (("lr", 0.7), ("momentum", 0.9)))


def test_each_moment_is_common_after_its_own_period(run: Run) -> None:
    lockstep = run(build("des-loc", {"every": 2}, EXACT), 2)
    for step in range(1, 13):
        train(lockstep, range(step, step + 1))
        first, second = lockstep.workers
        assert torch.equal(flat(first.model.parameters()), flat(second.model.parameters())) == (step % 2 == 0)
        assert torch.equal(moment(first, "exp_avg"), moment(second, "exp_avg")) == (step % 6 == 0)
        assert torch.equal(moment(first, "exp_avg_sq"), moment(second, "exp_avg_sq")) == (step % 12 == 0)


def relative(kind: Any, **options: Any) -> Make:
    """Another optimizer that keeps Adam's moments."""

    def make(_: int) -> tuple[nn.Module, torch.optim.Optimizer]:
        model = model_of(1)
        return model, kind(model.parameters(), lr=0.01, **options)

    return make


ADAMS: dict[str, Make] = {
    "AdamW": adam,
    "NAdam": relative(torch.optim.NAdam, momentum_decay=0.01),
    "NAdam, one at a time": relative(torch.optim.NAdam, foreach=False),
    "RAdam": relative(torch.optim.RAdam),
}


@pytest.mark.parametrize("adam", ADAMS.values(), ids=ADAMS.keys())
@pytest.mark.parametrize("name", ["local-adam", "ddp"])
def test_a_newcomer_has_the_moments_and_counts_steps_as_the_others(
    run: Run, name: str, adam: Make, tmp_path: Path
) -> None:
    """Whatever the optimizer counts, by any name: bit for bit as those who were there from the start."""
    options = {"every": 4} if name == "local-adam" else {"resync": 4, "moments": True}
    rows = build(name, options, EXACT)
    lockstep = run(rows, 2, adam)
    train(lockstep, range(8))
    newcomer = Worker(*adam(0), rows, tmp_path / "new")
    take_over(lockstep.workers[0], newcomer)
    for row in rows:
        if row.held:
            newcomer.grant(row.name, "start", lockstep.indices[row.name])
    old = lockstep.workers[0]
    assert torch.equal(flat(newcomer.model.parameters()), flat(old.model.parameters()))
    for key in MOMENTS:
        assert torch.equal(moment(newcomer, key), moment(old, key))
        assert moment(newcomer, key).any()
    for ours, theirs in zip(newcomer.optimizer.state.values(), old.optimizer.state.values(), strict=True):
        assert ours.keys() == theirs.keys()
        assert ours["step"] == 8.0
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    lockstep.workers.append(newcomer)
    train(lockstep, range(8, 12))
    assert all(torch.equal(moment(worker, "exp_avg"), moment(old, "exp_avg")) for worker in lockstep.workers)


def test_the_mean_of_squares_is_never_negative() -> None:
    phi, delta = torch.tensor([1.0, 1.0, 0.0]), torch.tensor([0.5, 1.5, -0.25])
    merge("nonnegative-mean").apply(phi, delta, (), {}, torch.empty(3))
    assert phi.tolist() == [0.5, 0.0, 0.25]


OPTIMIZERS: dict[str, Callable[[list[nn.Parameter]], torch.optim.Optimizer]] = {
    "Adam": lambda p: torch.optim.Adam(p, lr=0.1, weight_decay=0.1),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=torch.tensor(0.1), weight_decay=0.1),
    "amsgrad": lambda p: torch.optim.AdamW(p, lr=0.1, amsgrad=True),
    "NAdam": lambda p: torch.optim.NAdam(p, lr=0.1, weight_decay=0.1),
    "RAdam": lambda p: torch.optim.RAdam(p, lr=0.1),
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1),
    "Muon": lambda p: torch.optim.Muon(p, lr=0.1),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_making_the_state_changes_neither_weights_nor_what_comes_after(name: str) -> None:
    key = "momentum_buffer" if name in ("SGD", "Muon") else "exp_avg"
    plain, prepared = (nn.Parameter(torch.arange(6.0).view(2, 3) + 1) for _ in range(2))
    plainly, made = OPTIMIZERS[name]([plain]), OPTIMIZERS[name]([prepared])
    groups = copy.deepcopy([{k: v for k, v in group.items() if k != "params"} for group in made.param_groups])
    InnerState({"w": prepared}, (made,)).prepare({key})
    assert torch.equal(prepared, plain)
    assert prepared.grad is None
    assert [{k: v for k, v in group.items() if k != "params"} for group in made.param_groups] == groups
    assert not made.state[prepared][key].any()
    for step in range(3):
        for parameter, optimizer in ((plain, plainly), (prepared, made)):
            parameter.grad = torch.full((2, 3), 1.0 + step) * parameter.detach()
            optimizer.step()
    assert torch.equal(prepared, plain)


def test_state_that_is_there_already_stays_as_it_is() -> None:
    model, optimizer = adam(0)
    loss_gradients(model, 0, 0)
    optimizer.step()
    before = copy.deepcopy(optimizer.state_dict())
    InnerState(dict(model.named_parameters()), (optimizer,)).prepare(MOMENTS)
    after = optimizer.state_dict()
    assert all(torch.equal(after["state"][k][key], row[key]) for k, row in before["state"].items() for key in row)


def test_an_optimizer_that_keeps_no_such_state_is_refused() -> None:
    weight = nn.Parameter(torch.zeros(2))
    momentum = torch.optim.SGD([weight], lr=0.1, momentum=0.9)
    with pytest.raises(ConfigError, match="exp_avg, which SGD does not keep for w") as caught:
        InnerState({"w": weight}, (momentum,)).prepare({"exp_avg"})
    assert "momentum_buffer" in caught.value.hint
    with pytest.raises(ConfigError, match="momentum_buffer, which SGD does not keep"):
        InnerState({"w": weight}, (torch.optim.SGD([weight], lr=0.1),)).prepare({"momentum_buffer"})
    with pytest.raises(ConfigError, match="not among the optimizer's parameters"):
        InnerState({"w": weight}, (torch.optim.Adam([nn.Parameter(torch.zeros(2))]),)).prepare({"exp_avg"})


class Counting(torch.optim.AdamW):
    """An AdamW that keeps one more number for each parameter."""

    def step(self, closure: Any = None) -> Any:
        super().step(closure)
        for parameter in self.param_groups[0]["params"]:
            self.state[parameter]["warmth"] = 1.0


def test_an_optimizer_with_numbers_that_nobody_could_tell_a_newcomer_is_refused() -> None:
    weight = nn.Parameter(torch.zeros(2))
    with pytest.raises(ConfigError, match="Counting keeps warmth for w") as caught:
        InnerState({"w": weight}, (Counting([weight], lr=0.1),)).prepare(MOMENTS)
    assert caught.value.hint
    with pytest.raises(ConfigError, match="exp_avg_sq, which Adamax does not keep"):
        InnerState({"w": weight}, (torch.optim.Adamax([weight]),)).prepare(MOMENTS)


def test_a_product_of_momenta_too_small_for_any_number_is_found_at_once() -> None:
    late = mu_product(10**9, 0.9, 4e-3, torch.float32)
    assert 0.0 <= late < 1e-40
    assert mu_product(0, 0.9, 4e-3, torch.float32) == 1.0


def test_a_parameter_that_is_one_number_has_its_moments() -> None:
    weight = nn.Parameter(torch.tensor(1.0))
    InnerState({"w": weight}, (torch.optim.NAdam([weight], lr=0.1),)).prepare(MOMENTS)


# ---- the toy of the paper, smaller: Rosenbrock's valley with noisy gradients

PEERS, STEPS, ROUND = 4, 640, 32


class Point(nn.Module):
    """x1 and x2."""

    def __init__(self) -> None:
        super().__init__()
        self.x = nn.Parameter(torch.tensor([0.5, 0.5]))


def valley(x: Tensor) -> float:
    """(1 - x1)^2 + 100 (x2 - x1^2)^2."""
    return float((1 - x[0]) ** 2 + 100 * (x[1] - x[0] ** 2) ** 2)


def descend(run: Run, method: str, options: dict[str, Any], *, reset: bool = False) -> float:
    """Mean height of phi over the last five syncs of the weights; noise N(0, 1.5^2) on every gradient."""

    def make(_: int) -> tuple[nn.Module, torch.optim.Optimizer]:
        point = Point()
        return point, torch.optim.Adam(point.parameters(), lr=0.03, foreach=False)

    lockstep, rng = run(build(method, options, EXACT), PEERS, make), torch.Generator().manual_seed(3)

    def gradients(k: int) -> None:
        point = lockstep.workers[k].model
        assert isinstance(point, Point)
        x1, x2 = point.x.tolist()
        slope = torch.tensor([-2 * (1 - x1) - 400 * x1 * (x2 - x1**2), 200 * (x2 - x1**2)])
        point.x.grad = slope + 1.5 * torch.randn(2, generator=rng)

    heights = []
    for step in range(1, STEPS + 1):
        lockstep.step(gradients)
        if step % ROUND:
            continue
        heights.append(valley(lockstep.workers[0].engine.phi("param")))
        for worker in lockstep.workers if reset else ():
            for state in worker.optimizer.state.values():
                state["exp_avg"].zero_()
                state["exp_avg_sq"].zero_()
    return sum(heights[-5:]) / 5


def test_des_loc_goes_down_the_valley_as_local_adam_does_and_states_that_are_reset_stall(run: Run) -> None:
    often = descend(run, "local-adam", {"every": ROUND})
    seldom = descend(run, "des-loc", {"every": ROUND, "every_exp_avg": ROUND, "every_exp_avg_sq": 115})
    stalled = descend(run, "local-sgd", {"every": ROUND}, reset=True)
    assert often < 0.03
    assert abs(seldom / often - 1) < 0.25
    assert stalled > 2 * often
