"""Codecs: one suite for all of them, golden vectors, and what each may not do to the values."""

import json
import math
import struct
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from torch import Tensor

from wantrain.errors import CodecError, ConfigError
from wantrain.transport.codec import CODECS, Codec, as_tensor, blocks, codec

torch.set_num_threads(1)

VECTORS = Path(__file__).parent.parent / "vectors"
SIZES = [0, 1, 2, 255, 256, 257, 511, 512, 513, 70000]
FINITE = arrays.arrays(
    np.float32, st.integers(0, 600), elements=st.floats(width=32, allow_nan=False, allow_infinity=False)
)
every_codec = pytest.mark.parametrize("coder", CODECS.values(), ids=CODECS)


def gaussian(elements: int, seed: int = 1) -> Tensor:
    return torch.randn(elements, generator=torch.Generator().manual_seed(seed))


def student_t4(elements: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(1).standard_t(4, elements).astype(np.float32))


def encode(coder: Codec, source: Tensor) -> Tensor:
    out = torch.full((coder.encoded_bytes(source.numel()),), 0xAA, dtype=torch.uint8)
    coder.encode(source, out)
    return out


def decode(coder: Codec, encoded: Tensor, elements: int) -> Tensor:
    out = torch.full((elements,), math.nan)
    coder.decode(encoded, out)
    return out


def bits(values: Tensor) -> bytes:
    return values.numpy().tobytes()


def values_of(text: str) -> Tensor:
    return as_tensor(bytes.fromhex(text)).view(torch.float32)


# ---- all codecs


@every_codec
@pytest.mark.parametrize("elements", SIZES)
def test_every_size_goes_there_and_back(coder: Codec, elements: int) -> None:
    source = gaussian(elements)
    encoded = encode(coder, source)
    decoded = decode(coder, encoded, elements)
    assert coder.check(encoded, elements) is None
    assert torch.allclose(decoded, source, rtol=2**-8, atol=4.5 / 254)


@every_codec
def test_golden_vectors(coder: Codec) -> None:
    golden = json.loads((VECTORS / f"{coder.name}.json").read_text())
    for case in golden["cases"]:
        source = values_of(case["source"])
        encoded = encode(coder, source)
        assert bits(encoded).hex() == case["encoded"], case["rule"]
        assert bits(decode(coder, encoded, source.numel())).hex() == case["decoded"], case["rule"]
        assert coder.check(encoded, source.numel()) is None, case["rule"]


@every_codec
def test_the_same_input_gives_the_same_bytes(coder: Codec) -> None:
    source = gaussian(70000)
    kept = source.clone()
    assert torch.equal(encode(coder, source), encode(coder, source.clone()))
    assert torch.equal(source, kept), "encoding must not change its input"


@every_codec
@pytest.mark.parametrize("piece", [256, 512, 65536])
def test_the_working_piece_does_not_show(coder: Codec, piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    source, acc = gaussian(70000), gaussian(70000, seed=2)
    encoded, decoded, summed = encode(coder, source), torch.empty(70000), acc.clone()
    coder.decode(encoded, decoded)
    coder.accumulate(encoded, 0.3, summed)
    monkeypatch.setattr(blocks, "PIECE", piece)
    assert torch.equal(encode(coder, source), encoded)
    assert torch.equal(decode(coder, encoded, 70000), decoded)
    coder.accumulate(encoded, 0.3, acc)
    assert torch.equal(acc, summed)


@every_codec
@pytest.mark.parametrize("elements", SIZES)
@pytest.mark.parametrize("weight", [1.0, 0.3, 1e15])
def test_accumulate_is_decode_then_multiply_then_add(coder: Codec, elements: int, weight: float) -> None:
    encoded = encode(coder, gaussian(elements))
    acc = gaussian(elements, seed=2)
    product = decode(coder, encoded, elements).numpy() * np.float32(weight)
    expected = acc.numpy() + product
    coder.accumulate(encoded, weight, acc)
    assert bits(acc) == expected.tobytes()


@every_codec
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", [0, 255, 256, 599])
def test_values_that_are_not_finite_are_refused(coder: Codec, bad: float, where: int) -> None:
    source = gaussian(600)
    source[where] = bad
    with pytest.raises(CodecError, match="NaN or infinite"):
        encode(coder, source)


@every_codec
def test_finite_values_whose_sum_overflows_are_encoded(coder: Codec) -> None:
    largest = torch.finfo(torch.float32).max
    source = torch.full((600,), largest)
    source[300:] = -largest
    encoded = encode(coder, source)
    assert coder.check(encoded, 600) is None
    decoded = decode(coder, encoded, 600)
    assert torch.isfinite(decoded).all()
    assert torch.allclose(decoded, source, rtol=2**-8)


@every_codec
def test_zeros_stay_zeros(coder: Codec) -> None:
    encoded = encode(coder, torch.zeros(600))
    assert not encoded.any()
    assert coder.check(encoded, 600) is None
    assert not decode(coder, encoded, 600).any()


@every_codec
@pytest.mark.parametrize(("draw", "column"), [(gaussian, 0), (student_t4, 1)])
def test_error_is_what_the_table_of_codecs_says(coder: Codec, draw: Callable[[int], Tensor], column: int) -> None:
    allowed = {"fp32": (0.0, 0.0), "bf16": (0.0018, 0.0018), "int8": (0.0072, 0.0145)}[coder.name][column]
    source = draw(70000)
    error = decode(coder, encode(coder, source), 70000) - source
    assert float(error.norm() / source.norm()) <= allowed


@every_codec
def test_values_of_one_sign_are_not_biased(coder: Codec) -> None:
    source = -gaussian(70000).abs()
    error = (decode(coder, encode(coder, source), 70000) - source).double()
    standard_error = float(error.std()) / math.sqrt(70000)
    assert abs(float(error.mean())) <= 4 * standard_error


@every_codec
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
@given(values=FINITE)
@settings(max_examples=60, deadline=None)
def test_any_finite_values_survive_within_half_a_step(coder: Codec, values: np.ndarray) -> None:
    source = torch.from_numpy(values.copy())
    encoded = encode(coder, source)
    assert coder.check(encoded, source.numel()) is None
    decoded = decode(coder, encoded, source.numel()).double()
    assert torch.isfinite(decoded).all()
    error = (decoded - source.double()).abs()
    if coder.name == "fp32":
        assert not error.any()
    elif coder.name == "bf16":
        assert (error <= source.double().abs() * 2**-8 + 2.0**-134).all()
    else:
        scales = encoded[: 4 * (-(-source.numel() // 256))].view(torch.float32).double()
        step = scales.repeat_interleave(256)[: source.numel()]
        assert (error <= step * (0.5 + 2**-15) + 2.0**-149).all()


@every_codec
@given(data=st.binary(max_size=700), elements=st.integers(0, 600))
@settings(max_examples=60, deadline=None)
def test_bytes_that_pass_the_check_decode_to_finite_values(coder: Codec, data: bytes, elements: int) -> None:
    data = (data * (1 + coder.encoded_bytes(elements) // max(len(data), 1)))[: coder.encoded_bytes(elements)]
    if coder.check(as_tensor(data), elements) is None:
        assert torch.isfinite(decode(coder, as_tensor(data), elements)).all()


@every_codec
def test_threads_do_not_share_scratch(coder: Codec) -> None:
    sources = [gaussian(70000, seed) for seed in range(4)]
    expected = [encode(coder, source) for source in sources]
    same = [False] * 4

    def work(k: int) -> None:
        same[k] = all(torch.equal(encode(coder, sources[k]), expected[k]) for _ in range(20))

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(same)


# ---- corruption


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", [0, 599])
def test_check_finds_values_that_are_not_finite(bad: float, where: int) -> None:
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        encoded = encode(codec(name), gaussian(600))
        encoded.view(dtype)[where] = bad
        assert codec(name).check(encoded, 600) == "a value is NaN or infinite"


@pytest.mark.parametrize("bad", [math.nan, math.inf, -1e-30, -math.inf, 2.7e36])
@pytest.mark.parametrize("block", [0, 2])
def test_int8_check_finds_a_bad_scale(bad: float, block: int) -> None:
    encoded = encode(codec("int8"), gaussian(600))
    encoded[4 * block : 4 * block + 4] = as_tensor(struct.pack("<f", bad))
    assert "a scale is" in (codec("int8").check(encoded, 600) or "")


@pytest.mark.parametrize("where", [0, 255, 256, 599])
def test_int8_check_finds_a_code_of_minus_128(where: int) -> None:
    encoded = encode(codec("int8"), gaussian(600))
    encoded[12 + where] = 0x80
    assert codec("int8").check(encoded, 600) == "a code is -128"


# ---- int8


def test_int8_blocks_do_not_affect_each_other() -> None:
    source = gaussian(600)
    source[256:512] *= 1e-20
    source[512:] = 0
    decoded = decode(codec("int8"), encode(codec("int8"), source), 600)
    for block in (slice(0, 256), slice(256, 512)):
        assert float((decoded[block] - source[block]).norm() / source[block].norm()) < 0.01
    assert not decoded[512:].any()


@pytest.mark.parametrize("unit", [2.0**-149, 2.0**-140, 2.0**-127, 2.0**-120, 1.0, 2.0**100])
@pytest.mark.parametrize("largest", [1, 60, 63, 64, 65, 127, 128, 190, 191, 200, 32767])
def test_int8_error_is_at_most_half_a_step_down_to_subnormals(unit: float, largest: int) -> None:
    source = (torch.linspace(-largest, largest, 256, dtype=torch.float64).round() * unit).float()
    decoded = decode(codec("int8"), encode(codec("int8"), source), 256)
    step = max(largest / 127 * unit, 0.0) + 2.0**-149
    assert float((decoded.double() - source.double()).abs().max()) <= step * (0.5 + 2**-15)
    assert torch.equal(decoded[[0, -1]].sign(), source[[0, -1]].sign())


def test_int8_codes_come_from_the_stored_scale_and_round_half_to_even() -> None:
    source = torch.tensor([254.0, 1.0, 3.0, 5.0, -1.0, -3.0, -5.0])
    encoded = encode(codec("int8"), source)
    assert encoded[:4].view(torch.float32).item() == 2.0
    assert encoded[4:].view(torch.int8).tolist() == [127, 0, 2, 2, 0, -2, -2]


# ---- the table, and tensors over buffers


def test_an_unknown_codec_is_refused_with_the_known_names() -> None:
    with pytest.raises(ConfigError, match="int9") as caught:
        codec("int9")
    assert "fp32, bf16, int8" in caught.value.hint


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


@every_codec
def test_received_bytes_decode_wherever_they_lie(coder: Codec) -> None:
    source = gaussian(600)
    encoded = encode(coder, source)
    for shift in range(9):
        received = memoryview(bytes(shift) + bits(encoded))[shift:]
        for buffer in (received, memoryview(bytearray(shift) + bits(encoded))[shift:]):
            assert torch.equal(decode(coder, as_tensor(buffer), 600), decode(coder, encoded, 600))
