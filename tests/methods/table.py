"""The table of methods for the conformance suite: one row each, with the method's own formulas; and small workers."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from wantrain.optimizers.mask import between
from wantrain.sim import Result, Worker, train
from wantrain.transport.codec import codec
from wantrain.transport.partition import chunk_bounds

LR = 0.125
"""Of the inner SGD of `constant`: with its slopes all differences are exact in fp32."""


@dataclass(frozen=True)
class Row:
    """A method with options for a short run."""

    method: str
    options: Mapping[str, Any]
    every: int
    """Inner steps from one sync of its parameters to the next."""
    outer: Callable[[Tensor, list[Tensor]], Tensor]
    """phi after syncs with these averaged differences, one after another, from phi at the start."""
    syncs: Callable[[int], Mapping[str, int]]
    """By stream: syncs in so many steps; the first stream of parameters is the first."""
    name: str = ""
    offset: int = 0
    """Of the first stream of parameters."""
    exact: bool = True
    """Whether `outer` says what comes of `constant`'s workers, which train with plain SGD."""
    codecs: Mapping[str, str] = field(default_factory=dict)
    """By stream: its codec where the run's is `lossy`; that where it is not named."""
    elements: Mapping[str, int] = field(default_factory=dict)
    """By stream: values of `regression(7000)`'s model that it exchanges; all 21,003 where it is not named."""
    common: bool = True
    """Whether all peers hold the same phi; else they keep its mean."""
    gradients: bool = False
    """Whether workers exchange gradients, and so make every step together."""
    private: str = ""
    """What a trainer has at the end of a round that is not phi, and that a run that goes on from a saved state has not:
    there everybody starts from phi, and what remains is, bit for bit, a run whose trainers all started from it at that
    point. Where it is nothing, that is the run without any interruption."""
    lossy: str = "int8"
    """A codec that loses something, and that the method takes."""
    run: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.name or self.method

    @property
    def lead(self) -> str:
        """The first stream of parameters."""
        return next(iter(self.syncs(1)))

    def step(self, sync: int) -> int:
        """After how many steps that sync of the first stream of parameters is due."""
        return self.every * (sync - (self.offset > 0)) + self.offset

    @property
    def averages(self) -> bool:
        """Whether phi is the mean of the workers at the end of a round, no more and no less."""
        one = torch.ones(1)
        return not self.offset and all(self.outer(0 * one, [one] * k).item() == -k for k in (1, 2))

    def train(self, worker: Callable[[int], Any], **more: Any) -> Result:
        """A simulated run of this method."""
        return train(worker, method=self.method, options=self.options, run=self.run, **{"codec": "fp32"} | more)


def nesterov(lr: float, momentum: float, *, look_ahead: bool = True) -> Callable[[Tensor, list[Tensor]], Tensor]:
    """torch's SGD on phi, in float64."""

    def outer(phi: Tensor, deltas: list[Tensor]) -> Tensor:
        value = nn.Parameter(phi.double().clone())
        sgd = torch.optim.SGD([value], lr=lr, momentum=momentum, nesterov=look_ahead)
        for delta in deltas:
            value.grad = delta.double()
            sgd.step()
        return value.detach()

    return outer


def mean(lr: float = 1.0) -> Callable[[Tensor, list[Tensor]], Tensor]:
    """phi moves by lr times each difference."""
    return lambda phi, deltas: phi.double() - lr * torch.stack([delta.double() for delta in deltas]).sum(0)


def adaptive(second: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, list[Tensor]], Tensor]:
    """FedOpt's outer step of rate 0.01 (arXiv 2003.00295, algorithm 2), in float64; v <- second(v, delta^2)."""

    def outer(phi: Tensor, deltas: list[Tensor]) -> Tensor:
        value, m, v = phi.double(), torch.zeros_like(phi).double(), torch.full_like(phi, 1e-6).double()
        for delta in deltas:
            m = 0.9 * m + 0.1 * delta.double()
            v = second(v, delta.double() ** 2)
            value = value - 0.01 * m / (v.sqrt() + 1e-3)
        return value

    return outer


def periodic(**every: int) -> Callable[[int], Mapping[str, int]]:
    """Each stream whenever so many steps are over; by default `param` alone every 5."""
    return lambda steps: {stream: steps // period for stream, period in (every or {"param": 5}).items()}


MOMENTS = {"exp_avg": "bf16", "exp_avg_sq": "bf16"}
"""Small second moments matter as much as large ones: no scale per block is good for both."""

ROWS = (
    Row("local-sgd", {"every": 5}, 5, mean(), periodic()),
    Row("local-sgd", {"every": 5, "outer_lr": 0.5}, 5, mean(0.5), periodic(), "local-sgd, half a step"),
    Row("diloco", {"every": 5}, 5, nesterov(0.7, 0.9), periodic()),
    Row(
        "diloco", {"every": 5, "nesterov": False, "outer_lr": 0.5, "momentum": 0.5}, 5,
        nesterov(0.5, 0.5, look_ahead=False), periodic(), "diloco, heavy ball",
    ),
    Row(
        "eager", {"every": 5}, 5, nesterov(0.4, 0.9), periodic(),
        private="a guess at the sync that is under way, and the momentum of such guesses",
    ),
    Row(
        "delayed", {"every": 5}, 5, nesterov(0.4, 0.9), periodic(), private="it has phi without the sync under way",
    ),
    Row("fedadam", {"every": 5, "outer_lr": 0.01}, 5, adaptive(lambda v, square: 0.99 * v + 0.01 * square), periodic()),
    Row(
        "fedyogi", {"every": 5, "outer_lr": 0.01}, 5,
        adaptive(lambda v, square: v - 0.01 * square * (v - square).sign()), periodic(),
    ),
    Row("fedadagrad", {"every": 5, "outer_lr": 0.01}, 5, adaptive(lambda v, square: v + square), periodic()),
    Row(
        "local-adam", {"every": 5}, 5, mean(), periodic(param=5, exp_avg=5, exp_avg_sq=5),
        codecs=MOMENTS, exact=False,
    ),
    Row(
        "des-loc", {"every": 5, "every_exp_avg": 10, "every_exp_avg_sq": 20}, 5, mean(),
        periodic(param=5, exp_avg=10, exp_avg_sq=20), codecs=MOMENTS, exact=False,
    ),
    Row(
        "streaming-diloco", {"every": 6, "fragments": 1, "split": "balanced", "delay": 0}, 6,
        nesterov(0.4, 0.9), periodic(**{"param-0": 6}), "streaming-diloco, all at once",
    ),
    Row(
        "streaming-diloco", {"every": 6, "fragments": 2, "split": "balanced"}, 6, nesterov(0.4, 0.9),
        lambda steps: {"param-0": (steps + 3) // 6, "param-1": steps // 6}, "streaming-diloco, two fragments",
        elements={"param-0": 21000, "param-1": 3}, offset=3, exact=False,
        private="steps since a fragment's last sync, and weights that are yet to be mixed with it",
    ),
    Row(
        "sparta", {"parts": 4}, 4, mean(), lambda steps: {f"param-{k}": (steps + 3 - k) // 4 for k in range(4)},
        elements={f"param-{k}": between(k, 4, 0, 21003) for k in range(4)}, offset=1, exact=False,
        private="steps since a part's last exchange",
    ),
    Row(
        "noloco", {"every": 5}, 5, nesterov(0.7, 0.5, look_ahead=False), periodic(), common=False,
        lossy="bf16",
    ),
    Row(
        "ddp", {"resync": 5}, 5, mean(), periodic(param=5, grad=1), gradients=True,
    ),
)  # fmt: skip


# ---- workers


def constant(elements: int = 7) -> Callable[[int], tuple[nn.Module, torch.optim.Optimizer, Callable[[], Tensor]]]:
    """The gradient of worker i is slope(i) everywhere, at every step."""

    def build(i: int) -> tuple[nn.Module, torch.optim.Optimizer, Callable[[], Tensor]]:
        model = nn.ParameterList([torch.zeros(elements)])
        optimizer = torch.optim.SGD(model.parameters(), lr=LR)

        def step() -> Tensor:
            optimizer.zero_grad()
            loss = model[0].sum() * slope(i)
            loss.backward()
            optimizer.step()
            return loss.detach()

        return model, optimizer, step

    return build


def slope(i: int) -> float:
    """A power of two: 1, 2, 4, …"""
    return float(2**i)


def regression(elements: int = 12, inner: str = "adamw") -> Callable[[int], Worker]:
    """A linear model on noisy samples of worker i's own; every step draws from torch's generator, too."""

    def build(i: int) -> Worker:
        model = nn.Linear(elements, 3)
        if inner == "adamw":
            optimizer: torch.optim.Optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        else:
            optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        own = torch.Generator().manual_seed(i)
        target = torch.arange(3 * elements).view(3, elements) / elements

        def step() -> Tensor:
            x = torch.randn(8, elements, generator=own)
            noise = 0.1 * torch.randn(8, 3)
            loss = (model(x) - x @ target.T - noise).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            return loss.detach()

        return Worker(model, optimizer, step)

    return build


# ---- what is compared


def equal(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Whether two states have the same bits."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def codec_bytes(name: str, elements: int) -> int:
    """Size of a vector in a codec of fixed size."""
    return sum(codec(name).max_bytes(stop - start) for start, stop in chunk_bounds(elements))


def members(contributors: Sequence[str]) -> list[int]:
    """Numbers of workers from the names of their peers."""
    return [int(name[1:]) for name in contributors]
