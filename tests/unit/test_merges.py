"""Merge rules: the update each makes, and that its bits depend on nothing but the element's own values."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from wantrain.errors import ConfigError
from wantrain.optimizers.merge import MERGES, Merge, merge
from wantrain.optimizers.pair_step import NoLoCo

torch.set_num_threads(1)

SIZE = 1003
every_rule = pytest.mark.parametrize("rule", MERGES.values(), ids=MERGES)
adaptive_rules = pytest.mark.parametrize("name", ["adam", "yogi", "adagrad"])
sgd_rules = pytest.mark.parametrize(("name", "nesterov"), [("nesterov", True), ("heavy-ball", False)])


def gaussian(seed: int, elements: int = SIZE) -> Tensor:
    return torch.randn(elements, generator=torch.Generator().manual_seed(seed))


def step(rule: Merge, phi: Tensor, delta: Tensor, state: tuple[Tensor, ...], **options: float) -> None:
    """Apply to phi and state in place, keeping delta, with garbage in scratch."""
    options = {**rule.options, "index": 1.0, **options}
    rule.apply(phi, delta.clone(), state, options, torch.full_like(phi, torch.nan))


def zero_state(rule: Merge, elements: int = SIZE) -> tuple[Tensor, ...]:
    return tuple(torch.full((elements,), value) for value in rule.start(rule.options))


@every_rule
@given(cuts=st.lists(st.integers(0, SIZE), max_size=8).map(sorted))
@settings(max_examples=30)
def test_any_split_into_ranges_gives_the_same_bits(rule: Merge, cuts: list[int]) -> None:
    whole, split = gaussian(0), gaussian(0)
    whole_state, split_state = zero_state(rule), zero_state(rule)
    for round_ in range(1, 4):
        delta = gaussian(round_)
        step(rule, whole, delta, whole_state, lr=0.7, index=round_ + 1)
        for start, stop in zip([0, *cuts], [*cuts, SIZE], strict=True):
            step(
                rule,
                split[start:stop],
                delta[start:stop],
                tuple(s[start:stop] for s in split_state),
                lr=0.7,
                index=round_ + 1,
            )
    assert torch.equal(whole, split)
    assert all(torch.equal(a, b) for a, b in zip(whole_state, split_state, strict=True))


@every_rule
def test_no_difference_and_no_momentum_change_nothing(rule: Merge) -> None:
    phi = gaussian(0).abs()  # one of the rules has nothing below 0
    # Without a common phi it is a value that is exchanged: all the same where everybody has this one.
    step(rule, phi, phi.clone() if isinstance(rule, NoLoCo) else torch.zeros(SIZE), zero_state(rule))
    assert torch.equal(phi, gaussian(0).abs())


@every_rule
def test_an_empty_range_is_fine(rule: Merge) -> None:
    step(rule, torch.empty(0), torch.empty(0), zero_state(rule, 0))


def test_mean_with_lr_1_is_the_difference_exactly() -> None:
    phi = gaussian(0)
    step(merge("mean"), phi, gaussian(1), ())
    assert torch.equal(phi, gaussian(0) - gaussian(1))


def test_mean_scales_then_subtracts() -> None:
    phi = gaussian(0)
    step(merge("mean"), phi, gaussian(1), (), lr=0.3)
    assert torch.equal(phi, gaussian(0) - gaussian(1) * 0.3)


@sgd_rules
def test_momentum_follows_torch_sgd(name: str, nesterov: bool) -> None:
    rule, phi = merge(name), gaussian(0)
    state = zero_state(rule)
    parameter = torch.nn.Parameter(gaussian(0))
    sgd = torch.optim.SGD([parameter], lr=0.7, momentum=0.9, nesterov=nesterov, foreach=False)
    for round_ in range(1, 30):
        parameter.grad = gaussian(round_)
        sgd.step()
        step(rule, phi, gaussian(round_), state)
    # torch may fuse its multiply and add, so that each step may differ in the last bit.
    torch.testing.assert_close(phi, parameter.detach(), rtol=2e-6, atol=2e-5)


@sgd_rules
def test_momentum_follows_the_formula_in_float64(name: str, nesterov: bool) -> None:
    rule, phi = merge(name), gaussian(0)
    state = zero_state(rule)
    exact, b = gaussian(0).double(), torch.zeros(SIZE, dtype=torch.float64)
    for round_ in range(1, 30):
        delta = gaussian(round_).double()
        b = 0.9 * b + delta
        exact = exact - 0.7 * (delta + 0.9 * b if nesterov else b)
        step(rule, phi, gaussian(round_), state)
    torch.testing.assert_close(phi.double(), exact, rtol=2e-6, atol=2e-5)
    torch.testing.assert_close(state[0].double(), b, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize(("name", "gain"), [("nesterov", 0.7 * 1.9), ("heavy-ball", 0.7), ("mean", 0.7)])
def test_gain_of_the_first_step(name: str, gain: float) -> None:
    rule, phi = merge(name), torch.zeros(SIZE)
    step(rule, phi, torch.ones(SIZE), zero_state(rule), lr=0.7)
    torch.testing.assert_close(phi, torch.full((SIZE,), -gain))


@sgd_rules
def test_steady_gain_is_lr_over_one_minus_momentum(name: str, nesterov: bool) -> None:
    rule, phi = merge(name), torch.zeros(SIZE)
    state = zero_state(rule)
    for _ in range(300):
        before = phi.clone()
        step(rule, phi, torch.full((SIZE,), 0.001), state)
    torch.testing.assert_close(phi - before, torch.full((SIZE,), -0.007), rtol=1e-3, atol=0)


def test_operations_are_rounded_one_by_one_in_the_documented_order() -> None:
    for name in ("nesterov", "heavy-ball"):
        phi, b, delta = gaussian(0), gaussian(1), gaussian(2)
        expected_b = b.mul(0.9).add(delta)
        direction = expected_b.mul(0.9).add(delta) if name == "nesterov" else expected_b
        expected_phi = phi.sub(direction.mul(0.7))
        step(merge(name), phi, delta, (b,))
        assert torch.equal(phi, expected_phi)
        assert torch.equal(b, expected_b)


def test_an_unknown_rule_is_refused_with_the_known_names() -> None:
    with pytest.raises(ConfigError, match="adamw") as caught:
        merge("adamw")
    assert "mean, nesterov, heavy-ball, adam, yogi, adagrad, delayed-nesterov" in caught.value.hint


# ---- steps scaled by the second moment


def adaptive_reference(name: str, rounds: int, lr: float, beta1: float, beta2: float, scale: float) -> Tensor:
    """fp64[SIZE]: algorithm 2 of the paper along D = -delta, from phi = gaussian(0), v_0 = scale^2 and m_0 = 0."""
    x, m = gaussian(0).double(), torch.zeros(SIZE, dtype=torch.float64)
    v = torch.full_like(m, scale**2)
    for round_ in range(1, rounds + 1):
        ascent = -gaussian(round_).double()
        m = beta1 * m + (1 - beta1) * ascent
        square = ascent * ascent
        if name == "adagrad":
            v = v + square
        elif name == "adam":
            v = beta2 * v + (1 - beta2) * square
        else:
            v = v - (1 - beta2) * square * torch.sign(v - square)
        x = x + lr * m / (v.sqrt() + scale)
    return x


@adaptive_rules
@pytest.mark.parametrize("scale", [1e-3, 0.5])
def test_adaptive_rules_follow_the_formula_in_float64(name: str, scale: float) -> None:
    rule, phi = merge(name), gaussian(0)
    options = {"lr": 0.1, "beta1": 0.8, "beta2": 0.95, "scale": scale}
    state = tuple(torch.full((SIZE,), value) for value in rule.start(options))
    for round_ in range(1, 30):
        step(rule, phi, gaussian(round_), state, **options)
    expected = adaptive_reference(name, 29, 0.1, 0.8, 0.95, scale)
    torch.testing.assert_close(phi.double(), expected, rtol=1e-5, atol=1e-5)


def test_adam_follows_torch_adam_but_for_its_start() -> None:
    """With the same moments to begin with and no bias correction: torch's, far from the start, has next to none."""
    rule, phi, steps = merge("adam"), gaussian(0), 10**6
    parameter = torch.nn.Parameter(gaussian(0))
    inner = torch.optim.Adam([parameter], lr=0.1, betas=(0.9, 0.99), eps=1e-3, foreach=False)
    parameter.grad = gaussian(1)
    inner.step()
    with torch.no_grad():
        parameter.copy_(gaussian(0))
    inner.state[parameter]["step"].fill_(steps)
    state = (inner.state[parameter]["exp_avg"].clone(), inner.state[parameter]["exp_avg_sq"].clone())
    for round_ in range(2, 20):
        parameter.grad = gaussian(round_)
        inner.step()
        step(rule, phi, gaussian(round_), state, lr=0.1)
    torch.testing.assert_close(phi, parameter.detach(), rtol=1e-5, atol=1e-5)


def test_adagrad_follows_torch_adagrad_without_momentum() -> None:
    rule, phi = merge("adagrad"), gaussian(0)
    parameter = torch.nn.Parameter(gaussian(0))
    inner = torch.optim.Adagrad([parameter], lr=0.1, eps=1e-3, initial_accumulator_value=1e-6, foreach=False)
    state = tuple(torch.full((SIZE,), value) for value in rule.start(rule.options))
    for round_ in range(1, 20):
        parameter.grad = gaussian(round_)
        inner.step()
        step(rule, phi, gaussian(round_), state, lr=0.1, beta1=0.0)
    torch.testing.assert_close(phi, parameter.detach(), rtol=1e-5, atol=1e-5)


@adaptive_rules
def test_the_second_moment_begins_at_the_square_of_the_scale_and_stays_finite(name: str) -> None:
    rule, phi = merge(name), torch.zeros(3)
    state = tuple(torch.full((3,), value) for value in rule.start({**rule.options, "scale": 0.25}))
    assert state[1].tolist() == [0.0625] * 3
    for _ in range(3):
        step(rule, phi, torch.tensor([1e30, -3e38, 0.0]), state, scale=0.25)
    assert all(tensor.isfinite().all() for tensor in (phi, *state))


# ---- momentum at every N-th sync


def test_delayed_nesterov_with_no_delay_is_nesterov_bit_for_bit() -> None:
    ours, theirs = gaussian(0), gaussian(0)
    rule, other = merge("delayed-nesterov"), merge("nesterov")
    state, state_other = zero_state(rule), zero_state(other)
    for round_ in range(1, 10):
        step(rule, ours, gaussian(round_), state, wait=1.0, index=round_)
        step(other, theirs, gaussian(round_), state_other)
    assert torch.equal(ours, theirs)
    assert torch.equal(state[0], state_other[0])


@pytest.mark.parametrize(("wait", "share"), [(2, 0.0), (3, 0.2), (4, 0.25)])
def test_delayed_nesterov_follows_the_formula_in_float64(wait: int, share: float) -> None:
    rule, phi = merge("delayed-nesterov"), gaussian(0)
    state = zero_state(rule)
    x, m = gaussian(0).double(), torch.zeros(SIZE, dtype=torch.float64)
    kept = torch.zeros_like(m)
    for round_ in range(1, 20):
        delta = gaussian(round_).double()
        kept = kept + delta
        if round_ % wait:
            x = x - 0.7 * (share * 0.9 * m + delta / wait)
        else:
            m = 0.9 * m + kept / wait
            x = x - 0.7 * ((1 - share * wait + share) * 0.9 * m + delta / wait)
            kept = torch.zeros_like(m)
        step(rule, phi, gaussian(round_), state, wait=float(wait), share=share, index=round_)
    torch.testing.assert_close(phi.double(), x, rtol=2e-6, atol=2e-5)
    torch.testing.assert_close(state[1].double(), kept, rtol=2e-6, atol=2e-6)
