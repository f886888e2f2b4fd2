"""Codecs: one suite that every codec passes, alone and with every entropy stage."""

import math
import threading

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from wantrain.bench.codecs import EXPECTED, gaussian, relative_error, student_t4
from wantrain.errors import CodecError, ConfigError
from wantrain.transport.codec import CODECS, Codec, as_tensor, blocks, codec
from wantrain.transport.codec.names import FORMATS, STAGES, bits, format_of

torch.set_num_threads(1)

SIZES = [0, 1, 2, 255, 256, 257, 1023, 1025, 4097, 9000]
every_codec = pytest.mark.parametrize("coder", CODECS.values(), ids=CODECS)
every_format = pytest.mark.parametrize("coder", [CODECS[name] for name in FORMATS], ids=list(FORMATS))


def encode(coder: Codec, source: Tensor) -> Tensor:
    out = torch.full((coder.max_bytes(source.numel()),), 0xAA, dtype=torch.uint8)
    return out[: coder.encode(source, out)].clone()


def decode(coder: Codec, encoded: Tensor, elements: int) -> Tensor:
    out = torch.full((elements,), math.nan)
    coder.decode(encoded, out)
    return out


def raw(values: Tensor) -> bytes:
    return values.numpy().tobytes()


def largest_error(coder: Codec) -> float:
    """A bound on the error of any value, in parts of the largest magnitude."""
    name = coder.name.partition("+")[0]
    known = {"fp32": 0.0, "bf16": 2**-8, "bf16-planes": 2**-8, "int8": 0.5 / 127, "int4": 0.101, "e2m1": 1 / 6}
    if name.startswith("rms"):
        return float(name[3:]) / 2  # the step is at most that part of the largest
    return known.get(name, {"e3m0": 0.25}.get(name, 1.0))


# ---- there and back


@every_codec
def test_every_size_goes_there_and_back(coder: Codec) -> None:
    for elements in SIZES:
        source = gaussian(elements)
        encoded = encode(coder, source)
        assert coder.check(encoded, elements) is None
        error = (decode(coder, encoded, elements) - source).abs()
        assert (error <= source.abs().max() * (largest_error(coder) + 2**-8) if elements else error == 0).all(), (
            elements
        )


@every_codec
def test_the_same_input_gives_the_same_bytes_and_is_not_changed(coder: Codec) -> None:
    source = gaussian(9000)
    kept = source.clone()
    assert torch.equal(encode(coder, source), encode(coder, source.clone()))
    assert torch.equal(source, kept)


@every_format
def test_a_format_has_one_size(coder: Codec) -> None:
    for elements in SIZES:
        assert len(encode(coder, gaussian(elements))) == coder.max_bytes(elements)
        assert len(encode(coder, torch.zeros(elements))) == coder.max_bytes(elements)


@every_codec
@pytest.mark.parametrize("piece", [4096, 8192])
def test_the_working_piece_does_not_show(coder: Codec, piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    source, acc = gaussian(20001), student_t4(20001)
    encoded, summed = encode(coder, source), acc.clone()
    decoded = decode(coder, encoded, 20001)
    coder.accumulate(encoded, 0.3, summed)
    monkeypatch.setattr(blocks, "PIECE", piece)
    assert torch.equal(encode(coder, source), encoded)
    assert torch.equal(decode(coder, encoded, 20001), decoded)
    coder.accumulate(encoded, 0.3, acc)
    assert torch.equal(acc, summed)


@every_codec
@pytest.mark.parametrize("weight", [1.0, 0.3, 1e15])
def test_accumulate_is_decode_then_multiply_then_add(coder: Codec, weight: float) -> None:
    for elements in SIZES:
        encoded = encode(coder, gaussian(elements))
        acc = student_t4(elements)
        product = decode(coder, encoded, elements).numpy() * np.float32(weight)
        expected = acc.numpy() + product
        coder.accumulate(encoded, weight, acc)
        assert raw(acc) == expected.tobytes(), elements


@every_codec
def test_received_bytes_decode_wherever_they_lie(coder: Codec) -> None:
    source = gaussian(600)
    encoded = encode(coder, source)
    for shift in range(9):
        received = memoryview(bytes(shift) + raw(encoded))[shift:]
        for buffer in (received, memoryview(bytearray(shift) + raw(encoded))[shift:]):
            assert torch.equal(decode(coder, as_tensor(buffer), 600), decode(coder, encoded, 600))


@every_codec
def test_threads_do_not_share_scratch(coder: Codec) -> None:
    sources = [gaussian(5000 + k)[k:] for k in range(3)]
    expected = [encode(coder, source) for source in sources]
    same = [False] * 3

    def work(k: int) -> None:
        same[k] = all(torch.equal(encode(coder, sources[k].clone()), expected[k]) for _ in range(5))

    threads = [threading.Thread(target=work, args=(k,)) for k in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(same)


@every_format
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize("size", [2.0**-140, 1.0, 2.0**90])
def test_cpu_and_gpu_write_the_same_bytes_and_read_the_same_bits(coder: Codec, size: float) -> None:
    for source in (
        values[:elements] * size for elements in SIZES for values in (gaussian(9000), gaussian(9000).round())
    ):
        elements = len(source)
        encoded = encode(coder, source)
        on_gpu = torch.empty(coder.max_bytes(elements), dtype=torch.uint8, device="cuda")
        coder.encode(source.cuda(), on_gpu)
        assert torch.equal(on_gpu.cpu(), encoded)
        decoded = torch.empty(elements, device="cuda")
        coder.decode(on_gpu, decoded)
        assert raw(decoded.cpu()) == raw(decode(coder, encoded, elements))
        acc, acc_on_gpu = source.clone(), source.cuda()
        coder.accumulate(encoded, 0.3, acc)
        coder.accumulate(on_gpu, 0.3, acc_on_gpu)
        assert raw(acc_on_gpu.cpu()) == raw(acc)
        assert coder.check(on_gpu, elements) is None


# ---- what happens to the values


@every_codec
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_refused(coder: Codec, bad: float) -> None:
    for where in (0, 255, 4096, 4999):
        source = gaussian(5000)
        source[where] = bad
        with pytest.raises(CodecError, match="NaN or infinite"):
            encode(coder, source)


@every_codec
def test_finite_values_whose_sum_overflows_are_encoded(coder: Codec) -> None:
    largest = torch.finfo(torch.float32).max
    source = torch.full((5000,), largest)
    source[300:] = -largest
    encoded = encode(coder, source)
    assert coder.check(encoded, 5000) is None
    decoded = decode(coder, encoded, 5000)
    assert torch.isfinite(decoded).all()
    if not coder.name.startswith("topk"):
        assert ((decoded / source - 1).abs() <= largest_error(coder) + 2**-7).all()


@every_codec
def test_zeros_stay_zeros(coder: Codec) -> None:
    for elements in (1, 63, 600, 5000):
        encoded = encode(coder, torch.zeros(elements))
        assert coder.check(encoded, elements) is None
        assert not decode(coder, encoded, elements).any()


@every_format
def test_error_is_what_the_format_was_chosen_for(coder: Codec) -> None:
    for source, expected in zip((gaussian(1 << 18), student_t4(1 << 18)), EXPECTED[coder.name], strict=False):
        assert relative_error(coder, source)[0] == pytest.approx(expected, rel=0.05)


@every_codec
def test_no_sign_is_preferred(coder: Codec) -> None:
    source = student_t4(9000)
    assert torch.equal(decode(coder, encode(coder, -source), 9000), -decode(coder, encode(coder, source), 9000))


@every_format
def test_values_of_one_sign_are_not_biased(coder: Codec) -> None:
    """Nearest rounding of values that get rarer with size has a bias of its own, but only where steps are coarse."""
    source = -gaussian(1 << 18).abs()
    error = (decode(coder, encode(coder, source), 1 << 18) - source).double()
    if coder.name == "topk":  # error feedback is for what it leaves out: what it keeps is not biased
        kept = decode(coder, encode(coder, source), 1 << 18) != 0
        source, error = source[kept], error[kept]
    coarse = {"int4": 0.012, "e2m1": 0.012, "e3m0": 0.045, "topk": 0.01}
    rms = {"rms0.35": 0.008, "rms0.5": 0.014, "rms0.75": 0.03, "rms1": 0.05}
    assert abs(float(error.mean() / source.double().mean())) <= (coarse | rms).get(coder.name, 1e-4)


@pytest.mark.parametrize("name", ["int8", "int4", "e2m1", "e3m0", "sign"])
def test_equal_values_keep_their_size(name: str) -> None:
    source = torch.full((2048,), -0.0123)
    assert torch.allclose(decode(codec(name), encode(codec(name), source), 2048), source, rtol=2**-8)


# ---- bytes from elsewhere


@every_format
def test_a_wrong_size_is_refused_everywhere(coder: Codec) -> None:
    encoded = encode(coder, gaussian(600))
    for wrong in (encoded[:-4], torch.cat([encoded, encoded[:4]]), encoded[:0]):
        assert "bytes where" in (coder.check(wrong, 600) or "")
        with pytest.raises(CodecError, match="bytes where"):
            coder.decode(wrong, torch.empty(600))
        with pytest.raises(CodecError, match="bytes where"):
            coder.accumulate(wrong, 1.0, torch.empty(600))
        with pytest.raises(CodecError, match="bytes where"):
            coder.encode(gaussian(600), wrong.clone())


@every_codec
@given(data=st.binary(min_size=1, max_size=300), elements=st.integers(0, 600))
@settings(max_examples=30)
def test_bytes_that_pass_the_check_decode_to_finite_values(coder: Codec, data: bytes, elements: int) -> None:
    size_bytes = coder.max_bytes(elements)
    received = as_tensor((data * (1 + size_bytes // len(data)))[:size_bytes])
    if coder.check(received, elements) is None:
        assert torch.isfinite(decode(coder, received, elements)).all()


@every_codec
@given(seed=st.integers(0, 2**32 - 1), elements=st.integers(1, 5000))
@settings(max_examples=15)
def test_damaged_bytes_never_break_the_check(coder: Codec, seed: int, elements: int) -> None:
    rng = np.random.default_rng(seed)
    received = encode(coder, gaussian(elements)).numpy()
    received[rng.integers(0, len(received), 3)] ^= rng.integers(1, 256, 3, dtype=np.uint8)
    if rng.integers(4) == 0:
        received = received[: rng.integers(0, len(received) + 1)]
    if coder.check(as_tensor(received.tobytes()), elements) is None:
        assert torch.isfinite(decode(coder, as_tensor(received.tobytes()), elements)).all()


# ---- names


def test_the_table_has_every_format_alone_and_with_every_stage() -> None:
    assert set(CODECS) == set(FORMATS) | {f"{name}+{stage}" for name in FORMATS for stage in STAGES}
    assert all(coder.name == name and codec(name) is coder for name, coder in CODECS.items())
    assert set(EXPECTED) == set(FORMATS)


@pytest.mark.parametrize("name", ["int9", "", "int8+", "int8+lzma", "+zstd", "int8+zstd+zstd", "rms2"])
def test_an_unknown_codec_is_refused_with_the_known_names(name: str) -> None:
    for lookup in (codec, format_of, bits):
        with pytest.raises(ConfigError, match="unknown codec") as caught:
            lookup(name)
        assert "fp32, bf16, bf16-planes, int8" in caught.value.hint
        assert "+zstd or +huffman" in caught.value.hint


@every_codec
def test_bits_are_what_gaussian_values_take(coder: Codec) -> None:
    source = gaussian(1 << 17)
    assert bits(coder.name) == pytest.approx(8 * len(encode(coder, source)) / len(source), rel=0.04)


def test_few_bits_are_for_the_way_up_of_the_direct_topology() -> None:
    for name, form in FORMATS.items():
        assert form.per_hop == (form.bits >= 8), name
        assert form.down == ("" if form.bits >= 8 else "int8"), name
        assert form.error_feedback == (form.bits < 2.6), name


def test_as_tensor_views_writable_aligned_memory_and_copies_the_rest() -> None:
    memory = bytearray(range(64))
    start = -as_tensor(memory).data_ptr() % 8
    view = as_tensor(memoryview(memory)[start:])
    assert view.data_ptr() % 8 == 0
    memory[start] = 99
    assert view[0] == 99

    shifted = as_tensor(memoryview(memory)[start + 1 :])
    assert shifted.data_ptr() % 8 == 0
    assert bytes(shifted.tolist()) == bytes(memory[start + 1 :])
    memory[start + 1] = 98
    assert shifted[0] != 98

    frozen = as_tensor(bytes(memory))
    assert frozen.data_ptr() % 8 == 0
    assert bytes(frozen.tolist()) == bytes(memory)
    assert as_tensor(b"").shape == (0,)
