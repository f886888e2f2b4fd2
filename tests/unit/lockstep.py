"""Peers that train in step, without network or processes: the real engine, schedule and replica of each."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from wantrain.optimizers.stream import Stream
from wantrain.peers.engine import Engine
from wantrain.peers.messages import Granted
from wantrain.peers.trainer import Adopt, AfterStep, BeforeStep, Stage, TrainerCore, TrainerEffect
from wantrain.replica import Replica
from wantrain.transport.codec import codec
from wantrain.transport.device import CodecOf


class Worker:
    """One peer: what its daemon holds, and its trainer."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        streams: Sequence[Stream],
        path: Path,
        codecs: CodecOf = codec,
    ):
        self.model, self.optimizer = model, optimizer
        self.streams = {stream.name: stream for stream in streams}
        self.replica = Replica(model, (optimizer,))
        self.engine = Engine(self.replica.manifest, streams, codecs)
        self.engine.open_segment(path)
        self.core = TrainerCore(streams)
        self.serials: dict[str, int] = {}
        """Per stream: what is staged and not granted yet."""
        self.staged_at: list[tuple[int, str]] = []
        """Own step and stream of every contribution."""
        assert self.engine.segment is not None
        self.replica.bind(self.engine.segment, streams)

    def do(self, effects: Sequence[TrainerEffect]) -> None:
        """What the session does for the schedule."""
        for effect in effects:
            match effect:
                case Stage(stream, serial, _):
                    self.replica.write(stream)
                    assert self.replica.staged(stream, wait=True)
                    assert self.engine.stage(stream)[1]
                    self.engine.use_stage(stream)
                    self.serials[stream] = serial
                    self.staged_at.append((self.core.step, stream))
                case Adopt(stream, kind, stepped):
                    self.replica.adopt(stream, kind, stepped=stepped)

    def grant(self, stream: str, kind: str, index: int) -> None:
        """Hand over the outcome of a sync, or the state to start from."""
        self.engine.grant(stream, kind)
        serial = 0 if kind == "start" else self.serials.pop(stream)
        step = self.streams[stream].steps(index)
        self.do(self.core.handle(Granted(stream, kind, serial, index, step)))
        if kind == "start":
            self.replica.begin_at(step)

    def phi(self) -> dict[str, Tensor]:
        """The committed value of every stream."""
        return {name: self.engine.phi(name).clone() for name in self.streams if self.streams[name].held}


class Lockstep:
    """All make a step, then every sync that all have staged is committed.

    Args:
        make: model and optimizer of worker i; the first one's weights are the run's.
        peers: how many.
        streams: of the method.
        folder: for memory.
        late_steps: inner steps from a commit to its adoption, unless a trainer waits for it.
        codecs: of the engines.
    """

    def __init__(
        self,
        make: Callable[[int], tuple[nn.Module, torch.optim.Optimizer]],
        peers: int,
        streams: Sequence[Stream],
        folder: Path,
        late_steps: int = 0,
        codecs: CodecOf = codec,
    ) -> None:
        folder.mkdir(exist_ok=True)
        self.streams = tuple(streams)
        self.workers = [Worker(*make(k), streams, folder / str(k), codecs) for k in range(peers)]
        self.indices = {stream.name: 0 for stream in streams}
        self._late_steps = late_steps
        self._on_the_way: dict[str, int] = {}
        """Streams whose last sync is committed and not adopted, and the steps until it is."""
        held = [stream.name for stream in streams if stream.held]
        first = self.workers[0]
        for name in held:
            first.replica.write(name)
            first.replica.staged(name, wait=True)
        first.engine.adopt_genesis()
        for worker in self.workers[1:]:
            take_over(first, worker)
        for worker in self.workers:
            for name in held:
                worker.grant(name, "start", 0)

    def step(self, gradients: Callable[[int], None]) -> None:
        """One inner step of everybody; `gradients(i)` leaves those of worker i in its parameters."""
        for k, worker in enumerate(self.workers):
            gradients(k)
            worker.do(worker.core.handle(BeforeStep()))
        self._sync(held=False)
        for worker in self.workers:
            worker.optimizer.step()
            worker.do(worker.core.handle(AfterStep()))
        self._sync(held=True)

    def _sync(self, *, held: bool) -> None:
        """Commit what all have staged, and hand over what is to come now."""
        for name in [stream.name for stream in self.streams if stream.held == held]:
            if name not in self._on_the_way and all(name in worker.serials for worker in self.workers):
                self._commit(name)
                self._on_the_way[name] = self._late_steps + 1 if held else 0
            if name not in self._on_the_way:
                continue
            self._on_the_way[name] -= 1
            if self._on_the_way[name] <= 0 or any(name in worker.core.waiting for worker in self.workers):
                del self._on_the_way[name]
                for worker in self.workers:
                    worker.grant(name, "merge" if held else "grad", self.indices[name])

    def _commit(self, name: str) -> None:
        first, *others = (worker.engine for worker in self.workers)
        self.indices[name] += 1
        update = []
        for chunk in range(len(first._vectors[name].bounds)):
            inputs = [(1.0, None), *((1.0, other.part(name, chunk)) for other in others)]
            update.append(first.reduce(name, chunk, inputs, float(len(inputs)), True))
        for worker in self.workers:
            worker.engine.settle(name, True)
            worker.engine.apply(name, update)

    def close(self) -> None:
        """Let go of memory."""
        for worker in self.workers:
            worker.replica.release()
            worker.engine.close()


def take_over(source: Worker, target: Worker) -> None:
    """What a newcomer downloads: all of the state."""
    for k in range(len(source.engine._state_chunks)):
        target.engine.store_state(k, source.engine.read_state(k))
