"""A format and an entropy stage behind it, written "int8+zstd": the format's bytes, compressed if that is worth it."""

import numpy as np
import torch
from torch import Tensor

from wantrain.transport.codec.blocks import require_size, scratch, unfit
from wantrain.transport.codec.entropy import Stage
from wantrain.transport.codec.protocol import Codec

STORED, COMPRESSED = 0, 1
WORTH = 1.05
"""Ratio from which compressing pays; below it the bytes are stored."""
SAMPLE_BYTES, SAMPLE_PARTS = 1 << 14, 4
"""What is compressed first of a chunk that is much larger, from places spread over it: fields differ in their ratio."""


class Staged:
    """Layout: one byte, 0 or 1, then the format's bytes as they are (0) or compressed (1). Coded on the host.

    What is compressed depends on the library's version; what it decodes to does not. At most a byte longer than the
    format alone. `out` may be on the host where `source` is not.
    """

    def __init__(self, inner: Codec, stage_name: str, stage: Stage) -> None:
        self.name = f"{inner.name}+{stage_name}"
        self._inner = inner
        self._stage = stage

    def max_bytes(self, elements: int) -> int:
        return 1 + self._inner.max_bytes(elements)

    def encode(self, source: Tensor, out: Tensor) -> int:
        require_size(self.name, out, self.max_bytes(source.numel()))
        plain = scratch("plain", out.numel() - 1, torch.uint8, source.device)
        self._inner.encode(source, plain)
        data = _bytes(plain)
        if _ratio(self._stage, data) >= WORTH:
            compressed = self._stage.compress(data)
            if len(compressed) * WORTH <= len(data):
                out[0] = COMPRESSED
                coded = np.frombuffer(bytearray(compressed), dtype=np.uint8)
                out[1 : 1 + len(compressed)].copy_(torch.from_numpy(coded))
                return 1 + len(compressed)
        out[0] = STORED
        out[1:].copy_(plain)
        return out.numel()

    def decode(self, encoded: Tensor, out: Tensor) -> None:
        self._inner.decode(self._plain_or_error(encoded, out), out)

    def accumulate(self, encoded: Tensor, weight: float, acc: Tensor) -> None:
        self._inner.accumulate(self._plain_or_error(encoded, acc), weight, acc)

    def check(self, encoded: Tensor, elements: int) -> str | None:
        plain = self._plain(encoded, elements, encoded.device)
        return plain if isinstance(plain, str) else self._inner.check(plain, elements)

    def _plain_or_error(self, encoded: Tensor, values: Tensor) -> Tensor:
        plain = self._plain(encoded, values.numel(), values.device)
        if isinstance(plain, str):
            raise unfit(self.name, plain)
        return plain

    def _plain(self, encoded: Tensor, elements: int, device: torch.device) -> Tensor | str:
        """The format's bytes on `device`, in scratch, or what is wrong."""
        size_bytes = self._inner.max_bytes(elements)
        if not 1 <= encoded.numel() <= 1 + size_bytes:
            return f"{encoded.numel()} bytes where 1 to {1 + size_bytes} belong"
        kind = encoded[0].item()
        plain = scratch("plain", size_bytes, torch.uint8, device)
        if kind == STORED:
            if encoded.numel() != 1 + size_bytes:
                return f"{encoded.numel()} bytes where {1 + size_bytes} belong"
            return plain.copy_(encoded[1:])
        if kind != COMPRESSED:
            return f"the first byte is {kind}, allowed are 0 (stored) and 1 (compressed)"
        data = self._stage.decompress(_bytes(encoded[1:]), size_bytes)
        if data is None:
            return f"the compressed bytes are not {size_bytes} bytes when decompressed"
        if device.type == "cpu":
            plain.numpy()[:] = np.frombuffer(data, dtype=np.uint8)
            return plain
        return plain.copy_(torch.from_numpy(np.frombuffer(bytearray(data), dtype=np.uint8)))


def _bytes(encoded: Tensor) -> memoryview:
    """The bytes of a tensor, on the host."""
    return encoded.cpu().numpy().data


def _ratio(stage: Stage, data: memoryview) -> float:
    """Size before by size after, estimated from a sample if there is much."""
    if len(data) <= 4 * SAMPLE_BYTES:
        return len(data) / len(stage.compress(data))
    part, stride = SAMPLE_BYTES // SAMPLE_PARTS, len(data) // SAMPLE_PARTS
    middles = range(stride // 2, len(data), stride)
    sample = b"".join(data[middle : middle + part] for middle in middles)
    return len(sample) / len(stage.compress(sample))
