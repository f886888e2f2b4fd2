"""Codecs turn fp32 chunks into bytes and back; loaded when first used, as the coordinator wants names without torch."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from wantrain.transport.codec.protocol import Codec
    from wantrain.transport.codec.table import CODECS, as_tensor, codec

__all__ = ["CODECS", "Codec", "as_tensor", "codec"]


def __getattr__(name: str) -> object:
    """The public names, from where they are."""
    if name not in __all__:
        raise AttributeError(f"module 'wantrain.transport.codec' has no attribute {name!r}")
    from wantrain.transport.codec import table

    return getattr(table, name)
