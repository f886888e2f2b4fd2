"""Two 4-bit codes to a byte, the earlier one in the lower half: 16-bit arithmetic on pairs, at memory speed."""

import torch
from torch import Tensor

from wantrain.transport.codec.blocks import scratch


def pack_nibbles(codes: Tensor, packed: Tensor) -> None:
    """Write int8[n] `codes` of 0 to 15, n even, as uint8[n / 2]."""
    pairs = codes.view(torch.int16)
    shifted = scratch("pairs", pairs.numel(), torch.int16, codes.device)
    torch.bitwise_right_shift(pairs, 4, out=shifted)
    packed.copy_(shifted.bitwise_or_(pairs))  # keeps the lower byte


def sign_beside(numbers: Tensor, bit: int, work: Tensor) -> None:
    """Move bit 15 of int16[n] `numbers` to `bit`, in place; bits from `bit` to 14 are 0, and stay so above it.

    With -2**15 + 2**bit added, a number without that bit becomes negative, and one with it what is wanted. That goes
    into int16[n] `work`.
    """
    torch.maximum(numbers, torch.add(numbers, (1 << bit) - (1 << 15), out=work), out=numbers)


def unpack_nibbles(packed: Tensor) -> Tensor:
    """int8[2 n] codes of 0 to 15 from uint8[n], in scratch."""
    pairs = scratch("codes", packed.numel(), torch.int16, packed.device)
    shifted = scratch("pairs", packed.numel(), torch.int16, packed.device)
    pairs.copy_(packed)
    torch.bitwise_left_shift(pairs, 4, out=shifted)
    return pairs.bitwise_or_(shifted).bitwise_and_(0x0F0F).view(torch.int8)


def has_zero_nibble(packed: Tensor) -> bool:
    """Whether a 4-bit code in uint8[n] is 0."""
    return bool(packed.amin().item() < 16 or (packed & 15).amin().item() == 0)
