"""A peer's part in the run as a pure core: contribute, move, apply what is committed, catch up, serve others.

It decides; `wantrain.peers.peer` does: tensors, links and the trainer are behind the effects. An update is applied only
after its COMMIT has come, and a staged contribution stays as it is until it is known whether a committed sync has taken
it in.
Its parts are `attempts.py`, `beginning.py`, `contributions.py`, `departure.py`, `recovery.py`, `reporter.py` and
`saving.py`; `handle` alone changes the whole.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from wantrain.optimizers.stream import Stream
from wantrain.peers.attempts import Attempts
from wantrain.peers.beginning import Beginning
from wantrain.peers.contributions import Contributions
from wantrain.peers.departure import Departure
from wantrain.peers.effects import (
    Apply,
    Effect,
    Exit,
    ForgetResiduals,
    Grant,
    LoadSaved,
    Note,
    NotePlace,
    NoteReach,
    PassOn,
    SendPayload,
    SendState,
    Tell,
)
from wantrain.peers.events import (
    CoordinatorLink,
    Event,
    Flawed,
    FromPeer,
    GenesisReady,
    HandedOver,
    InitialUnusable,
    LeaseWanted,
    LeaveRequested,
    PeerLink,
    Progress,
    Reduced,
    ReduceFailed,
    SavedLoaded,
    SavedUnusable,
    SaveFailed,
    Staged,
    StateCaptured,
    StateDigested,
    StateSaved,
    Tick,
    TrainerAttached,
    TrainerGone,
    TrainerResumed,
    TrainerStarting,
)
from wantrain.peers.messages import (
    COORDINATOR,
    MAX_DIGESTS,
    Abort,
    Commit,
    CommitRecord,
    Hello,
    Leased,
    Leave,
    MayLeave,
    Member,
    NotHeld,
    NotSaved,
    Part,
    Refetch,
    Refused,
    Result,
    SaveState,
    Start,
    StartOver,
    StateChunk,
    StateDigests,
    SyncId,
    UpdateChunk,
    View,
    Waiting,
    WantDigests,
    WantGenesis,
    WantHello,
    WantParts,
    WantRecords,
    WantState,
    WantUpdate,
    Welcome,
)
from wantrain.peers.neighbours import Neighbours
from wantrain.peers.recovery import ASK_RECORDS_S, Recovery
from wantrain.peers.repair import Position
from wantrain.peers.reporter import Reported, Reporter
from wantrain.peers.saved_state import SavedState
from wantrain.peers.saving import Saving
from wantrain.peers.update_log import UpdateLog
from wantrain.peers.wants import Wants
from wantrain.transport.codec.names import choices
from wantrain.transport.collective import Payload
from wantrain.transport.digest import DIGEST_BYTES, state_digest
from wantrain.transport.topologies import TOPOLOGIES

HELLO_AGAIN_S = 2.0
SILENCE_S = 3.0
"""Who is ready hears every second why it waits; after so long without that the coordinator itself is the reason."""
IDENTITY_PATIENCE_S = 60.0
"""How long a restarted peer waits until its former process counts as dead."""
IDENTITY_PAUSE_S = 10.0
"""After so long without a refusal the next one is the first of a new series: it was meant for another process."""


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
    saved: tuple[SavedState, ...] = ()
    """What it may begin with, the best first."""
    initial: SavedState | None = None
    """What the run is to begin with."""
    saves_at_end: bool = False
    """Whether it saves its state before it leaves."""


class Participant:
    """The core. `handle` is its only mutator."""

    def __init__(self, facts: PeerFacts) -> None:
        self.facts = facts
        self.log = UpdateLog(facts.keep_bytes, facts.keep_updates)
        self.left = False
        self._neighbours = Neighbours(facts.me, facts.hello.address)
        self._recovery = Recovery(facts.streams, COORDINATOR, facts.me)
        self._gossip = frozenset(stream.name for stream in facts.streams if stream.gossip)
        self._attempts = Attempts(facts.me, self._recovery.indices, self._gossip)
        self._mine = Contributions(facts.me, facts.hello.name, facts.streams, self._recovery, self._attempts)
        self._wants = Wants()
        self._saving = Saving(facts.saved, [stream.name for stream in facts.streams])
        self._beginning = Beginning(facts.run, facts.streams, facts.initial, self._recovery, self._mine)
        self._streams = {stream.name: stream for stream in facts.streams}
        self._welcome: Welcome | None = None
        self._welcomed_at = 0.0
        """When the coordinator first said that the run has no initial weights yet."""
        self._up = False
        self._down_since: float | None = None
        self._greeted_at = -HELLO_AGAIN_S
        self._in_use: tuple[float, float] | None = None
        """First and last time of a series of refusals because the identity is in use."""
        self._why = ""
        """Why the coordinator waits; of the sync that is being gathered."""
        self._heard_at = 0.0
        """When the coordinator last said anything."""
        self._asked_at = -ASK_RECORDS_S
        """When lines of the log were asked for last, of which a trainer's return depends."""
        self._reached: tuple[bytes, int, bytes] | None = None
        """Trainer, line and link of which it is noted down that something may have been granted."""
        self._noted: tuple[bytes, int, bytes] | None = None
        """Trainer, line and link that were noted down last."""
        about = (self._recovery, self._attempts, self._mine)
        self._departure = Departure(*about, self._saving, self._neighbours, saves=facts.saves_at_end)
        told = Reported(*about, self._wants, self._neighbours, self._saving, self._departure)
        self._reporter = Reporter(facts.hello.boot, facts.heartbeat_s, told, self.waiting)

    # ---- what the shell may read

    @property
    def members(self) -> dict[str, Member]:
        """The other peers of the run."""
        return self._neighbours.members

    @property
    def applied(self) -> int:
        """Last commit applied to the state at hand; -1 before there is a state."""
        return self._recovery.applied

    @property
    def chain(self) -> bytes:
        """Link of the digest chain at `applied`."""
        return self._recovery.chain

    @property
    def indices(self) -> dict[str, int]:
        """Last applied sync of every stream."""
        return self._recovery.indices

    @property
    def global_step(self) -> int:
        """The run's step count at `applied`."""
        return self._mine.tempo.global_step(self.indices)

    @property
    def complete(self) -> bool:
        """Whether the state at hand is one consistent state of the run, at log number `applied`."""
        return self._recovery.complete

    @property
    def digested(self) -> int:
        """The log number whose state digest is known, -1 if none."""
        return self._recovery.state_digest[0]

    @property
    def state_chunks(self) -> list[tuple[str, int]]:
        """The state's chunks in order: (stream, chunk) of every stream that holds one."""
        return self._recovery.state_chunks

    @property
    def welcomed(self) -> bool:
        """Whether the coordinator has said where the run is."""
        return self._welcome is not None

    @property
    def takes_genesis(self) -> bool:
        """Whether the trainer's weights may become the run's initial state now."""
        return self._mine.gives_genesis and self._welcome is not None and self._welcome.head < 0

    @property
    def in_flight(self) -> bool:
        """Whether the trainer has given something that is not decided, or this peer takes part in a sync."""
        return self._mine.outstanding or bool(self._attempts.running)

    @property
    def saving(self) -> bool:
        """Whether the state is being read to be saved, and must stay as it is."""
        return self._saving.holds

    @property
    def held_back(self) -> bool:
        """Whether an update waits until the state is written to disk, so that this is urgent."""
        return self._saving.holds and self.applied < self._recovery.head

    def has_staged(self, stream: str) -> bool:
        """Whether something is staged for the stream and not decided."""
        return self._mine.has_staged(stream)

    def chunks(self, stream: str) -> int:
        """Chunks of a stream; 0 while there is no model."""
        return self._recovery.chunks.get(stream, 0)

    def takes_stage(self, boot: bytes, stream: str) -> bool:
        """Whether this trainer may stage the stream now; if not, the shell must not touch its contribution."""
        return self._mine.takes_stage(boot, stream)

    def accepts(self, source: str, record: object) -> bool:
        """Whether a message with tensor bytes is of use now; the shell drops others before it looks at the bytes."""
        match record:
            case Part(sync, _, codec):
                stream = self._streams.get(sync.stream)
                return stream is not None and codec in choices(stream.codec) and self._attempts.accepts(sync)
            case Result(sync, _):
                return self._attempts.accepts(sync)
            case StateChunk(chunk, _, _):
                return self._recovery.wants_state(chunk)
            case UpdateChunk(number, chunk):
                return self._recovery.wants_update(number, chunk)
            case _:
                return True

    def moving(self, sync: SyncId) -> bool:
        """Whether this very attempt is still of use to others: it runs, or is done and not yet decided."""
        return self._attempts.of(sync) is not None

    def codec(self, sync: SyncId) -> str:
        """Codec of the contributions to this attempt if each sync chooses it, else ""."""
        attempt = self._attempts.of(sync)
        return attempt.start.codec if attempt is not None else ""

    def contributors(self, sync: SyncId) -> tuple[str, ...]:
        """Whose contributions the sums of this attempt are made of, in their order; () if they come as partial sums."""
        attempt = self._attempts.of(sync)
        return attempt.start.contributors if attempt is not None and attempt.start.topology == "direct" else ()

    def chunk_stream(self, record: object) -> tuple[str, int] | None:
        """The stream and chunk that a message's tensor bytes belong to, or None if there is no such chunk."""
        match record:
            case Part(sync, (chunk,), _) | Result(sync, (chunk,)):
                stream: str | None = sync.stream
            case UpdateChunk(number, chunk):
                stream = self._recovery.stream_of(number)
            case StateChunk(chunk, _, _) if chunk < len(self.state_chunks):
                return self.state_chunks[chunk]
            case _:
                return None
        return (stream, chunk) if stream is not None and chunk < self._recovery.chunks.get(stream, 0) else None

    @property
    def short_of_data(self) -> bool:
        """Whether the trainer waits for samples."""
        return bool(self._wants.in_words())

    def away_s(self, now: float) -> float:
        """For how long there has been no connection to the coordinator; 0 while there is one, or was none yet."""
        return 0.0 if self._down_since is None else now - self._down_since

    def waiting(self, now: float) -> str:
        """For whom or what this peer waits, in words; "" when it does not."""
        if self._welcome is None or not self._up:
            return f"the coordinator does not answer for {self.away_s(now):.1f} s"
        if self._departure.begun:
            return self._departure.in_words(now)
        if self._welcome.head < 0:
            return f"for the run's initial weights for {now - self._welcomed_at:.1f} s"
        for attempt in self._attempts.running.values() if self.complete else ():
            if attempt.done is None:
                names = ", ".join(map(self._neighbours.name_of, attempt.core.waiting_for))
                return (
                    f"moving {attempt.sync} for {now - attempt.begun_at:.1f} s: "
                    f"{attempt.core.missing} chunks missing from {names or 'nobody'}"
                )
        if self.held_back:
            return f"for the state at log number {self._saving.number} to be written to disk"
        if self.complete and (inheritance := self._mine.inheritance) is not None:
            return f"for line {inheritance.next} of the commit log, to know what became of the trainer's contributions"
        if words := self._recovery.in_words(self._neighbours.name_of, now):
            apart = self._neighbours.beyond_reach
            if apart and not self._neighbours.sources:
                words += f"; no way to {', '.join(apart)}: only a peer that both sides reach can pass it on"
            elif self._why and not self._neighbours.sources:
                words += f": {self._why}"
            return words
        short = self._wants.in_words()
        if not (self._mine.outstanding or short):
            return ""
        silent_s = now - self._heard_at
        if silent_s > SILENCE_S:
            return f"nothing has come from the coordinator for {silent_s:.1f} s"
        return short if not self._mine.outstanding else self._why or "for the coordinator to start or decide the sync"

    # ---- the one mutator

    def handle(self, event: Event, now: float) -> list[Effect]:
        """React to an event at time `now` in seconds. Messages that do not fit the moment change nothing."""
        if self.left:
            return []
        effects = self._react(event, now)
        recovery = self._recovery
        place = self._mine.boot, recovery.applied, recovery.chain
        if place != self._reached and any(isinstance(effect, Grant) for effect in effects):
            self._reached = place
            effects.insert(0, NoteReach(*place[1:]))
        if place != self._noted:
            effects += self._note_place()
        if self._departure.begun:
            effects += self._leave_if_free(now)
        return effects + self._report_if_due(now)

    def _note_place(self) -> list[Effect]:
        """Note down where the trainer stands, for a daemon that may have to take it over."""
        if not self._mine.settled:
            return []
        self._noted = (self._mine.boot, self.applied, self.chain)
        return [NotePlace(self.applied, self.chain)]

    def _react(self, event: Event, now: float) -> list[Effect]:
        match event:
            case FromPeer(source="coordinator"):
                return self._from_coordinator(event, now)
            case FromPeer():
                return self._from_peer(event, now)
            case Tick():
                return self._tick(now)
            case Staged():
                return self._mine.stage(event)
            case Reduced():
                return self._attempts.reduced(event, now)
            case ReduceFailed():
                return self._reduce_failed(event)
            case Flawed():
                return self._attempts.flawed(event)
            case CoordinatorLink(up, _):
                self._up = up
                self._down_since = None if up else now if self._down_since is None else self._down_since
                self._departure.link_changed(self._reporter.sequence)
                self._reporter.renew()
                return [Tell(COORDINATOR, self.facts.hello)] if up else []
            case PeerLink(peer, up, reason):
                self._neighbours.linked(peer, up, reason)
                return self._recovery.reachable(peer, now) if up else []
            case TrainerStarting():
                self._mine.trainer_state = "starting"
                return []
            case TrainerAttached(boot, manifest):
                self._mine.attached(boot, manifest)
                self._wants.forget()
                return self._answer_trainer() + self._mine.start()
            case TrainerResumed():
                self._mine.resumed(event)
                self._wants.resumed(event.reader)
                return self._answer_trainer() + self._advance(now) + self._ask_lines(now)
            case GenesisReady(digest):
                return self._beginning.made(digest, takes=self.takes_genesis)
            case TrainerGone(finished):
                self._mine.gone(finished=finished)
                self._wants.forget()
                return []
            case LeaseWanted(want):
                self._wants.asked(want)
                return []
            case Progress():
                self._reporter.progress = event
                news = self._neighbours.reach(event.reached)
                return self._recovery.sources_changed(self._neighbours.sources, now) if news else []
            case StateDigested(number, digest, chunks):
                self._recovery.digested(number, digest, chunks)
                return []
            case StateCaptured() | StateSaved() | SaveFailed() | SavedLoaded() | SavedUnusable():
                return self._of_disk(event, now)
            case InitialUnusable(reason):
                self.left = True
                return [Exit(3, reason, "give another state by --initial")]
            case LeaveRequested(reason):
                self._departure.ask(reason, now)
                return []
            case HandedOver():
                self._departure.handed_over()
                return []

    # ---- from the coordinator

    def _from_coordinator(self, event: FromPeer, now: float) -> list[Effect]:
        self._up, self._down_since, self._heard_at = True, None, now
        match event.record:
            case Welcome() as welcome:
                return self._welcomed(welcome, now)
            case View(number, members):
                if number < self._reporter.view:
                    return []
                self._reporter.view = number
                return self._viewed(members, now)
            case Start() as start:
                return self._started(start, now)
            case Abort(sync, _):
                return self._attempts.abort(sync) if sync.stream in self._streams else []
            case Commit(records, head, revision):
                if revision < self._reporter.revision:
                    return []  # said before the newest Welcome: the lines may have been given up since
                if (inheritance := self._mine.inheritance) is not None:
                    inheritance.learn(records)
                self._recovery.learn(records, head)
                return self._advance(now)
            case WantGenesis():
                return self._genesis_asked()
            case MayLeave(number, revision, heard):
                self._departure.inherited(number, revision, heard)
                return []
            case WantHello():
                # A report follows the Welcome: before, it would be answered by another WantHello, again and again.
                return [Tell(COORDINATOR, self.facts.hello)]
            case Refetch() as refetch:
                return self._refetch(refetch, now)
            case Leased() as leased:
                return [PassOn(leased)] if self._wants.answered(leased) else []
            case StartOver(stream, index, reason):
                return self._start_over(stream, index, reason) + self._advance(now)
            case SaveState(number, extra):
                self._saving.asked(number, extra)
                self._reporter.renew()  # it may be there already
                return self._advance(now)
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
        first, last = self._in_use or (now, now)
        self._in_use = (now if now - last > IDENTITY_PAUSE_S else first, now)
        return now - self._in_use[0] < IDENTITY_PATIENCE_S

    def _welcomed(self, welcome: Welcome, now: float) -> list[Effect]:
        if welcome.revision <= self._reporter.revision:
            return []
        self._reporter.revision = welcome.revision
        self._departure.welcomed(welcome.revision)
        effects: list[Effect] = []
        if self._welcome is not None and self._welcome.genesis not in (b"", welcome.genesis):
            effects += self._reset("the run has begun anew")
        if self._welcome is None or self._welcome.head >= 0:
            self._welcomed_at = now
        self._welcome = welcome
        self._mine.tempo.welcomed(welcome)
        self._in_use = None
        self._reporter.renew()
        if welcome.head >= 0:
            effects += self._beginning.open(welcome.manifest)
            if (too_late := self._beginning.over(welcome)) is not None:
                self.left = True
                return [*effects, too_late]
            effects += self._begin_with(welcome, now)
        return effects + self._answer_trainer() + self._advance(now)

    def _begin_with(self, welcome: Welcome, now: float) -> list[Effect]:
        """Without a state yet: take one from disk if one fits, else fetch it."""
        if self._recovery.has_begun:
            return self._recovery.welcomed(welcome, now)
        notes, saved = self._saving.candidate(welcome)
        return [*notes, LoadSaved(saved.number)] if saved is not None else notes + self._recovery.welcomed(welcome, now)

    def _of_disk(
        self, event: StateCaptured | StateSaved | SaveFailed | SavedLoaded | SavedUnusable, now: float
    ) -> list[Effect]:
        saving = self._saving
        match event:
            case StateCaptured(number, chunks):
                saving.captured(number)
                self._recovery.digested(number, state_digest(chunks), chunks)
                return self._advance(now)
            case StateSaved(number):
                return saving.done(number) + self._advance(now)
            case SaveFailed(number, reason):
                if not saving.failed(number):
                    return []
                told: list[Effect] = [
                    Note("save-failed", {"number": number, "reason": reason}),
                    Tell(COORDINATOR, NotSaved(number, reason)),
                ]
                return told + self._advance(now)
            case SavedLoaded(number, chunks):
                if self._welcome is None or self._recovery.has_begun:
                    return []
                saved = next(saved for saved in self.facts.saved if saved.number == number)
                self._recovery.resume_at(Position(number, saved.chain, saved.indices), self._welcome.head, now)
                self._recovery.digested(number, state_digest(chunks), chunks)
                saving.saved = number
                effects: list[Effect] = [Note("loaded", {"number": number, "head": self._welcome.head})]
                return [*effects, *self._recovery.welcomed(self._welcome, now), *self._advance(now)]
            case SavedUnusable(number, reason):
                note = Note("saved-state-unusable", {"number": number, "reason": reason})
                return [note] if self._welcome is None else [note, *self._begin_with(self._welcome, now)]

    def _viewed(self, members: Sequence[Member], now: float) -> list[Effect]:
        effects = self._neighbours.viewed(members)
        self._why = ""
        self._mine.crowd = 1 + sum(member.current for member in self._neighbours.members.values())
        return effects + self._recovery.sources_changed(self._neighbours.sources, now)

    # ---- the trainer

    def _genesis_asked(self) -> list[Effect]:
        if self._welcome is None or self._welcome.head >= 0:
            # Either this question is late, or the Welcome that says that there is no state got lost.
            return [Tell(COORDINATOR, self.facts.hello)]
        return self._beginning.asked()

    def _answer_trainer(self) -> list[Effect]:
        """Answer Attach as soon as it is known whether the run has a model, or wants this one."""
        if self._welcome is None:
            return []
        if self._welcome.head >= 0:
            return self._mine.answer(self._welcome.manifest)
        return self._beginning.offer()

    # ---- one sync

    def _started(self, start: Start, now: float) -> list[Effect]:
        sync, me = start.sync, self.facts.me
        if not self.complete or not self._attempts.is_new(start):
            return []
        sane = (
            len(start.contributors) == len(start.weights) == len(start.shards)
            and len({*start.contributors, *start.receivers}) == len(start.contributors) + len(start.receivers)
            and sum(start.shards) == self._recovery.chunks[sync.stream]
            and me in (*start.contributors, *start.receivers)
            and start.topology in TOPOLOGIES
            and start.codec in choices(self._streams[sync.stream].codec)
        )
        if not sane or (me in start.contributors and not self._mine.joins(start)):
            return [Note("bad-start", {"sync": str(sync)})]
        self._why = ""
        return self._attempts.begin(start, now)

    def _reduce_failed(self, event: ReduceFailed) -> list[Effect]:
        attempt = self._attempts.of(event.sync)
        effects = self._attempts.reduce_failed(event)
        if effects and attempt is not None:
            alone = attempt.start.contributors == (self.facts.me,)
            if alone or self.facts.me in event.blamed:
                effects += self._mine.discard(event.sync.stream, event.reason)
        return effects

    # ---- from other peers

    def _from_peer(self, event: FromPeer, now: float) -> list[Effect]:
        source, recovery = event.source, self._recovery
        match event.record:
            case Part() | Result() | WantParts():
                return self._attempts.came(event, now)
            case WantState(chunks):
                if not self.complete:
                    return [Tell(source, NotHeld(-1, -1))]
                known = len(self.state_chunks)
                return [SendState(source, chunk) for chunk in chunks if chunk < known]
            case WantUpdate(number, chunks):
                return self._serve_update(source, number, chunks)
            case StateChunk() as record:
                return recovery.state_came(source, record, event.payload, now) + self._advance(now)
            case UpdateChunk(number, chunk):
                return recovery.update_came(event, number, chunk, now) + self._advance(now)
            case WantDigests(number):
                digests = recovery.digests_at(number)
                known_here = digests if len(digests) <= DIGEST_BYTES * MAX_DIGESTS else b""
                return [Tell(source, StateDigests(number, known_here))]
            case StateDigests(number, digests):
                return recovery.digests_came(source, number, digests, now) + self._advance(now)
            case NotHeld(number, held):
                return recovery.not_held(source, number, held, now) + self._advance(now)
            case _:
                return []

    def _serve_update(self, source: str, number: int, chunks: Sequence[int]) -> list[Effect]:
        entry = self.log.get(number)
        if entry is None:
            return [Tell(source, NotHeld(number, self._recovery.held))]
        known = len(entry.payloads)
        return [SendPayload(source, UpdateChunk(number, c), entry.payloads[c]) for c in chunks if c < known]

    # ---- commits

    def _advance(self, now: float) -> list[Effect]:
        """Apply what is committed and at hand, in order; fetch what is not."""
        recovery = self._recovery
        if self.applied < 0:
            self._attempts.give_up()
        effects, skipped = recovery.take_snapshot(now)
        for record in skipped:
            effects += self._mine.decide(record)
        while not recovery.given_up:
            more, line = recovery.next_line(now)
            effects += more
            if line is None or (self._saving.holds and self._streams[line.sync.stream].held):
                break
            if recovery.passes(line):
                recovery.pass_by(line, now)
                continue
            payloads = self._payloads(line)
            if payloads is None:
                effects += recovery.fetch(line, now)
                break
            effects += self._apply(line, payloads, now)
        if recovery.given_up:
            return effects + self._reset("the run has given up the history that this peer stood in")
        if self.complete:
            effects += self._mine.release()
            # A state that is this peer's own is not the run's: it is for this peer alone, at its end.
            fit = not self._gossip or recovery.agreed or self._saving.last_wish_open
            if fit and self._welcome is not None and not recovery.fetching_update:
                effects += self._saving.begin(self.applied, self.chain, self._welcome.genesis, self.indices)
        return effects + self._mine.start()

    def _payloads(self, record: CommitRecord) -> tuple[Payload, ...] | None:
        """The chunks of a committed update; none of them if nothing needs it; None if they are not here yet."""
        payloads = self._attempts.update_of(record)
        if payloads is not None:
            return payloads
        if not self._streams[record.sync.stream].held:
            # Gradients leave nothing behind; only a trainer that has started needs them.
            needed = self._mine.started
        else:
            needed = not self._recovery.covered(record)
        return self._recovery.fetched(record) if needed else ()

    def _apply(self, record: CommitRecord, payloads: tuple[Payload, ...], now: float) -> list[Effect]:
        name = record.sync.stream
        copied = self._recovery.copies(record)
        skip = self._recovery.step(record, now)
        if self.facts.me in record.contributors:
            self._departure.applied(self.applied)
        self._saving.moved_on()
        self._attempts.close(name)
        settled = self._mine.decide(record) if not copied else []
        if not payloads and self._recovery.chunks[name]:
            return settled
        if not self._streams[name].held:
            self._mine.gradient_came(name, record.sync.index)
        return [*settled, Apply(record, payloads, skip)]

    def _refetch(self, refetch: Refetch, now: float) -> list[Effect]:
        """The state is not the run's. The trainer starts again from the run's state, once that is here."""
        repair = self._recovery.repair(refetch.log_number, refetch.chain, refetch.digest, now)
        if repair is None:
            here = (refetch.log_number, refetch.chain) == (self.applied, self.chain)
            return self._reset(refetch.reason) if here else []
        self._attempts.give_up()
        self._mine.reset()
        note = Note("repair", {"reason": refetch.reason})
        return [*self._saving.reset(), ForgetResiduals(), note, *repair, *self._answer_trainer()]

    def _start_over(self, stream: str, index: int, reason: str) -> list[Effect]:
        """What the trainer has staged is not to be used: it takes over the state, which is as it should be."""
        if not self.complete or stream not in self._mine.staged or self.indices[stream] + 1 != index:
            return []
        self._attempts.give_up()
        self._mine.reset()
        return [ForgetResiduals(), Note("start-over", {"reason": reason}), *self._answer_trainer()]

    def _reset(self, reason: str) -> list[Effect]:
        """Forget the state: it is not the run's. The trainer starts again from the run's state, once fetched."""
        self._attempts.give_up()
        self._recovery.reset()
        self._mine.reset()
        self._beginning.reset()
        self._welcome = None
        self.log.clear()
        return [*self._saving.reset(), ForgetResiduals(), Note("refetch", {"reason": reason})]

    # ---- time and reports

    def _tick(self, now: float) -> list[Effect]:
        effects: list[Effect] = []
        if self._welcome is None and now - self._greeted_at >= HELLO_AGAIN_S:
            self._greeted_at = now
            effects.append(Tell(COORDINATOR, self.facts.hello))
        return effects + self._attempts.tick(now) + self._recovery.tick(now) + self._advance(now) + self._ask_lines(now)

    def _ask_lines(self, now: float) -> list[Effect]:
        """Ask for the lines that say what became of the contributions of a trainer that has outlived its daemon."""
        inheritance = self._mine.inheritance
        if inheritance is None or not self.complete or now - self._asked_at < ASK_RECORDS_S:
            return []
        if inheritance.next > max(self.applied, inheritance.held.number):
            return []
        self._asked_at = now
        return [Tell(COORDINATOR, WantRecords(inheritance.next))]

    def _leave_if_free(self, now: float) -> list[Effect]:
        departure = self._departure
        effects = departure.step(now, away_s=self.away_s(now), up=self._up, heard_at=self._heard_at)
        if effects is not None:
            return effects
        self.left = True
        reason = departure.reason or ""
        goodbye = Leave(self.facts.hello.boot, reason)
        return [Tell(COORDINATOR, self._reporter.make(now)), Tell(COORDINATOR, goodbye), Exit(0, reason, "")]

    def _report_if_due(self, now: float) -> list[Effect]:
        report = self._reporter.due(now) if self._welcome is not None and not self.left else None
        return [Tell(COORDINATOR, report)] if report is not None else []
