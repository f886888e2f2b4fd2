"""Error feedback: what a codec drops is owed, nothing changes before a sync is committed, old debts are forgotten."""

import math
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from wantrain.errors import CodecError, ProtocolBug
from wantrain.optimizers.stream import Stream
from wantrain.peers.engine import Engine
from wantrain.peers.messages import TensorSpec
from wantrain.peers.residual import Residual, square_norm
from wantrain.transport.codec import CODECS, as_tensor, codec
from wantrain.transport.codec.names import FORMATS, Format
from wantrain.transport.collective import Payload
from wantrain.transport.partition import chunk_bounds

torch.set_num_threads(1)

SIZE = 3 * 16384 + 101
MANIFEST = (TensorSpec("a", (SIZE,), "float32"),)
BOUNDS = chunk_bounds(SIZE)
CHUNKS = range(len(BOUNDS))


class Coarse:
    """Signs and the mean magnitude: every value is wrong, and the size is fixed."""

    name = "coarse"

    def max_bytes(self, elements: int) -> int:
        return 4 + elements

    def encode(self, source: Tensor, out: Tensor) -> int:
        out[:4].view(torch.float32)[0] = source.abs().mean()
        out[4:].view(torch.int8).copy_(torch.where(source < 0, -1, 1))
        return out.numel()

    def decode(self, encoded: Tensor, out: Tensor) -> None:
        torch.mul(encoded[4:].view(torch.int8), encoded[:4].view(torch.float32), out=out)

    def accumulate(self, encoded: Tensor, weight: float, acc: Tensor) -> None:
        out = torch.empty_like(acc)
        self.decode(encoded, out)
        acc.add_(out.mul_(weight))

    def check(self, encoded: Tensor, elements: int) -> str | None:
        return None if encoded.numel() == self.max_bytes(elements) else "wrong size"


class Sparse(Coarse):
    """Positions and values of all that is at least half as large as the largest: the size depends on the values."""

    name = "sparse"

    def max_bytes(self, elements: int) -> int:
        return 8 * elements

    def encode(self, source: Tensor, out: Tensor) -> int:
        kept = (source.abs() >= source.abs().amax() / 2).nonzero().flatten()
        written = 8 * kept.numel()
        out[: written // 2].view(torch.int32).copy_(kept)
        out[written // 2 : written].view(torch.float32).copy_(source[kept])
        return written

    def decode(self, encoded: Tensor, out: Tensor) -> None:
        half = encoded.numel() // 2
        out.zero_()
        out[encoded[:half].view(torch.int32).long()] = encoded[half:].view(torch.float32)

    def check(self, encoded: Tensor, elements: int) -> str | None:
        return None if encoded.numel() <= self.max_bytes(elements) else "too many values"


@pytest.fixture(autouse=True)
def _toys(monkeypatch: pytest.MonkeyPatch) -> None:
    """The two as codecs that need error feedback."""
    for toy in (Coarse(), Sparse()):
        monkeypatch.setitem(CODECS, toy.name, toy)
        monkeypatch.setitem(FORMATS, toy.name, Format(8.0, error_feedback=True))


Make = Callable[[Stream], Engine]
NEEDY = ["coarse", "sparse", *(name for name, known in FORMATS.items() if known.error_feedback)]
COARSE = Stream("param", codec="coarse", down="fp32", merge_options=(("lr", 1.0),))


@pytest.fixture
def make(tmp_path: Path) -> Make:
    made: list[Engine] = []

    def engine(stream: Stream) -> Engine:
        made.append(Engine(MANIFEST, [stream]))
        made[-1].open_segment(tmp_path / f"segment-{len(made)}")
        return made[-1]

    return engine


def gaussian(seed: int) -> Tensor:
    return torch.randn(SIZE, generator=torch.Generator().manual_seed(seed))


def contribute(engine: Engine, delta: Tensor, stream: str = "param") -> None:
    """As a trainer whose weights are `given` - delta."""
    assert engine.segment is not None
    engine.segment.out(stream).copy_(engine.segment.given(stream) - delta if stream == "param" else delta)
    assert engine.stage(stream)[1]
    engine.use_stage(stream)


def send(engine: Engine, stream: str = "param") -> list[bytes]:
    """All chunks as parts, as they would arrive."""
    parts = []
    for k in CHUNKS:
        payload = engine.part(stream, k)
        parts.append(bytes(payload))
        engine.release(payload)
    return parts


def keep(engine: Engine, chunk: int, stream: str = "param") -> Payload:
    """The own input of a chunk goes into a sum as it is."""
    return engine.reduce(stream, chunk, [(1.0, None)], 1.0, True)


def values(name: str, payloads: list[Payload]) -> Tensor:
    out = torch.empty(SIZE)
    for (start, stop), payload in zip(BOUNDS, payloads, strict=True):
        codec(name).decode(as_tensor(payload), out[start:stop])
    return out


def owed(engine: Engine, stream: str = "param") -> Tensor:
    payloads = engine.residual(stream)
    return values("int8", payloads) if payloads else torch.zeros(SIZE)


def sync(engine: Engine, delta: Tensor) -> Tensor:
    """A committed sync in which all chunks were sent; what was sent, decoded."""
    contribute(engine, delta)
    parts: list[Payload] = list(send(engine))
    engine.settle("param", True)
    return values(codec_of(engine), parts)


def codec_of(engine: Engine) -> str:
    return engine._vectors["param"].stream.codec


# ---- what is owed


@pytest.mark.parametrize("name", NEEDY)
def test_nothing_is_lost_over_many_rounds(make: Make, name: str) -> None:
    """What was sent and what is still owed add up to what was staged, but for the rounding of the residual itself.

    Contributions grow, so that the bound on the residual is never met.
    """
    engine = make(Stream("param", codec=name, down="fp32"))
    staged, sent, tolerance = torch.zeros(SIZE), torch.zeros(SIZE), 0.0
    for round_ in range(12):
        delta = gaussian(round_) * 1.5**round_
        assert float(owed(engine).norm()) <= 2 * float(delta.norm())
        staged += delta
        sent += sync(engine, delta)
        tolerance += float(owed(engine).abs().max()) / 127
    assert float((sent + owed(engine) - staged).abs().max()) < tolerance
    assert float((sent - staged).abs().max()) > tolerance


def test_the_next_contribution_has_the_error_of_the_last_one_in_it(make: Make) -> None:
    engine = make(COARSE)
    sent = sync(engine, gaussian(0))
    assert torch.allclose(owed(engine), gaussian(0) - sent, atol=0.02)
    contribution = gaussian(1) + owed(engine)
    contribute(engine, gaussian(1))
    assert torch.equal(values("fp32", [keep(engine, k) for k in CHUNKS]), contribution)
    expected = torch.empty(SIZE)
    for start, stop in BOUNDS:
        out = torch.empty(4 + stop - start, dtype=torch.uint8)
        Coarse().encode(contribution[start:stop], out)
        Coarse().decode(out, expected[start:stop])
    assert torch.equal(values("coarse", list(send(engine))), expected)


def test_an_old_error_does_not_outweigh_what_is_new(make: Make) -> None:
    engine = make(COARSE)
    sync(engine, gaussian(0))
    delta = gaussian(1) / 1000
    contribute(engine, delta)
    added = values("fp32", [keep(engine, k) for k in CHUNKS]) - delta
    assert float(added.norm()) == pytest.approx(2 * float(delta.norm()), rel=1e-3)
    assert torch.nn.functional.cosine_similarity(added, owed(engine), dim=0).item() > 0.999


def test_chunks_whose_own_input_went_into_the_sum_owe_nothing(make: Make) -> None:
    """The last attempt counts: who owns a chunk may change from one to the next."""
    engine = make(COARSE)
    contribute(engine, gaussian(0))
    keep(engine, 0)
    keep(engine, 1)
    engine.part("param", 2)
    send(engine)
    keep(engine, 2)
    keep(engine, 3)
    engine.settle("param", True)
    for k, (start, stop) in enumerate(BOUNDS):
        assert bool(owed(engine)[start:stop].any()) == (k < 2)


def test_what_was_staged_is_not_touched(make: Make) -> None:
    """A grant gives the trainer the weights that it had when it staged, not what was sent."""
    engine = make(COARSE)
    sync(engine, gaussian(0))
    assert engine.segment is not None
    engine.segment.given("param").zero_()
    theta = -gaussian(1)
    contribute(engine, gaussian(1))
    send(engine)
    engine.settle("param", True)
    engine.grant("param", "merge")
    assert torch.equal(engine.segment.out("param"), theta)


def test_gradients_are_owed_as_well(make: Make) -> None:
    engine = make(Stream("grad", state="grad", codec="coarse", down="fp32"))
    contribute(engine, gaussian(0), "grad")
    sent = values("coarse", list(send(engine, "grad")))
    engine.settle("grad", True)
    assert torch.allclose(owed(engine, "grad"), gaussian(0) - sent, atol=0.02)


# ---- when it changes


def test_aborted_attempts_leave_no_trace(make: Make) -> None:
    one, other = make(COARSE), make(COARSE)
    for engine in (one, other):
        sync(engine, gaussian(0))
        contribute(engine, gaussian(1))
    before = one.residual("param")
    first = send(one)
    keep(one, 1)
    assert send(one) == first
    assert one.residual("param") == before
    assert send(other) == first
    keep(one, 1)
    keep(other, 1)
    for engine in (one, other):
        engine.settle("param", True)
    assert one.residual("param") == other.residual("param") != before


def test_a_sync_without_this_peer_leaves_the_residual_as_it_is(make: Make) -> None:
    engine = make(COARSE)
    sync(engine, gaussian(0))
    before = engine.residual("param")
    contribute(engine, gaussian(1))
    parts = send(engine)
    engine.settle("param", False)
    assert engine.residual("param") == before
    contribute(engine, gaussian(1))
    assert send(engine) == parts


def test_a_residual_is_dropped_after_two_rounds_without_this_peer(make: Make) -> None:
    engine, fresh = make(COARSE), make(COARSE)
    sync(engine, gaussian(0))
    engine.settle("param", False)
    sync(engine, gaussian(1))  # counts from the start again
    engine.settle("param", False)
    assert engine.residual("param")
    engine.settle("param", False)
    assert engine.residual("param") == []
    for each in (engine, fresh):
        contribute(each, gaussian(2))
    assert send(engine) == send(fresh)


@pytest.mark.parametrize("how", ["forget", "genesis"])
def test_another_history_owes_nothing(make: Make, how: str) -> None:
    engine, fresh = make(COARSE), make(COARSE)
    sync(engine, gaussian(0))
    contribute(engine, gaussian(1))
    if how == "forget":
        engine.forget_residuals()
    else:
        engine.adopt_genesis()
    assert engine.residual("param") == []
    for each in (engine, fresh):
        contribute(each, gaussian(2))
    assert send(engine) == send(fresh)


def test_a_contribution_is_taken_in_once(make: Make) -> None:
    engine = make(COARSE)
    sync(engine, gaussian(0))
    with pytest.raises(ProtocolBug):
        engine.settle("param", True)
    residual = Residual(Coarse(), BOUNDS)
    with pytest.raises(ProtocolBug, match="taken in twice"):
        residual.settle(gaussian(0), (torch.empty(16384), torch.empty(16384)))


def test_what_was_summed_counts_for_one_contribution_only() -> None:
    residual, work = Residual(Coarse(), BOUNDS), (torch.empty(16384), torch.empty(16384))
    residual.use(1.0, work[0])
    for k in CHUNKS:
        residual.note_summed(k)
    residual.settle(gaussian(0), work)
    assert not values("int8", list(residual.payloads())).any()
    residual.use(1.0, work[0])
    residual.settle(gaussian(0), work)
    assert values("int8", list(residual.payloads())).any()


# ---- from a leaver to those who stay


def test_a_residual_is_handed_on(make: Make) -> None:
    leaver, stayer, idle = make(COARSE), make(COARSE), make(COARSE)
    sync(leaver, gaussian(0))
    sync(stayer, gaussian(1))
    total = owed(leaver) + owed(stayer)
    for receiver in (stayer, idle):
        receiver.add_residual("param", [bytes(payload) for payload in leaver.residual("param")])
    assert torch.allclose(owed(stayer), total, atol=0.03)
    assert torch.allclose(owed(idle), owed(leaver), atol=0.02)


def test_what_is_handed_over_does_not_change_a_contribution_in_use(make: Make) -> None:
    leaver, stayer = make(COARSE), make(COARSE)
    sync(leaver, gaussian(0))
    for _ in range(2):
        contribute(stayer, gaussian(1))
        parts = send(stayer)
        stayer.add_residual("param", leaver.residual("param"))
        stayer.add_residual("param", leaver.residual("param"))
        assert send(stayer) == parts
        before = owed(stayer)
        stayer.settle("param", False)
        assert torch.allclose(owed(stayer), before + 2 * owed(leaver), atol=0.1)


def test_what_is_handed_over_belongs_to_its_history(make: Make) -> None:
    leaver, stayer = make(COARSE), make(COARSE)
    sync(leaver, gaussian(0))
    contribute(stayer, gaussian(1))
    stayer.add_residual("param", leaver.residual("param"))
    stayer.forget_residuals()
    stayer.settle("param", False)
    assert stayer.residual("param") == []
    contribute(stayer, gaussian(1))
    stayer.forget_residuals()  # nothing is in use from here on
    stayer.add_residual("param", leaver.residual("param"))
    assert torch.allclose(owed(stayer), owed(leaver), atol=0.02)


def test_a_residual_that_cannot_be_used_changes_nothing(make: Make) -> None:
    leaver, stayer = make(COARSE), make(COARSE)
    sync(leaver, gaussian(0))
    sync(stayer, gaussian(1))
    before = stayer.residual("param")
    good = [bytes(payload) for payload in leaver.residual("param")]
    for bad in (good[:-1], [*good[:-1], good[0]], [b"\xff" * len(good[0]), *good[1:]]):
        with pytest.raises(CodecError):
            stayer.add_residual("param", bad)
    assert stayer.residual("param") == before


def test_a_residual_that_overflows_changes_nothing(make: Make) -> None:
    stayer = make(COARSE)
    chunks = []
    for start, stop in BOUNDS:
        out = torch.empty(codec("int8").max_bytes(stop - start), dtype=torch.uint8)
        codec("int8").encode(torch.full((stop - start,), 3e38), out)
        chunks.append(out.numpy().tobytes())
    stayer.add_residual("param", chunks)
    before = stayer.residual("param")
    with pytest.raises(CodecError, match="NaN or infinite"):
        stayer.add_residual("param", chunks)
    assert stayer.residual("param") == before


def test_what_overflows_when_a_contribution_is_settled_is_lost_and_ends_nothing(make: Make) -> None:
    stayer = make(COARSE)
    chunks = []
    for start, stop in BOUNDS:
        out = torch.empty(codec("int8").max_bytes(stop - start), dtype=torch.uint8)
        codec("int8").encode(torch.full((stop - start,), 3e38), out)
        chunks.append(out.numpy().tobytes())
    stayer.add_residual("param", chunks)
    before = [bytes(payload) for payload in stayer.residual("param")]
    contribute(stayer, gaussian(0))
    stayer.add_residual("param", chunks)  # waits for what becomes of the contribution
    stayer.settle("param", False)
    assert [bytes(payload) for payload in stayer.residual("param")] == before
    stayer.settle("param", False)


def test_what_somebody_says_that_it_owes_is_checked_before_it_is_kept(make: Make) -> None:
    leaver, stayer = make(COARSE), make(COARSE)
    sync(leaver, gaussian(0))
    (first, *_) = [bytes(payload) for payload in leaver.residual("param")]
    assert stayer.check_owed("param", 0, first) is None
    assert stayer.check_owed("param", 0, bytes(1 << 20))
    assert "no residual" in (make(Stream("param", codec="int8")).check_owed("param", 0, first) or "")


# ---- what it costs


def test_a_codec_that_needs_no_feedback_keeps_nothing(make: Make) -> None:
    engine = make(Stream("param", codec="int8"))
    sync(engine, gaussian(0))
    before = engine.resident_bytes
    for round_ in range(2):
        sync(engine, gaussian(round_))
    assert engine.resident_bytes == before
    assert engine.residual("param") == []
    with pytest.raises(CodecError, match="has none"):
        engine.add_residual("param", [])


AUTO = Stream("param", codec="auto", down="fp32", merge_options=(("lr", 1.0),))


def sparse_then(engine: Engine, second: str, delta: Tensor) -> tuple[Tensor, list[bytes]]:
    """A sync in few bits, committed; then an attempt in another codec: what was owed before it, and what it sends."""
    engine.use_codec("param", "rms0.75+huffman")
    contribute(engine, gaussian(0))
    send(engine)
    engine.settle("param", True)
    debt = owed(engine)
    assert debt.any()
    contribute(engine, delta)
    engine.use_codec("param", second)
    return debt, send(engine)


@pytest.mark.parametrize("second", ["int8", "rms0.35+zstd"])
def test_a_codec_without_error_feedback_pays_what_an_earlier_one_owes(make: Make, second: str) -> None:
    engine, delta = make(AUTO), gaussian(1)
    debt, parts = sparse_then(engine, second, delta)
    sent = values(second, parts)
    assert torch.linalg.vector_norm(sent - delta - debt) < 0.11 * torch.linalg.vector_norm(delta)
    assert torch.equal(owed(engine), debt), "nothing is decided yet"
    engine.settle("param", True)
    assert engine.residual("param") == []


@pytest.mark.parametrize("seed", range(3))
def test_nothing_is_lost_for_good_whatever_codecs_follow_each_other(make: Make, seed: int) -> None:
    """But for the 0.7 % of int8: what was sent and what is owed come to what was contributed, also over failures."""
    engine, rng = make(AUTO), random.Random(seed)
    sent, wanted = torch.zeros(SIZE), torch.zeros(SIZE)
    for k in range(12):
        delta = gaussian(100 + k)
        contribute(engine, delta)
        for _ in range(rng.choice([1, 1, 2])):  # attempts
            name = rng.choice(["int8", "rms0.75+huffman"])
            engine.use_codec("param", name)
            parts = values(name, send(engine))
        engine.settle("param", True)
        sent, wanted = sent + parts, wanted + delta
    assert torch.linalg.vector_norm(sent + owed(engine) - wanted) < 0.02 * torch.linalg.vector_norm(wanted)


def test_what_is_owed_outlives_syncs_in_any_codec_that_went_on_without_it(make: Make) -> None:
    engine = make(AUTO)
    debt, _ = sparse_then(engine, "int8", gaussian(1))
    engine.settle("param", False)
    assert torch.equal(owed(engine), debt)


def test_the_codec_that_counts_is_that_of_the_last_attempt(make: Make) -> None:
    engine, delta = make(AUTO), gaussian(1)
    debt, _ = sparse_then(engine, "int8", delta)
    engine.use_codec("param", "rms0.75+huffman")
    sent = values("rms0.75+huffman", send(engine))
    engine.settle("param", True)
    rest = delta + debt - sent
    assert torch.linalg.vector_norm(owed(engine) - rest) < 0.02 * torch.linalg.vector_norm(rest)


def test_with_8_bits_from_the_start_nothing_is_ever_owed(make: Make) -> None:
    engine = make(AUTO)
    for seed in range(2):
        contribute(engine, gaussian(seed))
        assert values("int8", send(engine)).sub(gaussian(seed)).abs().max() < 0.05
        engine.settle("param", True)
        assert engine.residual("param") == []


def test_a_part_is_checked_as_what_it_is_said_to_be(make: Make) -> None:
    engine = make(AUTO)
    engine.use_codec("param", "rms0.35+zstd")
    contribute(engine, gaussian(0))
    part = send(engine)[0]
    engine.use_codec("param", "int8")
    assert engine.check("param", 0, part, part=True, up="rms0.35+zstd") is None
    assert engine.check("param", 0, part, part=True, up="int8") is not None
    assert engine.check("param", 0, part, part=True) is not None


def test_a_residual_takes_a_quarter_of_the_model_once_there_is_one(make: Make) -> None:
    engine = make(COARSE)
    contribute(engine, gaussian(0))
    send(engine)
    before = engine.resident_bytes
    engine.settle("param", True)
    size_bytes = sum(codec("int8").max_bytes(stop - start) for start, stop in BOUNDS)
    assert engine.resident_bytes - before == size_bytes
    sync(engine, gaussian(1))
    assert engine.resident_bytes - before == size_bytes


def test_an_update_takes_no_more_memory_than_its_bytes(make: Make) -> None:
    """Whatever an encoder may need at most: results are kept for long."""
    engine = make(Stream("param", codec="fp32", down="sparse"))
    contribute(engine, gaussian(0))
    for k in CHUNKS:
        payload = engine.reduce("param", k, [(1.0, None)], 1.0, True)
        assert payload.obj.base.untyped_storage().nbytes() == payload.nbytes < Sparse().max_bytes(1000)
        assert engine.check("param", k, payload, part=False) is None
    engine.apply("param", [engine.reduce("param", k, [(1.0, None)], 1.0, True) for k in CHUNKS])
    assert engine.phi("param").any()


def test_an_empty_stream_owes_nothing(tmp_path: Path) -> None:
    engine = Engine((TensorSpec("a", (0,), "float32"),), [COARSE])
    engine.open_segment(tmp_path / "segment")
    for _ in range(2):
        engine.stage("param")
        engine.use_stage("param")
        engine.settle("param", True)
    assert engine.residual("param") == []


@pytest.mark.parametrize("scale", [0.0, 1e-38, 1e-20, 1.0, 1e20, 3e38])
def test_the_square_norm_neither_overflows_nor_vanishes(scale: float) -> None:
    data = torch.full((4096,), scale)
    assert square_norm(data) == pytest.approx(4096 * data[0].double().item() ** 2, rel=1e-5)
    for bad in (math.nan, math.inf, -math.inf):
        data[17] = bad
        assert not math.isfinite(square_norm(data))
