"""Encoding and decoding on an accelerator: a codec whose chunks go there and back through pinned memory.

The bytes are those that the same codec writes on the CPU, so peers with and without a GPU train together. What is kept
(state, sums, what is sent) stays in the memory of the host.
"""

import re
import threading
from collections.abc import Callable

import torch
from torch import Tensor

from wantrain.errors import ConfigError
from wantrain.transport.codec.blocks import scratch
from wantrain.transport.codec.entropy import STAGES
from wantrain.transport.codec.protocol import Codec
from wantrain.transport.codec.staged import Staged
from wantrain.transport.codec.table import codec

CodecOf = Callable[[str], Codec]
Tell = Callable[[str], None]

PLAIN = "fp32"
"""Its bytes are the values: nothing to compute."""


class DeviceCodecs:
    """The codecs by name, computed on a device, as long as it does not fail; then on the host.

    Args:
        device: where; the CPU goes the same way, which is of use to tests.
        tell: is told, once, why the device is given up.
    """

    def __init__(self, device: torch.device, tell: Tell) -> None:
        self.device: torch.device | None = device
        """None once it has failed."""
        self._tell = tell
        self._lines = _Lines()
        self._made: dict[str, Codec] = {}

    def __call__(self, name: str) -> Codec:
        """The codec of that name.

        Raises:
            ConfigError: there is none.
        """
        if name not in self._made:
            plain = codec(name)
            inner, _, stage = name.partition("+")
            if stage:  # which works on the host, on the bytes of the format
                self._made[name] = Staged(self(inner), stage, STAGES[stage])
            else:
                self._made[name] = plain if name == PLAIN else _OnDevice(plain, self)
        return self._made[name]

    def there(self, purpose: str, values: Tensor) -> Tensor:
        """A copy of a tensor of the host on the device, in scratch."""
        assert self.device is not None
        line = self._lines.of(purpose, values, pinned=self.device.type != "cpu").copy_(values)
        return scratch(f"{purpose} there", values.numel(), values.dtype, self.device).copy_(line)

    def back(self, purpose: str, values: Tensor, out: Tensor) -> None:
        """Copy a tensor of the device to one of the host, which changes only when all of it is here."""
        assert self.device is not None
        out.copy_(self._lines.of(purpose, values, pinned=self.device.type != "cpu").copy_(values))

    def gave_up(self, error: RuntimeError) -> None:
        """The device has failed in something."""
        device, self.device = self.device, None
        if device is not None:
            self._lines = _Lines()
            self._tell(f"{device} has failed, chunks are encoded and decoded on the CPU from now on: {error}")


class _Lines(threading.local):
    """Buffers of the host by purpose, one thread's each: copies between pinned ones and a device are the fastest."""

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}

    def of(self, purpose: str, like: Tensor, *, pinned: bool) -> Tensor:
        """A tensor of that length and dtype, of undefined content."""
        buffer = self._buffers.get(purpose)
        if buffer is None or buffer.numel() < like.nbytes:
            buffer = self._buffers[purpose] = torch.empty(like.nbytes, dtype=torch.uint8, pin_memory=pinned)
        return buffer[: like.nbytes].view(like.dtype)


class _OnDevice:
    """A format, computed on the device; everything that is given and taken lies on the host."""

    def __init__(self, inner: Codec, shared: DeviceCodecs) -> None:
        self.name = inner.name
        self._inner = inner
        self._shared = shared

    def max_bytes(self, elements: int) -> int:
        return self._inner.max_bytes(elements)

    def encode(self, source: Tensor, out: Tensor) -> int:
        shared = self._shared
        if shared.device is not None:
            try:
                encoded = scratch("encoded there", out.numel(), torch.uint8, shared.device)
                written = self._inner.encode(shared.there("values", source), encoded)
                shared.back("encoded", encoded[:written], out[:written])
                return written
            except RuntimeError as error:
                shared.gave_up(error)
        return self._inner.encode(source, out)

    def decode(self, encoded: Tensor, out: Tensor) -> None:
        shared = self._shared
        if shared.device is not None:
            try:
                values = scratch("values there", out.numel(), torch.float32, shared.device)
                self._inner.decode(shared.there("encoded", encoded), values)
                return shared.back("values", values, out)
            except RuntimeError as error:
                shared.gave_up(error)
        return self._inner.decode(encoded, out)

    def accumulate(self, encoded: Tensor, weight: float, acc: Tensor) -> None:
        shared = self._shared
        if shared.device is not None:
            try:
                values = shared.there("values", acc)
                self._inner.accumulate(shared.there("encoded", encoded), weight, values)
                return shared.back("values", values, acc)
            except RuntimeError as error:
                shared.gave_up(error)
        return self._inner.accumulate(encoded, weight, acc)

    def check(self, encoded: Tensor, elements: int) -> str | None:
        shared = self._shared
        if shared.device is not None:
            try:
                return self._inner.check(shared.there("encoded", encoded), elements)
            except RuntimeError as error:
                shared.gave_up(error)
        return self._inner.check(encoded, elements)


def codecs_on(device: torch.device, tell: Tell) -> CodecOf:
    """The codecs by name, computed there; for the CPU they are the codecs themselves."""
    return codec if device.type == "cpu" else DeviceCodecs(device, tell)


def device_of(name: str) -> torch.device:
    """The device that a user has named.

    Raises:
        ConfigError: it is none of these, or this machine has not got it.
    """
    if re.fullmatch("cpu|cuda(:[0-9]{1,3})?", name) is None:
        raise ConfigError(f"device is {name!r}, allowed are cpu, cuda, cuda:0, cuda:1, …", hint="--device cuda")
    if name == "cpu":
        return torch.device("cpu")
    number = int(name.partition(":")[2] or 0)
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if number >= count:
        raise ConfigError(
            f"device is {name!r}, and PyTorch finds {count or 'no'} CUDA device{'s' * (count != 1)} here",
            hint="see nvidia-smi, or whether a PyTorch without CUDA is installed; --device cpu always works",
        )
    return torch.device("cuda", number)


def described(device: torch.device) -> str:
    """The device in words, with its free memory."""
    if device.type == "cpu":
        return "the CPU"
    free, total = torch.cuda.mem_get_info(device)
    return f"{device}, {torch.cuda.get_device_name(device)}: {free / 2**30:.1f} of {total / 2**30:.1f} GiB are free"
