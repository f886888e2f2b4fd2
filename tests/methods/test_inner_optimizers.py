"""Any inner optimizer and any way to make a step: what the trainers' side must bear, through `wantrain.sim`."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.methods.table import equal, nesterov
from wantrain.errors import ConfigError
from wantrain.inner_step import InnerSteps, in_order
from wantrain.replica import Replica
from wantrain.sim import Result, train

LOCAL: dict[str, Any] = {"method": "local-sgd", "options": {"every": 5}, "codec": "fp32"}
DDP: dict[str, Any] = {"method": "ddp", "options": {"resync": 5}, "codec": "fp32"}
Optimizers = torch.optim.Optimizer | Sequence[torch.optim.Optimizer]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


class Net(nn.Module):
    """Two layers, one parameter tied, one frozen, and batch norm's buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 6, bias=False)
        self.norm = nn.BatchNorm1d(6)
        self.last = nn.Linear(6, 6)
        self.tied = self.last.weight
        self.frozen = nn.Parameter(torch.ones(6), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        hidden: Tensor = self.norm(torch.tanh(self.first(x)))
        out: Tensor = self.last(hidden) * self.frozen
        return out


def learner(make: Callable[[Net], Optimizers], model: Callable[[], Net] = Net, accumulate: int = 1) -> Any:
    """Worker i learns to turn its inputs round."""

    def build(i: int) -> tuple[nn.Module, Optimizers, Callable[[], Tensor]]:
        net = model()
        optimizer = make(net)
        several = [optimizer] if isinstance(optimizer, torch.optim.Optimizer) else optimizer
        own = torch.Generator().manual_seed(i)

        def step() -> Tensor:
            for one in several:
                one.zero_grad()
            total = torch.zeros(())
            for _ in range(accumulate):
                x = torch.randn(16, 6, generator=own)
                loss = (net(x) - x.flip(1)).square().mean() / accumulate
                loss.backward()
                total += loss.detach()
            for one in several:
                one.step()
            return total

        return net, optimizer, step

    return build


def groups(net: Net) -> torch.optim.Optimizer:
    return torch.optim.AdamW(
        [
            {"params": [net.first.weight, net.last.weight], "weight_decay": 0.1},
            {"params": [net.norm.weight, net.norm.bias, net.last.bias], "lr": 0.002},
        ],
        lr=0.02,
    )


def muon(net: Net) -> list[torch.optim.Optimizer]:
    matrices = [net.first.weight, net.last.weight]
    rest = [net.norm.weight, net.norm.bias, net.last.bias]
    return [torch.optim.Muon(matrices, lr=0.02), torch.optim.AdamW(rest, lr=0.01)]


INNER: dict[str, Callable[[Net], Optimizers]] = {
    "sgd": lambda net: torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, nesterov=True),
    "adamw": lambda net: torch.optim.AdamW(net.parameters(), lr=0.02),
    "fused adamw": lambda net: torch.optim.AdamW(net.parameters(), lr=0.02, fused=True),
    "adagrad": lambda net: torch.optim.Adagrad(net.parameters(), lr=0.1),
    "parameter groups": groups,
    "muon and adamw": muon,
}


def check(result: Result, steps: int, *, peers: int = 2) -> None:
    """All made every step, learnt something, and hold the same phi of all that is trained."""
    assert [len(worker.losses) for worker in result.workers] == [steps] * peers
    for worker in result.workers:
        assert sum(worker.losses[-5:]) < 0.8 * sum(worker.losses[:5])
        assert equal(worker.state_dict, result.state_dict)
    assert set(result.state_dict) == {"first.weight", "norm.weight", "norm.bias", "tied", "last.bias"}


@pytest.mark.parametrize("method", [LOCAL, DDP], ids=["local-sgd", "ddp"])
@pytest.mark.parametrize("make", INNER.values(), ids=INNER.keys())
def test_any_inner_optimizer_trains_with_others(make: Callable[[Net], Optimizers], method: dict[str, Any]) -> None:
    check(train(learner(make), peers=2, steps=40, **method), 40)


def test_accumulated_gradients_are_one_step() -> None:
    result = train(learner(INNER["adamw"], accumulate=3), peers=2, steps=40, **LOCAL)
    check(result, 40)
    assert len(result.commits) == 8


def test_buffers_and_frozen_parameters_stay_each_workers_own() -> None:
    nets: list[Net] = []

    def model() -> Net:
        nets.append(Net())
        nets[-1].frozen.data.fill_(len(nets))
        return nets[-1]

    train(learner(INNER["sgd"], model), peers=2, steps=10, **LOCAL)
    assert [net.frozen[0].item() for net in nets] == [1.0, 2.0]
    assert not torch.equal(nets[0].norm.running_mean, nets[1].norm.running_mean)  # type: ignore[arg-type]
    assert torch.equal(nets[0].norm.weight, nets[1].norm.weight)


def test_the_evaluated_model_has_the_buffers_of_a_worker() -> None:
    seen = []

    def evaluate(model: nn.Module) -> float:
        assert isinstance(model, Net)
        assert torch.equal(model.tied, model.last.weight)
        seen.append(model.norm.num_batches_tracked.item())  # type: ignore[union-attr]
        return 0.0

    train(learner(INNER["sgd"]), peers=2, steps=15, evaluate=evaluate, **LOCAL)
    assert seen == [0, 5, 10, 15]


def test_a_compiled_model_has_the_names_of_the_plain_one() -> None:
    compiled = torch.compile(Net(), backend="eager")
    assert Replica(compiled, ()).manifest == Replica(Net(), ()).manifest  # type: ignore[arg-type]

    def inside() -> Net:
        net = Net()
        net.first = torch.compile(net.first, backend="eager")  # type: ignore[assignment]
        return net

    assert Replica(inside(), ()).manifest == Replica(Net(), ()).manifest


def test_workers_may_compile_or_not() -> None:
    made: list[int] = []

    def build(i: int) -> Any:
        made.append(i)
        net, optimizer, step = learner(INNER["adamw"])(i)
        return (torch.compile(net, backend="eager") if i else net), optimizer, step

    result = train(build, peers=2, steps=40, evaluate=lambda model: 0.0, **LOCAL)
    check(result, 40)


# ---- narrower dtypes


def test_a_bf16_worker_that_does_not_move_contributes_nothing() -> None:
    """phi is fp32 and not on bf16's grid: only the outer momentum moves it, as if no dtype were in between."""
    frozen_after = 5

    def build(i: int) -> Any:
        model = nn.ParameterList([torch.full((9,), 1.0, dtype=torch.bfloat16)])
        optimizer = torch.optim.SGD(model.parameters(), lr=0.125)
        steps = [0]

        def step() -> float:
            steps[0] += 1
            if steps[0] > frozen_after:
                optimizer.param_groups[0]["lr"] = 0.0
            optimizer.zero_grad()
            model[0].sum().backward()
            optimizer.step()
            return 0.0

        return model, optimizer, step

    options = {"every": 5, "outer_lr": 0.7, "momentum": 0.9}
    result = train(build, peers=2, steps=25, method="diloco", options=options, codec="fp32")
    moved = torch.full((9,), 0.625)
    expected = nesterov(0.7, 0.9)(torch.ones(9), [moved, *[torch.zeros(9)] * 4])
    assert torch.allclose(result.state_dict["0"].double(), expected, rtol=1e-6)
    assert not torch.equal(result.state_dict["0"], result.state_dict["0"].bfloat16().float())


@pytest.mark.parametrize("method", [LOCAL, DDP], ids=["local-sgd", "ddp"])
def test_a_bf16_model_trains_with_phi_in_fp32(method: dict[str, Any]) -> None:
    def build(i: int) -> Any:
        model = nn.Linear(6, 6).bfloat16()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
        own = torch.Generator().manual_seed(i)

        def step() -> Tensor:
            x = torch.randn(16, 6, generator=own).bfloat16()
            loss = (model(x) - x.flip(1)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            return loss.detach()

        return model, optimizer, step

    result = train(build, peers=3, steps=60, **method)
    assert result.workers[0].losses[-1] < 0.5 * result.workers[0].losses[0]
    assert all(value.dtype == torch.float32 for value in result.state_dict.values())


# ---- steps that do not happen


def scaled(unscale: bool = False, *, fused: bool = False) -> Any:
    """Every third gradient of worker 0 is infinite, and its GradScaler leaves the step out."""

    def build(i: int) -> Any:
        model = nn.ParameterList([torch.zeros(5)])
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, fused=fused)
        scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
        steps = [0]

        def step() -> float:
            steps[0] += 1
            optimizer.zero_grad()
            scaler.scale(model[0].sum()).backward()
            if i == 0 and steps[0] % 3 == 0:
                model[0].grad = torch.full((5,), float("inf"))
            if unscale:
                scaler.unscale_(optimizer)
            scaler.step(optimizer)
            scaler.update()
            return 0.0

        return model, optimizer, step

    return build


def test_a_step_that_a_scaler_leaves_out_is_none() -> None:
    result = train(scaled(), peers=2, steps=20, **LOCAL)
    assert [len(worker.losses) for worker in result.workers] == [20, 20]
    assert [len(commit.contributors) for commit in result.commits] == [2] * 4
    assert result.workers[1].waited_s > 0  # for the one that left steps out


def test_a_step_that_a_scaler_leaves_out_is_none_where_gradients_are_exchanged() -> None:
    result = train(scaled(), peers=2, steps=20, **DDP)
    assert all(bool(torch.isfinite(value).all()) for value in result.state_dict.values())
    assert [worker.ended for worker in result.workers] == ["finished"] * 2


def test_gradients_that_are_still_scaled_are_not_exchanged() -> None:
    with pytest.raises(ConfigError, match="multiplied by the GradScaler's scale"):
        train(scaled(fused=True), peers=1, steps=20, **DDP)


# ---- several optimizers


def test_an_inner_step_is_over_when_the_last_optimizer_has_stepped() -> None:
    seen: list[str] = []
    weights = [nn.Parameter(torch.zeros(1)) for _ in range(2)]
    one, other = (torch.optim.SGD([weight], lr=1.0) for weight in weights)
    steps = InnerSteps([one, other], lambda: seen.append("before"), lambda: seen.append("after"))
    for optimizer in (one, other):
        optimizer.step()
        seen.append("step")
    assert seen == ["before", "step", "after", "step"]
    seen.clear()
    for optimizer in (one, one, other):  # the second one was left out once
        optimizer.step()
    assert seen == ["before", "after", "before", "after"]
    seen.clear()
    for optimizer in (other, one, other):  # the first one was
        optimizer.step()
    assert seen == ["before", "after"] * 2
    steps.close()
    one.step()
    assert seen == ["before", "after"] * 2


def test_no_optimizer_and_one_twice_are_refused() -> None:
    one = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    for wrong in ([], [one, one]):
        with pytest.raises(ConfigError, match="allowed are 1 and more, each once"):
            in_order(wrong)


# ---- what libraries do to an optimizer


class Wrapped(torch.optim.SGD):
    """As accelerate and Lightning wrap an optimizer: of the class by isinstance, without anything that it has."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer


def test_the_optimizer_that_really_steps_is_followed() -> None:
    one, other = (torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0) for _ in range(2))
    assert in_order([Wrapped(Wrapped(one)), other]) == (one, other)
    with pytest.raises(ConfigError, match="Wrapped is no torch.optim.Optimizer whose steps can be followed"):
        in_order(Wrapped(None))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="each once"):
        in_order([one, Wrapped(one)])


@pytest.mark.parametrize("by_name", [False, True])
def test_gradients_that_come_from_a_closure_are_there_before_the_step(by_name: bool) -> None:
    weight = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    seen: list[object] = []
    steps = InnerSteps([optimizer], lambda: seen.append(weight.grad), lambda: seen.append(weight.item()))

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = 3 * weight.sum()
        loss.backward()
        return loss

    loss = optimizer.step(closure=closure) if by_name else optimizer.step(closure)
    assert loss == 0
    assert seen == [weight.grad, -3.0]
    assert weight.grad == 3
    steps.close()
    lbfgs = torch.optim.LBFGS([weight], max_iter=3)
    seen.clear()
    steps = InnerSteps([lbfgs], lambda: seen.append("before"), lambda: seen.append("after"))
    lbfgs.step(closure)  # which calls it several times
    assert seen == ["before", "after"]
    steps.close()
