"""`wantrain bench coordinator`: what a sync costs the real coordinator core, with simulated peers.

No sockets and no disk: a write is durable at once. The time of the core is measured apart from that of packing and
unpacking messages, which its daemon does for every message that it sends or gets.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import TypeVar

from rich.table import Table

from wantrain.bench.worker import Json
from wantrain.errors import ConfigError, WantrainError
from wantrain.optimizers.stream import Stream
from wantrain.peers.commit_log import ATTEMPTS_PER_EPOCH, History
from wantrain.peers.coordinator import Coordinator, RunFacts
from wantrain.peers.coordinator_events import CoordinatorEvent, FromPeer, Send, Stored, Tick
from wantrain.peers.messages import (
    MAX_PEERS,
    Commit,
    Hello,
    LinkReport,
    Record,
    Report,
    Start,
    SyncReport,
    TensorSpec,
    View,
    pack,
    unpack,
)
from wantrain.peers.reports import PATHS_TOLD
from wantrain.peers.timing import Policy
from wantrain.transport.digest import first_link
from wantrain.transport.wire import PROTOCOL_VERSION, decode, encode, size_bytes

T = TypeVar("T")
RUN = b"benchrun"
STREAM = "param"
DIGEST = b"d" * 32
SAMPLES = 256
"""About how many messages of a phase are packed and unpacked; the others are counted like those."""
JOINS_PER_TICK, JOIN_TICK_S = 64, 0.01
"""All have joined before the first one would have to send a heartbeat."""
TICKS_PER_SYNC = 10
"""The daemon ticks ten times a second; syncs come a second apart here."""
MANIFEST = (TensorSpec("weight", (4096, 4096), "float32"),)


@dataclass(slots=True)
class _Count:
    """What a phase has cost."""

    messages_in: int = 0
    messages_out: int = 0
    bytes_in: float = 0.0
    bytes_out: float = 0.0
    core_s: float = 0.0
    unpack_s: float = 0.0
    pack_s: float = 0.0
    """A record that goes to many, one after another, is packed once, as the daemon does it."""


@dataclass(slots=True)
class _Peers:
    """N peers that answer at once, and the coordinator that they talk to."""

    core: Coordinator
    names: Sequence[str]
    count: _Count = field(default_factory=_Count)
    now: float = 0.0
    _sequence: int = 0
    _paths: dict[str, dict[str, LinkReport]] = field(default_factory=dict)
    _unpacked: tuple[int, float] | None = None
    """Size and unpacking time of the last message that really went through the wire format."""
    _before: Record | None = None
    _packed: dict[type, tuple[int, int, float]] = field(default_factory=dict)
    """By kind of record: which one was packed last, its size and packing time."""

    def tell(self, peer: str, record: Record) -> list[Send]:
        """A peer's record as it comes from the network; what is sent because of it."""
        self.count.messages_in += 1
        event = FromPeer(peer, self._through_wire(record), b"k" * 32)
        return self._handle(event)

    def tick(self) -> list[Send]:
        return self._handle(Tick())

    def report(self, peer: str, log_number: int, lines: tuple[SyncReport, ...] = ()) -> list[Send]:
        """A report with the paths that a peer of the direct topology has measured: to as many others as it may name."""
        self._sequence += 1
        if peer not in self._paths:
            at = self.names.index(peer)
            others = [self.names[(at + k) % len(self.names)] for k in range(1, min(len(self.names), PATHS_TOLD + 1))]
            self._paths[peer] = dict.fromkeys(others, LinkReport(12.5e6, 0.1, 0.001, 1, "bbr"))
        core = self.core
        return self.tell(
            peer,
            Report(
                boot=b"bootboot", sequence=self._sequence, log_number=log_number, chain=core.chain(log_number),
                state_number=-1, state_digest=b"", trainer="training", syncs=lines, suspects={}, eta_s=1.0,
                waiting="", stats={"step": 1.0, "loss": 2.5}, view=core.membership.view, paths=self._paths[peer],
                revision=(core.epoch + 1) * ATTEMPTS_PER_EPOCH,
            ),
        )  # fmt: skip

    def _through_wire(self, record: Record) -> Record:
        """The record as it arrives; of many like it only some really go through the wire format."""
        every = max(1, len(self.names) // SAMPLES)
        if self.count.messages_in % every == 0 or self._unpacked is None:
            frames = encode(pack(record), RUN)
            began = time.perf_counter()
            record = unpack(decode(frames, RUN))
            self._unpacked = sum(map(size_bytes, frames)), time.perf_counter() - began
        self.count.bytes_in += self._unpacked[0]
        self.count.unpack_s += self._unpacked[1]
        return record

    def _handle(self, event: CoordinatorEvent) -> list[Send]:
        events, sent = [event], []
        while events:
            began = time.perf_counter()
            effects = self.core.handle(events.pop(0), self.now)
            self.count.core_s += time.perf_counter() - began
            for effect in effects:
                if isinstance(effect, Send):
                    sent.append(effect)
                elif hasattr(effect, "details"):
                    continue  # for the event log
                else:
                    events.append(Stored())
        self._count_sent(sent)
        return sent

    def _count_sent(self, sent: Sequence[Send]) -> None:
        self.count.messages_out += len(sent)
        for send in sent:
            kind, record = type(send.record), send.record
            # Views differ by a peer at a time: those of nearly the same length are alike.
            every = max(1, len(self.names) // SAMPLES)
            like = len(record.members) // every if isinstance(record, View) else id(record)
            if self._packed.get(kind, (None,))[0] != like:
                began = time.perf_counter()
                frames = encode(pack(record), RUN)
                self._packed[kind] = like, sum(map(size_bytes, frames)), time.perf_counter() - began
            _, size, seconds = self._packed[kind]
            self.count.bytes_out += size
            self.count.pack_s += seconds * (record is not self._before)
            self._before = record

    def take_count(self) -> _Count:
        """What was counted since the last call."""
        count, self.count = self.count, _Count()
        return count


def measure(counts: Sequence[int], syncs: int = 5, say: Callable[[str], None] = lambda line: None) -> list[Json]:
    """For each number of peers: what it costs that all join, and a sync (the median of `syncs`).

    Raises:
        ConfigError: a number that no run can have.
        WantrainError: a sync was not committed.
    """
    for peers in counts:
        if not 1 <= peers <= MAX_PEERS:
            raise ConfigError(f"{peers} peers, allowed are 1 to {MAX_PEERS}", hint="--peers 8,64,512")
    rows = []
    for peers in counts:
        row = _measure_one(peers, syncs)
        rows.append(row)
        say(f"{peers} peers: {1000 * row['sync']['core_s']:.1f} ms per sync in the core")
    return rows


def _measure_one(peers: int, syncs: int) -> Json:
    facts = RunFacts(RUN, "", b"spec", (Stream(STREAM),), "bench", Policy())
    history = History(1, 0, MANIFEST, first_link(RUN, b"s" * 32))
    names = [f"{k:016x}" for k in range(peers)]
    crowd = _Peers(Coordinator(facts, history), names)
    for at, name in enumerate(names):
        if at % JOINS_PER_TICK == 0:
            crowd.now += JOIN_TICK_S
            crowd.tick()
        crowd.tell(name, Hello(PROTOCOL_VERSION, "bench", b"", name[-4:], b"bootboot", "10.0.0.1:29400", ("int8",)))
        crowd.report(name, 0)
    for _ in range(TICKS_PER_SYNC):
        crowd.now += 1.0 / TICKS_PER_SYNC
        crowd.tick()
    joined = crowd.take_count()
    if len(crowd.core.membership.members) != peers:
        raise WantrainError(f"only {len(crowd.core.membership.members)} of {peers} simulated peers are in the view")
    counts = [_sync(crowd, index) for index in range(1, syncs + 1)]
    per_sync = {key: median(getattr(count, key) for count in counts) for key in _Count.__slots__}
    return {"peers": peers, "syncs": syncs, "join": asdict(joined), "sync": per_sync}


def _sync(crowd: _Peers, index: int) -> _Count:
    """One sync as its peers live it: ready, done, applied; and the ticks meanwhile."""
    crowd.now += 1.0 / TICKS_PER_SYNC
    starts = _of(Start, _each(crowd, lambda peer: crowd.report(peer, index - 1, (SyncReport(STREAM, index, "ready"),))))
    if len(starts) != len(crowd.names):
        raise WantrainError(f"sync {index} was started on {len(starts)} of {len(crowd.names)} simulated peers")
    done = SyncReport(STREAM, index, "done", attempt=starts[0].sync.attempt, digest=DIGEST)
    commits = _of(Commit, _each(crowd, lambda peer: crowd.report(peer, index - 1, (done,))))
    if len(commits) != len(crowd.names):
        raise WantrainError(f"sync {index} was committed to {len(commits)} of {len(crowd.names)} simulated peers")
    _each(crowd, lambda peer: crowd.report(peer, index))
    for _ in range(TICKS_PER_SYNC - 1):
        crowd.now += 1.0 / TICKS_PER_SYNC
        crowd.tick()
    return crowd.take_count()


def _each(crowd: _Peers, act: Callable[[str], list[Send]]) -> list[Send]:
    return [send for peer in crowd.names for send in act(peer)]


def _of(kind: type[T], sent: Iterable[Send]) -> list[T]:
    return [send.record for send in sent if isinstance(send.record, kind)]


def table(rows: Sequence[Json]) -> Table:
    """The rows of `measure` for a terminal."""
    shown = Table(title="Coordinator: cost of one sync, and of all peers joining", title_justify="left")
    for heading in (
        "peers",
        "messages in",
        "out",
        "MB in",
        "out",
        "core ms",
        "unpack ms",
        "pack ms",
        "joining: core s",
        "MB out",
    ):
        shown.add_column(heading, justify="right")
    for row in rows:
        sync = row["sync"]
        shown.add_row(
            str(row["peers"]), f"{sync['messages_in']:,.0f}", f"{sync['messages_out']:,.0f}",
            f"{sync['bytes_in'] / 1e6:.3f}", f"{sync['bytes_out'] / 1e6:.3f}", f"{1e3 * sync['core_s']:.1f}",
            f"{1e3 * sync['unpack_s']:.1f}", f"{1e3 * sync['pack_s']:.1f}", f"{row['join']['core_s']:.2f}",
            f"{row['join']['bytes_out'] / 1e6:.1f}",
        )  # fmt: skip
    return shown
