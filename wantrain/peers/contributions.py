"""The trainer beside a peer as its participant sees it: attached, started, what it has staged; a pure core.

A part of `participant.py`, which alone calls it. A staged contribution stays as it is until a committed sync has
decided about it: taken in (merge) or not (move). A trainer that died leaves its contribution behind; its successor's
comes next.
"""

from dataclasses import dataclass, field, replace

from wantrain.optimizers.stream import Stream
from wantrain.peers.attempts import Attempts
from wantrain.peers.effects import Effect, Grant, GrantAgain, Note, RefuseTrainer, Settle, TellTrainer, UseStage
from wantrain.peers.events import Staged, TrainerResumed
from wantrain.peers.inheritance import Inheritance, Pending
from wantrain.peers.layout import manifest_difference
from wantrain.peers.messages import Attached, CommitRecord, Manifest, Start
from wantrain.peers.recovery import Recovery
from wantrain.peers.tempo import Tempo

CALM_DOWN = "lower the learning rate, or clip gradients"


@dataclass(slots=True)
class _Trainer:
    boot: bytes
    manifest: Manifest
    answered: str = ""
    """What its Attach was answered with: "", "genesis" (give your weights) or "state" (a state will come)."""
    started: bool = False
    again: bool = False
    """Whether it had started before, and may wait for mean gradients that will not come."""
    granted: dict[str, int] = field(default_factory=dict)
    """Per stream: the sync that its weights were last moved by."""
    inheritance: Inheritance | None = None
    """What a former daemon has left to it, until it is known what became of that."""
    pending: dict[str, Pending] = field(default_factory=dict)
    """Contributions that it has yet to offer to this daemon."""


@dataclass(slots=True)
class _Stage:
    event: Staged
    after: int
    """Last sync of the stream that the trainer had when it staged: a later one decides."""
    attempts: set[int] = field(default_factory=set)
    """Attempts that this very contribution was part of."""
    floor: int | None = None
    """A former daemon of this peer may have made others with it, above this number."""
    decided: bool = False
    taken: bool = False
    answered: bool = False
    """Whether the trainer has gone on already."""


class Contributions:
    """The trainer's side of a participant.

    Args:
        me: this peer.
        name: its name for people.
        streams: the run's streams.
        recovery: where the peer stands in the history; only read here.
        attempts: those that it takes part in; only read here.
    """

    def __init__(self, me: str, name: str, streams: tuple[Stream, ...], recovery: Recovery, attempts: Attempts) -> None:
        self.trainer_state = "none"
        """none, starting, training, waiting or done."""
        self.tempo = Tempo(streams)
        self.crowd = 1
        """Peers of the view, with this one."""
        self._me = me
        self._name = name
        self._streams = {stream.name: stream for stream in streams}
        self._gossip = frozenset(stream.name for stream in streams if stream.gossip)
        self._recovery = recovery
        self._attempts = attempts
        self._trainer: _Trainer | None = None
        self._stages: dict[str, _Stage] = {}
        self._queued: dict[str, Staged] = {}
        """Contributions of a new trainer, behind what its predecessor had staged."""
        self._gradients: dict[str, int] = {}
        """Per gradient stream: the sync whose mean gradient is at hand."""
        self._owed: dict[str, Staged] = {}
        """Per stream that is answered ahead: what was in no sync, and is part of the next contribution."""
        self._shares: dict[str, float] = {}
        """Per stream: what of the last mean this peer's contribution was, or would have been."""

    @property
    def started(self) -> bool:
        """Whether a trainer has the run's state and trains."""
        return self._trainer is not None and self._trainer.started

    @property
    def gives_genesis(self) -> bool:
        """Whether the attached trainer was asked for the initial weights."""
        return self._trainer is not None and self._trainer.answered == "genesis"

    @property
    def manifest(self) -> Manifest:
        """The attached trainer's model; () if there is no trainer."""
        return self._trainer.manifest if self._trainer is not None else ()

    @property
    def staged(self) -> dict[str, Staged]:
        """What is staged and not decided, by stream."""
        return {name: stage.event for name, stage in self._stages.items() if not stage.decided}

    def has_staged(self, stream: str) -> bool:
        """Whether something is staged for the stream and not decided."""
        stage = self._stages.get(stream)
        return stage is not None and not stage.decided

    @property
    def outstanding(self) -> bool:
        """Whether anything is staged."""
        return bool(self._stages)

    def takes_stage(self, boot: bytes, stream: str) -> bool:
        """Whether this trainer may stage the stream now; if not, the shell must not touch its contribution."""
        stage, queued = self._stages.get(stream), self._queued.get(stream)
        if self._trainer is None or not self._trainer.started or self._trainer.boot != boot:
            return False
        free = stage is None or stage.answered or stage.event.boot != boot
        return free and (queued is None or queued.boot != boot)

    # ---- it comes and goes

    def attached(self, boot: bytes, manifest: Manifest) -> None:
        """A trainer process presented its model."""
        self._trainer = _Trainer(boot, manifest)
        self.trainer_state = "starting"

    def resumed(self, event: TrainerResumed) -> None:
        """A trainer that has outlived its daemon came back."""
        self.attached(event.boot, event.manifest)
        assert self._trainer is not None
        self._trainer.inheritance = Inheritance(self._me, event.held, event.received, event.indices, self._gossip)

    @property
    def inheritance(self) -> Inheritance | None:
        """What has to be read in the commit log before the trainer can go on from where it stands."""
        return self._trainer.inheritance if self._trainer is not None else None

    def gone(self, *, finished: bool) -> None:
        """Its process ended."""
        self._trainer = None
        self.trainer_state = "done" if finished else "none"

    def refuse(self, code: str, reason: str, hint: str) -> list[Effect]:
        """Turn it away."""
        self.gone(finished=False)
        return [RefuseTrainer(code, reason, hint)]

    def answer(self, manifest: Manifest | None) -> list[Effect]:
        """Answer its Attach, if that is not done: with the run's model, or None if its own becomes the run's."""
        trainer = self._trainer
        if trainer is None or trainer.answered:
            return []
        if manifest is not None and (difference := manifest_difference(manifest, trainer.manifest)):
            reason = "the model differs from the run's:\n    " + "\n    ".join(difference)
            return self.refuse("model", reason, "train the model that the run was started with")
        trainer.answered = "genesis" if manifest is None else "state"
        if manifest is None:
            trainer.inheritance = None
        if trainer.inheritance is not None:
            return []  # it trains on, and hears when it can be taken in
        return [TellTrainer(Attached(self._me, self._name, "", (), manifest is None))]

    def start(self) -> list[Effect]:
        """Hand the state to a trainer that has attached, once there is a state."""
        trainer = self._trainer
        if trainer is None or not trainer.answered or trainer.started or not self._recovery.complete:
            return []
        if self._recovery.stale:
            return []
        inheritance, trainer.inheritance = trainer.inheritance, None
        effects: list[Effect] = []
        if inheritance is not None:
            recovery = self._recovery
            if not inheritance.known(recovery.applied, recovery.chain, recovery.head, recovery.genesis):
                trainer.inheritance = inheritance
                return []
            effects += [TellTrainer(Attached(self._me, self._name, "", (), False))]
            details = {"number": recovery.applied, "from": inheritance.held.number, "lost": inheritance.foreign}
            effects += [Note("resumed", details)]
        trainer.answered, trainer.started = "state", True
        self.trainer_state = "training"
        indices = self._recovery.indices
        if inheritance is not None and not inheritance.foreign:
            self._recovery.go_on_after(inheritance.granted)
            trainer.granted, trainer.pending = dict(inheritance.granted), inheritance.pending
            return effects + [GrantAgain(name) for name in inheritance.again]
        trainer.again = trainer.again or inheritance is not None
        trainer.granted = dict(indices)
        names = [name for name, stream in self._streams.items() if stream.held or trainer.again]
        step = self.tempo.global_step(indices)
        return effects + [Grant(name, "start", 0, indices[name], step, self.tempo.pace_s(name)) for name in names]

    def reset(self) -> None:
        """The state was not the run's: nothing staged counts, and the trainer starts again once there is a new one."""
        self._stages, self._queued, self._gradients, self._owed = {}, {}, {}, {}
        if self._trainer is not None:
            self._trainer.again = self._trainer.again or self._trainer.started
            self._trainer.answered, self._trainer.started = "", False
            self._trainer.inheritance, self._trainer.pending = None, {}
            self.trainer_state = "starting"

    # ---- contributions

    def stage(self, event: Staged) -> list[Effect]:
        """It has staged a contribution."""
        trainer, stream = self._trainer, event.stream
        if trainer is None or not self.takes_stage(event.boot, stream):
            return []
        if not event.finite:
            reason = f"the contribution to stream {stream} at step {event.step} has NaN or Inf in it"
            return self.refuse("non-finite", reason, CALM_DOWN)
        if stream in self._stages:
            self._queued[stream] = event
            self.trainer_state = "waiting"
            return []
        ahead, now = self._ahead(stream), self._recovery.indices[stream]
        after = now if ahead else trainer.granted[stream]
        pending = trainer.pending.pop(stream, None)
        known = pending is not None and pending.used and pending.serial == event.serial
        taken = known and pending is not None and pending.taken
        if (after < now or (ahead and taken)) and self._recovery.complete:
            # The sync that this was meant for is over; it went on without it, unless a former daemon had offered it.
            return [self._grant(event, taken=taken)]
        owed = self._owed.pop(stream, None)
        if owed is not None and owed.boot == event.boot and self._streams[stream].weight == "tokens":
            event = replace(event, weight=event.weight + owed.weight)
        floor = pending.floor if known and pending is not None else None
        self._stages[stream] = _Stage(event, after, floor=floor, decided=after < now, taken=taken)
        self.trainer_state = "waiting"
        used = UseStage(stream, self._attempts.latest(stream) if floor is None else floor)
        return [used, *self._answer_ahead(self._stages[stream])]

    def _ahead(self, stream: str) -> bool:
        """Whether contributions are answered before their sync is decided."""
        return self._streams[stream].answer != "result"

    def _answer_ahead(self, stage: _Stage) -> list[Effect]:
        """Let the trainer go on, if that is the stream's way and the state at hand is consistent."""
        event, trainer = stage.event, self._trainer
        if not self._ahead(event.stream) or stage.answered or not self._recovery.complete:
            return []
        if trainer is None or not trainer.started or trainer.boot != event.boot:
            return []
        stage.answered = True
        self.trainer_state = "training"
        return [self._grant(event, taken=True)]

    def joins(self, start: Start) -> bool:
        """Whether what is staged can go into this attempt; from then on it is known to be part of it."""
        stage = self._stages.get(start.sync.stream)
        if stage is None or stage.decided:
            return False
        stage.attempts.add(start.sync.attempt)
        return True

    def discard(self, stream: str, why: str) -> list[Effect]:
        """What is staged cannot become part of any sync."""
        stage = self._stages.pop(stream, None)
        if stage is None:
            return []
        reason = f"the contribution to stream {stream} at step {stage.event.step}: {why}"
        effects: list[Effect] = [Note("contribution-dropped", {"stream": stream, "reason": reason})]
        if self._trainer is not None and self._trainer.boot == stage.event.boot:
            effects += self.refuse("non-finite", reason, CALM_DOWN)
        if (queued := self._queued.pop(stream, None)) is not None:
            effects += self.stage(queued)
        return effects

    def decide(self, record: CommitRecord) -> list[Effect]:
        """A sync is committed: what was staged for it is decided."""
        sync = record.sync
        if sync.stream in self._gossip and self._me not in record.contributors:
            return []
        self.tempo.committed(record)
        shares = dict(zip(record.contributors, record.weights, strict=False))
        mine, total = shares.get(self._me), sum(shares.values())
        self._shares[sync.stream] = mine / total if mine is not None else 1.0 / (len(shares) + 1)
        if self._trainer is not None and (pending := self._trainer.pending.get(sync.stream)) is not None:
            pending.observe(record, self._me)
        stage = self._stages.get(sync.stream)
        if stage is not None and not stage.decided and sync.index <= stage.after:
            return []  # it is older than what is staged: this peer took over an older state than it had
        taken = False
        if stage is not None and not stage.decided and sync.index > stage.after:
            stage.decided = True
            mine = sync.attempt in stage.attempts or (stage.floor is not None and sync.attempt > stage.floor)
            taken = stage.taken = self._me in record.contributors and mine
        return [Settle(sync.stream, taken)]

    @property
    def settled(self) -> bool:
        """Whether a trainer trains, and has been granted all that follows for it from the log as far as applied."""
        if self._trainer is None or not self._trainer.started or self._trainer.pending:
            return False
        return self._recovery.complete and not any(stage.decided for stage in self._stages.values())

    @property
    def boot(self) -> bytes:
        """Of the trainer that is attached; b"" if there is none."""
        return self._trainer.boot if self._trainer is not None else b""

    def gradient_came(self, stream: str, index: int) -> None:
        """The mean gradient of this sync is at hand."""
        self._gradients[stream] = index

    def release(self) -> list[Effect]:
        """Give the trainer the outcome of what it staged, now that the state at hand is consistent."""
        effects: list[Effect] = []
        for name, stage in list(self._stages.items()):
            if not stage.decided:
                effects += self._answer_ahead(stage)
                continue
            del self._stages[name]
            if self._ahead(name) and not stage.taken and self._streams[name].late == "rebase":
                self._owed[name] = stage.event
            mine = self._trainer is not None and self.started and self._trainer.boot == stage.event.boot
            if mine and not stage.answered:
                effects.append(self._grant(stage.event, taken=stage.taken))
            if (queued := self._queued.pop(name, None)) is not None:
                effects += self.stage(queued)
        if not self._stages and self.trainer_state == "waiting":
            self.trainer_state = "training"
        return effects

    def _grant(self, event: Staged, *, taken: bool) -> Grant:
        assert self._trainer is not None
        name, indices = event.stream, self._recovery.indices
        index = indices[name]
        self._trainer.granted[name] = index
        if not self._streams[name].held:
            # A mean gradient that a snapshot has skipped is not to be had any more: the trainer goes on with its own.
            kind = "grad" if self._gradients.get(name) == index else "start"
        else:
            kind = "merge" if taken or self._ahead(name) else "move"
        if not self._ahead(name):
            # Of its own sync: others of other streams may have been decided while this one was under way.
            step = self.tempo.step_of(name, index) if kind == "merge" else self.tempo.global_step(indices)
            return Grant(name, kind, event.serial, index, step, self.tempo.pace_s(name))
        step = self.tempo.global_step({**indices, name: index + 1})  # its own sync counts already
        share = self._shares.get(name, 1.0 / self.crowd)
        return Grant(name, kind, event.serial, index, step, share=share)
