"""e2m1: blocks of 64 values share one bf16 scale, each value is a 4-bit float (2 bits exponent, 1 mantissa)."""

import torch
from torch import Tensor

from wantrain.transport.codec.blocks import scratch
from wantrain.transport.codec.blockwise import Blockwise
from wantrain.transport.codec.nibbles import pack_nibbles, unpack_nibbles


class E2M1(Blockwise):
    """Scale = absmax / 6; nibble = sign bit and the index of the nearest of 0, .5, 1, 1.5, 2, 3, 4, 6, ties to even."""

    name = "e2m1"
    block = 64
    code_bits = 4
    peak = 6
    scale_dtype = torch.bfloat16
    unit = 0.5

    def _pack(self, quotients: Tensor, packed: Tensor) -> None:
        size, device = quotients.numel(), quotients.device
        steps = scratch("steps", size, torch.float32, device)
        index, coarser, signs = (
            scratch(purpose, size, torch.int8, device) for purpose in ("codes", "coarser", "signs")
        )
        signs.copy_(quotients.view(torch.int32).bitwise_right_shift(28))
        signs.bitwise_and_(8)
        # Steps of .5 up to 2, 1 up to 4, 2 up to 6: each range counts right where it applies and too far elsewhere.
        quotients.abs_()
        index.copy_(torch.mul(quotients, 2, out=steps).round_())
        coarser.copy_(torch.round(quotients, out=steps))
        torch.minimum(index, coarser.add_(2), out=index)
        coarser.copy_(quotients.mul_(0.5).round_())
        torch.minimum(index, coarser.add_(4), out=index)
        pack_nibbles(index.clamp_(max=7).bitwise_or_(signs), packed)

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
