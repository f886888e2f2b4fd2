"""Pairs: a matching that everybody computes alike, and the mean of two."""

from collections import Counter
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wantrain.errors import ConfigError
from wantrain.transport.collective import Begin, PartCame, Plan, Reduce, SendPart
from wantrain.transport.pair import matching, pair


@given(st.integers(), st.lists(st.text(max_size=5), unique=True, max_size=20))
def test_everybody_is_in_one_group_whatever_the_order(seed: int, peers: list[str]) -> None:
    groups = matching(seed, peers)
    assert sorted(peer for group in groups for peer in group) == sorted(peers)
    assert [len(group) for group in groups] == [2] * (len(peers) // 2) + [1] * (len(peers) % 2)
    assert matching(seed, sorted(peers)) == groups


def test_the_matching_is_the_same_on_every_platform_and_version() -> None:
    assert matching(7, "abcde") == (("b", "a"), ("c", "e"), ("d",))


def test_all_matchings_come_up_alike() -> None:
    seen = Counter(group for seed in range(3000) for group in map(frozenset, matching(seed, "abcde")))
    pairs = [seen[frozenset(two)] for two in combinations("abcde", 2)]
    assert all(500 < count < 700 for count in pairs)  # 600 each; the deviation is 22
    assert all(500 < seen[frozenset(alone)] < 700 for alone in "abcde")


@pytest.mark.scenario(23)
def test_the_two_of_a_pair_share_the_chunks_and_keep_their_weights() -> None:
    plan = Plan(("a", "b", "c"), (1.0, 2.0, 4.0), (), (3, 1, 1), seed=7)
    weights = dict(zip(plan.contributors, plan.weights, strict=True))
    (first, second), _ = matching(7, plan.contributors)
    assert pair(first, plan).handle(Begin(), 0.0) == [SendPart(second, 3), SendPart(second, 4)]
    assert pair(second, plan).handle(Begin(), 0.0) == [SendPart(first, 0), SendPart(first, 1), SendPart(first, 2)]
    core = pair(second, plan)
    core.handle(Begin(), 0.0)
    inputs = ((weights[first], "part"), (weights[second], None))
    assert core.handle(PartCame(first, 3, "part"), 0.0) == [Reduce(3, inputs, weights[first] + weights[second])]
    assert core.waiting_for == (first,)


def test_a_lone_peer_gets_its_own_input() -> None:
    plan = Plan(("a",), (3.0,), (), (2,))
    assert pair("a", plan).handle(Begin(), 0.0) == [Reduce(k, ((1.0, None),), 1.0) for k in range(2)]


def test_who_contributes_nothing_has_no_pair() -> None:
    with pytest.raises(ConfigError, match="receivers r"):
        pair("a", Plan(("a", "b"), (1.0, 1.0), ("r",), (1, 1)))
