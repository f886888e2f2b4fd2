"""bf16: the upper half of each fp32 value, rounded to nearest even, 2 bytes each; plain, or as two planes of bytes."""

import math

import torch
from torch import Tensor

from wantrain.transport.codec.blocks import not_finite, pieces, require_size, scratch, size_reason

BF16_MAX = torch.finfo(torch.bfloat16).max


class Bf16:
    """Layout: bfloat16, in order. Relative error at most 2**-8; finite values beyond the range go to its end."""

    name = "bf16"

    def max_bytes(self, elements: int) -> int:
        return 2 * elements

    def encode(self, source: Tensor, out: Tensor) -> int:
        require_size(self.name, out, self.max_bytes(source.numel()))
        if source.numel():
            out.view(torch.bfloat16).copy_(_within_range(self.name, source))
        return out.numel()

    def decode(self, encoded: Tensor, out: Tensor) -> None:
        require_size(self.name, encoded, self.max_bytes(out.numel()))
        out.copy_(encoded.view(torch.bfloat16))

    def accumulate(self, encoded: Tensor, weight: float, acc: Tensor) -> None:
        require_size(self.name, encoded, self.max_bytes(acc.numel()))
        values = encoded.view(torch.bfloat16)
        for piece in pieces(acc.numel()):
            product = scratch("work", piece.stop - piece.start, torch.float32, acc.device)
            product.copy_(values[piece])
            acc[piece].add_(product.mul_(weight))

    def check(self, encoded: Tensor, elements: int) -> str | None:
        if reason := size_reason(encoded, self.max_bytes(elements)):
            return reason
        if not elements:
            return None
        extremes = torch.aminmax(encoded.view(torch.bfloat16))
        return None if all(math.isfinite(extreme.item()) for extreme in extremes) else "a value is NaN or infinite"


class Bf16Planes:
    """Layout: of all values the exponent as a byte, then of all values the sign bit above the 7 bits of mantissa.

    The same values as bf16. An entropy stage finds the exponents in one place: about 10.9 bits on Gaussian values.
    """

    name = "bf16-planes"

    def max_bytes(self, elements: int) -> int:
        return 2 * elements

    def encode(self, source: Tensor, out: Tensor) -> int:
        elements = source.numel()
        require_size(self.name, out, self.max_bytes(elements))
        if not elements:
            return 0
        source = _within_range(self.name, source)
        for piece in pieces(elements):
            bits, other = (
                scratch(purpose, piece.stop - piece.start, torch.int16, source.device) for purpose in ("work", "pairs")
            )
            bits.view(torch.bfloat16).copy_(source[piece])
            out[:elements][piece].copy_(torch.bitwise_right_shift(bits, 7, out=other))  # keeps the lower byte
            torch.bitwise_right_shift(bits, 8, out=other).bitwise_and_(0x80)
            out[elements:][piece].copy_(bits.bitwise_and_(0x7F).bitwise_or_(other))
        return out.numel()

    def decode(self, encoded: Tensor, out: Tensor) -> None:
        require_size(self.name, encoded, self.max_bytes(out.numel()))
        for piece in pieces(out.numel()):
            out[piece].copy_(self._values(encoded, out.numel(), piece))

    def accumulate(self, encoded: Tensor, weight: float, acc: Tensor) -> None:
        require_size(self.name, encoded, self.max_bytes(acc.numel()))
        for piece in pieces(acc.numel()):
            product = scratch("work", piece.stop - piece.start, torch.float32, acc.device)
            product.copy_(self._values(encoded, acc.numel(), piece))
            acc[piece].add_(product.mul_(weight))

    def check(self, encoded: Tensor, elements: int) -> str | None:
        if reason := size_reason(encoded, self.max_bytes(elements)):
            return reason
        return "a value is NaN or infinite" if elements and encoded[:elements].amax().item() == 0xFF else None

    @staticmethod
    def _values(encoded: Tensor, elements: int, piece: slice) -> Tensor:
        """bf16 values of a piece, in scratch."""
        bits, other = (
            scratch(purpose, piece.stop - piece.start, torch.int16, encoded.device) for purpose in ("codes", "pairs")
        )
        other.copy_(encoded[elements:][piece])
        torch.bitwise_left_shift(other, 8, out=bits).bitwise_and_(-0x8000).bitwise_or_(other.bitwise_and_(0x7F))
        other.copy_(encoded[:elements][piece])
        return bits.bitwise_or_(other.bitwise_left_shift_(7)).view(torch.bfloat16)


def _within_range(codec: str, source: Tensor) -> Tensor:
    """fp32 that does not round to an infinity: the same, or a clamped copy.

    Raises:
        CodecError: a value is NaN or infinite.
    """
    low, high = (extreme.item() for extreme in torch.aminmax(source))
    if not (math.isfinite(low) and math.isfinite(high)):
        raise not_finite(codec)
    return source.clamp(-BF16_MAX, BF16_MAX) if low < -BF16_MAX or high > BF16_MAX else source
