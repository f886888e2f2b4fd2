"""Where a peer stands in the run's history, and how it gets the lines, updates or snapshot it lacks; a pure core.

A part of `participant.py`, which alone calls it and applies what is found here. A snapshot is fuzzy: its chunks come
from several peers at different log numbers, and each is replayed from its own. Every chunk carries the link of the
chain that it was taken at, so that nothing of a history that the run has given up gets into the state.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace

from wantrain.optimizers.stream import Stream
from wantrain.peers import catchup
from wantrain.peers.chase import Chase
from wantrain.peers.effects import Effect, Note, StoreState, Tell
from wantrain.peers.events import FromPeer
from wantrain.peers.layout import stream_chunks
from wantrain.peers.messages import CommitRecord, Manifest, StateChunk, WantDigests, WantRecords, WantState, Welcome
from wantrain.peers.repair import Ledger, Position, Repair
from wantrain.peers.update_fetch import UpdateFetch
from wantrain.transport.collective import Payload
from wantrain.transport.digest import next_link

ASK_RECORDS_S = 1.0
STALE_S = 5.0
STUCK_S = 30.0
"""A replay that has not moved for so long begins again with a snapshot: what it stands on may have been given up."""
VAIN_ROUNDS = 5
"""Rounds of asking everybody in vain before a mean gradient is done without: no state depends on it."""


class Recovery:
    """Position, known lines ahead of it, and what is being fetched.

    Args:
        streams: the run's streams.
        coordinator: name under which the coordinator is told things.
        me: this peer.
    """

    def __init__(self, streams: Sequence[Stream], coordinator: str, me: str = "") -> None:
        self.applied = -1
        """Last commit applied to the state at hand; -1 before there is a state."""
        self.chain = b""
        self.indices = {stream.name: 0 for stream in streams}
        """Last applied sync of every stream. The same object for ever."""
        self.genesis = b""
        """chain[0] of the run, once it has one."""
        self.manifest: Manifest = ()
        self.chunks: dict[str, int] = {}
        """Chunks of every stream."""
        self.head = -1
        """Last commit that the coordinator is known to have."""
        self.state_digest = (-1, b"")
        """Log number and digest of the state at hand, as computed last."""
        self.agreed = False
        """Of a gossip run: whether the state at hand is one at which all replicas had come to one."""
        self.given_up = False
        """Whether the run has given up the history that this peer stood in: then only `reset` helps."""
        self._streams = {stream.name: stream for stream in streams}
        self._gossip = any(stream.gossip for stream in streams)
        """Whether this peer's state is its own, and not to be had elsewhere."""
        self._coordinator = coordinator
        self._me = me
        self._records: dict[int, CommitRecord] = {}
        self._anchor: Position | None = None
        """A known place in the history, to tell from it what a snapshot contains."""
        self._own_anchor = False
        """Whether the anchor is where this peer stood itself; what is staged then depends on the lines after it."""
        self._sources: tuple[str, ...] = ()
        self._floor = 0
        """A state older than this is of no use: the update with this number is no longer kept by anybody."""
        self._stale: dict[str, float] = {}
        """Who has given such a state, and until when it is not asked for its state again: it may be further then."""
        self._liars: frozenset[str] = frozenset()
        """Who has given something false; they are asked last."""
        self._state: catchup.Fetch | None = None
        self._state_at = 0.0
        """When it, or a repair, was begun."""
        self._state_share = 1.0
        """How much of the whole state is, or was, fetched at last."""
        self._taken: dict[int, tuple[int, bytes]] = {}
        """Chunks of the state that are ahead of `applied`: log number and link that each was taken at."""
        self._chase = Chase()
        self._ledger = Ledger()
        self._repair: Repair | None = None
        self._before: Position | None = None
        """Where the state stands that is false somewhere, until it is repaired or another one is there."""
        self._update: UpdateFetch | None = None
        self._asked_at = -ASK_RECORDS_S
        self._moved_at = 0.0
        self._resumed = False
        """Whether the state came from disk and its replay has not caught up yet."""

    # ---- what is at hand

    @property
    def complete(self) -> bool:
        """Whether the state at hand is one consistent state of the run, at log number `applied`."""
        return self.applied >= 0 and not self._taken

    @property
    def held(self) -> int:
        """The log number of the state at hand, -1 while it is none."""
        return self.applied if self.complete else -1

    @property
    def stands_at(self) -> int:
        """The log number of the state at hand, or of one that is false somewhere and being repaired; -1: neither."""
        return self.held if self.complete or self._before is None else self._before.number

    @property
    def state_chunks(self) -> list[tuple[str, int]]:
        """The state's chunks in order: (stream, chunk) of every stream that holds one."""
        held = [name for name, stream in self._streams.items() if stream.held]
        return [(name, chunk) for name in held for chunk in range(self.chunks[name])]

    @property
    def has_begun(self) -> bool:
        """Whether there is a state, or any chunk of one, or a place in the history to come back to."""
        return self.applied >= 0 or bool(self._taken) or self._own_anchor or self._repair is not None

    @property
    def fetching_update(self) -> bool:
        """Whether an update is being fetched."""
        return self._update is not None

    @property
    def stale(self) -> bool:
        """Whether a trainer should wait: the state is old, from disk, and on its way to the head of the log."""
        return self._resumed

    @property
    def fetching_state(self) -> bool:
        """Whether chunks of the state are missing."""
        return self._state is not None and bool(self._state.missing)

    def wants_state(self, chunk: int) -> bool:
        """Whether this chunk of the state is of use."""
        return self._state is not None and chunk in self._state.missing

    def wants_update(self, number: int, chunk: int) -> bool:
        """Whether this chunk of an update is of use."""
        return self._update is not None and self._update.wants(number, chunk)

    def stream_of(self, number: int) -> str | None:
        """The stream of a line ahead, if the line is known."""
        record = self._records.get(number)
        return None if record is None else record.sync.stream

    @property
    def behind(self) -> int:
        """Commits to the head of the log, if this peer catches up and does not gain on the run; else 0."""
        return max(1, self.head - max(self.applied, 0)) if self._chase.losing else 0

    def in_words(self, name_of: Callable[[str], str], now: float) -> str:
        """What is being fetched, from whom and for how long by now, or ""."""

        def whom(sources: tuple[str, ...], since: float) -> str:
            return f"{', '.join(map(name_of, sources)) or 'a peer that holds it'} for {now - since:.1f} s"

        if self._state is not None and self._state.missing:
            have, count = len(self.state_chunks) - len(self._state.missing), len(self.state_chunks)
            return f"fetching the state from {whom(self._state.sources, self._state_at)}: {have} of {count} chunks"
        if self._repair is not None:
            asked = whom(self._repair.sources, self._state_at)
            return f"finding out from {asked} which chunks of its state at {self._repair.number} are false"
        updates = ""
        if self._update is not None:
            asked = whom(self._update.sources, self._update.begun_at)
            updates = f"fetching update {self._update.record.number} from {asked}"
        if self._chase.losing:
            updates += f"{', ' if updates else ''}more slowly than updates come"
        if not self.complete:
            return f"replaying updates: at {self.applied} of {self.head}{', ' if updates else ''}{updates}"
        return updates

    # ---- beginnings

    def open(self, manifest: Manifest) -> None:
        """The model is known."""
        self.manifest = manifest
        self.chunks = {name: stream_chunks(stream, manifest) for name, stream in self._streams.items()}

    def start_at(self, chain: bytes) -> None:
        """The state at hand is the run's initial one."""
        self._forget_state()
        self.applied, self.chain = 0, chain

    def go_on_after(self, indices: Mapping[str, int]) -> None:
        """A trainer stands at these exchanges: in gossip streams this peer takes part in later ones only.

        A state that was copied, of a coordinator that counts anew from its log, may stand before them.
        """
        for name, index in indices.items():
            if self._streams[name].gossip:
                self.indices[name] = max(self.indices[name], index)

    def resume_at(self, position: Position, head: int, now: float) -> None:
        """The state at hand is the run's at this position; `head` is the head of the log."""
        self._forget_state()
        self.applied, self.chain = position.number, position.chain
        self.indices.update(position.indices)
        self.head, self._moved_at = head, now
        self._resumed = head > position.number

    def welcomed(self, welcome: Welcome, now: float) -> list[Effect]:
        """The coordinator has said where the run is; begin to fetch the state if there is none here."""
        self.head, self.genesis = welcome.head, welcome.genesis
        # Lines beyond were given up, or come again.
        self._records = {number: record for number, record in self._records.items() if number <= welcome.head}
        if self._update is not None and self._update.record.number > welcome.head:
            self._update = None
        if welcome.head < 0 or self.applied >= 0:
            return []
        if not self._own_anchor and self._repair is None:  # a repair goes on from where this peer stood
            indices = {name: welcome.indices.get(name, 0) for name in self.indices}
            self._anchor = Position(welcome.head, welcome.chain, indices)
        if self._state is not None or self._repair is not None:
            return []
        return self._fetch_chunks(range(len(self.state_chunks)), now)

    def sources_changed(self, sources: tuple[str, ...], now: float) -> list[Effect]:
        """Other peers hold the run's state now."""
        self._sources = sources
        return self._fetch_all(catchup.Sources(sources, self._liars), now)

    def reachable(self, source: str, now: float) -> list[Effect]:
        """The connection to a peer came up: ask it again at once."""
        return self._fetch_all(catchup.Reachable(source), now)

    def _lied(self, liars: Iterable[str], now: float) -> list[Effect]:
        """These peers are asked after all others from now on."""
        self._liars = self._liars.union(liars)
        return self.sources_changed(self._sources, now)

    def learn(self, records: Iterable[CommitRecord], head: int) -> None:
        """Lines of the commit log have come, in any order and maybe late."""
        self.head = max(self.head, head)
        for record in records:
            if record.number <= self.applied:
                continue
            known = self._records.get(record.number)
            # After a rewind the same number comes again, from a later attempt.
            if known is None or known.sync.attempt < record.sync.attempt:
                self._records[record.number] = record
                if known is not None and self._update is not None and record.number == self._update.record.number:
                    self._update = None

    # ---- a snapshot

    def state_came(self, source: str, record: StateChunk, payload: Payload, now: float) -> list[Effect]:
        """A chunk of the state, from one who should hold it."""
        if not self.wants_state(record.chunk) or source not in self._sources:
            return []
        if record.number < min(self._floor, self.head):
            self._stale[source] = now + STALE_S
            return self._fetch_state(catchup.Sources(self._sources, self._liars), now)
        self._moved_at = now
        self._taken[record.chunk] = (record.number, record.chain)
        self._ledger.givers[record.chunk] = source
        effects: list[Effect] = [StoreState(record.chunk, payload)]
        return effects + self._fetch_state(catchup.Came(source, record.chunk), now)

    def take_snapshot(self, now: float) -> tuple[list[Effect], list[CommitRecord]]:
        """When the whole state is here, go on from the oldest of its chunks.

        Returns:
            effects, and the lines that the snapshot has skipped since this peer last stood in the history itself.
        """
        anchor = self._anchor
        if self.applied >= 0 or anchor is None or self._state is None or self._state.missing:
            return [], []
        base, chain = min(self._taken.values(), default=(anchor.number, anchor.chain))
        lines = self._lines_between(base, anchor.number)
        if any(number not in self._records for number in lines):
            return [], []
        between = [self._records[number] for number in lines]
        first, last = (chain, anchor.chain) if base < anchor.number else (anchor.chain, chain)
        follows = True
        for record in between:
            follows = follows and next_link(first, record.digest) == record.chain
            first = record.chain
        if not follows or first != last or self._foreign(base, chain):
            self._doubt({record.number: record.chain for record in between} | {anchor.number: anchor.chain})
            for number in lines:
                del self._records[number]
            self.given_up = self._own_anchor
            return self.snapshot_again(now), []
        sign = -1 if base < anchor.number else 1
        for name, stream in self._streams.items():
            if stream.gossip:  # at least that of any line up to here that names this peer: none of them is its own
                above = [record.sync.index for record in between if record.sync.stream == name]
                self.indices[name] = max([anchor.indices[name], *above])
                continue
            self.indices[name] = anchor.indices[name] + sign * sum(record.sync.stream == name for record in between)
        skipped = between if self._own_anchor and sign > 0 else []
        self.applied, self.chain, self._anchor, self._own_anchor = base, chain, None, False
        self._before = None
        self._records = {number: record for number, record in self._records.items() if number > base}
        self._leave_behind()
        self._moved_at = now
        self._chase.snapshot.add((now - self._state_at) / self._state_share)
        return [Note("snapshot", {"number": base})], skipped

    def _lines_between(self, base: int, other: int) -> range:
        return range(min(base, other) + 1, max(base, other) + 1)

    def _foreign(self, number: int, chain: bytes) -> bool:
        """Whether a chunk was taken at this number, but in another history."""
        return any(taken == number and link != chain for taken, link in self._taken.values())

    def _doubt(self, links: Mapping[int, bytes]) -> None:
        """Who has given chunks of another history than these lines' is asked last from now on."""
        false = [k for k, (number, link) in self._taken.items() if links.get(number, link) != link]
        self._liars = self._liars.union(self._ledger.givers[k] for k in false if k in self._ledger.givers)

    def _leave_behind(self) -> None:
        """Chunks that the others have caught up with are like the others now."""
        if all(number <= self.applied for number, _ in self._taken.values()):
            self._taken, self._state = {}, None

    def snapshot_again(self, now: float) -> list[Effect]:
        """Fetch the whole state afresh; what is staged stays staged, to be decided by the lines that are skipped."""
        effects: list[Effect] = []
        if self.applied >= 0:
            effects.append(Note("behind", {"from": self.applied}))
            self._anchor, self._own_anchor = Position(self.applied, self.chain, dict(self.indices)), True
        self._forget_state()
        return effects + self._fetch_chunks(range(len(self.state_chunks)), now)

    def _fetch_chunks(self, chunks: Collection[int], now: float) -> list[Effect]:
        """Fetch these chunks of the state; all others are known by `_taken`."""
        self._state_share = max(1, len(chunks)) / max(1, len(self.state_chunks))
        self._state, self._state_at, self._moved_at = catchup.Fetch(chunks), now, now
        return self._fetch_state(catchup.Sources(self._sources, self._liars), now)

    def reset(self) -> None:
        """Forget everything but the model: it was not the run's."""
        self._forget_state()
        self._ledger.givers = {}
        self._records, self._anchor, self._own_anchor = {}, None, False
        self.head, self.given_up, self._floor = -1, False, 0
        for name in self.indices:
            self.indices[name] = 0

    def _forget_state(self) -> None:
        self.applied, self.chain = -1, b""
        self.agreed = False
        self.state_digest = (-1, b"")
        self._state, self._taken = None, {}
        self._update, self._repair, self._before = None, None, None
        self._ledger.forget()

    # ---- a state that is false somewhere

    def digested(self, number: int, digest: bytes, chunks: tuple[bytes, ...]) -> None:
        """The state at hand was digested."""
        if self.complete and number == self.applied:
            self.state_digest = (number, digest)
            self._ledger.keep(number, self.chain, chunks)

    def digests_at(self, number: int) -> bytes:
        """Digests of the state's chunks at a log number, one after another; b"" if they are not known."""
        return b"".join(self._ledger.at(number)[1])

    def repair(self, number: int, chain: bytes, digest: bytes, now: float) -> list[Effect] | None:
        """At this log number another digest stands than this peer's: find out what is false, and fetch that anew.

        Until then there is no state at hand. What is staged must have been given up: it counts from a false state.

        Returns:
            effects; None if this peer does not know the digests of its own chunks there: nothing has changed then.
        """
        link, own = self._ledger.at(number)
        if not self.complete or link != chain or not digest or not own:
            return None
        before = self._anchor = Position(self.applied, self.chain, dict(self.indices))
        self._own_anchor = False
        self._forget_state()
        self._repair, self._before = Repair(number, digest, own, before), before
        self._state_at = self._moved_at = now
        return self._compare(catchup.Sources(self._sources, self._liars), now)

    def digests_came(self, source: str, number: int, digests: bytes, now: float) -> list[Effect]:
        """`source` says what the digests of all chunks are; b"" if it does not know."""
        repair = self._repair
        if repair is None or number != repair.number:
            return []
        false = repair.false_chunks(digests)
        if false is None:
            return self._compare(catchup.Denied(source), now)
        givers = sorted({self._ledger.givers[chunk] for chunk in false if chunk in self._ledger.givers})
        count = len(self.state_chunks)
        note = Note("false-state", {"number": number, "chunks": len(false), "of": count, "sources": givers})
        self._repair = None
        right = set(range(count)).difference(false)
        self._taken = dict.fromkeys(sorted(right), (repair.before.number, repair.before.chain))
        return [note, *self._lied(givers, now), *self._fetch_chunks(false, now)]

    def _despair(self, now: float) -> list[Effect]:
        """If nobody holds the run's state any more, one that is false somewhere is better than none."""
        before = self._before
        if before is None or any(taken != (before.number, before.chain) for taken in self._taken.values()):
            return []  # none, or chunks of it have been replaced by such as nobody could replay any more
        if self._sources:
            self._moved_at = now
        if now - self._moved_at < STUCK_S:
            return []
        self._forget_state()
        self.applied, self.chain = before.number, before.chain
        self.indices.update(before.indices)
        return [Note("false-state-kept", {"number": before.number, "reason": "nobody else holds the run's state"})]

    def _compare(self, event: catchup.FetchEvent, now: float) -> list[Effect]:
        effects: list[Effect] = []
        for effect in [] if self._repair is None else self._repair.handle(event, now):
            match effect:
                case catchup.Want(source, _):
                    assert self._repair is not None
                    effects.append(Tell(source, WantDigests(self._repair.number)))
                case catchup.Exhausted():
                    effects.append(Note("refetch", {"reason": "nobody knows the digests of its chunks any more"}))
                    self._repair = None
                    effects += self._fetch_chunks(range(len(self.state_chunks)), now)
        return effects

    # ---- the next line and its update

    def next_line(self, now: float) -> tuple[list[Effect], CommitRecord | None]:
        """The line after the last applied one, if it is known and follows from it."""
        record = self._records.get(self.applied + 1) if self.applied >= 0 else None
        if record is None:
            return [], None
        if next_link(self.chain, record.digest) == record.chain and not self._foreign(record.number, record.chain):
            return [], record
        # The line, or the state at hand, is of a history that was given up; the coordinator will know which.
        if next_link(self.chain, record.digest) == record.chain:
            self._doubt({record.number: record.chain})
        del self._records[record.number]
        return ([] if self.complete else self.snapshot_again(now)), None

    def passes(self, record: CommitRecord) -> bool:
        """Whether a line leaves this peer's state as it is: an exchange of others, or of a former state of this peer.

        That one was lost, with the state that was made of it; the indices of a state begin behind it.
        """
        if not self._streams[record.sync.stream].gossip:
            return False
        if self._taken:
            return not self._copied(record)
        return self._me not in record.contributors or record.sync.index <= self.indices[record.sync.stream]

    def copies(self, record: CommitRecord) -> bool:
        """Whether a line is one of those who gave the state at hand, parts of which are older than others."""
        return self._streams[record.sync.stream].gossip and bool(self._taken)

    def _copied(self, record: CommitRecord) -> frozenset[int]:
        """Chunks of the state that become what their giver's became by this line: it gave them before."""
        givers, line = self._ledger.givers, record.number
        behind = [k for k, (number, _) in self._taken.items() if number < line and givers[k] in record.contributors]
        chunks = self.state_chunks if behind else []
        return frozenset(k for k in behind if chunks[k][0] == record.sync.stream)

    def pass_by(self, record: CommitRecord, now: float) -> None:
        """Go past such a line. The state's digest is what it was."""
        number, digest = self.state_digest
        self._move_to(record, now)
        if number == record.number - 1:
            self.state_digest = (record.number, digest)

    def covered(self, record: CommitRecord) -> bool:
        """Whether every chunk of the line's stream was fetched at this line or later: there is nothing to replay."""
        chunks = [k for k, (stream, _) in enumerate(self.state_chunks) if stream == record.sync.stream]
        return bool(self._taken) and all(self._taken.get(k, (-1, b""))[0] >= record.number for k in chunks)

    def fetched(self, record: CommitRecord) -> tuple[Payload, ...] | None:
        """The fetched update of a line: its chunks; none of them if it is done without; None if it is not here."""
        update = self._update
        if update is None or update.record != record:  # the number may have come again, of a later attempt
            return None
        enough = 1 if update.dropped else VAIN_ROUNDS
        if not self._streams[record.sync.stream].held and update.vain >= enough:
            return ()
        return update.payloads

    def fetch(self, record: CommitRecord, now: float) -> list[Effect]:
        """Get the update of this line from other peers."""
        if self._update is not None and self._update.record == record:
            return []
        self._update = UpdateFetch(record, self.chunks[record.sync.stream], now)
        return self._fetch_update(catchup.Sources(self._sources, self._liars), now)

    def step(self, record: CommitRecord, now: float) -> frozenset[int]:
        """The line is applied now; chunks of its stream that have it in already."""
        copied = self._copied(record) if self.copies(record) else None
        skip = frozenset(
            chunk
            for k, (stream, chunk) in enumerate(self.state_chunks)
            if stream == record.sync.stream
            and (self._taken.get(k, (-1, b""))[0] >= record.number if copied is None else k not in copied)
        )
        if copied is None:
            self.indices[record.sync.stream] = record.sync.index
            self.agreed = record.consensus
        if self._update is not None:
            self._chase.update.add(now - self._update.begun_at)
        self._update = None
        self._move_to(record, now)
        return skip

    def _move_to(self, record: CommitRecord, now: float) -> None:
        self.applied, self.chain = record.number, record.chain
        del self._records[record.number]
        self._leave_behind()
        self._moved_at = now
        self._resumed = self._resumed and self.applied < self.head

    def update_came(self, event: FromPeer, number: int, chunk: int, now: float) -> list[Effect]:
        """A chunk of the update that is being fetched."""
        update = self._update
        if update is None or not update.wants(number, chunk):
            return []
        self._moved_at = now
        effects = update.came(event, chunk, now)
        liars, update.liars = sorted(update.liars), set()
        if liars:
            effects += [Note("false-update", {"number": number, "sources": liars}), *self._lied(liars, now)]
        return effects

    def not_held(self, source: str, number: int, held: int, now: float) -> list[Effect]:
        """`source` does not hold what it was asked for: the state (number -1) or an update."""
        if number < 0:
            return self._fetch_state(catchup.Denied(source), now)
        if self._update is None or number != self._update.record.number:
            return []
        self._update.dropped = self._update.dropped or held >= number
        return self._fetch_update(catchup.Denied(source), now)

    # ---- fetching

    def _fetch_all(self, event: catchup.FetchEvent, now: float) -> list[Effect]:
        if self._state is None and self._update is None and self._repair is None:
            return []
        return self._fetch_state(event, now) + self._fetch_update(event, now) + self._compare(event, now)

    def _fetch_state(self, event: catchup.FetchEvent, now: float) -> list[Effect]:
        if isinstance(event, catchup.Sources):
            event = replace(event, peers=tuple(peer for peer in event.peers if peer not in self._stale))
        wants = [] if self._state is None else self._state.handle(event, now)
        return [Tell(want.source, WantState(want.chunks)) for want in wants if isinstance(want, catchup.Want)]

    def _fetch_update(self, event: catchup.FetchEvent, now: float) -> list[Effect]:
        update = self._update
        if update is None:
            return []
        if isinstance(event, catchup.Sources) and self._streams[update.record.sync.stream].gossip:
            holders = update.record.contributors  # nobody else has it
            event = replace(event, peers=tuple(peer for peer in event.peers if peer in holders))
        vain = update.vain
        effects = update.handle(event, now)
        if update.vain > vain and update.dropped and self._streams[update.record.sync.stream].held:
            self._chase.vain()
            self._floor = update.record.number
            return effects + self.snapshot_again(now)
        return effects

    def tick(self, now: float) -> list[Effect]:
        """Time has passed."""
        effects = self._fetch_all(catchup.Tick(), now)
        if self._stale and now >= min(self._stale.values()):
            self._stale = {source: until for source, until in self._stale.items() if until > now}
            effects += self._fetch_state(catchup.Sources(self._sources, self._liars), now)
        self._chase.look(self.applied, self.head, complete=self.complete, now=now)
        self._resumed = self._resumed and self.applied < self.head and now - self._moved_at < STUCK_S
        # While there is nobody to give another state this one may be all that is left of the run.
        may_leap = self.applied >= 0 and bool(self._sources) and not self._gossip
        leaps = may_leap and self._chase.leap(self.head - self.applied)
        if leaps or self._only_lies:
            effects += self.snapshot_again(now)
        beyond = [k for k, (number, _) in self._taken.items() if number > self.head and k in self._ledger.givers]
        if beyond and self._state is not None and not self._state.missing and now - self._state_at >= STUCK_S:
            # Nobody can have had lines for so long that the coordinator does not have.
            self._liars = self._liars.union(self._ledger.givers[k] for k in beyond)
            effects += self.snapshot_again(now)
        replaying = self._state is not None and not self._state.missing and not self.complete
        if replaying and now - self._moved_at >= STUCK_S:
            self.given_up = self._own_anchor
            effects += self.snapshot_again(now)
        return effects + self._enter_anew(now) + self._despair(now) + self._ask_lines(now)

    def _enter_anew(self, now: float) -> list[Effect]:
        """Of a gossip stream, an update that nobody keeps any more: take over another peer's state, as a newcomer does.

        The other one of the pair may have applied it; so this peer's own state, which has not, is not to be used on.
        While there is no other state to be had this one is better than none, and the run may yet go back to it.
        """
        update = self._update
        if update is None or not self._sources or not self._streams[update.record.sync.stream].gossip:
            return []
        if set(update.record.contributors) != {self._me} and now - self._moved_at < STUCK_S:
            return []
        self._floor = update.record.number
        note = Note("enters-anew", {"number": update.record.number, "reason": "nobody keeps the update any more"})
        return [note, *self.snapshot_again(now)]

    @property
    def _only_lies(self) -> bool:
        """Whether the update that is being fetched is to be had false only, of peers whose state may be sound."""
        update = self._update
        if update is None or update.vain < VAIN_ROUNDS or not self._streams[update.record.sync.stream].held:
            return False
        return bool(update.asked) and self._liars.issuperset(update.asked)

    def _ask_lines(self, now: float) -> list[Effect]:
        """Ask for lines of the commit log that are missing: around a snapshot, or in a gap."""
        if now - self._asked_at < ASK_RECORDS_S:
            return []
        if self.applied >= 0:
            if self.applied >= self.head and not self._records and not self._taken:
                return []
            tops = (self.head, *self._records, *(number for number, _ in self._taken.values()))
            wanted = range(self.applied + 1, max(tops) + 1)
        elif self._anchor is not None and self._state is not None and not self._state.missing:
            base, _ = min(self._taken.values(), default=(self._anchor.number, b""))
            wanted = self._lines_between(base, self._anchor.number)
        else:
            return []
        absent = next((number for number in wanted if number not in self._records), None)
        if absent is None:
            return []
        self._asked_at = now
        return [Tell(self._coordinator, WantRecords(absent))]
