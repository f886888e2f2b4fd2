"""bf16: the upper half of each fp32 value, rounded to nearest even, 2 bytes each."""

import math

import torch
from torch import Tensor

from wantrain.transport.codec.blocks import not_finite, pieces, require_size, scratch, size_reason

BF16_MAX = torch.finfo(torch.bfloat16).max


class Bf16:
    """Layout: bfloat16, in order. Relative error at most 2**-8; finite values beyond the range go to its end."""

    name = "bf16"

    def encoded_bytes(self, elements: int) -> int:
        return 2 * elements

    def encode(self, source: Tensor, out: Tensor) -> None:
        require_size(self.name, out, self.encoded_bytes(source.numel()))
        if not source.numel():
            return
        low, high = (extreme.item() for extreme in torch.aminmax(source))
        if not (math.isfinite(low) and math.isfinite(high)):
            raise not_finite(self.name)
        if low < -BF16_MAX or high > BF16_MAX:  # rounding to nearest would make an infinity of these
            source = source.clamp(-BF16_MAX, BF16_MAX)
        out.view(torch.bfloat16).copy_(source)

    def decode(self, encoded: Tensor, out: Tensor) -> None:
        require_size(self.name, encoded, self.encoded_bytes(out.numel()))
        out.copy_(encoded.view(torch.bfloat16))

    def accumulate(self, encoded: Tensor, weight: float, acc: Tensor) -> None:
        require_size(self.name, encoded, self.encoded_bytes(acc.numel()))
        values = encoded.view(torch.bfloat16)
        for piece in pieces(acc.numel()):
            product = scratch(piece.stop - piece.start)
            product.copy_(values[piece])
            product.mul_(weight)
            acc[piece].add_(product)

    def check(self, encoded: Tensor, elements: int) -> str | None:
        if reason := size_reason(encoded, self.encoded_bytes(elements)):
            return reason
        if not elements:
            return None
        extremes = torch.aminmax(encoded.view(torch.bfloat16))
        return None if all(math.isfinite(extreme.item()) for extreme in extremes) else "a value is NaN or infinite"
