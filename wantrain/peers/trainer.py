"""The trainer's side of the schedule as a pure core: after which inner step a stream is staged, waited for, adopted.

`session.py` is its shell: it copies tensors, talks to the daemon and blocks. The core is told of every inner step and
of every grant, and answers with what to do now.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from wantrain.optimizers.stream import Stream, lead
from wantrain.peers.messages import Granted

# ---- events


@dataclass(frozen=True, slots=True)
class BeforeStep:
    """Gradients are there, the inner step is about to be made."""


@dataclass(frozen=True, slots=True)
class AfterStep:
    """An inner step was made."""


@dataclass(frozen=True, slots=True)
class WaitedLongEnough:
    """The shell has waited for its ceiling; the trainer goes on alone until the grant comes."""


@dataclass(frozen=True, slots=True)
class OutOfData:
    """There is nothing to train on for a while: what was trained since the last staging is staged now."""


TrainerEvent = BeforeStep | AfterStep | Granted | WaitedLongEnough | OutOfData


# ---- effects


@dataclass(frozen=True, slots=True)
class Stage:
    """Copy the stream's tensors to its `out` region and tell the daemon (Contribute with these numbers)."""

    stream: str
    serial: int
    granted: int
    """Grants for the stream that this process has received so far."""


@dataclass(frozen=True, slots=True)
class Adopt:
    """Take over what the daemon laid down; see `Granted.kind`. `stepped`: inner steps were made since staging."""

    stream: str
    kind: str
    stepped: bool


@dataclass(frozen=True, slots=True)
class Wait:
    """Block until the next grant."""

    streams: tuple[str, ...]


TrainerEffect = Stage | Adopt | Wait


@dataclass(slots=True)
class _Progress:
    stream: Stream
    since: int = 0
    """Inner steps since the stream was last staged (or started)."""
    period: int = 0
    """Inner steps after which it is due; the first period may be shorter by the offset."""
    serial: int = 0
    outstanding: bool = False
    blocking: bool = False
    patient: bool = True
    """False after the shell has waited long enough, until a grant comes."""
    index: int = 0
    granted: int = 0


class TrainerCore:
    """The core. `handle` is its only mutator."""

    def __init__(self, streams: Sequence[Stream]) -> None:
        self.step = 0
        """Own inner steps."""
        self._base_step = 0
        self._own_since = 0
        self._streams = {s.name: _Progress(s, period=s.offset or s.every) for s in streams}

    @property
    def global_step(self) -> int:
        """The run's step count as this trainer sees it: that of its last adoption, and own steps since."""
        return self._base_step + self._own_since

    def index(self, stream: str) -> int:
        """Last sync of the stream that was adopted."""
        return self._streams[stream].index

    @property
    def rounds(self) -> int:
        """Syncs of the first parameter stream that were adopted."""
        first = lead(p.stream for p in self._streams.values())
        return 0 if first is None else self.index(first.name)

    @property
    def steps_left(self) -> int:
        """Inner steps until the next stream is due."""
        return min(max(p.period - p.since, 0) for p in self._streams.values())

    @property
    def waiting(self) -> tuple[str, ...]:
        """Streams whose grant the trainer blocks for."""
        return tuple([name for name, p in self._streams.items() if p.outstanding and p.blocking and p.patient])

    @property
    def outstanding(self) -> tuple[str, ...]:
        """Streams that were staged and not granted yet."""
        return tuple(name for name, p in self._streams.items() if p.outstanding)

    @property
    def received(self) -> dict[str, int]:
        """Granted messages by stream."""
        return {name: p.granted for name, p in self._streams.items()}

    @property
    def indices(self) -> dict[str, int]:
        """Last sync of every stream that was adopted."""
        return {name: p.index for name, p in self._streams.items()}

    def handle(self, event: TrainerEvent) -> list[TrainerEffect]:
        """React to an event. A grant that answers another staging than the last changes nothing."""
        match event:
            case BeforeStep():
                return self._due("grad")
            case AfterStep():
                self.step += 1
                self._own_since += 1
                for progress in self._streams.values():
                    progress.since = self._since(progress)
                return self._due("param")
            case Granted():
                return self._granted(event)
            case WaitedLongEnough():
                for name in self.waiting:
                    self._streams[name].patient = False
                return []
            case OutOfData():
                ready = [p for p in self._streams.values() if p.stream.state == "param" and p.since]
                return [effect for p in ready if not p.outstanding for effect in self._stage(p, block=False)]

    def _since(self, progress: _Progress) -> int:
        """Inner steps since the stream was last staged, with the one just made.

        Where every step is made together (a stream of gradients), the run's steps count, not the own ones: a newcomer's
        first period is what is left of the others', or it would wait for them at a step where they wait for it.
        """
        lead = next((p.index for p in self._streams.values() if p.stream.state == "grad"), None)
        if lead is None or progress.stream.state == "grad" or progress.outstanding:
            return progress.since + 1
        return max(0, lead - progress.index * progress.stream.every)

    def _due(self, state: str) -> list[TrainerEffect]:
        effects: list[TrainerEffect] = []
        for progress in self._streams.values():
            stream = progress.stream
            if stream.state != state:
                continue
            if state == "grad":
                if not progress.outstanding:
                    effects += self._stage(progress, block=True)
            elif progress.since >= progress.period and not progress.outstanding:
                effects += self._stage(progress, block=stream.delay == 0)
            elif progress.outstanding and progress.since >= min(progress.period, stream.delay or progress.period):
                # The slack is used up: what was staged before has to come first.
                progress.blocking = True
        return effects + self._wait()

    def _wait(self) -> list[TrainerEffect]:
        waiting = self.waiting
        return [Wait(waiting)] if waiting else []

    def _stage(self, progress: _Progress, *, block: bool) -> list[TrainerEffect]:
        progress.serial += 1
        progress.since = 0
        progress.period = progress.stream.every
        progress.outstanding, progress.blocking = True, block
        return [Stage(progress.stream.name, progress.serial, progress.granted)]

    def _granted(self, event: Granted) -> list[TrainerEffect]:
        progress = self._streams.get(event.stream)
        if progress is None:
            return []
        progress.granted += 1
        if event.kind == "start":
            progress.since, progress.period = 0, progress.stream.offset or progress.stream.every
            progress.outstanding, progress.blocking, progress.patient = False, False, True
            return self._adopted(progress, event, stepped=False)
        if not progress.outstanding or event.serial != progress.serial:
            return []
        progress.outstanding, progress.patient = False, True
        stepped = progress.since > 0
        if progress.stream.state == "grad" and stepped:
            progress.index = event.index
            return self._wait()  # the mean of a step that was made alone
        effects = self._adopted(progress, event, stepped=stepped)
        if event.kind == "move" and progress.stream.late == "rebase":
            # Own progress that is not in yet stays staged for the next sync; training goes on meanwhile.
            blocked = progress.blocking and progress.since >= progress.period
            effects += self._stage(progress, block=False)
            progress.blocking = blocked
        elif progress.stream.state == "param" and progress.since >= progress.period:
            effects += self._stage(progress, block=progress.stream.delay == 0)
        return effects + self._wait()

    def _adopted(self, progress: _Progress, event: Granted, *, stepped: bool) -> list[TrainerEffect]:
        progress.index = event.index
        if progress.stream.state == "param":
            self._base_step = event.global_step
            self._own_since = progress.since if event.kind == "merge" else 0
        elif event.kind == "start":
            return []  # the mean gradient is not to be had any more: the step is made with the own one
        return [Adopt(event.stream, event.kind, stepped)]
