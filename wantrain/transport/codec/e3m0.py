"""e3m0: blocks of 1024 values share one bf16 scale, each value is a sign and a power of two in 4 bits."""

import torch
from torch import Tensor

from wantrain.transport.codec.blocks import scratch
from wantrain.transport.codec.blockwise import Blockwise
from wantrain.transport.codec.nibbles import pack_nibbles

BELOW = 247
"""Bits 22 to 30 (exponent and first bit of the mantissa) of the fp32 values just under .125."""


class E3M0(Blockwise):
    """Scale = absmax / 16; nibble = sign bit and e: 0 for 0, else 2**(e - 3).

    e counts how many of .125, .375, .75, 1.5, 3, 6, 12 the magnitude of value / scale reaches; a value on a threshold
    (half way between two codes) takes the larger one. The wire type is Streaming DiLoCo's (arXiv 2501.18512).
    """

    name = "e3m0"
    block = 1024
    code_bits = 4
    peak = 16
    scale_dtype = torch.bfloat16
    unit = 2.0**124

    def _pack(self, quotients: Tensor, packed: Tensor) -> None:
        size, device = quotients.numel(), quotients.device
        leading = scratch("pairs", size, torch.int16, device)
        exponent, least = (scratch(purpose, size, torch.int8, device) for purpose in ("codes", "coarser"))
        # All thresholds are 1 or 1.5 times a power of two: sign, exponent and one bit of mantissa decide.
        leading.copy_(quotients.view(torch.int32).bitwise_right_shift_(22))
        signs = scratch("signs", size, torch.int16, device)
        torch.bitwise_right_shift(leading, 12, out=signs).bitwise_and_(8)
        # Half octaves from the first threshold on, 0 below it: 1, 2, 3 give e = 1; 4, 5 give 2; 6, 7 give 3; ...
        leading.bitwise_and_(511).sub_(BELOW).clamp_(0, 14)
        least.copy_(leading)
        torch.bitwise_right_shift(least, 1, out=exponent)
        torch.maximum(exponent, least.clamp_(max=1), out=exponent)
        least.copy_(signs)
        pack_nibbles(exponent.bitwise_or_(least), packed)

    def _unpack(self, packed: Tensor, out: Tensor) -> None:
        # Each pair of nibbles becomes two bf16 numbers with exponent field e: 2**(e - 127), and 0 for 0.
        pairs, signs = (scratch(p, packed.numel(), torch.int32, packed.device) for p in ("codes", "signs"))
        pairs.copy_(packed)
        torch.bitwise_left_shift(pairs, 12, out=signs)
        pairs.bitwise_or_(signs)
        torch.bitwise_left_shift(pairs, 12, out=signs).bitwise_and_(-0x7FFF8000)
        pairs.bitwise_and_(0x00070007).bitwise_left_shift_(7).bitwise_or_(signs)
        out.copy_(pairs.view(torch.bfloat16))
