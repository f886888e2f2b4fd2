"""Entropy stages: golden vectors, when bytes are stored, and that compressed bytes from elsewhere cannot harm."""

import json
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
import zstandard

from wantrain.bench.codecs import gaussian
from wantrain.errors import CodecError
from wantrain.transport.codec import as_tensor, codec
from wantrain.transport.codec.entropy import STAGES, ZSTD_WINDOW_LOG
from wantrain.transport.codec.names import STAGES as STAGE_NAMES

torch.set_num_threads(1)

VECTORS = Path(__file__).parent.parent / "vectors"
every_stage = pytest.mark.parametrize("stage", STAGES)
TEXT = bytes(range(64)) * 40


def encode(name: str, source: torch.Tensor) -> bytes:
    out = torch.empty(codec(name).max_bytes(len(source)), dtype=torch.uint8)
    return bytes(out[: codec(name).encode(source, out)].numpy())


def zstd_frame(data: bytes, **options: object) -> bytes:
    return zstandard.ZstdCompressor(level=1, **options).compress(data)  # type: ignore[arg-type]


def raw_deflate(data: bytes) -> bytes:
    coder = zlib.compressobj(9, zlib.DEFLATED, -15)
    return coder.compress(data) + coder.flush()


def test_there_is_a_coder_for_every_name() -> None:
    assert list(STAGES) == list(STAGE_NAMES)


@every_stage
def test_golden_vectors_decode(stage: str) -> None:
    """What is compressed may differ between versions of the library; what it means may not."""
    for case in json.loads((VECTORS / f"{stage}.json").read_text())["cases"]:
        source = torch.from_numpy(np.frombuffer(bytes.fromhex(case["source"]), "<f4").copy())
        encoded = bytes.fromhex(case["encoded"])
        assert codec(case["codec"]).check(as_tensor(encoded), len(source)) is None, case["rule"]
        decoded = torch.empty(len(source))
        for data in (encoded, encode(case["codec"], source)):
            codec(case["codec"]).decode(as_tensor(data), decoded)
            assert decoded.numpy().tobytes().hex() == case["decoded"], case["rule"]
        if encoded[0] == 0:
            assert encode(case["codec"], source) == encoded, case["rule"]


@every_stage
@pytest.mark.parametrize("elements", [300, 200_000])
def test_bytes_that_do_not_shrink_are_stored(stage: str, elements: int) -> None:
    noise = np.random.default_rng(1).integers(0, 1 << 30, elements, dtype=np.uint32).view(np.float32).copy()
    encoded = encode(f"fp32+{stage}", torch.from_numpy(noise))
    assert encoded == b"\0" + noise.tobytes()


@every_stage
@pytest.mark.parametrize("elements", [2000, 200_000])
def test_bytes_that_shrink_in_a_part_are_compressed(stage: str, elements: int) -> None:
    assert len(encode(f"bf16-planes+{stage}", gaussian(elements))) < 0.8 * 2 * elements


@every_stage
def test_what_was_compressed_comes_back(stage: str) -> None:
    coder = STAGES[stage]
    for data in (b"a", TEXT, bytes(100_000), np.random.default_rng(1).bytes(5000)):
        compressed = coder.compress(data)
        assert coder.decompress(compressed, len(data)) == data
        assert coder.decompress(compressed, len(data) + 1) is None
        assert coder.decompress(compressed, len(data) - 1) is None
        assert coder.decompress(compressed[:-1], len(data)) is None
        assert coder.decompress(compressed + b"\0", len(data)) is None
        assert coder.decompress(compressed + compressed, 2 * len(data) + 1) is None
    assert coder.decompress(b"", 10) is None


def test_a_zstd_frame_that_says_another_size_is_not_even_begun() -> None:
    decompress = STAGES["zstd"].decompress
    assert decompress(zstd_frame(bytes(1 << 26)), 1000) is None
    assert decompress(zstd_frame(TEXT, write_content_size=False), len(TEXT)) is None
    frame = bytearray(zstd_frame(TEXT))
    assert frame[4] >> 6 == 1, "the size is a field of two bytes: size - 256"
    frame[5:7] = (len(TEXT) - 256 + 1).to_bytes(2, "little")
    assert decompress(bytes(frame), len(TEXT) + 1) is None


def test_a_zstd_frame_that_wants_a_large_window_is_refused() -> None:
    data = np.random.default_rng(1).bytes(1 << 21)
    parameters = zstandard.ZstdCompressionParameters.from_level(1, window_log=ZSTD_WINDOW_LOG + 1)
    frame = zstandard.ZstdCompressor(compression_params=parameters).compress(data)
    assert STAGES["zstd"].decompress(frame[:-1], len(data)) is None
    assert STAGES["zstd"].decompress(STAGES["zstd"].compress(data), len(data)) == data


def test_a_deflate_bomb_stops_at_the_known_size() -> None:
    assert STAGES["huffman"].decompress(raw_deflate(bytes(1 << 26)), 1000) is None


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "0 bytes where 1 to 261 belong"),
        (bytes(262), "262 bytes where 1 to 261 belong"),
        (bytes(260), "260 bytes where 261 belong"),
        (b"\2" + bytes(260), "the first byte is 2, allowed are 0"),
        (b"\1" + zstd_frame(bytes(259)), "not 260 bytes when decompressed"),
        (b"\1" + zstd_frame(b"\0\0\xc0\x7f" + bytes(256)), "a scale is"),
        (b"\1" + zstd_frame(bytes(259) + b"\x80"), "a code is -128"),
    ],
)
def test_the_check_says_what_is_wrong(data: bytes, reason: str) -> None:
    coder = codec("int8+zstd")
    assert reason in (coder.check(as_tensor(data), 256) or "")
    if "is" not in reason.split()[:3]:  # what a decoder cannot read at all, it refuses as well
        for use in (coder.decode, lambda encoded, out: coder.accumulate(encoded, 1.0, out)):
            with pytest.raises(CodecError, match=reason[:20]):
                use(as_tensor(data), torch.zeros(256))


def test_names_do_without_torch() -> None:
    code = "import sys; from wantrain.transport.codec.names import bits; bits('int8'); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=False).returncode == 0
