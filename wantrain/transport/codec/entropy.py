"""Entropy stages: lossless coders of bytes on the host, bounded on the way back by the size that is known."""

import threading
import zlib
from collections.abc import Callable
from dataclasses import dataclass

import zstandard

from wantrain.transport.wire import Buffer

ZSTD_LEVEL = 1
"""Higher levels are slower and, on codes, never better."""
ZSTD_WINDOW_LOG = 19
"""History of 512 KiB, what level 1 takes by itself; a frame that asks a decoder for more is refused."""


class _Zstd(threading.local):
    """One compressor and one decompressor per thread: they are not thread-safe, and slow to make."""

    def __init__(self) -> None:
        parameters = zstandard.ZstdCompressionParameters.from_level(ZSTD_LEVEL, window_log=ZSTD_WINDOW_LOG)
        self.compressor = zstandard.ZstdCompressor(compression_params=parameters)
        self.decompressor = zstandard.ZstdDecompressor(max_window_size=1 << ZSTD_WINDOW_LOG)


_ZSTD = _Zstd()


def _zstd_compress(data: Buffer) -> bytes:
    return _ZSTD.compressor.compress(data)


def _zstd_decompress(data: Buffer, size_bytes: int) -> bytes | None:
    try:
        # The library allocates what the frame says, so that is looked at first; -1 stands for not said.
        if zstandard.frame_content_size(data) != size_bytes:
            return None
        return _ZSTD.decompressor.decompress(data, allow_extra_data=False)
    except zstandard.ZstdError:
        return None


def _huffman_compress(data: Buffer) -> bytes:
    coder = zlib.compressobj(1, zlib.DEFLATED, -zlib.MAX_WBITS, zlib.DEF_MEM_LEVEL, zlib.Z_HUFFMAN_ONLY)
    return coder.compress(data) + coder.flush()


def _huffman_decompress(data: Buffer, size_bytes: int) -> bytes | None:
    coder = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        values = coder.decompress(data, size_bytes + 1)  # one more than there may be, so that the end mark is read
    except zlib.error:
        return None
    return values if len(values) == size_bytes and coder.eof and not coder.unused_data else None


@dataclass(frozen=True, slots=True)
class Stage:
    """A lossless coder of bytes."""

    compress: Callable[[Buffer], bytes]
    decompress: Callable[[Buffer, int], bytes | None]
    """The bytes, exactly that many, or None: they are not what `compress` gives for so many."""


STAGES: dict[str, Stage] = {
    "zstd": Stage(_zstd_compress, _zstd_decompress),
    "huffman": Stage(_huffman_compress, _huffman_decompress),
}
"""The coders of `names.STAGES`."""
