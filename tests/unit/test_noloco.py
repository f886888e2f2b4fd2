"""NoLoCo: the step of a pair, what follows for mean and spread of many replicas, and which settings are refused."""

import itertools

import pytest
import torch
from torch import Tensor

from wantrain.errors import ConfigError
from wantrain.optimizers.method import build
from wantrain.optimizers.pair_step import NoLoCo
from wantrain.optimizers.stream import Wire
from wantrain.transport.pair import matching

RULE = NoLoCo()
PLAIN = Wire("fp32")


class Replica:
    """One peer's phi and momentum."""

    def __init__(self, phi: Tensor) -> None:
        self.phi, self.momentum = phi.clone(), torch.zeros_like(phi)


def exchange(group: list[Replica], thetas: list[Tensor], options: dict[str, float]) -> None:
    """One step of a group, as the engine does it."""
    offered = []
    for replica, theta in zip(group, thetas, strict=True):
        out = torch.empty_like(theta)
        RULE.offer(replica.phi, replica.phi - theta, options, out)
        offered.append(out)
    mean = torch.stack(offered).mean(0)
    for replica in group:
        RULE.apply(replica.phi, mean.clone(), (replica.momentum,), options, torch.empty_like(mean))


def rounds(replicas: list[Replica], drift: Tensor, options: dict[str, float], first: int = 0) -> None:
    """One round of random pairs, numbered from `first`, for each row of drift[rounds, peers, n]: theta - phi."""
    names = [f"p{k}" for k in range(len(replicas))]
    for seed, rows in enumerate(drift, start=first):
        thetas = [replica.phi + row for replica, row in zip(replicas, rows, strict=True)]
        for group in matching(seed, names):
            members = [names.index(name) for name in group]
            exchange([replicas[k] for k in members], [thetas[k] for k in members], options)


@pytest.mark.parametrize("beta", [0.7, 0.4])
@pytest.mark.parametrize("members", [1, 2])
def test_the_step_is_the_papers(beta: float, members: int) -> None:
    options = {"alpha": 0.5, "beta": beta, "gamma": 0.7}
    generator = torch.Generator().manual_seed(0)

    def draw() -> Tensor:
        return torch.randn(64, generator=generator)

    group = [Replica(draw()) for _ in range(members)]
    for replica in group:
        replica.momentum.copy_(draw())
    thetas = [draw() for _ in group]
    before = [(replica.phi.double(), replica.momentum.double()) for replica in group]
    gradient = torch.stack([theta.double() - phi for theta, (phi, _) in zip(thetas, before, strict=True)]).mean(0)
    middle = torch.stack([phi for phi, _ in before]).mean(0)
    exchange(group, thetas, options)
    for replica, (phi, momentum) in zip(group, before, strict=True):
        momentum = 0.5 * momentum + beta * gradient + 0.7 * (middle - phi)
        torch.testing.assert_close(replica.momentum.double(), momentum, rtol=0, atol=1e-6)
        torch.testing.assert_close(replica.phi.double(), phi + momentum, rtol=0, atol=1e-6)


def test_the_mean_of_the_replicas_follows_heavy_ball_on_the_mean_outer_gradient() -> None:
    generator = torch.Generator().manual_seed(1)
    drift = torch.randn((12, 6, 50), generator=generator)
    start = torch.randn(50, generator=generator)
    replicas = [Replica(start) for _ in range(6)]
    rounds(replicas, drift, dict(RULE.options))
    phi, momentum = start.double(), torch.zeros(50, dtype=torch.float64)
    for rows in drift.double():
        momentum = 0.5 * momentum + 0.7 * rows.mean(0)
        phi += momentum
    torch.testing.assert_close(torch.stack([r.phi for r in replicas]).double().mean(0), phi, rtol=0, atol=1e-5)


def test_the_spread_of_four_replicas_settles_where_theory_has_it() -> None:
    """With iid unit drift and the paper's settings the standard deviation tends to 0.655."""
    generator = torch.Generator().manual_seed(2)
    replicas = [Replica(torch.zeros(300)) for _ in range(4)]
    variances = []
    for number in range(2000):
        rounds(replicas, torch.randn((1, 4, 300), generator=generator), dict(RULE.options), number)
        phi = torch.stack([replica.phi for replica in replicas])
        variances.append((phi - phi.mean(0)).square().mean().item())
    assert sum(variances[20:]) / len(variances[20:]) == pytest.approx(0.655**2, rel=0.06)


def growth(alpha: float, gamma: float) -> float:
    """Spectral radius of one round on the second moments (x^2, x d, d^2) of deviations, for very many replicas."""
    step = torch.tensor([-gamma / 2, alpha, 0.0], dtype=torch.float64)
    square = torch.tensor([gamma**2 / 2, -alpha * gamma, alpha**2], dtype=torch.float64)
    first = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
    return torch.linalg.eigvals(torch.stack([first + 2 * step + square, step + square, square])).abs().max().item()


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 0.9])
def test_replicas_fly_apart_exactly_beyond_the_bound(alpha: float) -> None:
    bound = 2 * (1 - alpha**2)
    assert growth(alpha, 0.99 * bound) < 1 < growth(alpha, 1.01 * bound)
    build("noloco", {"alpha": alpha, "gamma": 0.99 * bound}, PLAIN)
    with pytest.raises(ConfigError, match=f"gamma is .*; allowed with alpha = {alpha}: a number < {bound:.4g}"):
        build("noloco", {"alpha": alpha, "gamma": bound}, PLAIN)


def test_a_run_that_would_end_within_a_round_is_refused() -> None:
    with pytest.raises(ConfigError, match="total is 110; allowed: a multiple of every, which is 50"):
        build("noloco", {"total": 110}, Wire("fp32"))
    (stream,) = build("noloco", {"total": 150}, Wire("fp32"))
    assert stream.last == 3


def test_codecs_for_differences_are_refused() -> None:
    for wire in (Wire("int8"), Wire("fp32", "int4"), Wire("int4+zstd")):
        with pytest.raises(ConfigError, match="allowed: fp32 or bf16, as peers exchange weights"):
            build("noloco", {}, wire)
    (stream,) = build("noloco", {}, Wire("bf16+zstd"))
    assert (stream.gossip, stream.every, stream.codecs) == (True, 50, ("bf16+zstd", "bf16+zstd"))


@pytest.mark.parametrize("beta", [0.7, 0.35])
def test_in_a_consensus_all_replicas_become_one(beta: float) -> None:
    options = {"alpha": 0.5, "beta": beta, "gamma": 0.7}
    generator = torch.Generator().manual_seed(3)
    replicas = [Replica(torch.randn(30, generator=generator)) for _ in range(5)]
    thetas = [replica.phi + 0.1 for replica in replicas]
    expected = torch.stack([replica.phi for replica in replicas]).mean(0) + 0.1 * beta / 0.7
    offered = torch.empty((5, 30))
    for replica, theta, out in zip(replicas, thetas, offered, strict=True):
        RULE.offer(replica.phi, replica.phi - theta, options, out)
    for replica in replicas:
        RULE.agree(replica.phi, offered.mean(0), (replica.momentum,), options)
        torch.testing.assert_close(replica.phi, expected)
        assert not replica.momentum.any()
    for one, other in itertools.pairwise(replicas):
        assert torch.equal(one.phi, other.phi)
