"""The codecs by name, every format alone and with every entropy stage, and tensors over received buffers."""

import torch
from torch import Tensor

from wantrain.transport.codec.bf16 import Bf16, Bf16Planes
from wantrain.transport.codec.e2m1 import E2M1
from wantrain.transport.codec.e3m0 import E3M0
from wantrain.transport.codec.entropy import STAGES
from wantrain.transport.codec.fp32 import Fp32
from wantrain.transport.codec.int4 import Int4
from wantrain.transport.codec.int8 import Int8
from wantrain.transport.codec.names import format_of
from wantrain.transport.codec.protocol import Codec
from wantrain.transport.codec.rms_step import RmsStep
from wantrain.transport.codec.sign import Sign
from wantrain.transport.codec.staged import Staged
from wantrain.transport.codec.topk import TopK
from wantrain.transport.wire import Buffer

_FORMATS: tuple[Codec, ...] = (
    Fp32(), Bf16(), Bf16Planes(), Int8(), Int4(), E2M1(), E3M0(),
    RmsStep(0.35), RmsStep(0.5), RmsStep(0.75), RmsStep(1), Sign(), TopK(),
)  # fmt: skip

CODECS: dict[str, Codec] = {codec.name: codec for codec in _FORMATS} | {
    codec.name: codec for inner in _FORMATS for name, stage in STAGES.items() for codec in [Staged(inner, name, stage)]
}


def codec(name: str) -> Codec:
    """The codec of that name, such as "int8" or "rms0.35+zstd".

    Raises:
        ConfigError: there is none.
    """
    if name not in CODECS:
        format_of(name)  # says what there is
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
