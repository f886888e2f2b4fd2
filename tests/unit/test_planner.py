"""Plans from measurements: what peers report decides topology, order and shards, and noise does not."""

import pytest

from wantrain.optimizers.stream import Stream
from wantrain.peers.link_table import LinkTable
from wantrain.peers.messages import LinkReport
from wantrain.peers.planner import Planner

PEERS = ("a", "b", "c", "d")


def path(rate: float, rtt_s: float = 0.01) -> LinkReport:
    return LinkReport(rate, rtt_s, 0.0, 1, "cubic")


def measured(rates: dict[str, float]) -> LinkTable:
    """Every peer sends at its own rate to every other."""
    table = LinkTable()
    for peer in PEERS:
        table.reported(peer, {other: path(rates[peer]) for other in PEERS if other != peer}, ())
    return table


def planner(table: LinkTable, *, codec: str = "int8", topology: str = "auto", step_s: float = 0.0) -> Planner:
    stream = Stream("param", codec=codec, down="int8", topology=topology)
    return Planner(stream, 2**24, 64, table, lambda peers: step_s)


def test_without_measurements_everybody_owns_as_much() -> None:
    choice = planner(LinkTable()).plan(PEERS, (), False)
    assert (choice.topology, choice.contributors, choice.shards, choice.predicted_s) == (
        "direct", PEERS, (16, 16, 16, 16), 0.0,
    )  # fmt: skip


def test_a_slow_link_owns_less() -> None:
    choice = planner(measured({"a": 1e8, "b": 1e8, "c": 1e8, "d": 1e6}), topology="direct").plan(PEERS, (), False)
    assert choice.shards[3] < min(choice.shards[:3])
    assert sum(choice.shards) == 64
    assert choice.predicted_s > 0


@pytest.mark.scenario(18)
def test_pairs_that_cannot_reach_each_other_are_not_neighbours_in_a_ring() -> None:
    table = measured(dict.fromkeys(PEERS, 1e7))
    table.reported("b", {other: path(1e7) for other in "acd"}, ("a",))
    order = planner(table, topology="ring").plan(PEERS, (), False).contributors
    assert {"a", "b"} not in [{x, y} for x, y in zip(order, order[1:] + order[:1], strict=True)]
    assert table.reach.apart("a", "b")
    assert table.reach.apart("b", "a")


@pytest.mark.parametrize("topology", ["auto", "ring"])
def test_after_a_ring_that_stalled_only_direct_is_planned(topology: str) -> None:
    assert planner(LinkTable(), topology=topology).plan(PEERS, (), True).topology == "direct"


def test_a_plan_stands_until_a_measurement_differs_by_more_than_noise() -> None:
    table = measured(dict.fromkeys(PEERS, 1e7))
    plans = planner(table)
    first = plans.plan(PEERS, (), False)
    table.reported("a", {"b": path(1.1e7)}, ())
    assert plans.plan(PEERS, (), False) is first
    table.reported("a", {"b": path(2e7)}, ())
    assert plans.plan(PEERS, (), False) is not first


@pytest.mark.parametrize(("rate", "codec"), [(1e8, "int8"), (2.5e6, "rms0.35+zstd"), (1e5, "rms0.75+huffman")])
def test_a_slow_link_takes_fewer_bits(rate: float, codec: str) -> None:
    """16 million values: 16 MB each way in int8; 10 s are there for them."""
    choice = planner(measured(dict.fromkeys(PEERS, rate)), codec="auto", step_s=1.0).plan(PEERS, (), False)
    assert choice.codec == codec
    assert choice.reason.startswith("direct in about ")
    assert f"; {codec} " in choice.reason


def test_a_codec_that_is_named_is_not_in_the_plan() -> None:
    assert planner(measured(dict.fromkeys(PEERS, 1e7)), step_s=1.0).plan(PEERS, (), False).codec == ""


def test_a_rate_that_is_not_known_yet_does_not_replace_one_that_is() -> None:
    table = measured(dict.fromkeys(PEERS, 1e7))
    version = table.version
    table.reported("a", {"b": path(0.0)}, ())
    assert (table.version, table.paces["a", "b"].rate_bytes_per_s) == (version, 1e7)


def test_what_was_measured_with_a_peer_is_forgotten_when_it_goes() -> None:
    table = measured(dict.fromkeys(PEERS, 1e7))
    table.reported("a", {}, ("d",))
    table.greeted("a", "")
    table.greeted("d", "")
    table.gone("a")
    assert all("a" not in pair for pair in table.paces)
    assert table.reach.whole
    assert "a" not in table.paths


def test_two_that_can_only_dial_out_own_nothing_from_the_first_plan_on() -> None:
    table = LinkTable()
    for peer in PEERS:
        table.greeted(peer, "" if peer in "bc" else "host:1")
    assert planner(table).plan(PEERS, (), False).shards == (32, 0, 0, 32)


def test_who_was_left_out_is_in_the_sooner_the_longer_it_was() -> None:
    """A line b - a - c - d: no peer reaches all others."""
    table = LinkTable()
    table.reported("a", {}, ("d",))
    table.reported("b", {}, ("c", "d"))
    plans = planner(table)
    inside = [plans.plan(PEERS, (), False).contributors for _ in range(6)]
    assert all("".join(peers) in ("abc", "acd", "ab", "cd") for peers in inside)
    for peer in PEERS:
        assert sum(peer in peers for peers in inside) >= 2, peer


@pytest.mark.scenario(17)
def test_a_plan_says_how_long_one_message_takes_on_the_slowest_link() -> None:
    """A chunk of int8 has 2^18 bytes here, and one may be on its way to each of the three others."""
    table = measured({"a": 1e8, "b": 1e8, "c": 1e8, "d": 1e5})
    choice = planner(table, topology="direct").plan(PEERS, (), False)
    assert 3 * 2**18 / 1e5 < choice.slowest_s < 3.1 * 2**18 / 1e5
    assert planner(table).plan(("a", "b", "c"), (), False).slowest_s < 0.1
    assert planner(LinkTable()).plan(PEERS, (), False).slowest_s == 0.0
