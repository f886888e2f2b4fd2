"""Averages of contributions: against float64 references, and against peers that lie, with what a rule cannot do."""

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from wantrain.errors import ConfigError
from wantrain.optimizers.average import AVERAGES, average
from wantrain.optimizers.norm_clip import clip_to_median
from wantrain.optimizers.sorting import PIECE_ELEMENTS, network
from wantrain.optimizers.trimmed_mean import trimmed

torch.set_num_threads(1)

SIZE = PIECE_ELEMENTS + 517
every_rule = pytest.mark.parametrize("rule", AVERAGES)


def gaussian(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def combined(rule: str, rows: Tensor, *, trim: float = 0.2, clip: bool = False) -> Tensor:
    """The average, with garbage where it will lie; the rows are kept."""
    rows, out = rows.clone(), torch.full((rows.shape[1],), math.nan)
    if clip:
        clip_to_median(rows)
    average(rule).combine(rows, trim, out)
    return out


def reference(rule: str, rows: Tensor, trim: float) -> Tensor:
    values = np.sort(rows.double().numpy(), axis=0)
    if rule == "median":
        return torch.from_numpy(np.median(values, axis=0))
    cut = trimmed(len(rows), trim) if rule == "trimmed-mean" else 0
    return torch.from_numpy(values[cut : len(rows) - cut].mean(axis=0))


# ---- what they compute


@every_rule
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 8, 13, 32])
@pytest.mark.parametrize("trim", [0.0, 0.2, 0.45])
def test_a_rule_is_its_definition(rule: str, rows: int, trim: float) -> None:
    values = gaussian(rows, rows, SIZE)
    values[0, ::7] = values[-1, ::7]  # ties
    assert torch.allclose(combined(rule, values, trim=trim).double(), reference(rule, values, trim), atol=2e-6, rtol=0)


@pytest.mark.parametrize("rows", range(1, 17))
def test_the_network_sorts_every_order_of_zeros_and_ones(rows: int) -> None:
    """Which is every order of anything: the 0-1 principle (Knuth, 5.3.4, theorem Z)."""
    values = np.array(list(itertools.product([0, 1], repeat=min(rows, 12))), dtype=np.int8)
    values = np.pad(values, ((0, 0), (0, rows - values.shape[1])))
    wanted = np.sort(values, axis=1)
    for low, high in {(0, rows), ((rows - 1) // 2, rows // 2 + 1), (rows // 3, rows - rows // 3)}:
        out = values.copy()
        for i, j in network(rows, low, high):
            out[:, i], out[:, j] = np.minimum(out[:, i], out[:, j]), np.maximum(out[:, i], out[:, j])
        assert (out[:, low:high] == wanted[:, low:high]).all()


@every_rule
@given(st.integers(1, 9), st.integers(0, 10**6), st.lists(st.integers(0, SIZE), max_size=4).map(sorted))
@settings(max_examples=15)
def test_any_split_into_ranges_gives_the_same_bits(rule: str, rows: int, seed: int, cuts: list[int]) -> None:
    values = gaussian(seed, rows, SIZE)
    parts = [combined(rule, values[:, a:b]) for a, b in itertools.pairwise([0, *cuts, SIZE])]
    assert torch.equal(torch.cat(parts), combined(rule, values))


@pytest.mark.parametrize("rule", ["median", "trimmed-mean"])
def test_the_order_of_contributors_says_nothing(rule: str) -> None:
    values = gaussian(0, 5, 1000)
    assert torch.allclose(combined(rule, values), combined(rule, values[[3, 1, 4, 0, 2]]), atol=1e-6)


def test_of_one_or_two_every_rule_is_their_mean() -> None:
    for rows in (1, 2):
        values = gaussian(0, rows, 100)
        for rule in AVERAGES:
            assert torch.allclose(combined(rule, values, trim=0.4), values.mean(dim=0), atol=1e-7)


@pytest.mark.parametrize(("rows", "trim", "cut"), [(1, 0.4, 0), (2, 0.4, 0), (3, 0.1, 1), (4, 0.2, 1), (5, 0.2, 1),
                                                  (6, 0.2, 2), (10, 0.1, 1), (10, 0.49, 4), (7, 0.0, 0)])  # fmt: skip
def test_as_many_are_left_out_as_were_asked_for_rounded_up(rows: int, trim: float, cut: int) -> None:
    assert trimmed(rows, trim) == cut


def test_the_middle_of_huge_values_does_not_overflow() -> None:
    assert combined("median", torch.full((4, 10), 3e38)).tolist() == pytest.approx([3e38] * 10)


def test_norms_are_cut_to_the_median_of_what_is_there() -> None:
    rows = gaussian(0, 5, 1000)
    rows[1] *= 1e30
    rows[3] *= 0.0
    before = rows.clone()
    factors = clip_to_median(rows)
    norms = [float(row.double().norm()) for row in rows]
    limit = sorted(float(row.double().norm()) for row in before)[2]
    assert max(norms) == pytest.approx(limit, rel=1e-6)
    assert factors.count(1.0) == 3
    assert torch.equal(rows[3], before[3])
    assert torch.allclose(rows[1] / rows[1].norm(), before[1] / before[1].double().norm(), atol=1e-6)


def test_two_are_cut_to_the_shorter_and_one_is_left_alone() -> None:
    rows = torch.tensor([[3.0, 4.0], [30.0, 40.0]])
    assert clip_to_median(rows) == [1.0, 0.1]
    assert clip_to_median(torch.tensor([[7.0]])) == [1.0]
    assert clip_to_median(torch.zeros(3, 4)) == [1.0, 1.0, 1.0]


def test_an_unknown_rule_is_refused_with_those_that_are_known() -> None:
    with pytest.raises(ConfigError, match="'krum'") as caught:
        average("krum")
    assert "median" in caught.value.hint


# ---- against liars: 3 of 10, on a quadratic bowl with noise

HONEST, LIARS, WIDE, ROUNDS, RATE = 7, 3, 200, 60, 0.2
Attack = Callable[[Tensor], Tensor]


def sign_flip(honest: Tensor) -> Tensor:
    return -10.0 * honest.mean(dim=0)


def inner_product(honest: Tensor) -> Tensor:
    """arXiv 1903.03936: against the honest mean, just strong enough to turn the plain one around."""
    return -1.2 * HONEST / LIARS * honest.mean(dim=0)


def little_is_enough(honest: Tensor, z: float = 1.0) -> Tensor:
    """arXiv 1902.06083: a shift of one standard deviation, well within what honest contributions show."""
    return honest.mean(dim=0) - z * honest.std(dim=0)


def distance(rule: str, attack: Attack, *, clip: bool = False, noise: float = 0.2) -> float:
    """How far from the minimum a run ends, as a share of where it began."""
    x = torch.ones(WIDE)
    for round_ in range(ROUNDS):
        honest = x + noise * gaussian(round_, HONEST, WIDE)
        rows = torch.cat([honest, attack(honest).expand(LIARS, WIDE)])
        x = x - RATE * combined(rule, rows, trim=LIARS / 10, clip=clip)
    return float(x.norm()) / math.sqrt(WIDE)


@pytest.mark.parametrize("attack", [sign_flip, inner_product])
def test_the_plain_mean_is_turned_around(attack: Attack) -> None:
    assert distance("mean", attack) > 2.0


@pytest.mark.scenario(14)
@pytest.mark.parametrize("attack", [sign_flip, inner_product])
@pytest.mark.parametrize("rule", ["median", "trimmed-mean"])
@pytest.mark.parametrize("clip", [False, True])
def test_a_robust_rule_converges(rule: str, attack: Attack, clip: bool) -> None:
    assert distance(rule, attack, clip=clip) < 0.2


def test_clipping_alone_is_enough_against_length() -> None:
    """A liar's length is gone, its direction is not: against 3 of 10 the other 7 win, more slowly."""
    assert distance("mean", sign_flip, clip=True) < 0.2


@pytest.mark.parametrize("rule", AVERAGES)
def test_little_is_enough_keeps_every_rule_from_the_minimum_within_a_bound(rule: str) -> None:
    """What no rule here prevents: a bias of the order of the honest spread, which goes with the noise."""
    shifted = distance(rule, little_is_enough, noise=0.5)
    assert distance(rule, lambda honest: honest.mean(dim=0), noise=0.5) < 0.5 * shifted
    assert shifted < 0.5
    assert distance(rule, little_is_enough, noise=0.05) < 0.15 * shifted


def test_against_a_little_the_median_is_no_better_than_the_mean() -> None:
    assert distance("median", little_is_enough, noise=0.5) > distance("mean", little_is_enough, noise=0.5)


def test_half_and_more_liars_win_against_every_rule() -> None:
    values = torch.cat([torch.ones(4, 100), torch.full((5, 100), -1e6)])
    for rule in AVERAGES:
        assert float(combined(rule, values, trim=0.4).max()) < -1e4, rule
