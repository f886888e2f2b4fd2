"""A peer's part in the run as a pure core: contribute, move, apply what is committed, catch up, serve others.

It decides; `peer.py` does: tensors, links and the trainer are behind the effects. An update is applied only after its
COMMIT has come, and a staged contribution stays as it is until it is known whether a committed sync has taken it in.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from wantrain.errors import ProtocolBug
from wantrain.optimizers.stream import Stream
from wantrain.peers import catchup
from wantrain.peers.effects import (
    Apply,
    Dial,
    Effect,
    Exit,
    Grant,
    HangUp,
    Note,
    OpenModel,
    ReduceChunk,
    RefuseTrainer,
    SendContribution,
    SendPayload,
    SendState,
    StoreState,
    Tell,
    TellTrainer,
    UseStage,
)
from wantrain.peers.events import (
    CoordinatorLink,
    Event,
    FromPeer,
    GenesisReady,
    LeaveRequested,
    PeerLink,
    Progress,
    Reduced,
    Staged,
    StateDigested,
    Tick,
    TrainerAttached,
    TrainerGone,
    TrainerStarting,
)
from wantrain.peers.layout import manifest_difference, stream_chunks
from wantrain.peers.messages import (
    Abort,
    Attached,
    Commit,
    CommitRecord,
    Genesis,
    Hello,
    Leave,
    Manifest,
    Member,
    NotHeld,
    Part,
    Refetch,
    Refused,
    Report,
    Result,
    Start,
    StateChunk,
    SyncId,
    SyncReport,
    UpdateChunk,
    View,
    Waiting,
    WantGenesis,
    WantHello,
    WantParts,
    WantRecords,
    WantState,
    WantUpdate,
    Welcome,
)
from wantrain.peers.update_log import UpdateLog
from wantrain.transport import direct
from wantrain.transport.digest import first_link, next_link, update_digest
from wantrain.transport.direct import Direct, Payload

COORDINATOR = "coordinator"
MAX_EARLY = 1024
"""Messages of an attempt kept when they overtake its START; more are dropped and asked for again."""
ASK_RECORDS_S = 1.0
HELLO_AGAIN_S = 2.0
LEAVE_PATIENCE_S = 10.0
"""How long a leaving peer waits for what it has in flight to be decided."""
IDENTITY_PATIENCE_S = 60.0
"""How long a restarted peer waits until its former process counts as dead."""


@dataclass(frozen=True, slots=True)
class PeerFacts:
    """What a participant knows from its start: itself and the run spec."""

    me: str
    run: bytes
    hello: Hello
    streams: tuple[Stream, ...]
    heartbeat_s: float = 1.0
    keep_bytes: int = 512 * 2**20
    keep_updates: int = 256


@dataclass(slots=True)
class _Trainer:
    boot: bytes
    manifest: Manifest
    answered: bool = False
    started: bool = False
    granted: dict[str, int] = field(default_factory=dict)
    """Per stream: the sync index that its weights were last moved by."""


@dataclass(slots=True)
class _Stage:
    event: Staged
    attempts: set[int] = field(default_factory=set)
    """Attempts that this very contribution was part of."""
    decided: bool = False
    """Whether its sync has been committed, with it or without."""
    taken: bool = False


@dataclass(slots=True)
class _Attempt:
    start: Start
    core: Direct
    done: direct.Complete | None = None


class Participant:
    """The core. `handle` is its only mutator."""

    def __init__(self, facts: PeerFacts) -> None:
        self.facts = facts
        self.applied = -1
        """Last commit applied to the state at hand; -1 before there is a state."""
        self.chain = b""
        self.manifest: Manifest = ()
        self.indices = {stream.name: 0 for stream in facts.streams}
        """Last applied sync of every stream."""
        self.members: dict[str, Member] = {}
        self.log = UpdateLog(facts.keep_bytes, facts.keep_updates)
        self._streams = {stream.name: stream for stream in facts.streams}
        self._chunks: dict[str, int] = {}
        self._records: dict[int, CommitRecord] = {}
        self._welcome: Welcome | None = None
        self._head = -1
        """Last commit that the coordinator is known to have."""
        self._up = False
        self._down_since: float | None = None
        self._revision = 0
        self._view = 0
        self._greeted_at = -HELLO_AGAIN_S
        self._in_use_since: float | None = None
        self._trainer: _Trainer | None = None
        self._trainer_state = "none"
        self._genesis_wanted = False
        self._own_genesis = b""
        self._own_digest = b""
        self._indices_known = False
        self._stages: dict[str, _Stage] = {}
        self._queued: dict[str, Staged] = {}
        """Contributions of a new trainer, behind what its predecessor had staged."""
        self._attempts: dict[str, _Attempt] = {}
        self._gradients: dict[str, int] = {}
        """Per gradient stream: the sync whose mean gradient is at hand."""
        self._early: list[FromPeer] = []
        self._state_fetch: catchup.Fetch | None = None
        self._chunk_numbers: dict[int, int] = {}
        self._audit_from = 0
        self._update_fetch: catchup.Fetch | None = None
        self._update_number = 0
        self._update_chunks: dict[int, tuple[Payload, bytes, str]] = {}
        self._asked_records_at = -ASK_RECORDS_S
        self._suspects: dict[str, str] = {}
        self._progress = Progress(-1.0, {})
        self._state_digest = (-1, b"")
        self._why = ""
        self._sequence = 0
        self._reported: Report | None = None
        self._reported_at = -facts.heartbeat_s
        self._leaving: tuple[str, float] | None = None
        self.left = False

    # ---- what the shell may read

    @property
    def complete(self) -> bool:
        """Whether the state at hand is one consistent state of the run, at log number `applied`."""
        return self.applied >= 0 and not self._chunk_numbers and self._indices_known

    @property
    def _held_number(self) -> int:
        """The log number of the state at hand, -1 while it is none."""
        return self.applied if self.complete else -1

    @property
    def state_chunks(self) -> list[tuple[str, int]]:
        """The state's chunks in order: (stream, chunk) of every `param` stream."""
        return [(s.name, c) for s in self.facts.streams if s.state == "param" for c in range(self._chunks[s.name])]

    def accepts(self, source: str, record: object) -> bool:
        """Whether a message with tensor bytes is of use now; lets the shell drop stale ones before it looks at the bytes."""
        match record:
            case Part(sync, _) | Result(sync, _):
                attempt = self._attempts.get(sync.stream)
                if attempt is not None and attempt.start.sync == sync:
                    return attempt.done is None
                return self._is_early(sync)
            case StateChunk(chunk, _):
                return self._state_fetch is not None and chunk in self._state_fetch.missing
            case UpdateChunk(number, chunk):
                fetch = self._update_fetch
                return fetch is not None and number == self._update_number and chunk in fetch.missing
            case _:
                return True

    def moving(self, sync: SyncId) -> bool:
        """Whether this very attempt is still of use to others: it runs, or is done and not yet decided."""
        attempt = self._attempts.get(sync.stream)
        return attempt is not None and attempt.start.sync == sync

    @property
    def digested(self) -> int:
        """The log number whose state digest is known, -1 if none."""
        return self._state_digest[0]

    def chunk_stream(self, record: object) -> tuple[str, int] | None:
        """The stream and chunk that a message's tensor bytes belong to, or None if there is no such chunk."""
        match record:
            case Part(sync, chunk) | Result(sync, chunk):
                found = (sync.stream, chunk)
            case UpdateChunk(number, chunk) if number in self._records:
                found = (self._records[number].sync.stream, chunk)
            case StateChunk(chunk, _) if chunk < len(self.state_chunks):
                return self.state_chunks[chunk]
            case _:
                return None
        return found if found[1] < self._chunks.get(found[0], 0) else None

    def waiting(self, now: float) -> str:
        """For whom or what this peer waits, in words; "" when it does not."""
        if self._welcome is None or not self._up:
            away_s = 0.0 if self._down_since is None else now - self._down_since
            return f"the coordinator does not answer for {away_s:.1f} s"
        if self._welcome.head < 0:
            return "for the run's initial weights"
        if not self.complete:
            if self._state_fetch is not None and self._state_fetch.missing:
                have = len(self.state_chunks) - len(self._state_fetch.missing)
                sources = ", ".join(map(self._name_of, self._state_fetch.sources)) or "a peer that holds it"
                return f"fetching the state from {sources}: {have} of {len(self.state_chunks)} chunks"
            return f"replaying updates: at {self.applied} of {self._head}"
        for attempt in self._attempts.values():
            if attempt.done is None:
                names = ", ".join(map(self._name_of, attempt.core.waiting_for))
                return f"moving {attempt.start.sync}: {attempt.core.missing} chunks missing from {names or 'nobody'}"
        if self._update_fetch is not None:
            return f"fetching update {self._update_number}"
        return self._why if self._stages else ""

    # ---- the one mutator

    def handle(self, event: Event, now: float) -> list[Effect]:
        """React to an event at time `now` in seconds. Messages that do not fit the moment change nothing."""
        if self.left:
            return []
        effects = self._react(event, now)
        effects += self._leave_if_free(now)
        return effects + self._report_if_due(now)

    def _react(self, event: Event, now: float) -> list[Effect]:
        match event:
            case FromPeer(source="coordinator"):
                return self._from_coordinator(event, now)
            case FromPeer():
                return self._from_peer(event, now)
            case Staged():
                return self._staged(event, now)
            case Reduced(sync, chunk, payload, digest):
                attempt = self._attempts.get(sync.stream)
                if attempt is None or attempt.start.sync != sync:
                    return []
                return self._move(attempt, direct.ChunkReduced(chunk, payload, digest), now)
            case CoordinatorLink(up, _):
                self._up = up
                self._down_since = None if up else now if self._down_since is None else self._down_since
                self._reported = None
                return [Tell(COORDINATOR, self.facts.hello)] if up else []
            case PeerLink(peer, up, reason):
                if up:
                    self._suspects.pop(peer, None)
                elif peer in self.members:
                    self._suspects[peer] = reason
                return []
            case TrainerStarting():
                self._trainer_state = "starting"
                return []
            case TrainerAttached(boot, manifest):
                return self._attached(boot, manifest)
            case GenesisReady(digest):
                return self._genesis_ready(digest)
            case TrainerGone(finished):
                self._trainer = None
                self._trainer_state = "done" if finished else "none"
                return []
            case Progress():
                self._progress = event
                return []
            case StateDigested(number, digest):
                self._state_digest = (number, digest)
                return []
            case LeaveRequested(reason):
                self._leaving = self._leaving or (reason, now)
                return []
            case Tick():
                return self._tick(now)

    # ---- from the coordinator

    def _from_coordinator(self, event: FromPeer, now: float) -> list[Effect]:
        self._up, self._down_since = True, None
        match event.record:
            case Welcome() as welcome:
                return self._welcomed(welcome, now)
            case View(number, members):
                if number < self._view:
                    return []
                self._view = number
                return self._viewed(members, now)
            case Start() as start:
                return self._started(start, now)
            case Abort(sync, _):
                return self._aborted(sync)
            case Commit(records, head):
                return self._committed(records, head, now)
            case WantGenesis():
                self._genesis_wanted = True
                if self._own_digest and self._trainer is not None:
                    return self._genesis_ready(self._own_digest)
                return self._answer_trainer()
            case WantHello():
                self._reported = None
                return [Tell(COORDINATOR, self.facts.hello)]
            case Refetch(number, chain, reason):
                return self._reset(reason) if (number, chain) == (self.applied, self.chain) else []
            case Waiting(reason):
                self._why = reason
                return []
            case Refused(code="identity-in-use") if self._patient(now):
                return []
            case Refused(_, reason, hint):
                self.left = True
                return [Exit(3, reason, hint)]
            case _:
                return []

    def _patient(self, now: float) -> bool:
        self._in_use_since = now if self._in_use_since is None else self._in_use_since
        return now - self._in_use_since < IDENTITY_PATIENCE_S

    def _welcomed(self, welcome: Welcome, now: float) -> list[Effect]:
        if welcome.revision <= self._revision:
            return []
        self._revision = welcome.revision
        effects: list[Effect] = []
        other_run = self._welcome is not None and self._welcome.genesis not in (b"", welcome.genesis)
        if other_run:
            effects += self._reset("the run has begun anew")
        self._welcome = welcome
        self._head = welcome.head
        self._in_use_since = None
        self._reported = None
        if welcome.head < 0:
            return effects + self._answer_trainer()
        if self.manifest != welcome.manifest:
            self.manifest = welcome.manifest
            self._chunks = {s.name: stream_chunks(s, self.manifest) for s in self.facts.streams}
            effects.append(OpenModel(self.manifest))
        if self._own_genesis and self.applied < 0 and self._own_genesis == welcome.genesis and welcome.head == 0:
            # The initial state is the one that was just made here.
            self.applied, self.chain = 0, welcome.genesis
        elif self.applied < 0 and self._state_fetch is None:
            self._state_fetch = catchup.Fetch(range(len(self.state_chunks)))
            effects += self._fetch_state(catchup.Sources(self._sources()), now)
        self._take_indices()
        return effects + self._answer_trainer() + self._start_trainer()

    def _take_indices(self) -> None:
        """The log number that the coordinator's counts of syncs refer to is reached: from here on they are known."""
        welcome = self._welcome
        if self._indices_known or welcome is None or self.applied < 0 or self.applied < welcome.head:
            return
        for name in self.indices:
            self.indices[name] = max(self.indices[name], welcome.indices.get(name, 0))
        self._indices_known = True

    def _viewed(self, members: Sequence[Member], now: float) -> list[Effect]:
        others = {member.peer: member for member in members if member.peer != self.facts.me}
        effects: list[Effect] = [HangUp(peer) for peer in self.members if peer not in others]
        for peer, member in others.items():
            known = self.members.get(peer)
            if known is None or (known.address, known.curve_key) != (member.address, member.curve_key):
                effects.append(Dial(peer, member.address, member.curve_key))
        self.members = others
        self._suspects = {peer: why for peer, why in self._suspects.items() if peer in others}
        if self._state_fetch is not None:
            effects += self._fetch_state(catchup.Sources(self._sources()), now)
        if self._update_fetch is not None:
            effects += self._fetch_update(catchup.Sources(self._sources()), now)
        return effects

    def _name_of(self, peer: str) -> str:
        return self.members[peer].name if peer in self.members else peer

    def _sources(self) -> tuple[str, ...]:
        return tuple(peer for peer, member in self.members.items() if member.current)

    # ---- the trainer

    def _attached(self, boot: bytes, manifest: Manifest) -> list[Effect]:
        self._trainer = _Trainer(boot, manifest)
        self._trainer_state = "starting"
        return self._answer_trainer() + self._start_trainer()

    def _answer_trainer(self) -> list[Effect]:
        """Answer Attach as soon as it is known whether the run has a model, or wants this one."""
        trainer, welcome = self._trainer, self._welcome
        if trainer is None or trainer.answered or welcome is None:
            return []
        if welcome.head >= 0:
            if difference := manifest_difference(self.manifest, trainer.manifest):
                self._trainer = None
                self._trainer_state = "none"
                self._own_digest = b""
                reason = "the model differs from the run's:\n    " + "\n    ".join(difference)
                return [RefuseTrainer("model", reason, "train the model that the run was started with")]
            genesis = False
        elif self._genesis_wanted:
            genesis = True
        else:
            return []
        trainer.answered = True
        effects: list[Effect] = [OpenModel(trainer.manifest)] if genesis else []
        return [*effects, TellTrainer(Attached(self.facts.me, self.facts.hello.name, "", (), genesis))]

    def _genesis_ready(self, digest: bytes) -> list[Effect]:
        trainer, welcome = self._trainer, self._welcome
        if trainer is None or welcome is None or welcome.head >= 0:
            return []
        self._own_digest = digest
        self.manifest = trainer.manifest
        self._chunks = {s.name: stream_chunks(s, self.manifest) for s in self.facts.streams}
        self._own_genesis = first_link(self.facts.run, digest)
        return [Tell(COORDINATOR, Genesis(trainer.manifest, digest))]

    def _start_trainer(self) -> list[Effect]:
        """Hand the state to a trainer that has attached, once there is a state."""
        trainer = self._trainer
        if trainer is None or not trainer.answered or trainer.started or not self.complete:
            return []
        trainer.started = True
        self._trainer_state = "training"
        trainer.granted = dict(self.indices)
        params = [stream for stream in self.facts.streams if stream.state == "param"]
        return [Grant(s.name, "start", 0, self.indices[s.name], self._global_step()) for s in params]

    def _global_step(self) -> int:
        """The run's step count at the last applied sync: that of its slowest-moving stream's peers, H times the index."""
        return max(self.indices[s.name] * s.every for s in self.facts.streams)

    def _staged(self, event: Staged, now: float) -> list[Effect]:
        trainer = self._trainer
        if trainer is None or not trainer.started or event.boot != trainer.boot:
            return []
        if event.stream in self._stages:
            if self._stages[event.stream].event.boot == event.boot:
                raise ProtocolBug(f"stream {event.stream} was staged twice")
            self._queued[event.stream] = event
            self._trainer_state = "waiting"
            return []
        if not event.finite:
            reason = f"the contribution to stream {event.stream} at step {event.step} has NaN or Inf in it"
            return [RefuseTrainer("non-finite", reason, "lower the learning rate, or clip gradients")]
        if trainer.granted[event.stream] < self.indices[event.stream]:
            # The sync that this was meant for went on without it.
            return [self._grant(event, self._outcome(event.stream, taken=False))]
        self._stages[event.stream] = _Stage(event)
        self._trainer_state = "waiting"
        return [UseStage(event.stream)]

    def _outcome(self, stream: str, *, taken: bool) -> str:
        """The kind of grant that tells a trainer what became of its contribution."""
        if self._streams[stream].state == "grad":
            # A mean gradient that a snapshot has skipped is not to be had any more: the trainer goes on with its own.
            return "grad" if self._gradients.get(stream) == self.indices[stream] else "start"
        return "merge" if taken else "move"

    def _grant(self, event: Staged, kind: str) -> Grant:
        assert self._trainer is not None
        index = self.indices[event.stream]
        self._trainer.granted[event.stream] = index
        return Grant(event.stream, kind, event.serial, index, self._global_step())

    # ---- one sync

    def _started(self, start: Start, now: float) -> list[Effect]:
        sync, me = start.sync, self.facts.me
        stream = self._streams.get(sync.stream)
        if stream is None or not self.complete or sync.index != self.indices[sync.stream] + 1:
            return []
        running = self._attempts.get(sync.stream)
        if running is not None and running.start.sync.attempt >= sync.attempt:
            return []
        stage = self._stages.get(sync.stream)
        sane = (
            len(start.contributors) == len(start.weights) == len(start.shards)
            and sum(start.shards) == self._chunks[sync.stream]
            and me in (*start.contributors, *start.receivers)
        )
        if not sane or (me in start.contributors and (stage is None or stage.decided)):
            return [Note("bad-start", {"sync": str(sync)})]
        if me in start.contributors:
            assert stage is not None
            stage.attempts.add(sync.attempt)
        core = Direct(me, start.contributors, start.weights, start.receivers, start.shards)
        attempt = self._attempts[sync.stream] = _Attempt(start, core)
        effects: list[Effect] = [Note("start", {"sync": str(sync), "contributors": len(start.contributors)})]
        effects += self._move(attempt, direct.Begin(), now)
        early, self._early = self._early, []
        for event in early:
            effects += self._from_peer(event, now)
        return effects

    def _aborted(self, sync: SyncId) -> list[Effect]:
        attempt = self._attempts.get(sync.stream)
        if attempt is None or attempt.start.sync.index != sync.index or attempt.start.sync.attempt > sync.attempt:
            return []
        del self._attempts[sync.stream]
        return [Note("abort", {"sync": str(sync)})]

    def _is_early(self, sync: SyncId) -> bool:
        if sync.stream not in self.indices or len(self._early) >= MAX_EARLY:
            return False
        running = self._attempts.get(sync.stream)
        newer = running is None or sync.attempt > running.start.sync.attempt
        return newer and sync.index == self.indices[sync.stream] + 1

    def _move(self, attempt: _Attempt, event: direct.DirectEvent, now: float) -> list[Effect]:
        sync = attempt.start.sync
        effects: list[Effect] = []
        for effect in attempt.core.handle(event, now):
            match effect:
                case direct.SendPart(to, chunk):
                    effects.append(SendContribution(to, sync, chunk))
                case direct.SendResult(to, chunk, payload):
                    effects.append(SendPayload(to, Result(sync, chunk), payload))
                case direct.Reduce(chunk, inputs):
                    effects.append(ReduceChunk(sync, chunk, inputs))
                case direct.Ask(to, parts, results):
                    effects.append(Tell(to, WantParts(sync, parts, results)))
                case direct.Complete():
                    attempt.done = effect
        return effects

    # ---- from other peers

    def _from_peer(self, event: FromPeer, now: float) -> list[Effect]:
        source = event.source
        match event.record:
            case Part(sync, chunk):
                came: direct.DirectEvent = direct.PartCame(source, chunk, event.payload)
                return self._of_sync(event, sync, came, now)
            case Result(sync, chunk):
                return self._of_sync(event, sync, direct.ResultCame(source, chunk, event.payload, event.digest), now)
            case WantParts(sync, parts, results):
                attempt = self._attempts.get(sync.stream)
                if attempt is None or attempt.start.sync != sync:
                    return []
                return self._move(attempt, direct.Asked(source, parts, results), now)
            case WantState(chunks):
                if not self.complete:
                    return [Tell(source, NotHeld(-1))]
                known = len(self.state_chunks)
                return [SendState(source, chunk) for chunk in chunks if chunk < known]
            case WantUpdate(number, chunks):
                return self._serve_update(source, number, chunks)
            case StateChunk(chunk, number):
                return self._state_came(source, chunk, number, event.payload, now)
            case UpdateChunk(number, chunk):
                return self._update_came(event, number, chunk, now)
            case NotHeld(number):
                if number < 0:
                    return self._fetch_state(catchup.Denied(source), now)
                return self._fetch_update(catchup.Denied(source), now) if number == self._update_number else []
            case _:
                return []

    def _of_sync(self, event: FromPeer, sync: SyncId, came: direct.DirectEvent, now: float) -> list[Effect]:
        attempt = self._attempts.get(sync.stream)
        if attempt is not None and attempt.start.sync == sync:
            return self._move(attempt, came, now)
        if self._is_early(sync):
            self._early.append(event)
        return []

    def _serve_update(self, source: str, number: int, chunks: Sequence[int]) -> list[Effect]:
        entry = self.log.get(number)
        if entry is None:
            return [Tell(source, NotHeld(number))]
        known = len(entry.payloads)
        return [SendPayload(source, UpdateChunk(number, c), entry.payloads[c]) for c in chunks if c < known]

    # ---- commits

    def _committed(self, records: Sequence[CommitRecord], head: int, now: float) -> list[Effect]:
        self._head = max(self._head, head)
        for record in records:
            if record.number > self.applied or record.number >= self._audit_from:
                self._records[record.number] = record
        return self._advance(now)

    def _advance(self, now: float) -> list[Effect]:
        """Apply what is committed and at hand, in order; fetch what is not."""
        effects: list[Effect] = self._take_snapshot()
        while self.applied >= 0 and (record := self._records.get(self.applied + 1)) is not None:
            payloads = self._update_of(record)
            if payloads is None:
                if not self._covered(record):
                    return effects + self._want_update(record, now)
                payloads = ()
            effects += self._apply(record, payloads)
        self._take_indices()
        if self.complete:
            self._state_fetch = None
            effects += self._release(now)
        return effects + self._start_trainer()

    def _covered(self, record: CommitRecord) -> bool:
        """Whether every chunk of the record's stream was fetched at this number or later: nothing to replay."""
        if self._streams[record.sync.stream].state != "param":
            # Gradients leave nothing behind; only a trainer that has started needs them.
            return self._trainer is None or not self._trainer.started
        if not self._chunk_numbers:
            return False
        chunks = [k for k, (stream, _) in enumerate(self.state_chunks) if stream == record.sync.stream]
        return all(self._chunk_numbers[k] >= record.number for k in chunks)

    def _update_of(self, record: CommitRecord) -> tuple[Payload, ...] | None:
        attempt = self._attempts.get(record.sync.stream)
        if attempt is not None and attempt.start.sync.index == record.sync.index:
            done = attempt.done
            if done is not None and done.digest == record.digest:
                return done.payloads
        fetched = self._update_fetch is not None and self._update_number == record.number
        if fetched and self._update_fetch is not None and not self._update_fetch.missing:
            return tuple(payload for _, (payload, _, _) in sorted(self._update_chunks.items()))
        return None

    def _apply(self, record: CommitRecord, payloads: tuple[Payload, ...]) -> list[Effect]:
        name = record.sync.stream
        if next_link(self.chain, record.digest) != record.chain:
            raise ProtocolBug(f"commit {record.number} does not follow from {self.applied}")
        skip = [
            chunk
            for k, (stream, chunk) in enumerate(self.state_chunks)
            if stream == name and self._chunk_numbers.get(k, -1) >= record.number
        ]
        self.applied, self.chain = record.number, record.chain
        self.indices[name] = record.sync.index
        self._records.pop(record.number, None)
        self._attempts.pop(name, None)
        self._update_fetch, self._update_chunks = None, {}
        effects: list[Effect] = []
        if payloads or not self._chunks[name]:
            effects.append(Apply(record, payloads, frozenset(skip)))
            if self._streams[name].state == "grad":
                self._gradients[name] = record.sync.index
        if self._chunk_numbers and self.applied >= max(self._chunk_numbers.values()):
            self._chunk_numbers = {}
        self._decide(record)
        return effects

    def _decide(self, record: CommitRecord) -> None:
        """Note the outcome for what is staged: its sync is committed, with it or without."""
        stage = self._stages.get(record.sync.stream)
        if stage is not None and not stage.decided:
            stage.decided = True
            stage.taken = self.facts.me in record.contributors and record.sync.attempt in stage.attempts

    def _release(self, now: float) -> list[Effect]:
        """Give the trainer the outcome of what it staged, now that the state at hand is consistent."""
        effects: list[Effect] = []
        for name, stage in list(self._stages.items()):
            if not stage.decided:
                continue
            del self._stages[name]
            trainer = self._trainer
            if trainer is not None and trainer.started and trainer.boot == stage.event.boot:
                effects.append(self._grant(stage.event, self._outcome(name, taken=stage.taken)))
            self._trainer_state = "training" if self._trainer_state == "waiting" else self._trainer_state
            self._why = ""
            if (queued := self._queued.pop(name, None)) is not None:
                effects += self._staged(queued, now)
        return effects

    # ---- catching up

    def _fetch_state(self, event: catchup.FetchEvent, now: float) -> list[Effect]:
        if self._state_fetch is None:
            return []
        effects: list[Effect] = []
        for effect in self._state_fetch.handle(event, now):
            match effect:
                case catchup.Want(source, chunks):
                    effects.append(Tell(source, WantState(chunks)))
                case catchup.Exhausted():
                    # Peers that are catching up themselves deny; they may hold it a moment later.
                    self._state_fetch.denied.clear()
        return effects

    def _state_came(self, source: str, chunk: int, number: int, payload: Payload, now: float) -> list[Effect]:
        if self._state_fetch is None or chunk not in self._state_fetch.missing:
            return []
        self._chunk_numbers[chunk] = number
        effects: list[Effect] = [StoreState(chunk, payload)]
        effects += self._fetch_state(catchup.Came(source, chunk), now)
        return effects + self._advance(now)

    def _take_snapshot(self) -> list[Effect]:
        """When all chunks of the state are here, go on from the oldest of them."""
        fetch, welcome = self._state_fetch, self._welcome
        if fetch is None or fetch.missing or self.applied >= 0 or welcome is None:
            return []
        base = min(self._chunk_numbers.values(), default=welcome.head)
        needed = self._lines_below_snapshot()
        if any(number not in self._records for number in needed):
            return []
        for number in needed:
            self._audit(self._records[number])
        self._audit_from = 0
        self.applied = base
        self.chain = welcome.genesis if base == 0 else self._records[base].chain
        self._records = {n: record for n, record in self._records.items() if n > base}
        if base >= max(self._chunk_numbers.values(), default=base):
            self._chunk_numbers = {}
        return [Note("snapshot", {"number": base})]

    def _lines_below_snapshot(self) -> range:
        """Lines of the commit log to know before going on from a snapshot: its own, and those that it has skipped."""
        base = min(self._chunk_numbers.values(), default=0)
        return range(max(1, min(self._audit_from or base, base)), base + 1)

    def _audit(self, record: CommitRecord) -> None:
        """A commit that the snapshot has skipped: note its sync, and whether it took in what is staged."""
        name = record.sync.stream
        self.indices[name] = max(self.indices[name], record.sync.index)
        self._decide(record)

    def _want_update(self, record: CommitRecord, now: float) -> list[Effect]:
        if self._update_fetch is not None and self._update_number == record.number:
            return []
        self._update_number = record.number
        self._update_chunks = {}
        self._update_fetch = catchup.Fetch(range(self._chunks[record.sync.stream]))
        return self._fetch_update(catchup.Sources(self._sources()), now)

    def _fetch_update(self, event: catchup.FetchEvent, now: float) -> list[Effect]:
        if self._update_fetch is None:
            return []
        effects: list[Effect] = []
        for effect in self._update_fetch.handle(event, now):
            match effect:
                case catchup.Want(source, chunks):
                    effects.append(Tell(source, WantUpdate(self._update_number, chunks)))
                case catchup.Exhausted():
                    return effects + self._snapshot_again(now)
        return effects

    def _update_came(self, event: FromPeer, number: int, chunk: int, now: float) -> list[Effect]:
        fetch = self._update_fetch
        if fetch is None or number != self._update_number or chunk not in fetch.missing:
            return []
        self._update_chunks[chunk] = (event.payload, event.digest, event.source)
        effects = self._fetch_update(catchup.Came(event.source, chunk), now)
        if fetch.missing:
            return effects
        chunks = [value for _, value in sorted(self._update_chunks.items())]
        if update_digest(digest for _, digest, _ in chunks) == self._records[number].digest:
            return effects + self._advance(now)
        # Somebody's bytes are false; none of those who sent a chunk is asked again.
        liars = {source for _, _, source in chunks}
        self._update_chunks = {}
        self._update_fetch = fetch = catchup.Fetch(range(len(chunks)))
        fetch.denied.update(liars)
        effects.append(Note("false-update", {"number": number, "sources": sorted(liars)}))
        return effects + self._fetch_update(catchup.Sources(self._sources()), now)

    def _snapshot_again(self, now: float) -> list[Effect]:
        """The updates in between are no longer kept by anybody: take a fresh snapshot; what is staged stays staged."""
        self._audit_from = self.applied + 1
        self.applied, self.chain = -1, b""
        self._drop_fetches()
        self._attempts = {}
        self._state_fetch = catchup.Fetch(range(len(self.state_chunks)))
        effects: list[Effect] = [Note("behind", {"from": self._audit_from - 1})]
        return effects + self._fetch_state(catchup.Sources(self._sources()), now)

    def _drop_fetches(self) -> None:
        self._state_fetch = None
        self._update_fetch, self._update_chunks, self._update_number = None, {}, 0
        self._chunk_numbers = {}

    def _reset(self, reason: str) -> list[Effect]:
        """Forget the state: it is not the run's. The trainer starts again from the run's state, once fetched."""
        self.applied, self.chain = -1, b""
        self.indices = dict.fromkeys(self.indices, 0)
        self._drop_fetches()
        self._records, self._attempts, self._early = {}, {}, []
        self._stages, self._queued = {}, {}
        self._genesis_wanted, self._gradients = False, {}
        self._own_genesis, self._own_digest, self._audit_from = b"", b"", 0
        self._indices_known = False
        self._welcome = None
        self.log.clear()
        if self._trainer is not None:
            self._trainer.answered = self._trainer.started = False
            self._trainer_state = "starting"
        return [Note("refetch", {"reason": reason})]

    # ---- time and reports

    def _tick(self, now: float) -> list[Effect]:
        effects: list[Effect] = []
        if self._welcome is None and now - self._greeted_at >= HELLO_AGAIN_S:
            self._greeted_at = now
            effects.append(Tell(COORDINATOR, self.facts.hello))
        for attempt in list(self._attempts.values()):
            effects += self._move(attempt, direct.Tick(), now)
        effects += self._fetch_state(catchup.Tick(), now)
        effects += self._fetch_update(catchup.Tick(), now)
        return effects + self._ask_records(now)

    def _ask_records(self, now: float) -> list[Effect]:
        """Ask for lines of the commit log that are missing: below a snapshot, or in a gap."""
        if self._welcome is None or self._welcome.head < 0 or now - self._asked_records_at < ASK_RECORDS_S:
            return []
        fetch = self._state_fetch
        if self.applied < 0:
            if fetch is None or fetch.missing:
                return []
            absent = [number for number in self._lines_below_snapshot() if number not in self._records]
            if not absent:
                return []
            first = absent[0]
        else:
            known = max(self._records, default=0)
            first = self.applied + 1
            while first in self._records:
                first += 1
            top = max(known, self._head, *self._chunk_numbers.values())
            if first > top:
                return []
        self._asked_records_at = now
        return [Tell(COORDINATOR, WantRecords(first))]

    def _leave_if_free(self, now: float) -> list[Effect]:
        if self._leaving is None:
            return []
        reason, since = self._leaving
        if (self._stages or self._attempts) and now - since < LEAVE_PATIENCE_S and self._up:
            return []
        self.left = True
        return [Tell(COORDINATOR, self._report(now)), Tell(COORDINATOR, Leave(reason)), Exit(0, reason, "")]

    def _report_if_due(self, now: float) -> list[Effect]:
        if self._welcome is None or self.left:
            return []
        due = now - self._reported_at >= self.facts.heartbeat_s
        if not due and self._reported is not None and self._key(now) == self._key_of(self._reported):
            return []
        self._reported = self._report(now)
        self._reported_at = now
        return [Tell(COORDINATOR, self._reported)]

    def _key(self, now: float) -> object:
        """What is worth a report at once when it changes."""
        syncs = tuple((line.stream, line.index, line.attempt, line.phase) for line in self._sync_lines())
        number = self._held_number
        return number, self._trainer_state, syncs, tuple(self._suspects), self._state_digest[0]

    @staticmethod
    def _key_of(report: Report) -> object:
        syncs = tuple((line.stream, line.index, line.attempt, line.phase) for line in report.syncs)
        return report.log_number, report.trainer, syncs, tuple(report.suspects), report.state_number

    def _sync_lines(self) -> list[SyncReport]:
        lines = []
        for name, index in self.indices.items():
            stage, attempt = self._stages.get(name), self._attempts.get(name)
            weight = stage.event.weight if stage else 1.0
            norm = stage.event.norm if stage else 0.0
            line = SyncReport(name, index + 1, "ready", weight, norm, stage is not None)
            if attempt is not None:
                number = attempt.start.sync.attempt
                if attempt.done is not None:
                    line = replace(line, phase="done", attempt=number, digest=attempt.done.digest)
                else:
                    core = attempt.core
                    line = replace(
                        line, phase="moving", attempt=number, missing=core.missing, waiting_for=core.waiting_for
                    )
            elif stage is None or stage.decided:
                continue
            lines.append(line)
        return lines

    def _report(self, now: float) -> Report:
        self._sequence += 1
        number, digest = self._state_digest
        return Report(
            boot=self.facts.hello.boot,
            sequence=self._sequence,
            log_number=self._held_number,
            chain=self.chain if self._held_number >= 0 else b"",
            state_number=number,
            state_digest=digest,
            trainer=self._trainer_state,
            syncs=tuple(self._sync_lines()),
            suspects=dict(self._suspects),
            eta_s=self._progress.eta_s if self._trainer_state == "training" else -1.0,
            waiting=self.waiting(now),
            stats=self._progress.stats,
        )


