"""e2m1: blocks of 64 values share one bf16 scale, each value is a 4-bit float (2 bits exponent, 1 mantissa)."""

import torch
from torch import Tensor

from wantrain.transport.codec.blocks import scratch
from wantrain.transport.codec.blockwise import Blockwise
from wantrain.transport.codec.nibbles import sign_beside, unpack_nibbles


class E2M1(Blockwise):
    """Scale = absmax / 6; nibble = sign bit and the index of the nearest of 0, .5, 1, 1.5, 2, 3, 4, 6, ties to even."""

    name = "e2m1"
    block = 64
    code_bits = 4
    peak = 6
    scale_dtype = torch.bfloat16
    unit = 0.5

    quotient_unit = 2.0**-23
    """Then .5 is the smallest fp16 number, and a quotient's fp16 bits are how many times it has .5, rounded."""

    def _pack(self, quotients: Tensor, packed: Tensor) -> None:
        size, device = quotients.numel(), quotients.device
        index, coarser = (
            scratch(purpose, size, torch.float16, device).view(torch.int16) for purpose in ("pairs", "coarser")
        )
        # Steps of .5 up to 2, 1 up to 4, 2 up to 6: each range counts right where it applies and too far elsewhere. The
        # sign is the uppermost bit, so that the least of two numbers with one sign is that of the lower index.
        index.view(torch.float16).copy_(quotients)
        for above in (2, 4):
            coarser.view(torch.float16).copy_(quotients.mul_(0.5))
            torch.minimum(index, coarser.add_(above), out=index)
        sign_beside(index, 3, coarser)
        words = index.view(torch.int32)
        shifted = torch.bitwise_right_shift(words, 12, out=coarser.view(torch.int32))
        packed.copy_(shifted.bitwise_or_(words))  # keeps the lower byte

    def _unpack(self, packed: Tensor, out: Tensor) -> None:
        codes = unpack_nibbles(packed)
        index, more, most = (
            scratch(purpose, codes.numel(), torch.int8, codes.device) for purpose in ("signs", "coarser", "steps")
        )
        torch.bitwise_and(codes, 7, out=index)
        # In steps of .5: the index, and above 4 once more what exceeds 4, above 6 twice what exceeds 6.
        torch.sub(index, 4, out=more).clamp_(min=0)
        torch.sub(more, 2, out=most).clamp_(min=0)
        index.add_(more).add_(most).add_(most)
        signs = codes.bitwise_left_shift_(4).bitwise_right_shift_(7)  # 0 or -1
        out.copy_(index.bitwise_xor_(signs).sub_(signs))
