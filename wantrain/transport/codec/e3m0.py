"""e3m0: blocks of 1024 values share one bf16 scale, each value is a sign and a power of two in 4 bits."""

import torch
from torch import Tensor

from wantrain.transport.codec.blocks import scratch
from wantrain.transport.codec.blockwise import Blockwise
from wantrain.transport.codec.nibbles import sign_beside


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
    quotient_unit = 2.0**-12
    """Then .25 is the smallest normal number of fp16, and .125 half of it: 0 and a mantissa that begins with a 1."""

    def _pack(self, quotients: Tensor, packed: Tensor) -> None:
        size, device = quotients.numel(), quotients.device
        # All thresholds are 1 or 1.5 times a power of two: sign, exponent and one bit of mantissa decide, the rest is
        # cut off, lest the conversion rounds up to a threshold.
        quotients.view(torch.int32).bitwise_and_(-1 << 22)
        halves = scratch("pairs", size, torch.float16, device).copy_(quotients).view(torch.int16)
        sign_beside(halves, 13, quotients.view(torch.int16)[:size])  # memory that is in the cache
        # Half of an exponent's step more, and the exponent is e; then bits 10 to 13 of both halves of a word, side by
        # side at its upper end, are what belongs in a byte.
        words = halves.view(torch.int32).add_(0x02000200).bitwise_and_(0x3C003C00)
        packed.copy_(words.mul_((1 << 14) + (1 << 2)).bitwise_right_shift_(24))

    def _unpack(self, packed: Tensor, out: Tensor) -> None:
        # Each pair of nibbles becomes two bf16 numbers with exponent field e: 2**(e - 127), and 0 for 0.
        pairs, signs = (scratch(p, packed.numel(), torch.int32, packed.device) for p in ("codes", "signs"))
        pairs.copy_(packed)
        torch.bitwise_left_shift(pairs, 12, out=signs)
        pairs.bitwise_or_(signs)
        torch.bitwise_left_shift(pairs, 12, out=signs).bitwise_and_(-0x7FFF8000)
        pairs.bitwise_and_(0x00070007).bitwise_left_shift_(7).bitwise_or_(signs)
        out.copy_(pairs.view(torch.bfloat16))
