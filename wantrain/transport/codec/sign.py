"""sign: blocks of 1024 values share their mean magnitude, each value is its sign bit; needs error feedback."""

import torch
from torch import Tensor

from wantrain.transport.codec.blocks import divide, magnitudes, scratch, tree_sum
from wantrain.transport.codec.blockwise import Blockwise
from wantrain.transport.codec.rms_step import unsafe


class Sign(Blockwise):
    """Scale = mean magnitude; a set bit stands for -1 (also for -0.0), a clear one for +1; first value lowest.

    EF-signSGD with blocks (arXiv 1901.09847, section 5). A zero in a block that is not all zeros comes out as +scale.
    """

    name = "sign"
    block = 1024
    code_bits = 1
    peak = 1

    def _measure(self, rows: Tensor, width: int, out: Tensor) -> None:
        sizes = magnitudes(rows)
        odd = unsafe(torch.amax(sizes, 1))
        out.copy_(divide(tree_sum(sizes), width))
        if odd.any().item():
            out[odd] = divide(tree_sum(rows[odd].double().abs_()), width).float()

    def _store_scales(self, measures: Tensor, scales: Tensor) -> Tensor:
        scales.copy_(measures)
        return torch.where(scales == 0, 1.0, scales)

    def _pack(self, quotients: Tensor, packed: Tensor) -> None:
        bits = scratch("codes", quotients.numel(), torch.int8, quotients.device)
        bits.copy_(quotients.view(torch.int32).bitwise_right_shift_(31)).bitwise_and_(1)
        octets = bits.view(torch.int64)  # the lowest bit of each byte moves to where it belongs, in three steps
        shifted = scratch("signs", octets.numel(), torch.int64, octets.device)
        for distance in (7, 14, 28):
            octets.bitwise_or_(torch.bitwise_right_shift(octets, distance, out=shifted))
        packed.copy_(octets)  # keeps the lowest byte

    def _unpack(self, packed: Tensor, out: Tensor) -> None:
        octets, shifted = (scratch(p, packed.numel(), torch.int64, packed.device) for p in ("codes", "signs"))
        octets.copy_(packed)
        for distance, mask in ((28, 0x0000000F0000000F), (14, 0x0003000300030003), (7, 0x0101010101010101)):
            octets.bitwise_or_(torch.bitwise_left_shift(octets, distance, out=shifted)).bitwise_and_(mask)
        out.copy_(octets.view(torch.int8).mul_(-2).add_(1))
