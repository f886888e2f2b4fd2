"""The order of an epoch: a bijection of any length, another one for each seed and epoch, in next to no memory."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wantrain.permutation import Permutation


@given(st.integers(1, 700), st.integers(0, 2**62), st.integers(0, 1000))
def test_every_position_has_its_own_sample(length: int, seed: int, epoch: int) -> None:
    order = Permutation(length, seed, epoch)
    assert sorted(map(order.index, range(length))) == list(range(length))


def test_seed_epoch_and_length_decide_the_order() -> None:
    def order(*arguments: int) -> list[int]:
        return [Permutation(*arguments).index(k) for k in range(50)]

    orders = [order(50, 0, 0), order(50, 0, 1), order(50, 1, 0), order(51, 0, 0)]
    assert len({tuple(found) for found in orders}) == len(orders)
    assert order(50, 0, 0) == orders[0]


def test_the_order_is_part_of_the_protocol() -> None:
    """Peers of different versions must agree on it."""
    assert [Permutation(10, 3, 2).index(k) for k in range(10)] == [3, 4, 7, 8, 6, 1, 0, 9, 5, 2]
    assert [Permutation(10**10, 3, 2).index(k) for k in (0, 1, 10**10 - 1)] == [4078750748, 9508511119, 9403941779]


def test_huge_lengths_need_no_memory_and_stay_inside() -> None:
    for length in (10**10, 2**62):
        order = Permutation(length, 0, 0)
        found = [order.index(k) for k in (*range(200), length - 1)]
        assert len(set(found)) == len(found)
        assert all(0 <= sample < length for sample in found)
        assert max(found) > length // 2 > min(found)


@pytest.mark.parametrize("length", [3, 10, 64])
def test_over_many_epochs_every_sample_comes_first_about_as_often(length: int) -> None:
    times = 60
    first = Counter(Permutation(length, 1, epoch).index(0) for epoch in range(times * length))
    assert len(first) == length
    assert times / 2 < min(first.values()) <= max(first.values()) < 2 * times


def test_neighbours_do_not_stay_neighbours() -> None:
    order = [Permutation(1000, 0, 0).index(k) for k in range(1000)]
    close = sum(abs(a - b) <= 10 for a, b in zip(order, order[1:], strict=False))
    assert close < 60  # 21 of 1000 by chance
