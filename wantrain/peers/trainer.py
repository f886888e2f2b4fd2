"""The trainer's side of the schedule as a pure core: after which inner step a stream is staged, waited for, adopted.

`session.py` is its shell: it copies tensors, talks to the daemon and blocks. The core is told of every inner step and
of every grant, and answers with what to do now.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from wantrain.optimizers.schedule import SCHEDULES, Moment, round_steps
from wantrain.optimizers.stream import Stream, lead
from wantrain.peers.messages import Granted

# ---- events


@dataclass(frozen=True, slots=True)
class BeforeStep:
    """Gradients are there, the inner step is about to be made."""

    lr: float = 0.0
    """Its learning rate, the largest of all parameter groups."""


@dataclass(frozen=True, slots=True)
class AfterStep:
    """An inner step was made."""

    took_s: float = 0.0
    """Seconds for it, without waiting; 0 if unknown."""
    step_s: float = 0.0
    """Seconds that a step takes lately."""


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
    made: int = 0
    """Inner steps between the last two times that it was staged."""
    spent_s: float = 0.0
    """Seconds for the steps since it was last staged."""
    lr: float = 0.0
    """Inner learning rate at the first of them."""
    began_at: int = 0
    """The run's step count before the first of them."""
    pace_s: float = 0.0
    """Seconds that a step takes the fastest trainer."""
    serial: int = 0
    outstanding: bool = False
    blocking: bool = False
    patient: bool = True
    """False after the shell has waited long enough, until a grant comes."""
    again: bool = False
    """Whether what is staged has missed a sync, and is there for the next one before its time."""
    index: int = 0
    granted: int = 0

    @property
    def slack(self) -> int:
        """Inner steps that may be made while it is outstanding, before the trainer waits for it."""
        if self.again or self.stream.overdue == "continue":
            return self.period
        return min(self.period, self.stream.delay or self.period)


class TrainerCore:
    """The core. `handle` is its only mutator."""

    def __init__(self, streams: Sequence[Stream]) -> None:
        self.step = 0
        """Own inner steps."""
        self._base_step = 0
        self._own_since = 0
        self._step_s = 0.0
        """What an inner step takes lately."""
        self._streams = {s.name: _Progress(s, period=s.steps(1)) for s in streams}
        self._together = next((p for p in self._streams.values() if not p.stream.held), None)
        """The stream of gradients, if every step is made together."""

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

    def made(self, stream: str) -> int:
        """Inner steps in what of the stream was staged last, since it was staged before."""
        return self._streams[stream].made

    @property
    def wasted(self) -> tuple[int, str, int] | None:
        """If none of the inner steps made so far is in what was staged: their number, the stream due next, and when."""
        due = [p for p in self._streams.values() if p.stream.held]
        if not self.step or not due or any(p.serial for p in self._streams.values()):
            return None
        first = min(due, key=lambda p: p.period - p.since)
        return self.step, first.stream.name, first.period

    @property
    def indices(self) -> dict[str, int]:
        """Last sync of every stream that was adopted."""
        return {name: p.index for name, p in self._streams.items()}

    def handle(self, event: TrainerEvent) -> list[TrainerEffect]:
        """React to an event. A grant that answers another staging than the last changes nothing."""
        match event:
            case BeforeStep(lr):
                for progress in self._streams.values():
                    if progress.stream.uneven and not progress.since:
                        progress.lr, progress.began_at = lr, self.global_step
                        self._plan(progress)
                return self._before_step()
            case AfterStep(took_s, step_s):
                self.step += 1
                self._own_since += 1
                self._step_s = step_s
                for progress in self._streams.values():
                    progress.since = self._since(progress)
                    progress.spent_s += took_s
                    if SCHEDULES[progress.stream.schedule].adapts:
                        self._plan(progress)
                return self._due()
            case Granted():
                return self._granted(event)
            case WaitedLongEnough():
                for name in self.waiting:
                    self._streams[name].patient = False
                return []
            case OutOfData():
                ready = [p for p in self._streams.values() if p.stream.held and p.since]
                return [effect for p in ready if not p.outstanding for effect in self._stage(p, block=False)]

    def _since(self, progress: _Progress) -> int:
        """Inner steps since the stream was last staged, with the one just made.

        Where every step is made together (a stream of gradients), the run's steps count, not the own ones: a newcomer's
        first period is what is left of the others', or it would wait for them at a step where they wait for it.
        """
        together = self._together
        if together is None or not progress.stream.held or progress.outstanding:
            return progress.since + 1
        return max(0, together.index - progress.index * progress.stream.every)

    def _plan(self, progress: _Progress) -> None:
        """Find out how long the round is."""
        stream = progress.stream
        times_s = (progress.spent_s, self._step_s, progress.pace_s)
        moment = Moment(progress.since, *times_s, progress.lr, progress.began_at)
        progress.period = round_steps(stream.schedule, stream.every, dict(stream.schedule_options), moment)

    def _before_step(self) -> list[TrainerEffect]:
        gradients = [p for p in self._streams.values() if not p.stream.held and not p.outstanding]
        return [effect for p in gradients for effect in self._stage(p, block=True)] + self._wait()

    def _due(self) -> list[TrainerEffect]:
        effects: list[TrainerEffect] = []
        for progress in self._streams.values():
            stream = progress.stream
            if not stream.held:
                continue
            if not progress.outstanding:
                if progress.since >= progress.period:
                    effects += self._stage(progress, block=stream.delay == 0)
            elif progress.since >= progress.slack:
                # What was staged before has to come first.
                progress.blocking = True
        return effects + self._wait()

    def _wait(self) -> list[TrainerEffect]:
        waiting = self.waiting
        return [Wait(waiting)] if waiting else []

    def _stage(self, progress: _Progress, *, block: bool) -> list[TrainerEffect]:
        progress.serial += 1
        progress.made, progress.since, progress.spent_s = progress.since, 0, 0.0
        progress.period = progress.stream.every
        if SCHEDULES[progress.stream.schedule].adapts:
            self._plan(progress)
        progress.outstanding, progress.blocking, progress.again = True, block, False
        return [Stage(progress.stream.name, progress.serial, progress.granted)]

    def _granted(self, event: Granted) -> list[TrainerEffect]:
        progress = self._streams.get(event.stream)
        if progress is None:
            return []
        if event.count and event.count <= progress.granted:
            return []  # it was told once more, as it might have been lost
        progress.granted = event.count or progress.granted + 1
        progress.pace_s = event.pace_s or progress.pace_s
        if event.kind == "start":
            progress.spent_s = 0.0
            progress.outstanding, progress.blocking, progress.patient = False, False, True
            effects = self._adopted(progress, event, stepped=False)
            if progress.stream.held:
                self._fall_in()
            else:
                progress.since = 0
            return effects
        if not progress.outstanding or event.serial != progress.serial:
            return []
        progress.outstanding, progress.patient = False, True
        stepped = progress.since > 0
        if not progress.stream.held and stepped:
            progress.index = event.index
            return self._wait()  # the mean of a step that was made alone
        effects = self._adopted(progress, event, stepped=stepped)
        if event.kind == "move" and progress.stream.late == "rebase":
            # Own progress that is not in yet stays staged for the next sync; training goes on meanwhile.
            blocked = progress.blocking and progress.since >= progress.period
            effects += self._stage(progress, block=False)
            progress.blocking, progress.again = blocked, True
        elif progress.stream.held and progress.since >= progress.period:
            effects += self._stage(progress, block=progress.stream.delay == 0)
        return effects + self._wait()

    def _fall_in(self) -> None:
        """Begin where the run is: of its streams the one is due first that comes first at the others, too."""
        held = [progress for progress in self._streams.values() if progress.stream.held]
        step = max(progress.stream.steps(progress.index) for progress in held)
        for progress in held:
            progress.since, progress.period = 0, max(1, progress.stream.steps(progress.index + 1) - step)

    def _adopted(self, progress: _Progress, event: Granted, *, stepped: bool) -> list[TrainerEffect]:
        progress.index = event.index
        if progress.stream.held:
            self._base_step = event.global_step
            self._own_since = progress.since if event.kind == "merge" else 0
        elif event.kind == "start":
            return []  # the mean gradient is not to be had any more: the step is made with the own one
        return [Adopt(event.stream, event.kind, stepped)]
