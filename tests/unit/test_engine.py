"""The engine: the same bits whatever the cut, sums as the formula has them, grants as the trainer expects them."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from blake3 import blake3
from torch import Tensor

from wantrain.errors import CodecError, ProtocolBug, WantrainError
from wantrain.optimizers.merge import MERGES
from wantrain.optimizers.stream import Stream
from wantrain.peers.engine import Engine
from wantrain.peers.messages import TensorSpec
from wantrain.transport.codec import CODECS, as_tensor, codec
from wantrain.transport.collective import Payload
from wantrain.transport.digest import chunk_digest, state_digest
from wantrain.transport.partition import chunk_bounds

torch.set_num_threads(1)

SIZE = 3 * 16384 + 101
MANIFEST = (TensorSpec("a", (3, 16384), "float32"), TensorSpec("b", (101,), "bfloat16"))
BOUNDS = chunk_bounds(SIZE)
CHUNKS = range(len(BOUNDS))
EXACT = Stream("param", merge="mean", merge_options=(("lr", 1.0),), codec="fp32")
NESTEROV = Stream("param", merge="nesterov", codec="int8")
GRAD = Stream("grad", state="grad", every=1, codec="fp32")

Make = Callable[..., Engine]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Makes engines with an open segment."""
    made: list[Engine] = []

    def engine(*streams: Stream) -> Engine:
        made.append(Engine(MANIFEST, streams))
        made[-1].open_segment(tmp_path / f"segment-{len(made)}")
        return made[-1]

    return engine


def gaussian(seed: int, size: int = SIZE) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


def whole_numbers(seed: int) -> Tensor:
    """Values with which fp32 sums are exact."""
    return torch.randint(-1000, 1000, (SIZE,), generator=torch.Generator().manual_seed(seed)).float()


def put(engine: Engine, stream: str, values: Tensor) -> None:
    assert engine.segment is not None
    engine.segment.out(stream).copy_(values)


def contribute(engine: Engine, stream: str, values: Tensor) -> None:
    put(engine, stream, values)
    assert engine.stage(stream)[1]
    engine.use_stage(stream)


def start(engine: Engine, weights: Tensor) -> None:
    """Genesis from these weights, and what the trainer takes over at its start."""
    for stream in [name for name in ("param",) if engine.segment and name in engine.segment.elements]:
        put(engine, stream, weights)
        engine.adopt_genesis()
        engine.grant(stream, "start")


def encoded(stream: Stream, values: Tensor) -> list[Payload]:
    """As parts of the stream."""
    return written(stream.codecs[0], values)


def written(name: str, values: Tensor) -> list[Payload]:
    """Encoded chunk by chunk."""
    chunks: list[Payload] = []
    for begin, end in chunk_bounds(values.numel()):
        out = torch.empty(codec(name).max_bytes(end - begin), dtype=torch.uint8)
        chunks.append(out[: codec(name).encode(values[begin:end], out)].numpy().data)
    return chunks


def decoded(stream: Stream, payloads: Sequence[Payload]) -> Tensor:
    """As parts of the stream."""
    return read(stream.codecs[0], payloads)


def read(name: str, payloads: Sequence[Payload]) -> Tensor:
    out = torch.empty(SIZE)
    for (begin, end), payload in zip(BOUNDS, payloads, strict=True):
        codec(name).decode(as_tensor(payload), out[begin:end])
    return out


def mean(engine: Engine, stream: str, chunk: int, inputs: list[tuple[float, Payload | None]]) -> Payload:
    """The weighted mean, as a chunk of the update."""
    return engine.reduce(stream, chunk, inputs, sum(weight for weight, _ in inputs), True)


# ---- apply


@pytest.mark.parametrize("merge", MERGES)
def test_applying_in_two_parts_gives_the_bits_of_applying_at_once(make: Make, merge: str) -> None:
    stream = Stream("param", merge=merge, codec="int8")
    whole, split = make(stream), make(stream)
    for engine in (whole, split):
        start(engine, gaussian(0))
    for round_ in range(1, 4):
        payloads = encoded(stream, gaussian(round_))
        whole.apply("param", payloads)
        split.apply("param", payloads, frozenset({0, 2}))
        split.apply("param", payloads, frozenset({1, 3}))
    assert torch.equal(whole.phi("param"), split.phi("param"))
    assert whole.state_digest() == split.state_digest()


@pytest.mark.parametrize("name", CODECS)
def test_applying_equals_the_rule_on_the_whole_vector(make: Make, name: str) -> None:
    options = {"lr": 0.5, "momentum": 0.8}
    engine = make(Stream("param", merge="nesterov", merge_options=tuple(options.items()), codec="fp32", down=name))
    start(engine, gaussian(0))
    phi, momentum = gaussian(0), torch.zeros(SIZE)
    for round_ in range(1, 3):
        payloads = written(name, gaussian(round_))
        engine.apply("param", payloads)
        MERGES["nesterov"].apply(phi, read(name, payloads), (momentum,), options, torch.empty(SIZE))
    assert torch.equal(engine.phi("param"), phi)


def test_a_missing_chunk_is_our_own_mistake(make: Make) -> None:
    with pytest.raises(ProtocolBug, match="3 of 4 chunks"):
        make(EXACT).apply("param", encoded(EXACT, gaussian(0))[:-1])


# ---- contributions


def test_the_contribution_is_phi_minus_theta(make: Make) -> None:
    engine = make(EXACT)
    phi, theta = whole_numbers(0), whole_numbers(1)
    start(engine, phi)
    put(engine, "param", theta)
    norm, finite = engine.stage("param")
    engine.use_stage("param")
    assert finite
    assert norm == pytest.approx(float((phi - theta).double().norm()))
    assert torch.equal(decoded(EXACT, [engine.part("param", k) for k in CHUNKS]), phi - theta)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("at", [0, 5000, SIZE - 1])
@pytest.mark.parametrize("stream", [EXACT, GRAD], ids=["param", "grad"])
def test_nan_and_infinity_are_found_wherever_they_are(make: Make, stream: Stream, at: int, bad: float) -> None:
    engine = make(stream)
    values = gaussian(0)
    values[at] = bad
    put(engine, stream.name, values)
    assert engine.stage(stream.name) == (0.0, False)


def test_huge_finite_values_have_a_finite_norm(make: Make) -> None:
    engine = make(GRAD)
    put(engine, "grad", torch.full((SIZE,), 1e38))
    norm, finite = engine.stage("grad")
    assert finite
    assert norm == pytest.approx(1e38 * math.sqrt(SIZE))


@pytest.mark.parametrize("name", ["fp32", "int8"])
def test_a_chunk_has_the_same_bytes_at_every_call_until_the_next_contribution(make: Make, name: str) -> None:
    engine = make(Stream("param", codec=name))
    contribute(engine, "param", gaussian(0))
    first = engine.part("param", 1)
    before = bytes(first)
    assert bytes(engine.part("param", 1)) == before
    engine.release(first)
    engine.part("param", 2)
    assert bytes(engine.part("param", 1)) == before
    contribute(engine, "param", gaussian(1))
    assert bytes(engine.part("param", 1)) != before


def test_an_fp32_part_is_not_copied(make: Make) -> None:
    engine = make(EXACT)
    contribute(engine, "param", gaussian(0))
    before = engine.resident_bytes
    parts = [engine.part("param", k) for k in CHUNKS]
    assert engine.segment is not None
    assert as_tensor(parts[0]).data_ptr() == engine.segment.out("param").data_ptr()
    assert engine.resident_bytes == before
    for part in parts:
        engine.release(part)


def test_a_contribution_that_is_not_finite_is_never_sent(make: Make) -> None:
    for name in ("fp32", "int8"):
        engine = make(Stream("param", codec=name))
        values = gaussian(0)
        values[1] = math.nan
        put(engine, "param", values)
        engine.stage("param")
        engine.use_stage("param")
        with pytest.raises(CodecError, match="NaN or infinite"):
            engine.part("param", 0)


def test_only_as_much_is_held_for_parts_as_is_in_flight(make: Make) -> None:
    engine = make(NESTEROV)
    contribute(engine, "param", gaussian(0))
    before = engine.resident_bytes
    for _ in range(3):
        for k in CHUNKS:
            engine.release(engine.part("param", k))
    sizes = {codec("int8").max_bytes(end - begin) for begin, end in BOUNDS}
    assert engine.resident_bytes - before == sum(sizes)


def test_a_decided_contribution_is_not_used_again(make: Make) -> None:
    engine = make(EXACT)
    contribute(engine, "param", gaussian(0))
    engine.settle("param", True)
    with pytest.raises(ProtocolBug, match="no contribution"):
        engine.part("param", 0)


def test_what_is_staged_behind_a_contribution_leaves_it_alone(make: Make, tmp_path: Path) -> None:
    """A new trainer may stage while its predecessor's contribution is still being moved."""
    engine = make(EXACT)
    contribute(engine, "param", whole_numbers(0))
    old = engine.segment
    assert old is not None
    engine.open_segment(tmp_path / "next")
    assert not old.path.exists()
    del old
    put(engine, "param", whole_numbers(1))
    engine.stage("param")
    assert torch.equal(decoded(EXACT, [engine.part("param", k) for k in CHUNKS]), -whole_numbers(0))
    engine.use_stage("param")
    assert torch.equal(decoded(EXACT, [engine.part("param", k) for k in CHUNKS]), -whole_numbers(1))


def test_a_contribution_that_was_never_staged_is_our_own_mistake(make: Make) -> None:
    engine = make(EXACT)
    with pytest.raises(ProtocolBug, match="nothing was staged"):
        engine.use_stage("param")
    with pytest.raises(ProtocolBug, match="no contribution"):
        engine.part("param", 0)


# ---- sums


@pytest.mark.parametrize(("name", "error"), [("fp32", 1e-6), ("bf16", 2**-7), ("int8", 0.03)])
def test_the_sum_is_the_weighted_mean_within_the_codecs_error(make: Make, name: str, error: float) -> None:
    stream = Stream("param", codec=name)
    engine = make(stream)
    contribute(engine, "param", gaussian(0))
    others = [gaussian(1), gaussian(2)]
    weights = [3.0, 1.0, 0.5]
    reference = (weights[0] * others[0].double() - weights[1] * gaussian(0).double() + weights[2] * others[1]) / 4.5
    for k, (begin, end) in enumerate(BOUNDS):
        inputs = [
            (weights[0], encoded(stream, others[0])[k]), (weights[1], None), (weights[2], encoded(stream, others[1])[k])
        ]  # fmt: skip
        out = torch.empty(end - begin)
        codec(name).decode(as_tensor(mean(engine, "param", k, inputs)), out)
        assert float((out.double() - reference[begin:end]).abs().max()) < error * 4


def test_the_sum_is_taken_in_the_given_order_in_fp32(make: Make) -> None:
    engine = make(EXACT)
    inputs = [gaussian(seed) for seed in range(3)]
    total = torch.zeros(SIZE)
    for weight, values in zip([1.1, 2.3, 0.7], inputs, strict=True):
        total = total + values * weight
    pairs = list(zip([1.1, 2.3, 0.7], [encoded(EXACT, values) for values in inputs], strict=True))
    means = [mean(engine, "param", k, [(weight, chunks[k]) for weight, chunks in pairs]) for k in CHUNKS]
    assert torch.equal(decoded(EXACT, means), total / sum([1.1, 2.3, 0.7]))


def test_a_result_stays_as_it_is_when_the_next_is_made(make: Make) -> None:
    engine = make(EXACT)
    first = mean(engine, "param", 0, [(1.0, encoded(EXACT, gaussian(0))[0])])
    before = bytes(first)
    mean(engine, "param", 0, [(1.0, encoded(EXACT, gaussian(1))[0])])
    assert bytes(first) == before


@pytest.mark.parametrize("name", ["fp32", "int8"])
def test_a_partial_sum_is_a_part_for_the_next_peer(make: Make, name: str) -> None:
    """Unlike the update it is written in the codec of the way up, and not divided yet."""
    stream = Stream("param", codec=name, down="bf16")
    engine = make(stream)
    contribute(engine, "param", -gaussian(0))
    other = encoded(stream, gaussian(1))
    sums = [engine.reduce("param", k, [(2.0, other[k]), (0.5, None)], 1.0, False) for k in CHUNKS]
    assert all(engine.check("param", k, payload, part=True) is None for k, payload in enumerate(sums))
    assert torch.allclose(decoded(stream, sums), 2 * gaussian(1) + 0.5 * gaussian(0), atol=0.08)


def test_the_way_up_and_the_way_down_have_codecs_of_their_own(make: Make) -> None:
    stream = Stream("param", codec="int8", down="bf16", merge_options=(("lr", 1.0),))
    engine = make(stream)
    start(engine, torch.zeros(SIZE))
    contribute(engine, "param", -gaussian(0))
    parts = [bytes(engine.part("param", k)) for k in CHUNKS]
    assert parts == [bytes(chunk) for chunk in written("int8", gaussian(0))]
    update = [mean(engine, "param", k, [(1.0, parts[k])]) for k in CHUNKS]
    assert update == written("bf16", read("int8", parts))
    assert engine.check("param", 0, parts[0], part=True) is None
    assert engine.check("param", 0, update[0], part=False) is None
    assert "bytes where" in str(engine.check("param", 0, parts[0], part=False))
    assert "bytes where" in str(engine.check("param", 0, update[0], part=True))
    engine.apply("param", update)
    assert torch.equal(engine.phi("param"), -read("bf16", update))


def test_an_overflowing_sum_is_an_error(make: Make) -> None:
    chunk = encoded(EXACT, torch.full((SIZE,), 3e38))[0]
    with pytest.raises(CodecError, match="NaN or infinite"):
        mean(make(EXACT), "param", 0, [(1.0, chunk), (1.0, chunk)])


@pytest.mark.parametrize("weight", [1.0, 1024.0])
def test_alone_with_a_plain_mean_a_sync_changes_nothing(make: Make, weight: float) -> None:
    engine = make(EXACT)
    phi, theta = whole_numbers(0), whole_numbers(1)
    start(engine, phi)
    contribute(engine, "param", theta)
    engine.apply("param", [mean(engine, "param", k, [(weight, None)]) for k in CHUNKS])
    engine.grant("param", "merge")
    assert engine.segment is not None
    assert torch.equal(engine.segment.given("param"), theta)


def test_bytes_that_may_not_be_used_are_told(make: Make) -> None:
    engine = make(EXACT)
    payloads = encoded(EXACT, gaussian(0))
    nan = torch.full((16384,), math.nan).view(torch.uint8).numpy().data
    for part in (True, False):
        assert engine.check("param", 0, payloads[0], part=part) is None
        assert engine.check("param", 3, payloads[3], part=part) is None
        assert "bytes where" in str(engine.check("param", 3, payloads[0], part=part))
        assert "NaN" in str(engine.check("param", 0, nan, part=part))


def test_digest_and_size_are_of_the_encoded_bytes(make: Make) -> None:
    engine = make(NESTEROV)
    payload = encoded(NESTEROV, gaussian(0))[0]
    assert engine.digest(payload) == blake3(bytes(payload)).digest()
    assert engine.size_bytes(payload) == len(bytes(payload))


# ---- grants


def test_start_gives_phi(make: Make) -> None:
    engine = make(NESTEROV)
    start(engine, gaussian(0))
    assert engine.segment is not None
    assert torch.equal(engine.segment.given("param"), gaussian(0))


def test_merge_gives_phi_and_the_weights_at_staging(make: Make) -> None:
    engine = make(NESTEROV)
    phi, theta = whole_numbers(0), whole_numbers(1)
    start(engine, phi)
    contribute(engine, "param", theta)
    engine.apply("param", [mean(engine, "param", k, [(1.0, None)]) for k in CHUNKS])
    engine.grant("param", "merge")
    assert engine.segment is not None
    assert torch.equal(engine.segment.given("param"), engine.phi("param"))
    assert torch.equal(engine.segment.out("param"), theta)
    assert not torch.equal(engine.phi("param"), phi)


def test_move_gives_phi_and_the_phi_before(make: Make) -> None:
    engine = make(EXACT)
    start(engine, whole_numbers(0))
    contribute(engine, "param", whole_numbers(1))
    engine.apply("param", encoded(EXACT, whole_numbers(2)))
    engine.grant("param", "move")
    assert engine.segment is not None
    assert torch.equal(engine.segment.given("param"), whole_numbers(0) - whole_numbers(2))
    assert torch.equal(engine.segment.out("param"), whole_numbers(0))


def test_grad_gives_the_mean_gradient(make: Make) -> None:
    engine = make(GRAD, EXACT)
    contribute(engine, "grad", whole_numbers(0))
    other = encoded(GRAD, whole_numbers(1))
    engine.apply("grad", [mean(engine, "grad", k, [(1.0, None), (1.0, other[k])]) for k in CHUNKS])
    engine.grant("grad", "grad")
    assert engine.segment is not None
    assert torch.equal(engine.segment.given("grad"), (whole_numbers(0) + whole_numbers(1)) / 2)


def test_a_kind_that_is_not_the_streams_is_our_own_mistake(make: Make) -> None:
    engine = make(GRAD, EXACT)
    with pytest.raises(ProtocolBug):
        engine.grant("grad", "merge")
    with pytest.raises(ProtocolBug):
        engine.grant("param", "grad")
    with pytest.raises(ProtocolBug, match="no mean"):
        engine.grant("grad", "grad")


# ---- the state


def test_state_copied_chunk_by_chunk_has_the_same_digest(make: Make) -> None:
    source, copy = make(NESTEROV), make(NESTEROV)
    start(source, gaussian(0))
    source.apply("param", encoded(NESTEROV, gaussian(1)))
    for k in CHUNKS:
        payload = source.read_state(k)
        assert copy.check_state(k, payload) is None
        copy.store_state(k, bytes(payload))
    assert torch.equal(copy.phi("param"), source.phi("param"))
    assert copy.state_digest() == source.state_digest()
    assert source.state_bytes == 2 * 4 * SIZE


def test_a_state_chunk_is_phi_then_the_slots(make: Make) -> None:
    engine = make(Stream("param", merge="heavy-ball", merge_options=(("momentum", 0.5),), codec="fp32"))
    start(engine, gaussian(0))
    engine.apply("param", encoded(EXACT, gaussian(1)))
    values = as_tensor(engine.read_state(3)).view(torch.float32)
    assert torch.equal(values[:101], engine.phi("param")[-101:])
    assert torch.equal(values[101:], gaussian(1)[-101:])


def test_a_state_chunk_is_a_copy(make: Make) -> None:
    engine = make(EXACT)
    start(engine, gaussian(0))
    chunk = engine.read_state(0)
    before = bytes(chunk)
    engine.apply("param", encoded(EXACT, gaussian(1)))
    assert bytes(chunk) == before


def test_state_chunks_that_were_sent_make_room_for_the_next(make: Make) -> None:
    engine = make(NESTEROV)
    engine.release(engine.read_state(0))
    before = engine.resident_bytes
    for k in (1, 2, 0):
        engine.release(engine.read_state(k))
    assert engine.resident_bytes == before


def test_a_state_chunk_of_wrong_size_or_with_nan_is_refused(make: Make) -> None:
    engine = make(NESTEROV)
    assert "bytes where" in str(engine.check_state(0, bytes(16384 * 4)))
    assert "NaN" in str(engine.check_state(0, torch.full((2 * 16384,), math.nan).numpy().tobytes()))


def test_the_digest_of_the_state_is_made_of_those_of_its_chunks_as_they_are_sent(make: Make) -> None:
    engine = make(NESTEROV)
    steps = list(engine.digest_steps())
    assert steps == [chunk_digest(engine.read_state(k)) for k in CHUNKS]
    assert state_digest(steps) == engine.state_digest()


def test_the_digest_sees_every_value(make: Make) -> None:
    engine = make(NESTEROV)
    digests = {engine.state_digest()}
    for k in CHUNKS:
        for at in (0, -1):  # phi, momentum
            values = as_tensor(bytes(engine.read_state(k))).view(torch.float32)
            values[at] += 1.0
            engine.store_state(k, values.view(torch.uint8).numpy().data)
            digests.add(engine.state_digest())
    assert len(digests) == 2 * len(BOUNDS) + 1


def test_genesis_takes_the_weights_and_clears_the_outer_state(make: Make) -> None:
    engine, fresh = make(NESTEROV), make(NESTEROV)
    start(engine, gaussian(0))
    engine.apply("param", encoded(NESTEROV, gaussian(1)))
    put(engine, "param", gaussian(2))
    put(fresh, "param", gaussian(2))
    assert engine.adopt_genesis() == fresh.adopt_genesis() == engine.state_digest()
    assert torch.equal(engine.phi("param"), gaussian(2))


def test_genesis_with_nan_is_refused(make: Make) -> None:
    engine = make(EXACT)
    put(engine, "param", torch.full((SIZE,), math.nan))
    with pytest.raises(CodecError, match="initial weight"):
        engine.adopt_genesis()


def test_a_segment_that_cannot_be_made_leaves_the_old_one(make: Make, tmp_path: Path) -> None:
    engine = make(EXACT)
    old = engine.segment
    with pytest.raises(WantrainError):
        engine.open_segment(tmp_path / "missing" / "segment")
    assert engine.segment is old
    put(engine, "param", gaussian(0))


def test_without_a_trainer_staging_is_our_own_mistake(make: Make) -> None:
    engine = make(EXACT)
    engine.close()
    with pytest.raises(ProtocolBug, match="no trainer"):
        engine.stage("param")
