"""Staging and adoption behind the host's back: a device whose queues run as late, and as mixed, as waits allow."""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.unit.scripted_link import Wire
from wantrain import cuda_queues
from wantrain.copy_order import Work
from wantrain.optimizers.stream import Stream
from wantrain.peers.engine import Engine
from wantrain.peers.messages import Attached, Granted, pack
from wantrain.piece import boxes
from wantrain.replica import Replica
from wantrain.session import Swarm
from wantrain.trainer_shell import DAEMON
from wantrain.transport.link import LinkEvent, Received

torch.set_num_threads(1)

STREAM = Stream("param", every=2, merge="mean", codec="fp32", delay=2)
PLACES = (torch.float32, torch.bfloat16, torch.float64)


class Device:
    """Two queues of work; `run` picks at random which goes on, among those that wait for nothing."""

    def __init__(self, seed: int, *, heeds: Sequence[str] = ("copies_wait", "training_waits")) -> None:
        self._rng, self._heeds = random.Random(seed), heeds
        self._work: dict[str, list[Work | tuple[str, int]]] = {"training": [], "copies": []}
        self._done = {"training": 0, "copies": 0}
        self.stopped = False
        """It does nothing but what somebody waits for."""

    def train(self, work: Work) -> None:
        self._work["training"].append(work)

    def copy(self, work: Sequence[Work]) -> None:
        self._work["copies"] += work

    def copies_wait(self) -> None:
        self._wait("copies", "training", "copies_wait")

    def training_waits(self) -> None:
        self._wait("training", "copies", "training_waits")

    def _wait(self, queue: str, other: str, name: str) -> None:
        if name in self._heeds:
            self._work[queue].append((other, len(self._work[other])))

    def mark(self) -> "Place":
        return Place(self, len(self._work["copies"]))

    def some(self) -> None:
        """Let some time pass."""
        for _ in range(0 if self.stopped else self._rng.randrange(4)):
            self._one()

    def all(self, copies: int | None = None) -> None:
        """Go on until all, or so much of the copies' queue, is done."""
        while (self.copies_done < copies) if copies is not None else self._ready():
            self._one()

    @property
    def copies_done(self) -> int:
        return self._done["copies"]

    def _ready(self) -> list[str]:
        ready = []
        for name, work in self._work.items():
            if self._done[name] < len(work):
                following = work[self._done[name]]
                if callable(following) or self._done[following[0]] >= following[1]:
                    ready.append(name)
        return ready

    @torch.no_grad()
    def _one(self) -> None:
        if ready := self._ready():
            name = self._rng.choice(ready)
            following = self._work[name][self._done[name]]
            if callable(following):
                following()
            self._done[name] += 1


class Place:
    """A mark in the copies' queue."""

    def __init__(self, device: Device, end: int) -> None:
        self._device, self._end = device, end

    def query(self) -> bool:
        self._device.some()
        return self._device.copies_done >= self._end

    def synchronize(self) -> None:
        self._device.all(copies=self._end)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        rng = torch.Generator().manual_seed(0)
        for k, dtype in enumerate(PLACES):
            self.register_parameter(f"p{k}", nn.Parameter(torch.randn(3, 5, generator=rng).to(dtype)))


class Side:
    """A replica and the engine beside it; `device` None: all at once, on the CPU."""

    def __init__(self, path: Path, stream: Stream, device: Device | None) -> None:
        self.model, self.device, self.name = Net(), device, stream.name
        self.replica = Replica(self.model, (), lambda _: device)
        self.engine = Engine(self.replica.manifest, (stream,))
        self.segment = self.engine.open_segment(path)
        self.replica.bind(self.segment, (stream,))
        self.staged: list[Tensor] = []

    def train(self, change: Callable[[Tensor], object]) -> None:
        self.replica.before_step()
        for parameter in self.model.parameters():
            work = partial(self._changed, parameter, change)
            if self.device is None:
                work()
            else:
                self.device.train(work)
                self.device.some()

    @torch.no_grad()
    def _changed(self, parameter: nn.Parameter, change: Callable[[Tensor], object]) -> None:
        change(parameter)

    def hand_over(self) -> None:
        """What the daemon does when it hears of a contribution."""
        assert self.replica.staged(self.name, wait=True)
        self.staged.append(self.segment.out(self.name).clone())

    def close(self) -> None:
        self.replica.release()
        self.engine.close()


def played(side: Side, seed: int) -> tuple[list[Tensor], list[Tensor]]:
    """Some rounds of training, staging and adoption; what was staged, and the weights at the end."""
    rng = random.Random(seed)
    for k in range(4):
        side.replica.write(side.name)
        steps = rng.randrange(3)
        for step in range(steps):
            side.train(lambda p, by=1.5 + k + step: p.mul_(1.01).add_(by))
        side.hand_over()
        kind = rng.choice(("merge", "move", "start"))
        with torch.no_grad():
            side.segment.given(side.name).normal_(generator=torch.Generator().manual_seed(k))
        side.replica.adopt(side.name, kind, stepped=steps > 0)
        if rng.randrange(2):
            side.train(lambda p: p.sub_(0.25))
    if side.device is not None:
        side.device.all()
    return side.staged, [p.detach().clone() for p in side.model.parameters()]


def same(one: tuple[list[Tensor], list[Tensor]], other: tuple[list[Tensor], list[Tensor]]) -> bool:
    return all(torch.equal(a, b) for k in (0, 1) for a, b in zip(one[k], other[k], strict=True))


@pytest.fixture
def sides(tmp_path: Path) -> Iterator[Callable[..., Side]]:
    made: list[Side] = []

    def make(device: Device | None, stream: Stream = STREAM) -> Side:
        made.append(Side(tmp_path / str(len(made)), stream, device))
        return made[-1]

    yield make
    for side in made:
        side.close()


@pytest.mark.parametrize("adopt", ["rebase", "mix"])
def test_what_is_staged_and_adopted_does_not_depend_on_when_the_device_copies(
    sides: Callable[..., Side], adopt: str
) -> None:
    stream = Stream("param", every=2, merge="mean", codec="fp32", delay=2, adopt=adopt, alpha=0.3)
    for seed in range(60):
        assert same(played(sides(None, stream), seed), played(sides(Device(seed), stream), seed)), seed


@pytest.mark.parametrize("heeds", ["copies_wait", "training_waits"])
def test_either_wait_alone_would_not_do(sides: Callable[..., Side], heeds: str) -> None:
    """The test above can tell."""
    outcomes = [same(played(sides(None), seed), played(sides(Device(seed, heeds=[heeds])), seed)) for seed in range(60)]
    assert not all(outcomes)


def test_gradients_may_be_cleared_as_soon_as_they_were_staged(sides: Callable[..., Side]) -> None:
    stream = Stream("grad", state="grad", every=1, codec="fp32", late="adopt")
    for seed in range(30):
        device = Device(seed)
        side = sides(device, stream)
        for parameter in side.model.parameters():
            parameter.grad = torch.zeros_like(parameter)
            device.train(partial(parameter.grad.fill_, 3.0))
        side.replica.write("grad")
        for parameter in side.model.parameters():
            assert parameter.grad is not None
            device.train(parameter.grad.zero_)
        side.hand_over()
        assert torch.equal(side.staged[0], torch.full((45,), 3.0))


def test_the_daemon_hears_of_a_contribution_only_when_it_is_there(sides: Callable[..., Side]) -> None:
    device = Device(0)
    device.stopped = True
    stream = Stream("param", every=5, merge="mean", codec="fp32", delay=5)
    side = sides(device, stream)
    optimizer = torch.optim.SGD(side.model.parameters(), lr=0.0)
    wire = Wire()
    swarm = Swarm(wire, side.replica, wait_ceiling_s=60.0)  # type: ignore[arg-type]
    told = (
        Attached("p" * 52, "p", str(side.segment.path), (asdict(stream),), False),
        Granted("param", "start", 0, 0, 0),
    )
    wire.events = [Received(DAEMON, b"", pack(record)) for record in told]
    swarm.attach()
    swarm.hook((optimizer,))
    for _ in range(7):
        optimizer.step()
    assert wire.contributions == 0
    device.stopped = False
    device.all()
    optimizer.step()
    assert wire.contributions == 1
    swarm.close()


def test_a_trainer_that_has_to_wait_waits_for_the_copies_first(sides: Callable[..., Side]) -> None:
    device = Device(0)
    device.stopped = True
    stream = Stream("param", every=2, merge="mean", codec="fp32")
    side = sides(device, stream)
    optimizer = torch.optim.SGD(side.model.parameters(), lr=0.0)

    class Answering(Wire):
        def poll(self, timeout_s: float) -> list[LinkEvent]:
            if timeout_s > 0 and self.contributions == 1:
                self.events.append(Received(DAEMON, b"", pack(Granted("param", "merge", 1, 1, 2))))
            return super().poll(timeout_s)

    wire = Answering()
    swarm = Swarm(wire, side.replica, wait_ceiling_s=60.0)  # type: ignore[arg-type]
    told = (
        Attached("p" * 52, "p", str(side.segment.path), (asdict(stream),), False),
        Granted("param", "start", 0, 0, 0),
    )
    wire.events = [Received(DAEMON, b"", pack(record)) for record in told]
    swarm.attach()
    swarm.hook((optimizer,))
    for _ in range(2):
        optimizer.step()
    assert swarm.round == 1
    assert wire.contributions == 1
    swarm.close()


@pytest.mark.parametrize("shape", [(), (7,), (3, 5), (2, 3, 4), (5, 1, 3), (0, 4), (1, 1), (4, 9)])
@pytest.mark.parametrize("limit", [1, 4, 5, 100])
def test_boxes_cover_a_tensor_once_and_are_no_larger_than_asked(shape: tuple[int, ...], limit: int) -> None:
    values = torch.zeros(shape)
    for box in boxes(shape, limit):
        assert values[box].numel() <= limit
        assert values[box].is_contiguous()
        values[box] += 1
    assert torch.equal(values, torch.ones(shape))


class Runtime:
    """A CUDA runtime that pins memory, or says why not."""

    def __init__(self, code: int) -> None:
        self.code = code
        self.calls: list[tuple[str, int, int]] = []

    def cudaHostRegister(self, address: int, size_bytes: int, _: int) -> int:  # noqa: N802
        self.calls.append(("register", address, size_bytes))
        return self.code

    def cudaHostUnregister(self, address: int) -> int:  # noqa: N802
        self.calls.append(("unregister", address, 0))
        return 0


def test_shared_memory_is_pinned_and_given_back_once(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime, memory = Runtime(0), torch.zeros(100)
    monkeypatch.setattr(cuda_queues, "_runtime", lambda: runtime)
    pages = cuda_queues.PinnedPages(memory)
    assert pages.pinned
    pages.close()
    pages.close()
    assert runtime.calls == [("register", memory.data_ptr(), 400), ("unregister", memory.data_ptr(), 0)]


def test_memory_that_cannot_be_pinned_is_told_of_and_used_as_it_is(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    runtime, forgotten = Runtime(2), []
    monkeypatch.setattr(cuda_queues, "_runtime", lambda: runtime)
    monkeypatch.setattr(cuda_queues, "_forget_error", lambda: forgotten.append(True))
    pages = cuda_queues.PinnedPages(torch.zeros(2**20))
    assert not pages.pinned
    assert forgotten == [True], "or the next kernel of the training loop would raise it"
    assert "CUDA cannot pin the 4.0 MiB shared with the peer daemon (error 2)" in caplog.text
    pages.close()
    assert len(runtime.calls) == 1
