"""The shell around a participant: does its effects on tensors, connections and the trainer. One thread, no clock.

`daemon.py` drives it with real sockets, the simulation with a virtual network and symbolic tensors; both run this code.
"""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, Protocol

from wantrain.errors import CodecError, WantrainError
from wantrain.optimizers.stream import lead
from wantrain.peers.common import CommonCopy
from wantrain.peers.description import flaw
from wantrain.peers.effects import (
    Apply,
    BeginSave,
    Dial,
    DropSave,
    Effect,
    Exit,
    ForgetResiduals,
    Grant,
    GrantAgain,
    HandOver,
    HangUp,
    LoadInitial,
    LoadSaved,
    Note,
    NotePlace,
    NoteReach,
    OpenModel,
    PassOn,
    ReduceChunk,
    RefuseTrainer,
    SendContribution,
    SendPayload,
    SendState,
    Settle,
    StoreState,
    Tell,
    TellTrainer,
    UseCodec,
    UseStage,
)
from wantrain.peers.events import (
    CoordinatorLink,
    Event,
    Flawed,
    FromPeer,
    GenesisReady,
    HandedOver,
    LeaseWanted,
    LeaveRequested,
    PeerLink,
    Reduced,
    ReduceFailed,
    Staged,
    StateDigested,
    Tick,
    TrainerAttached,
    TrainerGone,
    TrainerResumed,
    TrainerStarting,
)
from wantrain.peers.inheritance import Held, Mark
from wantrain.peers.messages import (
    COORDINATOR,
    Attach,
    Common,
    Contribute,
    Describe,
    Detach,
    Detached,
    GenesisWritten,
    Granted,
    Log,
    Manifest,
    Owed,
    Part,
    Record,
    Refused,
    Result,
    StateChunk,
    UpdateChunk,
    Waiting,
    WantCommon,
    WantLease,
)
from wantrain.peers.outbox import Outbox
from wantrain.peers.participant import Participant
from wantrain.peers.saver import Disk, Saver
from wantrain.transport.collective import Payload
from wantrain.transport.digest import state_digest
from wantrain.transport.link import Done

WAITING_EVERY_S = 1.0
"""How often a trainer that waits hears why."""


class Tensors(Protocol):
    """What the shell needs of `wantrain.peers.engine.Engine`; see there."""

    def adopt_genesis(self) -> bytes: ...
    def stage(self, stream: str, offer: Contribute | None = None) -> tuple[float, bool]: ...
    def use_stage(self, stream: str, floor: int = 0) -> None: ...
    def use_codec(self, stream: str, codec: str) -> None: ...
    def settle(self, stream: str, taken: bool) -> None: ...
    def forget_residuals(self) -> None: ...
    def residual(self, stream: str) -> list[Payload]: ...
    def add_residual(self, stream: str, payloads: Sequence[Payload]) -> None: ...
    def check_owed(self, stream: str, chunk: int, payload: Payload) -> str | None: ...
    def part(self, stream: str, chunk: int) -> Payload: ...
    def release(self, payload: Payload) -> None: ...
    def reduce(
        self, stream: str, chunk: int, inputs: Sequence[tuple[float, Payload | None]], divisor: float, final: bool
    ) -> Payload: ...
    def longest(self, stream: str, chunk: int, inputs: Sequence[tuple[float, Payload | None]]) -> int: ...
    def check(self, stream: str, chunk: int, payload: Payload, *, part: bool, up: str) -> str | None: ...
    def digest(self, payload: Payload) -> bytes: ...
    def size_bytes(self, payload: Payload) -> int: ...
    def apply(self, stream: str, payloads: Sequence[Payload], skip: frozenset[int], index: int) -> None: ...
    def agree(self, stream: str, payloads: Sequence[Payload], skip: frozenset[int]) -> None: ...
    def spread(self, stream: str, payloads: Sequence[Payload]) -> float: ...
    def grant(
        self, stream: str, kind: str, answer: Granted | None = None, count: int = 0, share: float = 1.0
    ) -> None: ...
    def note_told(self, stream: str, count: int) -> None: ...
    def note_place(self, number: int, chain: bytes) -> None: ...
    def note_reach(self, number: int, chain: bytes) -> None: ...
    def copy_common(self, stream: str, chunk: int) -> None: ...
    def drop_common(self) -> None: ...
    def read_state(self, k: int) -> Payload: ...
    def check_state(self, k: int, payload: Payload) -> str | None: ...
    def store_state(self, k: int, payload: Payload) -> None: ...
    def digest_steps(self) -> Iterator[bytes]: ...
    def save_steps(self, write: Callable[[Payload], None]) -> Iterator[tuple[bytes, ...] | None]: ...


class Surroundings(Protocol):
    """What a peer is connected to; the shell's only ways out."""

    def send(self, to: str, record: Record) -> bool:
        """Queue a record for the coordinator or a peer; False if the queue is full or there is no way."""

    def send_bulk(self, to: str, record: Record, payloads: tuple[Payload, ...], done: Done | None = None) -> bool:
        """Queue a record with tensor bytes for a peer; `done` is called when they are let go of, unless False comes."""

    def bulk_bytes(self, to: str) -> int:
        """How many tensor bytes a message to that peer had best have now."""

    def clears_s(self, to: str) -> float:
        """How long what is under way to that peer may take to arrive, in seconds; 0 if nothing is."""

    def under_way(self) -> bool:
        """Whether tensor bytes were sent that their receivers have not taken yet."""

    def dial(self, peer: str, address: str, curve_key: bytes) -> None:
        """Connect to a peer."""

    def hang_up(self, peer: str) -> None:
        """Drop the connection to a peer."""

    def open_model(self, manifest: Manifest) -> Tensors:
        """Make room for the state of a model."""

    def open_segment(self, tensors: Tensors) -> str:
        """Make the memory shared with a trainer that attaches; its path."""

    def resume_segment(self, tensors: Tensors, path: str) -> Held | None:
        """Take over the memory that a trainer shared with a former daemon; None if that cannot be."""

    def open_common(self, tensors: Tensors) -> tuple[str, dict[str, int]]:
        """Make a file for a copy of the common weights: its path, and how many chunks each stream of them has.

        Raises:
            WantrainError: there is no room for it.
        """

    def tell_trainer(self, record: Record) -> None:
        """Send a record to the attached trainer."""

    def trainer_refused(self, refusal: Refused) -> None:
        """The trainer was turned away."""

    def note(self, event: str, details: dict[str, Any]) -> None:
        """Write a line to the event log."""

    def exit(self, code: int, reason: str, hint: str) -> None:
        """End this peer."""


class Peer:
    """One peer without its sockets: a participant, its tensors, its trainer's requests.

    Args:
        core: the participant.
        around: what it is connected to.
        disk: where it saves its state; None: nowhere.
        stays: whether it goes on without a trainer when its trainer has taken its leave.
    """

    def __init__(
        self, core: Participant, around: Surroundings, disk: Disk | None = None, *, stays: bool = False
    ) -> None:
        self.core = core
        self.tensors: Tensors | None = None
        self.values: dict[str, float] = {}
        """Numbers from the trainer's `swarm.log`."""
        self.spread: float | None = None
        """Of a gossip stream: the replicas' standard deviation, estimated from the last pair that it was in."""
        self._around = around
        self._stays = stays
        self._streams = {stream.name: stream for stream in core.facts.streams}
        self._events: deque[Event] = deque()
        self._outbox = Outbox(core, around)
        self._saver = Saver(disk)
        self._model: Manifest = ()
        self._boot = b""
        self._attached: Record | None = None
        self._detaching = False
        self._starting = False
        """Whether a trainer has attached and has no state yet."""
        self._segment = ""
        """The trainer's memory, once it is made."""
        self._marks: Mapping[str, Mark] = {}
        """What a former daemon had noted down."""
        self._grants: dict[str, int] = {}
        """Per stream: Granted messages sent to this trainer process."""
        self._told: dict[str, Granted] = {}
        """Per stream: the last of them."""
        self._tokens: dict[str, int] = {}
        """Per stream: the trainer's token count up to which its contributions were taken in, or dropped."""
        self._offered: dict[str, int] = {}
        """Per stream: its token count at the last contribution."""
        self._staged_at: dict[str, float] = {}
        self._free_stage: set[str] = set()
        self._owed: dict[tuple[str, str], dict[int, Payload]] = {}
        """What leaving peers hand over, by who and stream, until it is whole."""
        self._heir = ""
        """To whom this peer hands over what it owes."""
        self._waited_at = 0.0
        self._common = CommonCopy()
        self._digest: tuple[int, Iterator[bytes], list[bytes]] | None = None
        """Of the state at this log number: its chunks' digests to come, and those that are known."""
        self.rejected = 0
        """Messages with tensor bytes that could not be used."""
        self.unasked = 0
        """Chunks that came and were of no use: late, repeated, or never asked for."""
        self.fetched_bytes = 0
        """State and updates that were fetched to catch up, in total."""
        self.pause_s = 0.0
        """Seconds that the trainer has waited for grants in total."""

    # ---- what happens

    def handle(self, event: Event, now: float) -> None:
        """Let the participant react, and do what it decides."""
        self._events.append(event)
        while self._events:
            for effect in self.core.handle(self._events.popleft(), now):
                self._perform(effect, now)
        self.pump(now)

    def receive(self, source: str, record: Record, payloads: Sequence[Payload], now: float) -> None:
        """A record from the coordinator or a peer. Tensor bytes are checked before anything else sees them."""
        match record:
            case Part(chunks=chunks) | Result(chunks=chunks):
                if len(payloads) != len(chunks):
                    self._reject(source, record, f"{len(payloads)} buffers for {len(chunks)} chunks", now)
                    return
                for chunk, payload in zip(chunks, payloads, strict=True):
                    self._take_chunk(source, replace(record, chunks=(chunk,)), payload, now)
            case Owed(stream, chunk, chunks):
                if len(payloads) == 1 and stream in self._streams and source in self.core.members:
                    self._take_owed(source, stream, chunk, chunks, payloads[0], now)
            case StateChunk() | UpdateChunk():
                if len(payloads) == 1:
                    self._take_chunk(source, record, payloads[0], now)
            case _:
                self.handle(FromPeer(source, record), now)

    def _take_owed(self, source: str, stream: str, chunk: int, chunks: int, payload: Payload, now: float) -> None:
        """What a leaving peer owed is ours once all of it is here."""
        if self.tensors is None or chunks != self.core.chunks(stream) or chunk >= chunks:
            return
        if (flaw := self.tensors.check_owed(stream, chunk, payload)) is not None:
            self._reject(source, Owed(stream, chunk, chunks), flaw, now)
            return
        owed = self._owed.setdefault((source, stream), {})
        owed[chunk] = payload
        if len(owed) < chunks:
            return
        del self._owed[source, stream]
        try:
            self.tensors.add_residual(stream, [owed[k] for k in range(chunks)])
        except CodecError as error:
            self._reject(source, Owed(stream, chunk, chunks), error.message, now)

    def _take_chunk(
        self, source: str, record: Part | Result | StateChunk | UpdateChunk, payload: Payload, now: float
    ) -> None:
        if not self.core.accepts(source, record):
            self.unasked += 1
            return
        digest = b""
        flaw = self._flaw(record, payload)
        if flaw is not None:
            self._reject(source, record, flaw, now)
            return
        if self.tensors is not None and not isinstance(record, Part):
            digest = self.tensors.digest(payload)
            if not isinstance(record, Result):
                self.fetched_bytes += self.tensors.size_bytes(payload)
        self.handle(FromPeer(source, record, payload, digest), now)

    def _reject(self, source: str, record: Record, reason: str, now: float) -> None:
        """Drop tensor bytes that cannot be used, by name; of a contribution the coordinator hears."""
        self.rejected += 1
        self._around.note("rejected", {"peer": source, "kind": type(record).__name__, "reason": reason})
        if isinstance(record, Part | Result):
            self.handle(Flawed(source, record.sync, f"{type(record).__name__}: {reason}"), now)

    def _flaw(self, record: Part | Result | StateChunk | UpdateChunk, payload: Payload) -> str | None:
        where = self.core.chunk_stream(record)
        if self.tensors is None or where is None:
            return "no such chunk"
        if isinstance(record, StateChunk):
            return self.tensors.check_state(record.chunk, payload)
        if isinstance(record, Part):
            return self.tensors.check(*where, payload, part=True, up=record.codec)
        return self.tensors.check(*where, payload, part=False, up="")

    def link_changed(self, peer: str, up: bool, reason: str, now: float) -> None:
        """A dialled connection came up or broke; what was on its way may be lost."""
        self._outbox.lost(peer)
        if peer == COORDINATOR:
            self.handle(CoordinatorLink(up, reason), now)
        else:
            self.handle(PeerLink(peer, up, reason), now)

    def _see_heir(self) -> None:
        """Whether all that was to be handed over has left, and all that others have asked for."""
        if self._heir and not self._outbox.backlog and not self._around.under_way():
            self._heir = ""
            self._events.append(HandedOver())

    def tick(self, now: float) -> None:
        """Time has passed."""
        self._see_heir()
        self._events.extend(self._saver.poll())
        self._outbox.tidy(now)
        self.handle(Tick(), now)
        waits = self._staged_at or self._starting or self.core.short_of_data or self._common.serial is not None
        if waits and now - self._waited_at >= WAITING_EVERY_S:
            self._waited_at = now
            self._around.tell_trainer(Waiting(self.core.waiting(now)))

    # ---- the trainer

    def trainer_starting(self, now: float) -> None:
        """A training process was started."""
        self.handle(TrainerStarting(), now)

    def trainer_gone(self, now: float) -> None:
        """The training process ended."""
        self._forget_trainer(b"")
        self.handle(TrainerGone(self._detaching), now)

    def from_trainer(self, record: Record, now: float) -> None:
        """A record from the trainer; what does not fit the moment changes nothing."""
        match record:
            case Attach() if record.segment and not self.core.welcomed:
                pass  # it trains on and asks again, once it is known whether the run has a model
            case Attach(manifest, _, boot):
                if boot != self._boot:
                    self._forget_trainer(boot)
                    self.handle(self._resumed(record) or TrainerAttached(boot, manifest), now)
                elif self._attached is not None:
                    self._around.tell_trainer(self._attached)
                    for name, granted in self._told.items():
                        if record.received.get(name, 0) < self._grants[name]:  # lost with the connection
                            self._around.tell_trainer(granted)
            case GenesisWritten() if self.core.takes_genesis:
                self.handle(GenesisReady(self._genesis()), now)
            case Contribute() if self._attached is not None:
                self._contributed(record, now)
            case WantLease() if self._attached is not None:
                self.handle(LeaseWanted(record), now)
            case Log(values):
                self.values.update(values)
            case Describe():
                if reason := flaw(record):
                    self._around.note("description-ignored", {"reason": reason})
                else:
                    self._saver.described = record
            case WantCommon(serial) if self._attached is not None:
                self._common.ask(serial)
            case Detach() if self._stays:
                self.trainer_gone(now)
                self._around.tell_trainer(Detached())
            case Detach(reason):
                self._detaching = True
                self._staged_at.clear()
                self.handle(TrainerGone(True), now)
                self.handle(LeaveRequested(reason), now)
            case _:
                pass

    def _resumed(self, record: Attach) -> TrainerResumed | None:
        """The return of a trainer that has outlived its daemon; None if it has to start over."""
        if not record.segment or self.tensors is None:
            return None
        held = self._around.resume_segment(self.tensors, record.segment)
        if held is None or held.number < 0:
            return None
        self._segment, self._marks, self._starting = record.segment, held.marks, False
        self._grants = {name: record.received.get(name, 0) for name in self._streams}
        self._tokens = {name: mark.tokens for name, mark in held.marks.items()}
        self._offered = {name: mark.offered for name, mark in held.marks.items()}
        return TrainerResumed(record.boot, record.manifest, held, record.received, record.indices, record.reader)

    def _forget_trainer(self, boot: bytes) -> None:
        self._boot, self._attached, self._segment = boot, None, ""
        self._marks = {}
        self._starting = bool(boot)
        self._grants, self._told, self._tokens, self._offered = {}, {}, {}, {}
        self._free_stage = set()
        self._staged_at.clear()
        self._common.drop()

    def _genesis(self) -> bytes:
        """Digest of the initial state that the trainer has written, b"" if it is not finite."""
        try:
            return self._tensors.adopt_genesis()
        except CodecError as error:
            self._around.note("genesis-refused", {"reason": error.message})
            return b""

    def _contributed(self, record: Contribute, now: float) -> None:
        stream = self._streams.get(record.stream)
        if stream is None or self.tensors is None:
            return
        if record.granted != self._grants.get(stream.name, 0) or not self.core.takes_stage(self._boot, stream.name):
            # What it holds is a difference to something that a later grant has overwritten, or will.
            self._around.note("contribution-ignored", {"stream": stream.name, "serial": record.serial})
            return
        norm, finite = self.tensors.stage(stream.name, record)
        tokens = record.tokens - self._tokens.get(stream.name, 0)
        self._offered[stream.name] = record.tokens
        weight = float(max(tokens, 1)) if stream.weight == "tokens" else 1.0
        if stream.name not in self._free_stage:
            self._staged_at[stream.name] = now
        self._free_stage.discard(stream.name)
        of_trainer = (self._boot, stream.name, record.serial, record.step)
        self.handle(Staged(*of_trainer, weight, norm, finite, record.drawn, record.steps), now)

    # ---- effects

    def _perform(self, effect: Effect, now: float) -> None:
        match effect:
            case Tell(to, record):
                self._around.send(to, record)
            case SendContribution() | SendPayload() | SendState():
                self._outbox.add(effect, now)
            case ReduceChunk():
                self._reduce(effect)
            case BeginSave():
                self._events.extend(self._saver.begin(effect, self._tensors, self._model))
            case DropSave():
                self._saver.drop()
            case LoadSaved():
                self._digest = None
                self._common.start_again()
                self._events.extend(self._saver.load(effect, self._tensors))
            case LoadInitial():
                self._common.start_again()
                self._events.extend(self._saver.load_initial(self._tensors, self._model))
            case StoreState(chunk, payload):
                self._events.extend(self._saver.state_changes())
                self._tensors.store_state(chunk, payload)
                self._digest = None
                self._common.start_again()
            case Apply():
                self._apply(effect)
            case UseStage(stream, floor):
                self._tensors.use_stage(stream, floor)
            case UseCodec(stream, codec):
                self._tensors.use_codec(stream, codec)
            case Settle(stream, taken):
                if self.tensors is not None:
                    self.tensors.settle(stream, taken)
            case ForgetResiduals():
                if self.tensors is not None:
                    self.tensors.forget_residuals()
            case Grant():
                self._grant(effect, now)
            case GrantAgain(stream):
                mark = self._marks[stream]
                self._grants[stream] += 1
                self._tensors.note_told(stream, self._grants[stream])
                self._tell_granted(
                    Granted(stream, mark.kind, mark.serial, mark.index, mark.global_step, count=self._grants[stream])
                )
            case NotePlace(number, chain):
                self._tensors.note_place(number, chain)
            case NoteReach(number, chain):
                self._tensors.note_reach(number, chain)
            case OpenModel(manifest):
                self._saver.drop()
                self._common.drop()
                self._model = manifest
                self.tensors = self._around.open_model(manifest)
                self._segment, self._digest = "", None
            case TellTrainer(attached):
                streams = tuple(asdict(stream) for stream in self._streams.values())
                # A trainer that has to start over keeps the memory that it has mapped.
                self._segment = self._segment or self._around.open_segment(self._tensors)
                run = self.core.facts.run.hex()
                self._attached = replace(attached, segment=self._segment, streams=streams, run=run)
                self._around.tell_trainer(self._attached)
            case PassOn(leased):
                self._around.tell_trainer(leased)
            case RefuseTrainer(code, reason, hint):
                refusal = Refused(code, reason, hint)
                self._around.note("trainer-refused", {"code": code, "reason": reason})
                self._around.tell_trainer(refusal)
                self._around.trainer_refused(refusal)
            case Dial(peer, address, curve_key):
                self._around.dial(peer, address, curve_key)
            case HandOver(to):
                self._heir = to
                for stream in self._streams:
                    # What is part of a contribution may yet be taken in with it, and must not count twice.
                    kept = self.tensors is None or self.core.has_staged(stream)
                    owed = [] if kept else self._tensors.residual(stream)
                    for chunk, payload in enumerate(owed):
                        self._outbox.add(SendPayload(to, Owed(stream, chunk, len(owed)), payload), now)
                self._see_heir()
            case HangUp(peer):
                self._outbox.drop(peer)
                self._owed = {key: chunks for key, chunks in self._owed.items() if key[0] != peer}
                self._around.hang_up(peer)
            case Note(event, details):
                self._around.note(event, details)
            case Exit(code, reason, hint):
                if self._detaching:
                    self._around.tell_trainer(Detached())
                self._around.exit(code, reason, hint)

    @property
    def _tensors(self) -> Tensors:
        assert self.tensors is not None, "no model yet"
        return self.tensors

    def _reduce(self, effect: ReduceChunk) -> None:
        sync, chunk = effect.sync, effect.chunk
        try:
            payload = self._tensors.reduce(sync.stream, chunk, effect.inputs, effect.divisor, effect.final)
        except CodecError as error:
            self._events.append(ReduceFailed(sync, error.message, self._who_overflows(effect)))
            return
        digest = self._tensors.digest(payload) if effect.final else b""
        self._events.append(Reduced(sync, chunk, payload, digest))

    def _who_overflows(self, effect: ReduceChunk) -> tuple[str, ...]:
        """Whose contribution makes a sum impossible to encode, from its bytes; () if only partial sums are here."""
        contributors = self.core.contributors(effect.sync)
        if len(contributors) != len(effect.inputs):
            return ()
        return (contributors[self._tensors.longest(effect.sync.stream, effect.chunk, effect.inputs)],)

    def _apply(self, effect: Apply) -> None:
        record = effect.record
        if record.consensus:
            self._tensors.agree(record.sync.stream, effect.payloads, effect.skip)
        else:
            if self._streams[record.sync.stream].gossip and len(record.contributors) > 1:
                self.spread = self._tensors.spread(record.sync.stream, effect.payloads) or self.spread
            self._tensors.apply(record.sync.stream, effect.payloads, effect.skip, record.sync.index)
        self._common.changed(record.sync.stream)
        size_bytes = sum(map(self._tensors.size_bytes, effect.payloads))
        self.core.log.append(record, effect.payloads, size_bytes)
        self._digest = None
        details = {"number": record.number, "sync": str(record.sync), "contributors": list(record.contributors)}
        self._around.note("commit", {**details, "bytes": size_bytes, "digest": record.digest.hex()[:16]})

    def _grant(self, effect: Grant, now: float) -> None:
        rebase = effect.kind == "move" and self._streams[effect.stream].late == "rebase"
        count = self._grants[effect.stream] = self._grants.get(effect.stream, 0) + 1
        granted = Granted(
            effect.stream, effect.kind, effect.serial, effect.index, effect.global_step, effect.pace_s, count
        )
        self._tensors.grant(effect.stream, effect.kind, granted, count, effect.share)
        self._starting = self._starting and effect.kind != "start"
        if not rebase and effect.stream in self._offered:
            self._tokens[effect.stream] = self._offered[effect.stream]
        staged_at = self._staged_at.pop(effect.stream, None)
        pause_s = 0.0 if staged_at is None else now - staged_at
        self.pause_s += pause_s
        if rebase:
            self._free_stage.add(effect.stream)
        details = {"stream": effect.stream, "index": effect.index, "kind": effect.kind}
        self._around.note("granted", {**details, "pause_s": round(pause_s, 4)})
        self._tell_granted(granted)

    def _tell_granted(self, granted: Granted) -> None:
        self._told[granted.stream] = granted
        self._around.tell_trainer(granted)

    # ---- bulk

    def pump(self, now: float) -> bool:
        """Send at most one message to each receiver that has room; whether one was sent, so that there may be more."""
        if self.tensors is None:
            return False
        self._events.extend(self._outbox.pump(self.tensors, now))
        # A contribution that does not encode is an event, and what follows from it must not wait.
        if self._events:
            self.handle(self._events.popleft(), now)
        return self._outbox.moved

    @property
    def finished(self) -> bool:
        """Whether the trainer has taken its leave."""
        return self._detaching

    @property
    def moved(self) -> bool:
        """Whether the last `pump` has sent something, so that there may be more."""
        return self._outbox.moved

    @property
    def backlog(self) -> int:
        """Messages with tensor bytes that wait for a connection."""
        return self._outbox.backlog

    # ---- what can be done between messages

    def save_step(self, now: float) -> bool:
        """Write one chunk of the state to disk, if it is being saved; False if there is nothing to write."""
        if not self._saver.capturing:
            return False
        for event in self._saver.step():
            self.handle(event, now)
        return True

    def common_step(self) -> bool:
        """Copy a chunk of the common weights, if the trainer has asked for them; False if there is nothing to copy."""
        copy, core = self._common, self.core
        if copy.serial is None or self.tensors is None or not core.complete:
            return False
        serial = copy.serial
        try:
            if not copy.begun:
                copy.begin(*self._around.open_common(self.tensors))
            path, flaw = copy.step(self.tensors), ""
        except WantrainError as error:
            path, flaw = "", str(error)
            copy.drop()
        if path or flaw:
            first = lead(self._streams.values())
            index = 0 if first is None else core.indices[first.name]
            self._around.tell_trainer(Common(serial, path, core.applied, index, core.global_step, flaw))
        return True

    def idle_work(self, now: float) -> bool:
        """One step of work that can wait: the digest of the state. False if there is nothing left to do."""
        core = self.core
        if self.save_step(now):
            return True
        if self.tensors is None or core.left or not core.complete or core.digested == core.applied:
            return False
        if self._digest is None or self._digest[0] != core.applied:
            self._digest = (core.applied, self.tensors.digest_steps(), [])
        number, steps, chunks = self._digest
        digest = next(steps, None)
        if digest is not None:
            chunks.append(digest)
        else:
            self._digest = None
            self.handle(StateDigested(number, state_digest(chunks), tuple(chunks)), now)
        return True
