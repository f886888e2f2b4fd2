"""The ring: which way a chunk goes, what each peer adds, what is kept for those who ask, and that nothing idles."""

from collections import deque

import pytest

from wantrain.transport.collective import (
    Ask,
    Asked,
    Begin,
    ChunkReduced,
    Complete,
    Effect,
    ForwardPart,
    PartCame,
    Plan,
    Reduce,
    ResultCame,
    SendPart,
    SendResult,
    Tick,
)
from wantrain.transport.ring import Ring


def ring(
    me: str, contributors: str, shards: tuple[int, ...], weights: tuple[float, ...] = (), receivers: str = ""
) -> Ring:
    return Ring(me, Plan(tuple(contributors), weights or (1.0,) * len(contributors), tuple(receivers), shards))


def begun(
    me: str, contributors: str, shards: tuple[int, ...], weights: tuple[float, ...] = (), receivers: str = ""
) -> Ring:
    core = ring(me, contributors, shards, weights, receivers)
    core.handle(Begin(), 0.0)
    return core


def test_a_chunk_starts_behind_its_owner_and_collects_every_input_on_its_way_there() -> None:
    weights = (1.0, 2.0, 3.0, 4.0)
    starter, second, third, owner = (begun(peer, "abcd", (1, 0, 0, 0), weights) for peer in "bcda")
    assert ring("b", "abcd", (1, 0, 0, 0)).handle(Begin(), 0.0) == [SendPart("c", 0)]
    assert starter.missing == 1
    assert second.handle(PartCame("b", 0, "b"), 0.0) == [Reduce(0, ((2.0, "b"), (3.0, None)), 1.0, final=False)]
    assert second.handle(ChunkReduced(0, "bc", b""), 0.0) == [ForwardPart("d", 0, "bc")]
    assert third.handle(PartCame("c", 0, "bc"), 0.0) == [Reduce(0, ((1.0, "bc"), (4.0, None)), 1.0, final=False)]
    assert third.handle(ChunkReduced(0, "bcd", b""), 0.0) == [ForwardPart("a", 0, "bcd")]
    assert owner.handle(PartCame("d", 0, "bcd"), 0.0) == [Reduce(0, ((1.0, "bcd"), (1.0, None)), 10.0, final=True)]
    sent = owner.handle(ChunkReduced(0, "mean", b"d"), 0.0)
    assert sent[0] == SendResult("b", 0, "mean")
    assert isinstance(sent[1], Complete)


def test_of_two_the_other_starts_and_the_owner_ends() -> None:
    core = begun("a", "ab", (1, 1), (2.0, 3.0))
    assert core.handle(PartCame("b", 0, "b"), 0.0) == [Reduce(0, ((3.0, "b"), (2.0, None)), 5.0, final=True)]
    assert ring("a", "ab", (1, 1)).handle(Begin(), 0.0) == [SendPart("b", 1)]


def test_a_sole_contributor_makes_the_mean_of_itself_and_starts_it_round_the_receivers() -> None:
    core = ring("a", "a", (1,), (2.0,), receivers="rs")
    assert core.handle(Begin(), 0.0) == [Reduce(0, ((2.0, None),), 2.0, final=True)]
    assert core.handle(ChunkReduced(0, "mean", b"d"), 0.0)[0] == SendResult("r", 0, "mean")
    first, last = (begun(peer, "a", (1,), receivers="rs") for peer in "rs")
    assert first.handle(ResultCame("a", 0, "mean", b"d"), 0.0)[0] == SendResult("s", 0, "mean")
    assert [type(effect) for effect in last.handle(ResultCame("r", 0, "mean", b"d"), 0.0)] == [Complete]


def test_the_same_bytes_of_a_mean_go_round_contributors_and_receivers_and_stop_before_the_owner() -> None:
    cores = {peer: begun(peer, "abc", (0, 1, 0), receivers="rs") for peer in "acrs"}
    cores["a"].handle(PartCame("c", 0, "c"), 0.0)
    cores["a"].handle(ChunkReduced(0, "ca", b""), 0.0)
    way: list[Effect] = []
    for me, source in ("cb", "rc", "sr", "as"):  # b owns it
        way += cores[me].handle(ResultCame(source, 0, "mean", b"d"), 0.0)
    sent = [(effect.to, effect.payload) for effect in way if isinstance(effect, SendResult)]
    assert sent == [("r", "mean"), ("s", "mean"), ("a", "mean")]
    assert sum(isinstance(effect, Complete) for effect in way) == 4


def test_parts_and_results_are_taken_from_the_neighbour_only_and_once() -> None:
    core = begun("b", "abcd", (1, 1, 1, 1))
    assert core.handle(PartCame("c", 1, 7), 0.0) == core.handle(PartCame("d", 1, 7), 0.0) == []
    assert len(core.handle(PartCame("a", 1, 7), 0.0)) == 1
    assert core.handle(PartCame("a", 1, 7), 0.0) == []
    assert core.handle(PartCame("a", 0, 7), 0.0) == [], "it starts here"
    assert core.handle(ResultCame("c", 0, 7, b"d"), 0.0) == []
    assert core.handle(ResultCame("a", 1, 7, b"d"), 0.0) == [], "its mean is made here"
    assert core.handle(ResultCame("a", 0, 7, b"d"), 0.0) == [SendResult("c", 0, 7)]
    assert core.handle(ResultCame("a", 0, 7, b"d"), 0.0) == []


def test_no_mean_is_true_before_our_own_input_has_left() -> None:
    core = begun("b", "abcd", (1, 1, 1, 1))
    missing = core.missing
    assert core.handle(ResultCame("a", 3, 7, b"d"), 0.0) == []
    core.handle(PartCame("a", 3, 5), 0.0)
    assert core.handle(ResultCame("a", 3, 7, b"d"), 0.0) == []
    core.handle(ChunkReduced(3, 6, b""), 0.0)
    assert core.missing == missing - 1
    assert core.handle(ResultCame("a", 3, 7, b"d"), 0.0) == [SendResult("c", 3, 7)]


def test_a_sum_is_sent_again_until_its_mean_shows_that_it_arrived() -> None:
    core = begun("b", "abcd", (1, 1, 1, 1))
    assert core.handle(Asked("c", (0, 3), ()), 0.0) == [SendPart("c", 0)]
    core.handle(PartCame("a", 3, 5), 0.0)
    core.handle(ChunkReduced(3, 6, b""), 0.0)
    assert core.handle(Asked("c", (3, 3), (3,)), 0.0) == [ForwardPart("c", 3, 6)]
    assert core.handle(Asked("a", (3,), (3,)), 0.0) == core.handle(Asked("d", (3,), (3,)), 0.0) == []
    core.handle(ResultCame("a", 3, 7, b"d"), 0.0)
    assert core.handle(Asked("c", (3,), (3, 3)), 0.0) == [SendResult("c", 3, 7)]


def test_it_waits_for_the_neighbour_who_sends_what_is_missing() -> None:
    first = begun("a", "abc", (1, 1, 1), receivers="r")
    assert (first.missing, first.waiting_for) == (5, ("c", "r")), "parts come from c, results from the receiver"
    assert first.handle(Tick(), 1.0) == [Ask("c", (0, 1), ()), Ask("r", (), (2,))]
    middle = begun("b", "abc", (1, 1, 1), receivers="r")
    assert middle.waiting_for == ("a",)
    assert middle.handle(Tick(), 1.0) == [Ask("a", (1, 2), (0,))]
    receiver = begun("r", "abc", (1, 1, 1), receivers="r")
    assert (receiver.missing, receiver.waiting_for) == (3, ("c",))
    assert receiver.handle(Tick(), 1.0) == [Ask("c", (), (0, 1, 2))]


@pytest.mark.parametrize(("count", "chunks"), [(2, 16), (3, 12), (5, 40), (8, 64)])
def test_all_links_are_busy_from_first_to_last(count: int, chunks: int) -> None:
    # One chunk per link and step: nothing may be lost but the first steps of the pipeline.
    peers = "abcdefgh"[:count]
    cores = {peer: ring(peer, peers, (chunks // count,) * count) for peer in peers}
    queues: dict[str, deque[SendPart | ForwardPart | SendResult]] = {peer: deque() for peer in peers}
    done: set[str] = set()

    def take(peer: str, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Reduce(chunk):
                    take(peer, cores[peer].handle(ChunkReduced(chunk, 0, b"d"), 0.0))
                case Complete():
                    done.add(peer)
                case SendPart() | ForwardPart() | SendResult():
                    queues[peer].append(effect)

    for peer, core in cores.items():
        take(peer, core.handle(Begin(), 0.0))
    steps = 0
    while len(done) < count:
        steps += 1
        for peer, effect in [(peer, queue.popleft()) for peer, queue in queues.items() if queue]:
            result = isinstance(effect, SendResult)
            came = ResultCame(peer, effect.chunk, 0, b"d") if result else PartCame(peer, effect.chunk, 0)
            take(effect.to, cores[effect.to].handle(came, 0.0))
    per_link = 2 * (count - 1) * chunks // count
    assert steps == per_link
