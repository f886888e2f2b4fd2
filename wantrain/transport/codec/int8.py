"""int8: blocks of 256 values share one fp32 scale, each value is a code from -127 to 127."""

import torch
from torch import Tensor

from wantrain.transport.codec.blockwise import Blockwise


class Int8(Blockwise):
    """Scale = absmax / 127; code = round_half_even(value / scale) as int8. Error at most scale / 2 per value."""

    name = "int8"
    block = 256
    code_bits = 8
    peak = 127

    def _pack(self, quotients: Tensor, packed: Tensor) -> None:
        packed.view(torch.int8).copy_(quotients.round_())

    def _unpack(self, packed: Tensor, out: Tensor) -> None:
        out.copy_(packed.view(torch.int8))

    def _codes_reason(self, codes: Tensor) -> str | None:
        return "a code is -128" if codes.view(torch.int8).amin().item() == -128 else None
