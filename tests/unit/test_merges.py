"""Merge rules: the update each makes, and that its bits depend on nothing but the element's own values."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from wantrain.errors import ConfigError
from wantrain.optimizers.merge import MERGES, Merge, merge

torch.set_num_threads(1)

SIZE = 1003
every_rule = pytest.mark.parametrize("rule", MERGES.values(), ids=MERGES)
sgd_rules = pytest.mark.parametrize(("name", "nesterov"), [("nesterov", True), ("heavy-ball", False)])


def gaussian(seed: int, elements: int = SIZE) -> Tensor:
    return torch.randn(elements, generator=torch.Generator().manual_seed(seed))


def step(rule: Merge, phi: Tensor, delta: Tensor, state: tuple[Tensor, ...], **options: float) -> None:
    """Apply to phi and state in place, keeping delta, with garbage in scratch."""
    rule.apply(phi, delta.clone(), state, {**rule.options, **options}, torch.full_like(phi, torch.nan))


def zero_state(rule: Merge, elements: int = SIZE) -> tuple[Tensor, ...]:
    return tuple(torch.zeros(elements) for _ in rule.slots)


@every_rule
@given(cuts=st.lists(st.integers(0, SIZE), max_size=8).map(sorted))
@settings(max_examples=30, deadline=None)
def test_any_split_into_ranges_gives_the_same_bits(rule: Merge, cuts: list[int]) -> None:
    whole, split = gaussian(0), gaussian(0)
    whole_state, split_state = zero_state(rule), zero_state(rule)
    for round_ in range(1, 4):
        delta = gaussian(round_)
        step(rule, whole, delta, whole_state, lr=0.7)
        for start, stop in zip([0, *cuts], [*cuts, SIZE], strict=True):
            step(rule, split[start:stop], delta[start:stop], tuple(s[start:stop] for s in split_state), lr=0.7)
    assert torch.equal(whole, split)
    assert all(torch.equal(a, b) for a, b in zip(whole_state, split_state, strict=True))


@every_rule
def test_no_difference_and_no_momentum_change_nothing(rule: Merge) -> None:
    phi = gaussian(0)
    step(rule, phi, torch.zeros(SIZE), zero_state(rule))
    assert torch.equal(phi, gaussian(0))


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
    with pytest.raises(ConfigError, match="adam") as caught:
        merge("adam")
    assert "mean, nesterov, heavy-ball" in caught.value.hint
