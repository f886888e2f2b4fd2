"""int8: blocks of 256 values share one fp32 scale, each value is a code from -127 to 127."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from wantrain.transport.codec.blocks import PIECE, not_finite, pieces, require_size, scratch, size_reason

BLOCK = 256
SCALE_MAX = float.fromhex("0x1.020406p+121")
"""Largest fp32 scale whose product with 127 is finite."""
NORMAL_MIN = torch.finfo(torch.float32).tiny
"""Smallest fp32 scale with full precision; below it the rounding of absmax / 127 is coarse."""


class Int8:
    """Layout: the scales of all blocks as fp32, then all codes as int8; the last block may be short.

    scale = absmax / 127; code = round_half_even(value / scale), from the stored scale; decoded = code * scale, rounded
    once. A block of zeros has scale 0. Error at most scale / 2 per value.
    """

    name = "int8"

    def encoded_bytes(self, elements: int) -> int:
        return 4 * _blocks(elements) + elements

    def encode(self, source: Tensor, out: Tensor) -> None:
        elements = source.numel()
        require_size(self.name, out, self.encoded_bytes(elements))
        if not elements:
            return
        scales, codes = _split(out, elements)
        for piece, blocks, width in _rows(elements):
            magnitude = scratch(piece.stop - piece.start)
            torch.abs(source[piece], out=magnitude)
            torch.amax(magnitude.view(-1, width), 1, out=scales[blocks])
        if not math.isfinite(scales.amax().item()):  # abs and amax pass NaN on
            raise not_finite(self.name)
        divisors = _scales_from_absmax(scales).unsqueeze(1)
        for piece, blocks, width in _rows(elements):
            quotient = scratch(piece.stop - piece.start)
            # A division, not a product with 1 / scale: that is inexact, and overflows for tiny scales.
            torch.div(source[piece].view(-1, width), divisors[blocks], out=quotient.view(-1, width))
            codes[piece].copy_(quotient.round_())

    def decode(self, encoded: Tensor, out: Tensor) -> None:
        require_size(self.name, encoded, self.encoded_bytes(out.numel()))
        scales, codes = _split(encoded, out.numel())
        for piece, blocks, width in _rows(out.numel()):
            _decode(codes[piece], scales[blocks], width, out[piece])

    def accumulate(self, encoded: Tensor, weight: float, acc: Tensor) -> None:
        require_size(self.name, encoded, self.encoded_bytes(acc.numel()))
        scales, codes = _split(encoded, acc.numel())
        for piece, blocks, width in _rows(acc.numel()):
            product = scratch(piece.stop - piece.start)
            _decode(codes[piece], scales[blocks], width, product)
            product.mul_(weight)
            acc[piece].add_(product)

    def check(self, encoded: Tensor, elements: int) -> str | None:
        if reason := size_reason(encoded, self.encoded_bytes(elements)):
            return reason
        if not elements:
            return None
        scales, codes = _split(encoded, elements)
        low, high = (extreme.item() for extreme in torch.aminmax(scales))
        if not (low >= 0 and high <= SCALE_MAX):  # false for NaN as well
            return f"a scale is negative, NaN or above {SCALE_MAX:g}: they lie between {low:g} and {high:g}"
        return "a code is -128" if codes.amin().item() == -128 else None


def _blocks(elements: int) -> int:
    return -(-elements // BLOCK)


def _split(encoded: Tensor, elements: int) -> tuple[Tensor, Tensor]:
    """Views of the scales, fp32[blocks], and the codes, int8[elements]."""
    size_bytes = 4 * _blocks(elements)
    return encoded[:size_bytes].view(torch.float32), encoded[size_bytes:].view(torch.int8)


def _rows(elements: int) -> Iterator[tuple[slice, slice, int]]:
    """Pieces as (elements, blocks, width): each is whole rows of `width`, the short block a row of its own."""
    whole = elements // BLOCK * BLOCK
    for piece in pieces(whole):
        yield piece, slice(piece.start // BLOCK, piece.stop // BLOCK), BLOCK
    if whole < elements:
        yield slice(whole, elements), slice(whole // BLOCK, whole // BLOCK + 1), elements - whole


def _scales_from_absmax(scales: Tensor) -> Tensor:
    """Turn fp32[blocks] absmax into scales in place; returns the same without zeros, to divide by."""
    if scales.amin().item() >= 127 * NORMAL_MIN:
        return scales.div_(127).clamp_(max=SCALE_MAX)
    absmax = scales.clone()
    scales.div_(127).clamp_(max=SCALE_MAX)
    # A subnormal scale may have been rounded down so far (to 0, even) that codes beyond 127 were needed: round it up.
    short = (scales < NORMAL_MIN) & (scales * 127 < absmax)
    scales.copy_(torch.where(short, torch.nextafter(scales, absmax), scales))
    return torch.where(scales == 0, 1.0, scales)


def _decode(codes: Tensor, scales: Tensor, width: int, out: Tensor) -> None:
    """out = codes * scales: int8[n], fp32[n / width], fp32[n]."""
    out.copy_(codes)
    out.view(-1, width).mul_(scales.unsqueeze(1))


assert PIECE % BLOCK == 0, "a block never straddles two pieces"
