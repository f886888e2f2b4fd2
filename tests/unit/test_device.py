"""Codecs on a device: the way there and back, the same bytes, and what happens when the device fails."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.unit.lockstep import Lockstep
from wantrain.errors import CodecError, ConfigError
from wantrain.optimizers.stream import Stream
from wantrain.transport.codec import CODECS, Codec, codec
from wantrain.transport.device import DeviceCodecs, codecs_on, device_of

torch.set_num_threads(1)

HOST = torch.device("cpu")
DEVICES = [
    pytest.param(HOST, id="cpu"),
    pytest.param(
        torch.device("cuda", 0), id="cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
    ),
]
on_each_device = pytest.mark.parametrize("device", DEVICES)
SIZES = (0, 1, 255, 4096, 9001)


def gaussian(elements: int, seed: int = 0) -> Tensor:
    return torch.randn(elements, generator=torch.Generator().manual_seed(seed))


def encoded(coder: Codec, source: Tensor) -> Tensor:
    out = torch.empty(coder.max_bytes(source.numel()), dtype=torch.uint8)
    return out[: coder.encode(source, out)]


def never(why: str) -> None:
    raise AssertionError(why)


@on_each_device
@pytest.mark.parametrize("name", CODECS)
def test_a_codec_on_a_device_gives_the_bytes_and_values_of_the_host(name: str, device: torch.device) -> None:
    there, here = DeviceCodecs(device, never)(name), codec(name)
    assert there.name == name
    for elements in SIZES:
        source = gaussian(elements)
        message = encoded(here, source)
        assert torch.equal(encoded(there, source), message)
        assert there.check(message, elements) is None
        values, expected = torch.empty(elements), torch.empty(elements)
        there.decode(message, values)
        here.decode(message, expected)
        assert torch.equal(values, expected)
        there.accumulate(message, 0.3, values)
        here.accumulate(message, 0.3, expected)
        assert torch.equal(values, expected)


@on_each_device
def test_values_and_bytes_that_cannot_be_used_are_no_failure_of_the_device(device: torch.device) -> None:
    codecs = DeviceCodecs(device, never)
    source = gaussian(1000)
    message = encoded(codecs("int8"), source)
    source[7] = math.nan
    with pytest.raises(CodecError, match="NaN"):
        encoded(codecs("int8"), source)
    with pytest.raises(CodecError, match="bytes"):
        codecs("int8").decode(message[:-1].clone(), torch.empty(1000))
    assert codecs("int8").check(message, 2000) is not None
    assert codecs.device == device


class Failing:
    """A codec that runs out of the device's memory after it has changed what it was given."""

    name = "int8"

    def __init__(self, good: Codec) -> None:
        self._good = good
        self.calls = 0

    def max_bytes(self, elements: int) -> int:
        return self._good.max_bytes(elements)

    def _fail(self, changed: Tensor) -> None:
        self.calls += 1
        if self.calls == 1:
            changed.fill_(1)
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")

    def encode(self, source: Tensor, out: Tensor) -> int:
        self._fail(out)
        return self._good.encode(source, out)

    def decode(self, encoded: Tensor, out: Tensor) -> None:
        self._fail(out)
        self._good.decode(encoded, out)

    def accumulate(self, encoded: Tensor, weight: float, acc: Tensor) -> None:
        self._fail(acc)
        self._good.accumulate(encoded, weight, acc)

    def check(self, encoded: Tensor, elements: int) -> str | None:
        self._fail(encoded)
        return self._good.check(encoded, elements)


@pytest.mark.parametrize("what", ["encode", "decode", "accumulate", "check"])
def test_a_device_that_fails_is_told_of_once_and_the_host_does_it(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    good, said = codec("int8"), list[str]()
    source = gaussian(5000)
    message = encoded(good, source)
    failing = Failing(good)
    monkeypatch.setitem(CODECS, "int8", failing)
    codecs = DeviceCodecs(HOST, said.append)
    coder = codecs("int8")
    for _ in range(2):
        acc, expected = source.clone(), source.clone()
        match what:
            case "encode":
                assert torch.equal(encoded(coder, source), message)
            case "decode":
                coder.decode(message, acc)
                good.decode(message, expected)
            case "accumulate":
                coder.accumulate(message, 0.3, acc)
                good.accumulate(message, 0.3, expected)
            case "check":
                assert coder.check(message, 5000) is None
        assert torch.equal(acc, expected)
    assert codecs.device is None
    assert failing.calls == 3  # on the device, then twice on the host
    assert said == [
        "cpu has failed, chunks are encoded and decoded on the CPU from now on: "
        "CUDA out of memory. Tried to allocate 20.00 MiB"
    ]


@on_each_device
@pytest.mark.parametrize("name", ["int8", "rms0.35+zstd", "topk"])
def test_a_peer_with_a_device_sends_and_applies_what_others_do(name: str, device: torch.device, tmp_path: Path) -> None:
    stream = Stream("param", every=1, merge="nesterov", codec=name, down="int8")

    def make(k: int) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = torch.nn.Linear(90, 50)
        return model, torch.optim.SGD(model.parameters(), lr=0.1)

    def gradients(lockstep: Lockstep, step: int) -> None:
        def given(k: int) -> None:
            for number, parameter in enumerate(lockstep.workers[k].model.parameters()):
                drawn = gaussian(parameter.numel(), 100 * step + 10 * k + number)
                parameter.grad = drawn.view_as(parameter)

        lockstep.step(given)

    plain = Lockstep(make, 2, (stream,), tmp_path / "host")
    other = Lockstep(make, 2, (stream,), tmp_path / "device", codecs=DeviceCodecs(device, never))
    try:
        for step in range(4):
            gradients(plain, step)
            gradients(other, step)
            for one, two in zip(plain.workers, other.workers, strict=True):
                assert torch.equal(one.phi()["param"], two.phi()["param"]), step
    finally:
        plain.close()
        other.close()


def test_the_cpu_costs_nothing() -> None:
    assert codecs_on(HOST, never) is codec


@pytest.mark.parametrize("name", ["tpu", "cuda:", "cuda:x", "cuda:-1", "gpu", ""])
def test_a_device_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="allowed are cpu, cuda"):
        device_of(name)


def test_a_device_that_is_not_here_is_refused() -> None:
    assert device_of("cpu") == HOST
    with pytest.raises(ConfigError, match=r"device is 'cuda:99', and PyTorch finds (no|\d+) CUDA device"):
        device_of("cuda:99")
