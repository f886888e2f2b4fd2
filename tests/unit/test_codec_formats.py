"""Formats bit for bit: golden vectors, a second implementation that must agree, and what each may not do to values."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from torch import Tensor

from tests.unit import codec_reference as reference
from wantrain.bench.codecs import gaussian
from wantrain.errors import CodecError
from wantrain.transport.codec import CODECS, Codec, codec
from wantrain.transport.codec.int8 import Int8
from wantrain.transport.codec.names import FORMATS
from wantrain.transport.codec.topk import SCALE_MAX

torch.set_num_threads(1)

VECTORS = Path(__file__).parent.parent / "vectors"
FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)
ODD = st.sampled_from(
    [0.0, -0.0, 2.0**-149, -(2.0**-140), 2.0**-126, 1e-30, 0.5, -1.0, 1.5, 3.0, 1e30, -3.4028234663852886e38]
)
every_format = pytest.mark.parametrize("coder", [CODECS[name] for name in FORMATS], ids=list(FORMATS))


def encode(coder: Codec, source: Tensor) -> Tensor:
    out = torch.full((coder.max_bytes(source.numel()),), 0xAA, dtype=torch.uint8)
    return out[: coder.encode(source, out)].clone()


def decode(coder: Codec, encoded: Tensor, elements: int) -> Tensor:
    out = torch.full((elements,), math.nan)
    coder.decode(encoded, out)
    return out


def values_of(text: str) -> np.ndarray:
    return np.frombuffer(bytes.fromhex(text), "<f4").copy()


def assert_agrees(coder: Codec, values: np.ndarray) -> None:
    encoded = encode(coder, torch.from_numpy(values.copy()))
    expected = reference.encode(coder.name, values)
    assert encoded.numpy().tobytes() == expected
    decoded = decode(coder, encoded, len(values)).numpy()
    assert decoded.tobytes() == reference.decode(coder.name, expected, len(values)).tobytes()
    assert coder.check(encoded, len(values)) is None


# ---- bit for bit


@every_format
def test_golden_vectors(coder: Codec) -> None:
    for case in json.loads((VECTORS / f"{coder.name}.json").read_text())["cases"]:
        values = values_of(case["source"])
        encoded = encode(coder, torch.from_numpy(values.copy()))
        assert encoded.numpy().tobytes().hex() == case["encoded"], case["rule"]
        assert decode(coder, encoded, len(values)).numpy().tobytes().hex() == case["decoded"], case["rule"]
        assert_agrees(coder, values)


@every_format
@given(values=arrays.arrays(np.float32, st.integers(0, 300), elements=FINITE | ODD))
@settings(max_examples=25)
def test_any_finite_values_come_out_as_a_second_implementation_has_them(coder: Codec, values: np.ndarray) -> None:
    assert_agrees(coder, values)


@every_format
@pytest.mark.parametrize("elements", [64, 1023, 1025, 4200])
def test_whole_and_short_blocks_come_out_as_a_second_implementation_has_them(coder: Codec, elements: int) -> None:
    rng = np.random.default_rng(elements)
    normal = rng.standard_normal(elements)
    bits = rng.integers(0, 1 << 32, elements, dtype=np.uint32).view(np.float32)
    for values in (
        normal,
        rng.integers(-20, 20, elements),  # ties
        np.where(rng.random(elements) < 0.01, normal, 0.0),  # fewer nonzero values than topk keeps
        rng.integers(-300, 300, elements) * 2.0**-149,  # subnormal values and scales
        rng.integers(-30000, 30000, elements) * 2.0**-140,
        rng.standard_t(1, elements),  # outliers
        rng.choice([-1.0, 0.5, 1.0], elements) * 3.4028234663852886e38,
        np.where(np.isfinite(bits), bits, 0.0),
    ):
        assert_agrees(coder, np.asarray(values).astype(np.float32))


# ---- by hand


def test_codes_come_from_the_stored_scale_and_round_half_to_even() -> None:
    encoded = encode(codec("int8"), torch.tensor([254.0, 1.0, 3.0, 5.0, -1.0, -3.0, -5.0]))
    assert encoded[:4].view(torch.float32).item() == 2.0
    assert encoded[4:].view(torch.int8).tolist() == [127, 0, 2, 2, 0, -2, -2]

    encoded = encode(codec("int4"), torch.tensor([7.0, 0.5, 1.5, 2.5, -0.5, -7.0]))
    assert encoded[:2].view(torch.bfloat16).item() == 1.0
    assert bytes(encoded[2:].tolist()).hex() == "8faa18"  # 15 8, 10 10, 8 1

    encoded = encode(codec("e2m1"), torch.tensor([6.0, 0.25, 0.75, 1.25, -1.75, 2.5, 3.5, -5.0]))
    assert encoded[:2].view(torch.bfloat16).item() == 1.0
    assert bytes(encoded[2:].tolist()).hex() == "07224ce6"  # 7 0, 2 2, -4 4, 6 -6


def test_e3m0_codes_are_powers_of_two_and_a_threshold_belongs_to_the_larger() -> None:
    encoded = encode(codec("e3m0"), torch.tensor([16.0, 0.124, 0.125, 0.374, 0.375, -1.49, -1.5, -12.0]))
    assert encoded[:2].view(torch.bfloat16).item() == 1.0
    assert bytes(encoded[2:].tolist()).hex() == "0711b2fc"  # 7 0, 1 1, 2 -3, -4 -7


@pytest.mark.parametrize("scale", [2.0**-140, 1.37 * 2.0**-126, 2.0**-100, 1.0, 1.37, 2.0**100, 1.37 * 2.0**123])
@pytest.mark.parametrize("name", ["e3m0", "e2m1"])
def test_the_values_next_to_a_threshold_fall_on_their_sides_at_any_scale(name: str, scale: float) -> None:
    peak, *thresholds = {
        "e3m0": (16, 0.125, 0.375, 0.75, 1.5, 3, 6, 12),
        "e2m1": (6, 0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5),
    }[name]
    on = np.array([peak, *thresholds], "f4") * np.float32(scale)
    near = np.concatenate([on, np.nextafter(on[1:], np.float32(0)), np.nextafter(on[1:], np.float32(np.inf))])
    assert_agrees(codec(name), np.concatenate([near, -near]))


def test_rms_steps_and_mean_magnitudes_by_hand() -> None:
    encoded = encode(codec("rms0.5"), torch.tensor([1.0, 7.0, -5.0, 5.0]))
    assert encoded[:4].view(torch.float32).item() == 2.5  # half the root of the mean of 1, 49, 25, 25
    assert encoded[4:].view(torch.int8).tolist() == [0, 3, -2, 2]

    encoded = encode(codec("sign"), torch.tensor([1.0, -3.0, 2.0, 2.0, -2.0, -2.0, 2.0, -2.0, -2.0]))
    assert encoded[:4].view(torch.float32).item() == 2.0
    assert encoded[4:].tolist() == [0b10110010, 1]


def test_int4_clips_one_large_value_but_does_not_shrink_a_flat_block() -> None:
    single = torch.ones(64)
    single[0] = 8
    assert decode(codec("int4"), encode(codec("int4"), single), 64)[0].item() == pytest.approx(7.2, rel=2**-8)
    for flat in (-torch.ones(64), torch.ones(64), torch.ones(1)):
        assert torch.allclose(decode(codec("int4"), encode(codec("int4"), flat), len(flat)), flat, rtol=2**-8)


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


def test_topk_keeps_the_largest_and_of_equal_ones_the_first() -> None:
    source = torch.full((4096,), 0.5)
    source[[7, 4000]] = torch.tensor([-8.0, 8.0])
    decoded = decode(codec("topk"), encode(codec("topk"), source), 4096)
    assert decoded.nonzero().flatten().tolist() == [*range(63), 4000]
    assert decoded[[7, 4000]].sign().tolist() == [-1, 1]


def test_topk_does_not_make_values_of_zeros() -> None:
    source = torch.zeros(5000)
    source[[100, 4097]] = torch.tensor([-3.0, 2.0])
    assert torch.equal(decode(codec("topk"), encode(codec("topk"), source), 5000), source)


# ---- corruption


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", [0, 599])
def test_check_finds_values_that_are_not_finite(bad: float, where: int) -> None:
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        encoded = encode(codec(name), gaussian(600))
        encoded.view(dtype)[where] = bad
        assert codec(name).check(encoded, 600) == "a value is NaN or infinite"
    encoded = encode(codec("bf16-planes"), gaussian(600))
    encoded[where] = 255
    assert codec("bf16-planes").check(encoded, 600) == "a value is NaN or infinite"


@pytest.mark.parametrize("name", [name for name in FORMATS if name not in ("fp32", "bf16", "bf16-planes")])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, -1e-30, 3.3e38])
def test_check_finds_a_bad_scale(name: str, bad: float) -> None:
    dtype = torch.bfloat16 if name in ("int4", "e2m1", "e3m0") else torch.float32
    for block in (0, 1):
        encoded = encode(codec(name), gaussian(5000))
        scales = encoded[: 4 * dtype.itemsize // 2].view(dtype)
        scales[block] = bad
        reason = codec(name).check(encoded, 5000)
        if name == "sign" and bad == 3.3e38:
            assert reason is None, "any finite mean magnitude is one"
        else:
            assert "a scale is" in (reason or "")


@pytest.mark.parametrize("name", ["int8", "rms0.35", "rms1"])
@pytest.mark.parametrize("where", [1, 600])
def test_check_finds_a_code_of_minus_128(name: str, where: int) -> None:
    encoded = encode(codec(name), gaussian(600))
    encoded[-where] = 0x80
    assert codec(name).check(encoded, 600) == "a code is -128"


@pytest.mark.parametrize("nibble", [0x0F, 0xF0])
@pytest.mark.parametrize("where", [1, 300])
def test_int4_check_finds_the_reserved_code(nibble: int, where: int) -> None:
    encoded = encode(codec("int4"), gaussian(600))
    encoded[-where] &= nibble
    assert codec("int4").check(encoded, 600) == "a code is 0, which is reserved"


def test_topk_check_finds_positions_behind_the_block() -> None:
    coder = codec("topk")
    for elements, gap_at in ((8192, 63), (8192, 127), (100, 1)):
        encoded = encode(coder, gaussian(elements))
        kept, scales = -(-elements // 64), 4 * -(-elements // 4096)
        encoded[scales + kept + gap_at // 2] |= 0xFF  # the upper bits of the gap before a block's last position
        assert coder.check(encoded, elements) == "a position is out of range"
        with pytest.raises(CodecError, match="out of range"):
            coder.decode(encoded, torch.empty(elements))


def test_the_largest_scale_is_the_largest_that_cannot_overflow() -> None:
    assert Int8().scale_max == float.fromhex("0x1.020406p+121")
    assert np.float32(SCALE_MAX) * np.float32(2) == np.finfo(np.float32).max
