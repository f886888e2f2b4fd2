"""Codecs turn fp32 chunks into bytes and back: what a codec is, the table of them, and tensors over received buffers.

A codec is deterministic, and decoding rounds once, so every machine gets the same bits from the same bytes. All numbers
are little-endian. A chunk is one contiguous 1-D CPU tensor; encoded tensors start at an address and a storage offset
that are multiples of 4 bytes, which `as_tensor` sees to.
"""

from typing import Protocol

import torch
from torch import Tensor

from wantrain.errors import ConfigError
from wantrain.transport.codec.bf16 import Bf16
from wantrain.transport.codec.fp32 import Fp32
from wantrain.transport.codec.int8 import Int8
from wantrain.transport.wire import Buffer


class Codec(Protocol):
    """One way to write fp32[n] as uint8[encoded_bytes(n)]. Without state; may be used by several threads at once."""

    name: str

    def encoded_bytes(self, elements: int) -> int:
        """Exact size in bytes of `elements` (>= 0) encoded values."""

    def encode(self, source: Tensor, out: Tensor) -> None:
        """Write fp32[n] `source` into uint8[encoded_bytes(n)] `out`.

        Raises:
            CodecError: a value is NaN or infinite, or `out` has the wrong size; `out` is then undefined.
        """

    def decode(self, encoded: Tensor, out: Tensor) -> None:
        """Write the values of uint8[encoded_bytes(n)] `encoded` into fp32[n] `out`.

        Raises:
            CodecError: `encoded` has the wrong size.
        """

    def accumulate(self, encoded: Tensor, weight: float, acc: Tensor) -> None:
        """acc += fp32(weight) * decoded, on fp32[n] `acc`, each operation rounded once.

        Raises:
            CodecError: `encoded` has the wrong size.
        """

    def check(self, encoded: Tensor, elements: int) -> str | None:
        """Why these bytes may not be averaged (wrong size, a value that is not finite, no valid code), or None."""


CODECS: dict[str, Codec] = {codec.name: codec for codec in (Fp32(), Bf16(), Int8())}


def codec(name: str) -> Codec:
    """The codec of that name.

    Raises:
        ConfigError: there is none.
    """
    if name not in CODECS:
        raise ConfigError(f"unknown codec {name!r}", hint=f"choose one of {', '.join(CODECS)}")
    return CODECS[name]


def as_tensor(buffer: Buffer) -> Tensor:
    """uint8[n] over the buffer's memory if that is writable and 8-byte aligned, else over a copy of it."""
    view = memoryview(buffer).cast("B")
    if not view.nbytes:
        return torch.empty(0, dtype=torch.uint8)
    if view.readonly:
        return torch.frombuffer(bytearray(view), dtype=torch.uint8)
    tensor = torch.frombuffer(view, dtype=torch.uint8)
    return tensor if tensor.data_ptr() % 8 == 0 else tensor.clone()
