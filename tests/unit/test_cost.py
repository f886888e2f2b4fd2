"""The cost model and what it plans with: shards by bandwidth, the order of a ring, and the choice between them."""

import random
from collections.abc import Collection
from itertools import permutations, product
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wantrain.errors import ConfigError
from wantrain.transport import ring_order as module
from wantrain.transport.cost import Choice, Pace, Pair, choose
from wantrain.transport.partition import split_chunks
from wantrain.transport.reach import Reach
from wantrain.transport.ring_order import Matrix, ring_order
from wantrain.transport.shares import PRECISION, Load

MBIT = 125_000.0
"""Bytes per second."""


# ---- shards


def worst_s(load: Load, shards: tuple[int, ...]) -> float:
    return max(load.times_s([shard / sum(shards) for shard in shards]))


def load_of(*rates: float, up: float = 1e6, down: float = 1e6, receivers: int = 0) -> Load:
    return Load(up, down, receivers, rates, rates)


rates_of = st.lists(st.floats(1e3, 1e9), min_size=2, max_size=6)
sizes = st.floats(1.0, 1e10)


@given(sizes, sizes, st.integers(0, 3), st.data(), st.integers(1, 200))
def test_shards_use_every_chunk_and_are_never_worse_than_equal_ones(
    up: float, down: float, receivers: int, data: st.DataObject, chunks: int
) -> None:
    uploads = data.draw(rates_of)
    downloads = data.draw(st.lists(st.floats(1e3, 1e9), min_size=len(uploads), max_size=len(uploads)))
    load = Load(up, down, receivers, tuple(uploads), tuple(downloads))
    shards = load.shards(chunks)
    assert sum(shards) == chunks
    assert min(shards) >= 0
    assert worst_s(load, shards) <= worst_s(load, split_chunks(chunks, [1.0] * len(uploads))) * (1 + 1e-9)


@given(st.lists(st.integers(1, 20), min_size=6, max_size=6), st.integers(1, 9), st.integers(1, 9), st.integers(0, 2))
def test_no_other_split_is_faster(rates: list[int], up: int, down: int, receivers: int) -> None:
    load = Load(up, down, receivers, tuple(map(float, rates[:3])), tuple(map(float, rates[3:])))
    best = min(worst_s(load, split) for split in product(range(7), repeat=3) if sum(split) == 6)
    assert worst_s(load, load.shards(6)) <= best * (1 + 2 * PRECISION)


@given(st.floats(1e3, 1e9), st.integers(1, 20), st.integers(0, 300))
def test_equal_rates_give_equal_shards(rate: float, count: int, chunks: int) -> None:
    assert load_of(*[rate] * count).shards(chunks) == split_chunks(chunks, [1.0] * count)
    assert load_of(*[0.0] * count).shards(chunks) == split_chunks(chunks, [1.0] * count)


@given(st.integers(3, 12), st.floats(0.01, 0.8), st.data())
def test_a_slower_link_owns_less(count: int, factor: float, data: st.DataObject) -> None:
    slow = data.draw(st.integers(0, count - 1))
    shards = load_of(*[1e6 * (factor if k == slow else 1.0) for k in range(count)]).shards(64 * count)
    assert shards[slow] < min(shards[:slow] + shards[slow + 1 :])


def test_an_unknown_rate_counts_as_the_median_of_the_known_ones() -> None:
    assert load_of(1e6, 0.0, 3e6, 9e6).shards(100) == load_of(1e6, 3e6, 3e6, 9e6).shards(100)
    one_way = Load(1e6, 1e6, 0, (1e6, 2e6, 9e6), (0.0, 0.0, 0.0))
    assert one_way.shards(100) == Load(1e6, 1e6, 0, (1e6, 2e6, 9e6), (2e6,) * 3).shards(100)


def test_who_may_not_own_gets_nothing() -> None:
    assert load_of(1.0, 1.0, 1.0).shards(6, [0, 2]) == (3, 0, 3)
    assert load_of(4.0, 9.0, 2.0).shards(6, [2]) == (0, 0, 6)
    assert load_of(1.0, 2.0).shards(0) == (0, 0)


# ---- the order of a ring


def slowest(order: tuple[int, ...], rates: Matrix) -> float:
    return min(rates[a][b] for a, b in zip(order, order[1:] + order[:1], strict=True))


def length(order: tuple[int, ...], delays: Matrix) -> float:
    return sum(delays[a][b] for a, b in zip(order, order[1:] + order[:1], strict=True))


def matrix(chance: random.Random, count: int, *, cut: float = 0.0, steps: int = 1000) -> list[list[float]]:
    """Rates from 1 to `steps`, and 0 with probability `cut`."""
    return [
        [0.0 if chance.random() < cut else float(chance.randint(1, steps)) for _ in range(count)] for _ in range(count)
    ]


@pytest.mark.parametrize("count", [2, 3, 4, 6])
@pytest.mark.parametrize("cut", [0.0, 0.4])
def test_a_small_ring_is_the_best_of_all_orders(count: int, cut: float) -> None:
    for seed in range(30):
        chance = random.Random(seed)
        rates, delays = matrix(chance, count, cut=cut, steps=5), matrix(chance, count)
        orders = [(0, *rest) for rest in permutations(range(1, count))]
        best = max(orders, key=lambda order: (slowest(order, rates), -length(order, delays)))
        found = ring_order(rates, delays)
        if slowest(best, rates) <= 0:
            assert found is None
        else:
            assert found is not None
            assert sorted(found) == list(range(count))
            assert (slowest(found, rates), length(found, delays)) == (slowest(best, rates), length(best, delays))


def test_no_peer_and_one_are_rings_too() -> None:
    assert ring_order([], []) == ()
    assert ring_order([[0.0]], [[0.0]]) == (0,)


@pytest.mark.parametrize("cut", [0.0, 0.3, 0.5])
def test_the_heuristic_is_nearly_as_good_as_the_exact_search(cut: float, monkeypatch: pytest.MonkeyPatch) -> None:
    same, excess = 0, []
    for seed in range(40):
        chance = random.Random(seed)
        rates, delays = matrix(chance, 9, cut=cut, steps=20), matrix(chance, 9)
        monkeypatch.setattr(module, "EXACT_PEERS", 9)
        exact = ring_order(rates, delays)
        monkeypatch.setattr(module, "EXACT_PEERS", 0)
        found = ring_order(rates, delays)
        if exact is None:
            assert found is None
            continue
        assert found is not None
        assert slowest(found, rates) >= 0.5 * slowest(exact, rates)
        if slowest(found, rates) == slowest(exact, rates):
            same += 1
            excess.append(length(found, delays) / length(exact, delays))
    assert same >= 35
    assert sum(excess) / len(excess) < 1.1


def test_hops_only_become_shorter_where_directions_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in range(20):
        chance = random.Random(seed)
        rates, delays = matrix(chance, 12, cut=0.2, steps=1), matrix(chance, 12)
        found = ring_order(rates, delays)
        with monkeypatch.context() as patch:
            patch.setattr(module, "POLISHING_ROUNDS", 0)
            patched = ring_order(rates, delays)
        assert found is not None
        assert patched is not None
        assert slowest(found, rates) == slowest(patched, rates)
        assert length(found, delays) < length(patched, delays)


def test_a_ring_of_64_finds_the_fast_links_and_short_hops() -> None:
    chance = random.Random(64)
    hidden = list(range(64))
    chance.shuffle(hidden)
    rates = matrix(chance, 64, steps=50)
    for a, b in zip(hidden, hidden[1:] + hidden[:1], strict=True):
        rates[a][b] = 100.0  # these alone are a ring
    found = ring_order(rates, matrix(chance, 64))
    assert found is not None
    assert slowest(found, rates) == 100.0

    places = [(chance.random(), chance.random()) for _ in range(64)]
    delays = [[abs(complex(*a) - complex(*b)) for b in places] for a in places]
    uploads = [chance.choice([1.0, 10.0, 100.0]) for _ in range(64)]
    found = ring_order([[min(u, 2 * v) for v in uploads] for u in uploads], delays)
    assert found is not None
    assert length(found, delays) < 1.3 * 0.7124 * 8  # a shortest tour through n random places is about .7124 sqrt(n)


def test_sites_that_reach_each_other_by_two_links_only_are_joined_by_these() -> None:
    rates = [[9.0 if (a < 5) == (b < 5) else 0.0 for b in range(10)] for a in range(10)]
    rates[4][5] = rates[9][0] = 1.0
    found = ring_order(rates, [[1.0] * 10 for _ in range(10)])
    assert found is not None
    assert slowest(found, rates) == 1.0
    rates[9][0] = 0.0
    assert ring_order(rates, [[1.0] * 10 for _ in range(10)]) is None


# ---- the choice


def names(count: int) -> tuple[str, ...]:
    return tuple(f"p{k}" for k in range(count))


def mesh(count: int, rate: float = 100 * MBIT, rtt_s: float = 0.1) -> dict[Pair, Pace]:
    return {(a, b): Pace(rate, rtt_s) for a in names(count) for b in names(count) if a != b}


def chosen(
    count: int,
    links: dict[Pair, Pace],
    *,
    topology: str = "auto",
    size: float = 64e6,
    chunks: int = 64,
    receivers: tuple[str, ...] = (),
    unreachable: Collection[Pair] = (),
    outbound: Collection[str] = (),
    per_hop: bool = True,
) -> Choice:
    choice = choose(
        topology,
        names(count),
        receivers,
        chunks=chunks,
        up_bytes=size,
        down_bytes=size,
        links=links,
        reach=Reach.of(unreachable, outbound),
        per_hop=per_hop,
    )
    assert set(choice.contributors) <= set(names(count))
    assert len(choice.contributors) == len(set(choice.contributors)) == len(choice.shards)
    assert sum(choice.shards) == chunks
    return choice


def test_without_any_measurement_it_is_direct_in_equal_shards() -> None:
    assert chosen(5, {}) == Choice(
        "direct", names(5), (), (13, 13, 13, 13, 12), 0.0, "direct, as no link has been measured"
    )


def test_small_tensors_over_long_ways_go_direct_by_the_ratio_of_hops() -> None:
    direct, ring = (chosen(8, mesh(8), topology=t, size=4e4, chunks=8).predicted_s for t in ("direct", "ring"))
    assert chosen(8, mesh(8), size=4e4, chunks=8).topology == "direct"
    assert 6 < ring / direct < 8  # 14 hops to 2


def test_big_tensors_take_what_the_links_carry() -> None:
    for topology in ("direct", "ring"):
        wire_s = 2 * 7 / 8 * 64e6 / (100 * MBIT)
        assert wire_s < chosen(8, mesh(8, rtt_s=0.01), topology=topology).predicted_s < 1.2 * wire_s


def test_big_tensors_go_round_a_slow_link_between_two() -> None:
    links = mesh(8, 1000 * MBIT, 0.02)
    links["p0", "p1"] = links["p1", "p0"] = Pace(8 * MBIT, 0.02)
    choice = chosen(8, links)
    ring = choice.contributors
    assert choice.topology == "ring"
    assert abs(ring.index("p0") - ring.index("p1")) not in (1, 7)
    assert choice.shards == (8,) * 8
    assert choice.predicted_s < 0.2 * chosen(8, links, topology="direct").predicted_s
    assert chosen(8, links, size=4e3, chunks=1).topology == "direct"


def test_a_peer_on_a_slow_line_owns_less_of_a_direct_one() -> None:
    links = {pair: Pace(10 * MBIT if "p3" in pair else 100 * MBIT, 0.02) for pair in mesh(8)}
    choice = chosen(8, links)
    assert choice.topology == "direct"
    assert choice.shards[3] < min(choice.shards[:3] + choice.shards[4:])


def test_a_codec_that_bears_no_hops_never_gets_a_ring_by_itself() -> None:
    links = mesh(8, 1000 * MBIT, 0.02)
    links["p0", "p1"] = links["p1", "p0"] = Pace(8 * MBIT, 0.02)
    assert chosen(8, links, per_hop=False).topology == "direct"
    assert chosen(8, links, per_hop=False, topology="ring").topology == "ring"


@pytest.mark.scenario(18)
def test_who_cannot_reach_everybody_owns_nothing() -> None:
    choice = chosen(4, mesh(4), topology="direct", unreachable={("p1", "p2")})
    assert choice.shards[1] == choice.shards[2] == 0
    assert chosen(3, mesh(3), topology="direct", receivers=("r",), unreachable={("r", "p0")}).shards[0] == 0
    assert chosen(3, mesh(3), topology="direct", unreachable={("p0", "stranger")}).shards[0] > 0


@pytest.mark.parametrize("measured", [True, False])
def test_where_nobody_reaches_everybody_a_ring_avoids_the_gaps(measured: bool) -> None:
    gaps = {("p0", "p1"), ("p2", "p3"), ("p4", "p5"), ("p1", "p0"), ("p3", "p2"), ("p5", "p4")}
    choice = chosen(6, mesh(6) if measured else {}, unreachable=gaps)
    ring = choice.contributors
    assert choice.topology == "ring"
    assert not gaps & set(zip(ring, ring[1:] + ring[:1], strict=True))
    assert "no contributor reaches everybody" in choice.reason


def test_where_no_order_and_no_owner_serves_all_those_who_reach_an_owner_go_on() -> None:
    gaps = {(a, b) for a, b in mesh(5) if (a < "p2") != (b < "p2")}
    for topology in ("auto", "ring", "direct"):
        choice = chosen(5, mesh(5), topology=topology, unreachable=gaps, receivers=("r",))
        assert (choice.topology, choice.contributors, choice.receivers) == ("direct", ("p2", "p3", "p4"), ("r",))
        assert "2 of 5 are left out: no contributor reaches everybody" in choice.reason


def test_peers_that_can_only_dial_out_own_nothing_and_are_no_neighbours() -> None:
    choice = chosen(4, mesh(4), topology="direct", outbound=("p1", "p2", "r"), receivers=("r",))
    assert (choice.shards[1], choice.shards[2]) == (0, 0)
    assert (choice.contributors, choice.receivers) == (names(4), ("r",))
    ring = chosen(4, mesh(4), topology="ring", outbound=("p0", "p1")).contributors
    assert {"p0", "p1"} not in [{a, b} for a, b in zip(ring, ring[1:] + ring[:1], strict=True)]
    assert chosen(3, mesh(3), topology="ring", outbound=("p0", "p1")).topology == "direct"
    assert chosen(3, mesh(3), topology="direct", outbound=("p0",)).shards[0] > 0


@pytest.mark.parametrize("topology", ["ring", "auto"])
def test_a_ring_does_not_leave_as_many_without_the_update_as_are_in_it(topology: str) -> None:
    receivers = ("q", "r", "s", "t")
    choice = chosen(4, mesh(4), topology=topology, receivers=receivers)
    assert (choice.topology, choice.receivers) == ("direct", receivers)
    assert chosen(4, mesh(4), topology="ring", receivers=receivers[:3]).topology == "ring"


def test_receivers_that_no_owner_reaches_are_left_to_fetch_it() -> None:
    choice = chosen(2, mesh(2), topology="direct", unreachable={("p0", "q"), ("p1", "q")}, receivers=("q", "r"))
    assert (choice.contributors, choice.receivers) == (("p0", "p1"), ("r",))


def test_what_was_asked_for_is_done() -> None:
    for topology in ("direct", "ring", "pair"):
        choice = chosen(4, mesh(4), topology=topology)
        assert choice.topology == topology
        assert "as asked for" in choice.reason
    with pytest.raises(ConfigError, match="unknown topology 'star'"):
        chosen(4, {}, topology="star")


def test_a_receiver_on_a_slow_line_takes_its_time() -> None:
    links = {**mesh(3), **{(peer, "r"): Pace(1 * MBIT, 0.1) for peer in names(3)}}
    assert chosen(3, links, receivers=("r",), topology="direct").predicted_s > 64e6 / MBIT


@pytest.mark.parametrize("count", [1, 2, 3, 9, 70])
@pytest.mark.parametrize("chunks", [0, 1, 5])
def test_any_size_and_partly_measured_links_give_a_plan(count: int, chunks: int) -> None:
    chance = random.Random(count)
    links = {
        pair: Pace(chance.choice([0.0, 1e6, 1e8]), chance.choice([0.0, 0.1]))
        for pair in mesh(count)
        if chance.random() < 0.3
    }
    for topology in ("auto", "direct", "ring", "pair"):
        choice = chosen(count, links, topology=topology, size=1e5 * chunks, chunks=chunks, receivers=("r",))
        assert 0 <= choice.predicted_s < inf
