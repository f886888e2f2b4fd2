"""All topologies through one suite: the right mean in the same bytes, whatever comes late, twice or never."""

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import pytest
import torch
from torch import Tensor

from wantrain.errors import ConfigError, ProtocolBug
from wantrain.transport.codec import codec
from wantrain.transport.collective import (
    ASK_AFTER_S,
    Ask,
    Asked,
    Begin,
    ChunkReduced,
    Complete,
    Event,
    ForwardPart,
    PartCame,
    Plan,
    Reduce,
    ResultCame,
    SendPart,
    SendResult,
    Tick,
)
from wantrain.transport.digest import chunk_digest
from wantrain.transport.pair import matching
from wantrain.transport.partition import chunk_bounds, split_chunks
from wantrain.transport.topologies import TOPOLOGIES, collective

ERROR = {"fp32": 0.0, "bf16": 2**-9, "int8": 1 / 254}
"""What one encoding may lose, as a share of the largest magnitude."""


def names(count: int, first: str = "p") -> tuple[str, ...]:
    return tuple(f"{first}{k}" for k in range(count))


def plan_of(peers: tuple[str, ...], chunks: int, receivers: tuple[str, ...] = (), seed: int = 0) -> Plan:
    shards = split_chunks(chunks, [1.0] * len(peers))
    return Plan(peers, (1.0,) * len(peers), receivers, shards, seed)


def in_mean_of(topology: str, plan: Plan, peer: str) -> tuple[str, ...]:
    """Whose inputs belong to what `peer` gets."""
    if topology != "pair":
        return plan.contributors
    return next(group for group in matching(plan.seed, plan.contributors) if peer in group)


# ---- what payloads are


class Arithmetic(Protocol):
    def part(self, peer: str, chunk: int) -> Any: ...
    def reduce(self, peer: str, effect: Reduce) -> Any: ...
    def digest(self, payload: Any) -> bytes: ...
    def size_bytes(self, payload: Any) -> int: ...


class Numbers:
    """Powers of 100: any sum shows who is in it, and how often."""

    def __init__(self, peers: tuple[str, ...]) -> None:
        self.values = {peer: 100**k for k, peer in enumerate(peers)}

    def part(self, peer: str, chunk: int) -> Any:
        return self.values[peer]

    def reduce(self, peer: str, effect: Reduce) -> Any:
        return sum(int(weight) * (self.values[peer] if part is None else part) for weight, part in effect.inputs)

    def digest(self, payload: Any) -> bytes:
        return str(payload).encode()

    def size_bytes(self, payload: Any) -> int:
        return 1


class Tensors:
    """Inputs of normally distributed values, encoded by codecs that may differ up and down."""

    def __init__(self, peers: tuple[str, ...], elements: int, up: str, down: str) -> None:
        generator = torch.Generator().manual_seed(elements)
        self.inputs = {peer: torch.randn(elements, generator=generator) * 3 for peer in peers}
        self.bounds = chunk_bounds(elements)
        self.up, self.down = codec(up), codec(down)

    def part(self, peer: str, chunk: int) -> Any:
        return self._encode(self.inputs[peer][slice(*self.bounds[chunk])], final=False)

    def reduce(self, peer: str, effect: Reduce) -> Any:
        own = self.inputs[peer][slice(*self.bounds[effect.chunk])]
        acc = torch.zeros_like(own)
        for weight, part in effect.inputs:
            if part is None:
                acc += own * weight
            else:
                self.up.accumulate(part, weight, acc)
        return self._encode(acc / effect.divisor, final=effect.final)

    def _encode(self, values: Tensor, *, final: bool) -> Tensor:
        how = self.down if final else self.up
        out = torch.empty(how.max_bytes(values.numel()), dtype=torch.uint8)
        return out[: how.encode(values, out)]

    def digest(self, payload: Any) -> bytes:
        return chunk_digest(payload.numpy())

    def size_bytes(self, payload: Any) -> int:
        return int(payload.numel())

    def mean(self, done: Complete) -> Tensor:
        mean = torch.empty(self.bounds[-1][1] if self.bounds else 0)
        for (start, stop), payload in zip(self.bounds, done.payloads, strict=True):
            self.down.decode(payload, mean[start:stop])
        return mean


# ---- the network


@dataclass
class AllReduce:
    """The cores of one attempt, by peer."""

    topology: str
    plan: Plan
    arithmetic: Arithmetic
    complete: dict[str, Complete] = field(default_factory=dict)
    sent_bytes: dict[tuple[str, type], int] = field(default_factory=dict)
    """By sender and kind of event."""

    def __post_init__(self) -> None:
        everybody = (*self.plan.contributors, *self.plan.receivers)
        self.cores = {peer: collective(self.topology, peer, self.plan) for peer in everybody}

    def handle(self, peer: str, event: Event, now: float) -> Iterator[tuple[str, Event]]:
        """Let a peer react, do its sums, and give what it sends: (to, event there)."""
        for effect in self.cores[peer].handle(event, now):
            match effect:
                case SendPart(to, chunk):
                    yield self._sent(peer, to, PartCame(peer, chunk, self.arithmetic.part(peer, chunk)))
                case ForwardPart(to, chunk, payload):
                    yield self._sent(peer, to, PartCame(peer, chunk, payload))
                case SendResult(to, chunk, payload):
                    yield self._sent(peer, to, ResultCame(peer, chunk, payload, self.arithmetic.digest(payload)))
                case Ask(to, parts, results):
                    assert parts or results
                    yield to, Asked(peer, parts, results)
                case Reduce(chunk, inputs, divisor, final):
                    assert not final or divisor == sum(self.plan.weights) or self.topology == "pair"
                    assert sum(part is None for _, part in inputs) == 1
                    total = self.arithmetic.reduce(peer, effect)
                    digest = self.arithmetic.digest(total) if final else b""
                    yield from self.handle(peer, ChunkReduced(chunk, total, digest), now)
                case Complete():
                    assert peer not in self.complete
                    assert self.cores[peer].missing == 0
                    assert self.cores[peer].waiting_for == ()
                    self.complete[peer] = effect

    def _sent(self, peer: str, to: str, event: PartCame | ResultCame) -> tuple[str, Event]:
        assert to != peer
        key = (peer, type(event))
        self.sent_bytes[key] = self.sent_bytes.get(key, 0) + self.arithmetic.size_bytes(event.payload)
        return to, event


class Network:
    """Messages of any number of attempts in flight; they arrive in random order, this share of them twice, or never."""

    def __init__(self, *attempts: AllReduce, seed: int = 0, repeated: float = 0.0, lost: float = 0.0) -> None:
        self.attempts = attempts
        self.random = random.Random(seed)
        self.repeated = repeated
        self.lost = lost
        self.flying: list[tuple[AllReduce, str, str, Event]] = []
        self.delivered = 0

    def begin(self) -> None:
        starts = [(attempt, peer) for attempt in self.attempts for peer in attempt.cores]
        self.random.shuffle(starts)
        for attempt, peer in starts:
            self._handle(attempt, peer, Begin(), 0.0)

    def _handle(self, attempt: AllReduce, peer: str, event: Event, now: float) -> None:
        for to, sent in attempt.handle(peer, event, now):
            self.flying += [(attempt, peer, to, sent)] * (2 if self.random.random() < self.repeated else 1)

    def run(self, *, lose: int = -1, dead: str = "", until: int = -1, now: float = 0.0) -> None:
        """Deliver what flies, or the first `until`; not number `lose`, and nothing from or to the dead."""
        while self.flying and self.delivered != until:
            attempt, source, to, event = self.flying.pop(self.random.randrange(len(self.flying)))
            self.delivered += 1
            if self.delivered - 1 != lose and dead not in (source, to) and self.random.random() >= self.lost:
                self._handle(attempt, to, event, now)

    def tick(self, now: float) -> None:
        for attempt in self.attempts:
            for peer in attempt.cores:
                self._handle(attempt, peer, Tick(), now)


def moved(attempt: AllReduce, seed: int = 0, repeated: float = 0.0) -> AllReduce:
    network = Network(attempt, seed=seed, repeated=repeated)
    network.begin()
    network.run()
    return attempt


def check_means(attempt: AllReduce, up: str, down: str) -> None:
    """Everybody has the same bytes as those it shares a mean with, and that is the weighted mean of the inputs."""
    tensors = attempt.arithmetic
    assert isinstance(tensors, Tensors)
    weights = dict(zip(attempt.plan.contributors, attempt.plan.weights, strict=True))
    largest = max((float(values.abs().max()) for values in tensors.inputs.values() if values.numel()), default=0.0)
    assert set(attempt.complete) == set(attempt.cores)
    digests: dict[tuple[str, ...], bytes] = {}
    for peer, done in attempt.complete.items():
        group = in_mean_of(attempt.topology, attempt.plan, peer)
        assert digests.setdefault(group, done.digest) == done.digest
        mean = tensors.mean(done)
        total = sum(weights[p] for p in group)
        exact = torch.stack([tensors.inputs[p].double() * weights[p] for p in group]).sum(0) / total
        encodings_up = len(group) - 1 if attempt.topology == "ring" else 1
        lost = largest * (encodings_up * ERROR[up] + ERROR[down] + 1e-6 * len(group)) * 1.01
        assert mean.shape == exact.shape
        assert not mean.numel() or float((mean.double() - exact).abs().max()) <= lost


# ---- values


@pytest.mark.parametrize("elements", [0, 1, 5, 3 * 16384 + 17, 100_000])
@pytest.mark.parametrize("count", [2, 3, 16])
@pytest.mark.parametrize(("up", "down"), [("fp32", "fp32"), ("int8", "int8"), ("int8", "bf16")])
@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_everybody_gets_the_weighted_mean_in_the_same_bytes(
    topology: str, up: str, down: str, count: int, elements: int
) -> None:
    torch.set_num_threads(1)
    peers, receivers = names(count), () if topology == "pair" else names(count % 3, "r")
    chunks = len(chunk_bounds(elements))
    weights = tuple(1.0 + 0.5 * (k % 4) for k in range(count))
    speeds = [1.0 + (k % 3) for k in range(count)]
    plan = Plan(peers, weights, receivers, split_chunks(chunks, speeds), seed=elements)
    attempt = AllReduce(topology, plan, Tensors(peers, elements, up, down))
    check_means(moved(attempt, seed=count, repeated=0.2), up, down)


@pytest.mark.parametrize("topology", TOPOLOGIES)
@pytest.mark.parametrize("count", range(1, 17))
def test_each_input_is_in_the_mean_exactly_once(topology: str, count: int) -> None:
    peers, receivers = names(count), () if topology == "pair" else names(2, "r")
    for chunks in (0, 1, count - 1, 2 * count + 1):
        attempt = moved(AllReduce(topology, plan_of(peers, chunks, receivers), Numbers(peers)), chunks, repeated=0.2)
        numbers = Numbers(peers).values
        assert set(attempt.complete) == {*peers, *receivers}
        for peer, done in attempt.complete.items():
            total = sum(numbers[p] for p in in_mean_of(topology, attempt.plan, peer))
            assert done.payloads == (total,) * chunks


def test_attempts_of_several_tags_share_a_network() -> None:
    peers = names(5)
    attempts = []
    for k, (topology, (up, down)) in enumerate(
        (t, codecs) for t in TOPOLOGIES for codecs in (("fp32", "fp32"), ("int8", "int8"))
    ):
        elements = 10_000 + 5000 * k
        turned = peers[k % 5 :] + peers[: k % 5]
        plan = plan_of(turned, len(chunk_bounds(elements)), seed=k)
        attempts.append((AllReduce(topology, plan, Tensors(turned, elements, up, down)), up, down))
    network = Network(*(attempt for attempt, _, _ in attempts), seed=1, repeated=0.1)
    network.begin()
    network.run()
    for attempt, up, down in attempts:
        check_means(attempt, up, down)


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_the_order_of_arrival_does_not_change_a_bit(topology: str) -> None:
    peers = names(4)
    digests = set()
    for seed in range(5):
        attempt = AllReduce(topology, plan_of(peers, 5), Tensors(peers, 16384 * 5, "int8", "int8"))
        digests.add(moved(attempt, seed, repeated=0.3).complete["p0"].digest)
    assert len(digests) == 1


@pytest.mark.parametrize("topology", ["direct", "ring"])
@pytest.mark.parametrize("count", [2, 4, 8])
@pytest.mark.parametrize(("up", "down"), [("fp32", "fp32"), ("int8", "fp32")])
def test_each_peer_sends_its_even_share_of_the_bytes(topology: str, count: int, up: str, down: str) -> None:
    peers, elements = names(count), 16384 * 16
    attempt = moved(AllReduce(topology, plan_of(peers, 16), Tensors(peers, elements, up, down)))
    for peer in peers:
        assert attempt.sent_bytes[peer, PartCame] == codec(up).max_bytes(elements) * (count - 1) // count
        assert attempt.sent_bytes[peer, ResultCame] == codec(down).max_bytes(elements) * (count - 1) // count


@pytest.mark.parametrize("topology", ["direct", "ring"])
def test_the_bytes_of_uneven_shards_are_those_of_the_cost_model(topology: str) -> None:
    peers, shards = names(3), (5, 2, 1)
    attempt = moved(AllReduce(topology, Plan(peers, (1.0,) * 3, (), shards), Numbers(peers)))
    for k, peer in enumerate(peers):
        theirs, after = 8 - shards[k], 8 - shards[(k + 1) % 3]
        assert attempt.sent_bytes[peer, PartCame] == theirs
        assert attempt.sent_bytes[peer, ResultCame] == (2 * shards[k] if topology == "direct" else after)


def test_a_pair_moves_half_a_vector_each_way_and_each_time() -> None:
    peers = names(6)
    attempt = moved(AllReduce("pair", plan_of(peers, 8), Numbers(peers)))
    assert attempt.sent_bytes == {(peer, kind): 4 for peer in peers for kind in (PartCame, ResultCame)}


# ---- losses


def setting(topology: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    return names(4), () if topology == "pair" else names(2, "r")


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_any_one_lost_message_is_asked_for_again(topology: str) -> None:
    peers, receivers = setting(topology)
    plan = plan_of(peers, 5, receivers)
    whole = Network(AllReduce(topology, plan, Numbers(peers)))
    whole.begin()
    whole.run()
    for lose in range(whole.delivered):
        attempt = AllReduce(topology, plan, Numbers(peers))
        network = Network(attempt, seed=lose)
        network.begin()
        network.run(lose=lose)
        assert len(attempt.complete) < len(attempt.cores), "every message is needed"
        now = 0.0
        for ask in range(4):
            now += ASK_AFTER_S * 2**ask
            network.tick(now)
            network.run(now=now)
        assert {p: d.digest for p, d in attempt.complete.items()} == {
            p: d.digest for p, d in whole.attempts[0].complete.items()
        }


@pytest.mark.parametrize("topology", TOPOLOGIES)
@pytest.mark.parametrize("seed", range(10))
def test_any_lost_subset_of_messages_is_asked_for_again(topology: str, seed: int) -> None:
    peers, receivers = setting(topology)
    plan = plan_of(peers, 7, receivers)
    attempt = AllReduce(topology, plan, Numbers(peers))
    network = Network(attempt, seed=seed, repeated=0.2, lost=0.4)
    network.begin()
    now = 1.0
    while len(attempt.complete) < len(attempt.cores) and now < 2.0**200:
        network.run(now=now)
        now *= 4  # faster than any peer becomes more patient
        network.tick(now)
    numbers = Numbers(peers).values
    for peer in attempt.cores:
        total = sum(numbers[p] for p in in_mean_of(topology, plan, peer))
        assert attempt.complete[peer].payloads == (total,) * 7


@pytest.mark.scenario(1)
@pytest.mark.scenario(2)
@pytest.mark.scenario(23)
@pytest.mark.parametrize("topology", TOPOLOGIES)
@pytest.mark.parametrize("dead", range(4))
def test_a_peer_lost_at_any_message_leaves_no_wrong_value_and_the_retry_has_the_others_once(
    topology: str, dead: int
) -> None:
    peers, receivers = setting(topology)
    plan = plan_of(peers, 4, receivers)
    whole = Network(AllReduce(topology, plan, Numbers(peers)))
    whole.begin()
    whole.run()
    numbers = Numbers(peers).values
    for at in range(whole.delivered + 1):
        attempt = AllReduce(topology, plan, Numbers(peers))
        network = Network(attempt, seed=at)
        network.begin()
        network.run(until=at)
        network.run(dead=peers[dead])
        for now in (10.0, 100.0, 1000.0):
            network.tick(now)
            network.run(dead=peers[dead], now=now)
        for peer, done in attempt.complete.items():
            assert done.payloads == (sum(numbers[p] for p in in_mean_of(topology, plan, peer)),) * 4
        for peer in {*attempt.cores} - {peers[dead], *attempt.complete}:
            assert attempt.cores[peer].waiting_for
        rest = tuple(peer for peer in peers if peer != peers[dead])
        retry = moved(AllReduce(topology, plan_of(rest, 4, receivers, seed=1), Numbers(peers)), seed=at)
        assert set(retry.complete) == {*rest, *receivers}
        for peer, done in retry.complete.items():
            assert done.payloads == (sum(numbers[p] for p in in_mean_of(topology, retry.plan, peer)),) * 4


# ---- what does not belong


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_what_does_not_belong_changes_nothing(topology: str) -> None:
    peers, receivers = setting(topology)
    for me in (*peers, *receivers):
        core = collective(topology, me, plan_of(peers, 4, receivers))
        core.handle(Begin(), 0.0)
        before = (core.missing, core.waiting_for)
        for source in ("stranger", "", me):
            for chunk in (-1, 0, 1, 2, 3, 4, 2**40):
                assert core.handle(PartCame(source, chunk, 7), 0.0) == []
                assert core.handle(ResultCame(source, chunk, 7, b"d"), 0.0) == []
                assert core.handle(Asked(source, (chunk,), (chunk,)), 0.0) == []
        for source in (*peers, *receivers):
            for chunk in (-1, 4, 2**40):
                assert core.handle(PartCame(source, chunk, 7), 0.0) == []
                assert core.handle(ResultCame(source, chunk, 7, b"d"), 0.0) == []
                assert core.handle(Asked(source, (chunk,), (chunk,)), 0.0) == []
        assert (core.missing, core.waiting_for) == before


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_asking_waits_longer_each_time_and_starts_over_with_progress(topology: str) -> None:
    attempt = AllReduce(topology, plan_of(names(2), 2), Numbers(names(2)))
    first = in_mean_of(topology, attempt.plan, "p0")[0]
    other = "p1" if first == "p0" else "p0"
    core = attempt.cores[first]
    core.handle(Begin(), 0.0)
    asks = [now for now in range(1, 16) if core.handle(Tick(), float(now))]
    assert asks == [1, 3, 7, 15]
    core.handle(PartCame(other, 0, 1), 15.5)
    assert core.handle(Tick(), 16.4) == []
    assert core.handle(Tick(), 16.5) == [Ask(other, (), (1,))]


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_an_impossible_event_raises_with_the_history(topology: str) -> None:
    core = collective(topology, "p0", plan_of(names(2), 2))
    with pytest.raises(ProtocolBug, match="PartCame"):
        core.handle(PartCame("p1", 0, 1), 0.0)
    core.handle(Begin(), 0.0)
    with pytest.raises(ProtocolBug, match="Begin in phase moving"):
        core.handle(Begin(), 0.0)


def test_an_unknown_topology_is_a_mistake_of_the_user_and_a_stranger_one_of_ours() -> None:
    with pytest.raises(ConfigError, match="unknown topology 'star'"):
        collective("star", "p0", plan_of(names(2), 2))
    with pytest.raises(ProtocolBug, match="stranger"):
        collective("ring", "stranger", plan_of(names(2), 2))
