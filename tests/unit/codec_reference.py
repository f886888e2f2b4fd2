"""The formats once more, value by value in plain Python over numpy scalars: what the fast kernels must agree with."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

F = np.float32
FP32_MAX = 3.4028234663852886e38
TINY = 2.0**-126
E2M1 = (0, 0.5, 1, 1.5, 2, 3, 4, 6)
E3M0 = (0, 0.25, 0.5, 1, 2, 4, 8, 16)
E3M0_THRESHOLDS = (0.125, 0.375, 0.75, 1.5, 3, 6, 12)
STEPS = {"rms0.35": 0.35, "rms0.5": 0.5, "rms0.75": 0.75, "rms1": 1.0}
BLOCKS = {"int8": 256, "int4": 64, "e2m1": 64, "e3m0": 1024, "sign": 1024, "topk": 4096} | dict.fromkeys(STEPS, 1024)


def bf16_bits(value: float) -> int:
    """Upper half of a finite fp32, rounded to nearest even, kept finite."""
    bits = int(np.array(value, F).view(np.uint32))
    low, high = bits & 0xFFFF, bits >> 16
    high += low > 0x8000 or (low == 0x8000 and high % 2 == 1)
    return high - 1 if high & 0x7FFF == 0x7F80 else high


def from_bf16(bits: int) -> np.float32:
    return F(np.array(bits << 16, np.uint32).view(F))


def blocks(values: np.ndarray, size: int) -> Iterator[np.ndarray]:
    for start in range(0, len(values), size):
        yield values[start : start + size]


def pairwise(values: np.ndarray, size: int) -> Any:
    """Sum of the values filled up to `size` with zeros: the second half is added to the first, again and again."""
    padded = np.zeros(size, values.dtype)
    padded[: len(values)] = values
    while len(padded) > 1:
        padded = padded[: len(padded) // 2] + padded[len(padded) // 2 :]
    return padded[0]


def fitted_scale(reach: np.float32, peak: int, wide: bool) -> tuple[np.float32, bytes]:
    """Scale and how it is stored: reach / peak, as fp32 or bf16."""
    largest = (
        np.nextafter(F(FP32_MAX / peak), F(0)) if float(F(FP32_MAX / peak)) * peak > FP32_MAX else F(FP32_MAX / peak)
    )
    scale = min(F(reach / F(peak)), largest)
    if wide:
        if scale < TINY and F(scale * F(peak)) < reach:
            scale = np.nextafter(scale, F(np.inf))
        return scale, scale.tobytes()
    bits = bf16_bits(float(scale))
    while float(from_bf16(bits)) * peak > FP32_MAX:
        bits -= 1
    if from_bf16(bits) < TINY and F(from_bf16(bits) * F(peak)) < reach:
        bits += 1
    return from_bf16(bits), bits.to_bytes(2, "little")


def mean_square_root(block: np.ndarray) -> np.float32:
    largest = np.abs(block).max()
    exact = block if largest == 0 or 2.0**-50 <= largest <= 2.0**50 else block.astype(np.float64)
    mean = np.float64(pairwise(exact * exact, 1024) / exact.dtype.type(len(block)))
    return F(np.sqrt((mean.view(np.int64) & -(1 << 29)).view(np.float64)))  # 24 bits of it


def mean_magnitude(block: np.ndarray) -> np.float32:
    largest = np.abs(block).max()
    exact = block if largest == 0 or 2.0**-50 <= largest <= 2.0**50 else block.astype(np.float64)
    return F(pairwise(np.abs(exact), 1024) / exact.dtype.type(len(block)))


def joined(codes: list[int], width: int) -> bytes:
    """Unsigned codes of `width` bits, the first one lowest."""
    total = sum(code << (width * k) for k, code in enumerate(codes))
    return total.to_bytes(-(-len(codes) * width // 8), "little")


def cut(data: bytes, width: int, count: int) -> list[int]:
    total = int.from_bytes(data, "little")
    return [(total >> (width * k)) & (2**width - 1) for k in range(count)]


def nearest(value: float, table: tuple[float, ...]) -> int:
    """Index of the nearest entry, the even index of two."""
    return min(range(len(table)), key=lambda k: (abs(table[k] - value), k % 2))


def encode_block(name: str, block: np.ndarray) -> tuple[bytes, list[int], int]:
    """The stored scale, the codes as unsigned numbers, and their width in bits."""
    largest = F(np.abs(block).max())
    if name == "int8":
        scale, stored = fitted_scale(largest, 127, wide=True)
        return stored, [round(float(q)) & 0xFF for q in block / (scale or F(1))], 8
    if name in STEPS:
        scale = min(F(mean_square_root(block) * F(STEPS[name])), F(float.fromhex("0x1.020406p+121")))
        codes = [max(-127, min(127, round(float(q)))) & 0xFF for q in block / (scale or F(1))]
        return scale.tobytes(), codes, 8
    if name == "sign":
        return mean_magnitude(block).tobytes(), [int(np.signbit(value)) for value in block], 1
    if name == "int4":
        reach = largest
        if len(block) == 64:
            reach = max(F(largest * F(0.9)), min(F(np.abs(half).max()) for half in (block[:32], block[32:])))
        scale, stored = fitted_scale(reach, 7, wide=False)
        codes = [max(-7, min(7, round(float(q)))) + 8 for q in block / (scale or F(1))]
        return stored, codes, 4
    scale, stored = fitted_scale(largest, 6 if name == "e2m1" else 16, wide=False)
    codes = []
    for quotient in block / (scale or F(1)):
        magnitude = abs(float(quotient))
        index = nearest(magnitude, E2M1) if name == "e2m1" else sum(magnitude >= t for t in E3M0_THRESHOLDS)
        codes.append(index + 8 * int(np.signbit(quotient)))
    return stored, codes, 4


def encode_topk(values: np.ndarray) -> bytes:
    scales, gaps, codes = b"", [], []
    for block in blocks(values, 4096):
        order = sorted(range(len(block)), key=lambda k: (-abs(float(block[k])), k))[: -(-len(block) // 64)]
        used = [k for k in order if block[k]] or order
        scale = min(F(pairwise(np.abs(block[sorted(used)].astype(np.float64)), 64) / len(used)), F(FP32_MAX / 2))
        positions = sorted(used) + [len(block) + k for k in range(len(order) - len(used))]
        for position, before in zip(positions, [-1, *positions], strict=False):
            value = block[position] if position < len(block) else F(0)
            gaps.append(position - before - 1)
            codes.append(2 * int(value < 0) + int(round(float(abs(value) / (scale or F(1)))) >= 2))
        scales += scale.tobytes()
    return scales + bytes(gap % 256 for gap in gaps) + joined([gap // 256 for gap in gaps], 4) + joined(codes, 2)


def decode_topk(data: bytes, elements: int) -> np.ndarray:
    counts = [-(-min(4096, elements - start) // 64) for start in range(0, elements, 4096)]
    kept = sum(counts)
    scales = np.frombuffer(data[: 4 * len(counts)], F)
    low, high = data[4 * len(counts) :][:kept], data[4 * len(counts) + kept :][: -(-kept // 2)]
    codes = iter(cut(data[4 * len(counts) + kept + len(high) :], 2, kept))
    gaps = iter(a + 256 * b for a, b in zip(low, cut(high, 4, kept), strict=True))
    values = np.zeros(elements, F)
    for start, count, scale in zip(range(0, elements, 4096), counts, scales, strict=True):
        position = -1
        for _ in range(count):
            position += next(gaps) + 1
            code = next(codes)
            if position < min(4096, elements - start):
                values[start + position] = F((1 + code % 2) * (-1) ** (code // 2)) * scale
    return values


def encode(name: str, values: np.ndarray) -> bytes:
    """fp32[n] finite values as the format writes them."""
    if name == "fp32":
        return values.tobytes()
    if name == "bf16":
        return b"".join(bf16_bits(value).to_bytes(2, "little") for value in values)
    if name == "bf16-planes":
        halves = [bf16_bits(value) for value in values]
        return bytes(h >> 7 & 0xFF for h in halves) + bytes(h & 0x7F | h >> 8 & 0x80 for h in halves)
    if name == "topk":
        return encode_topk(values)
    scales, width = b"", 8
    codes: list[int] = []
    for block in blocks(values, BLOCKS[name]):
        stored, new, width = encode_block(name, block)
        scales, codes = scales + stored, codes + new
    if name == "int4" and len(codes) % 2:
        codes.append(8)
    return scales + joined(codes, width)


def decode(name: str, data: bytes, elements: int) -> np.ndarray:
    """fp32[elements] from what `encode` wrote."""
    if name == "fp32":
        return np.frombuffer(data, F)
    if name == "bf16":
        return np.array([from_bf16(bits) for bits in np.frombuffer(data, "<u2").tolist()], F)
    if name == "bf16-planes":
        pairs = zip(data[:elements], data[elements:], strict=True)
        return np.array([from_bf16((rest & 0x80) << 8 | exponent << 7 | rest & 0x7F) for exponent, rest in pairs], F)
    if name == "topk":
        return decode_topk(data, elements)
    width = {"int4": 4, "e2m1": 4, "e3m0": 4, "sign": 1}.get(name, 8)
    size = 2 if width == 4 else 4
    count = -(-elements // BLOCKS[name])
    stored = data[: size * count]
    scales = [from_bf16(b) for b in np.frombuffer(stored, "<u2").tolist()] if size == 2 else np.frombuffer(stored, F)
    meaning: Callable[[int], float] = {
        "int4": lambda code: code - 8,
        "e2m1": lambda code: E2M1[code % 8] * (-1 if code >= 8 and code % 8 else 1),
        "e3m0": lambda code: E3M0[code % 8] * (-1.0 if code >= 8 else 1.0),
        "sign": lambda code: 1 - 2 * code,
    }.get(name, lambda code: code - 256 * (code >= 128))
    codes = cut(data[size * count :], width, elements)
    return np.array([F(meaning(code)) * scales[k // BLOCKS[name]] for k, code in enumerate(codes)], F)
