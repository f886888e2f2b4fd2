"""What a codec is."""

from typing import Protocol

from torch import Tensor


class Codec(Protocol):
    """One way to write fp32[n] as at most max_bytes(n) bytes. Without state; may be used by several threads at once.

    A codec is deterministic, and decoding rounds once, so every machine gets the same bits from the same bytes. All
    numbers are little-endian. A chunk is one contiguous 1-D tensor; all tensors of a call are on one device, which may
    be a GPU: encoders without an entropy stage write the same bytes there. Encoded tensors start at an address and a
    storage offset that are multiples of 4 bytes, which `as_tensor` sees to.
    """

    name: str

    def max_bytes(self, elements: int) -> int:
        """Largest size in bytes of `elements` (>= 0) encoded values; formats of fixed size always take all of it."""

    def encode(self, source: Tensor, out: Tensor) -> int:
        """Write fp32[n] `source` into the front of uint8[max_bytes(n)] `out`; the number of bytes written.

        Raises:
            CodecError: a value is NaN or infinite, or `out` has the wrong size; `out` is then undefined.
        """

    def decode(self, encoded: Tensor, out: Tensor) -> None:
        """Write the values of `encoded`, uint8 of exactly the size that `encode` gave, into fp32[n] `out`.

        Raises:
            CodecError: `encoded` has the wrong size, or is not what an encoder writes.
        """

    def accumulate(self, encoded: Tensor, weight: float, acc: Tensor) -> None:
        """acc += fp32(weight) * decoded, on fp32[n] `acc`, each operation rounded once.

        Raises:
            CodecError: as `decode`.
        """

    def check(self, encoded: Tensor, elements: int) -> str | None:
        """Why these bytes may not be averaged (wrong size, a value that is not finite, no valid code), or None."""
