"""Who is apart from whom, the largest group that can go on, and the parts that a run falls into."""

import itertools
import random

import pytest

from wantrain.transport.reach import Reach, apart_in_words

PEERS = ("a", "b", "c", "d", "e")


def drawn(seed: int) -> Reach:
    chance = random.Random(seed)
    pairs = [pair for pair in itertools.combinations(PEERS, 2) if chance.random() < 0.4]
    return Reach.of(pairs, [peer for peer in PEERS if chance.random() < 0.3])


def test_only_two_that_can_both_only_dial_out_are_apart() -> None:
    reach = Reach.of((), ("a", "b"))
    assert reach.apart("a", "b")
    assert not reach.apart("a", "c")
    assert not reach.apart("a", "a")
    assert not reach.whole
    assert Reach.of((), ("a",)).whole


@pytest.mark.parametrize("seed", range(50))
def test_a_group_is_as_large_as_any_around_one_owner_and_its_owners_reach_all_of_it(seed: int) -> None:
    reach = drawn(seed)
    contributors, receivers = PEERS[:4], PEERS[4:]
    group = reach.group(contributors, receivers, {})
    assert group.owners
    assert group.owners <= set(group.contributors)
    for owner in group.owners:
        assert reach.missing(owner, (*group.contributors, *group.receivers)) == ()
    around = {p: sum(not reach.apart(p, q) for q in contributors) for p in contributors}
    assert len(group.contributors) == max(around.values())


@pytest.mark.parametrize("seed", range(50))
def test_parts_are_what_no_third_peer_joins(seed: int) -> None:
    reach = drawn(seed)
    parts = reach.parts(PEERS)
    assert sorted(peer for part in parts for peer in part) == list(PEERS)
    for one, other in itertools.combinations(parts, 2):
        assert all(reach.apart(a, b) for a in one for b in other)
    for part in parts:
        joined = {part[0]}
        for _ in part:
            joined |= {p for p in part if any(not reach.apart(p, q) for q in joined)}
        assert joined == set(part)


def test_a_relay_reaches_both() -> None:
    assert Reach.of([("a", "d")], ("b", "c")).relays("b", "c", PEERS) == ("a", "d", "e")
    assert Reach.of([("b", "d")], ("b", "c")).relays("b", "c", PEERS) == ("a", "e")


def test_of_groups_with_as_many_contributors_that_whose_update_most_get_is_chosen() -> None:
    """p1 is behind a broken path, p0 and p2 can only dial out; p3, late, reaches both of them."""
    reach = Reach.of([("p1", "p0"), ("p1", "p2"), ("p1", "p3")], outbound=["p0", "p2"])
    group = reach.group(("p1", "p2", "p0"), ("p3",), {})
    assert (group.contributors, group.receivers) == (("p2",), ("p3",))


def test_the_reason_says_whether_it_is_a_matter_of_dialling_or_of_a_broken_path() -> None:
    name = {"a": "anna", "b": "ben", "c": "carl"}.__getitem__
    assert apart_in_words(Reach.of((), "ab"), "a", ("b",), name) == "it can only dial out, and so can ben"
    assert apart_in_words(Reach.of([("a", "b")]), "a", ("b", "c"), name) == "it has no connection to ben, carl"
