"""fp32: the values as they are, 4 bytes each."""

import math

import torch
from torch import Tensor

from wantrain.transport.codec.blocks import not_finite, pieces, require_size, scratch, size_reason


class Fp32:
    """Layout: IEEE binary32, in order. No error."""

    name = "fp32"

    def max_bytes(self, elements: int) -> int:
        return 4 * elements

    def encode(self, source: Tensor, out: Tensor) -> int:
        require_size(self.name, out, self.max_bytes(source.numel()))
        if not _finite(source):
            raise not_finite(self.name)
        out.view(torch.float32).copy_(source)
        return out.numel()

    def decode(self, encoded: Tensor, out: Tensor) -> None:
        require_size(self.name, encoded, self.max_bytes(out.numel()))
        out.copy_(encoded.view(torch.float32))

    def accumulate(self, encoded: Tensor, weight: float, acc: Tensor) -> None:
        require_size(self.name, encoded, self.max_bytes(acc.numel()))
        values = encoded.view(torch.float32)
        if weight == 1.0:
            acc.add_(values)
            return
        for piece in pieces(acc.numel()):
            product = scratch("work", piece.stop - piece.start, torch.float32, acc.device)
            torch.mul(values[piece], weight, out=product)
            acc[piece].add_(product)

    def check(self, encoded: Tensor, elements: int) -> str | None:
        if reason := size_reason(encoded, self.max_bytes(elements)):
            return reason
        return None if _finite(encoded.view(torch.float32)) else "a value is NaN or infinite"


def _finite(values: Tensor) -> bool:
    """Whether all are finite. A sum is fastest; only if it overflows or is NaN do the extremes have to tell."""
    if not values.numel() or math.isfinite(values.sum().item()):
        return True
    low, high = torch.aminmax(values)
    return math.isfinite(low.item()) and math.isfinite(high.item())
