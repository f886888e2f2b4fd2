"""What formats with one scale per block have in common: layout, scales, and the loop over working pieces."""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from wantrain.transport.codec.blocks import (
    FP32_MAX,
    NORMAL_MIN,
    block_count,
    block_rows,
    block_slices,
    divide,
    not_finite,
    require_size,
    scratch,
    size_reason,
)


class Blockwise(ABC):
    """Layout: the scales of all blocks, then the codes of all values, packed; the last block may be short.

    A subclass says how a block is measured, how that becomes its scale, and how codes are made and packed. Codes come
    from value / stored scale; decoded = code * scale, rounded once; a block of zeros has scale 0. A scale that is
    subnormal is rounded up if codes beyond the range were needed otherwise, and clamped where code * scale overflows.
    """

    name: str
    block: int
    """Values with a common scale; a power of two."""
    code_bits: int
    peak: float
    """Largest |code|."""
    scale_dtype: torch.dtype = torch.float32
    unit: float = 1.0
    """Power of two with which the numbers that `_unpack` gives are multiplied to get codes."""
    quotient_unit: float = 1.0
    """Power of two of which `_pack` gets multiples: value / scale * quotient_unit; at most 1."""

    @property
    def scale_max(self) -> float:
        """Largest scale whose product with every code is finite."""
        digits = 24 if self.scale_dtype == torch.float32 else 8
        fraction, exponent = math.frexp(FP32_MAX / self.peak)
        return math.ldexp(math.floor(math.ldexp(fraction, digits)), exponent - digits)

    def max_bytes(self, elements: int) -> int:
        return self._scale_bytes(elements) + -(-elements * self.code_bits // 8)

    def encode(self, source: Tensor, out: Tensor) -> int:
        elements, device = source.numel(), source.device
        require_size(self.name, out, self.max_bytes(elements))
        if not elements:
            return 0
        scales, codes = self._split(out, elements)
        measures = torch.empty(len(scales), dtype=torch.float32, device=device)
        runs = list(block_slices(elements, self.block))
        for blocks in runs:
            rows = block_rows(source, blocks, self.block)
            self._measure(rows, min(self.block, elements - blocks.start * self.block), measures[blocks])
        largest = measures.amax().item()
        if not math.isfinite(largest):  # abs, amax and sums pass NaN on
            raise not_finite(self.name)
        divisors, rest = self._store_scales(measures, scales), 1.0
        if self.quotient_unit != 1:  # exact, but for quotients that get subnormal: far below what is not rounded to 0
            if largest / self.peak < self.quotient_unit * FP32_MAX / 2:
                divisors = divisors * (1 / self.quotient_unit)
            else:
                rest = self.quotient_unit
        for blocks in runs:
            rows = block_rows(source, blocks, self.block)
            quotients = scratch("work", rows.numel(), torch.float32, device)
            # A division, not a product with 1 / scale: that is inexact, and overflows for tiny scales.
            torch.div(rows, divisors[blocks].unsqueeze(1), out=quotients.view_as(rows))
            if rest != 1:
                quotients.mul_(rest)
            packed = self._packed(codes, blocks)
            if packed.numel() * 8 == quotients.numel() * self.code_bits:
                self._pack(quotients, packed)
            else:  # the short block
                padded = scratch("padded codes", self.block * self.code_bits // 8, torch.uint8, device)
                self._pack(quotients, padded)
                packed.copy_(padded[: packed.numel()])
        return out.numel()

    def decode(self, encoded: Tensor, out: Tensor) -> None:
        require_size(self.name, encoded, self.max_bytes(out.numel()))
        self._decode(encoded, out, None)

    def accumulate(self, encoded: Tensor, weight: float, acc: Tensor) -> None:
        require_size(self.name, encoded, self.max_bytes(acc.numel()))
        self._decode(encoded, acc, weight)

    def check(self, encoded: Tensor, elements: int) -> str | None:
        if reason := size_reason(encoded, self.max_bytes(elements)):
            return reason
        if not elements:
            return None
        scales, codes = self._split(encoded, elements)
        low, high = (extreme.item() for extreme in torch.aminmax(scales))
        if not (low >= 0 and high <= self.scale_max):  # false for NaN as well
            return f"a scale is negative, NaN or above {self.scale_max:g}: they lie between {low:g} and {high:g}"
        return self._codes_reason(codes)

    # ---- what a format is

    def _measure(self, rows: Tensor, width: int, out: Tensor) -> None:
        """Write to fp32[r] `out` what the scales of fp32[r, block] rows come from: by default the largest magnitudes.

        The first `width` values of each row are real; the rest of a short block is zeros.
        """
        torch.amax(rows, 1, out=out)
        torch.maximum(out, torch.amin(rows, 1).neg_(), out=out).abs_()  # abs, as there is a zero with a sign

    def _store_scales(self, measures: Tensor, scales: Tensor) -> Tensor:
        """Write scales = measure / peak; returns them as fp32[blocks], 1 for 0, to divide by. `measures` is used up."""
        lowest = measures.amin().item()
        largest = measures.clone() if lowest < self.peak * NORMAL_MIN else measures
        scales.copy_(divide(measures, self.peak).clamp_(max=self.scale_max))
        if largest is measures:
            return scales.float()
        # A subnormal scale may have been rounded down so far (to 0, even) that codes out of range were needed.
        values = scales.float()
        short = (values < NORMAL_MIN) & (values * self.peak < largest)
        bits = scales.view(torch.int32 if scales.dtype == torch.float32 else torch.int16)
        bits.add_(short)  # the next larger one
        values = scales.float()
        return torch.where(values == 0, 1.0, values)

    @abstractmethod
    def _pack(self, quotients: Tensor, packed: Tensor) -> None:
        """Round fp32[n] value / scale * quotient_unit (may be overwritten) to codes, into uint8[n * code_bits / 8].

        Whole blocks. Where blocks are measured by their largest magnitude, value / scale is at most (1 + 2**-7) * peak.
        """

    @abstractmethod
    def _unpack(self, packed: Tensor, out: Tensor) -> None:
        """Write the codes / unit in uint8[n * code_bits / 8] as fp32[n]; whole blocks."""

    def _codes_reason(self, codes: Tensor) -> str | None:
        """What is wrong with packed codes of which not every pattern is one, or None."""
        return None

    # ---- layout

    def _scale_bytes(self, elements: int) -> int:
        return self.scale_dtype.itemsize * block_count(elements, self.block)

    def _split(self, encoded: Tensor, elements: int) -> tuple[Tensor, Tensor]:
        """Views of the scales, [blocks], and the packed codes, uint8."""
        size_bytes = self._scale_bytes(elements)
        return encoded[:size_bytes].view(self.scale_dtype), encoded[size_bytes:]

    def _packed(self, codes: Tensor, blocks: slice) -> Tensor:
        block_bytes = self.block * self.code_bits // 8
        return codes[blocks.start * block_bytes : blocks.stop * block_bytes]

    def _decode(self, encoded: Tensor, target: Tensor, weight: float | None) -> None:
        """Write the values to `target`, or with a weight add weight * value to it."""
        elements, device = target.numel(), target.device
        if not elements:
            return
        scales, codes = self._split(encoded, elements)
        factors, rest = self._factors(scales.float())
        for blocks in block_slices(elements, self.block):
            part = target[blocks.start * self.block : blocks.stop * self.block]
            packed = self._packed(codes, blocks)
            size = (blocks.stop - blocks.start) * self.block
            whole = part.numel() == size
            if not whole:
                padded = scratch("padded codes", self.block * self.code_bits // 8, torch.uint8, device)
                padded[: packed.numel()] = packed
                packed = padded
            values = part if whole and weight is None else scratch("work", size, torch.float32, device)
            self._unpack(packed, values)
            if rest != 1:
                values.mul_(rest)
            values.view(-1, self.block).mul_(factors[blocks].unsqueeze(1))
            if weight is not None:
                values = values[: part.numel()]
                part.add_(values if weight == 1.0 else values.mul_(weight))
            elif not whole:
                part.copy_(values[: part.numel()])

    def _factors(self, scales: Tensor) -> tuple[Tensor, float]:
        """fp32[blocks] and a number by which what `_unpack` gives is multiplied; the number is exact, 1 if possible."""
        if self.unit == 1:
            return scales, 1
        factors = scales * self.unit  # exact: a power of two, and scales in bf16 have bits to spare
        return (factors, 1) if math.isfinite(factors.amax().item()) else (scales, self.unit)
