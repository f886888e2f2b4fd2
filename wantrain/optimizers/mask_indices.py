"""The coordinates of a mask as a tensor, made when needed: kept, those of all parts would outweigh the model."""

import torch
from torch import Tensor

from wantrain.optimizers.mask import ADD, FIRST, SECOND, SHIFT


def indices(part: int, parts: int, start: int, stop: int) -> Tensor:
    """int64[between(part, parts, start, stop)]: the part's coordinates in start … stop - 1, less `start`, ascending."""
    blocks = torch.arange(start // parts, (stop + parts - 1) // parts)
    value = _shifted_xor(blocks + _signed(ADD), 30) * _signed(FIRST)
    value = _shifted_xor(value, 27) * _signed(SECOND)
    turned = _shifted(_shifted_xor(value, 31), SHIFT) % parts
    found = blocks * parts + (part - turned) % parts
    return found[(found >= start) & (found < stop)] - start


def _signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value


def _shifted(value: Tensor, bits: int) -> Tensor:
    """The 64 bits shifted to the right, zeros coming in."""
    return (value >> bits) & ((1 << (64 - bits)) - 1)


def _shifted_xor(value: Tensor, bits: int) -> Tensor:
    return value ^ _shifted(value, bits)
