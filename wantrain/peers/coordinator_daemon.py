"""The coordinator's process: sockets, database and clock around the core."""

import fcntl
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgpack

from wantrain import __version__
from wantrain.addresses import advertised_address, split_address
from wantrain.config import RunSpec, key_path, store_path
from wantrain.errors import AddressInUseError, ConfigError, InviteError, RefusedError, StoreError, WireError
from wantrain.interfaces import bind_address
from wantrain.metrics.coordinator_meter import CoordinatorMeter
from wantrain.metrics.endpoint import Endpoint
from wantrain.metrics.families import COORDINATOR
from wantrain.peers import coordinator as co
from wantrain.peers.drops import Drops
from wantrain.peers.messages import (
    Commit,
    CommitRecord,
    Enroll,
    Enrolled,
    Examine,
    Genesis,
    Record,
    Refused,
    Status,
    TensorSpec,
    WantSave,
    WantStatus,
    Welcome,
    pack,
    unpack,
)
from wantrain.peers.sabotage import CoordinatorKillSwitch
from wantrain.peers.status import address_path, document, fitting
from wantrain.peers.store import InviteRow, PeerRow, Store
from wantrain.peers.timing import Policy
from wantrain.peers.visits import Visits, visitor
from wantrain.transport.auth import Invite, RunKeys, check_proof, peer_id
from wantrain.transport.link import Dropped, LinkEvent, Received
from wantrain.transport.wire import PROTOCOL_VERSION, Message
from wantrain.transport.zmq_link import ZmqLink

TICK_S = 0.1
MEASURE_EVERY_S = 1.0
OWNER = "owner"
"""Whom the link authenticates by the key of `wantrain status`."""
INVITED = "invite:"
"""Prefix of who is authenticated by the key of an invite; may only enroll."""

OnEvent = Callable[[dict[str, Any]], None]


def serve(
    run_file: Path,
    *,
    bind: str | None,
    advertise: str | None,
    interface: str | None = None,
    uses: int,
    expires_s: float,
    metrics: str = "",
    on_event: OnEvent,
) -> None:
    """Run the coordinator of a run until SIGINT or SIGTERM.

    Args:
        run_file: run.toml; keys and database are beside it.
        bind: "host:port" to listen on instead of the spec's.
        advertise: "host:port" that the invite names instead of the spec's.
        interface: network interface whose address to listen at.
        uses: how many peers may use the invite that is printed.
        expires_s: how long it holds, in seconds.
        metrics: where to serve metrics, "HOST:PORT"; "" for nowhere.
        on_event: gets everything that happens; first {"event": "listening", "address", "invite", "run"}.

    Raises:
        ConfigError, StoreError, AddressInUseError: see `wantrain.errors`.
    """
    spec, keys = owned_run(run_file)
    where = bind_address(bind or spec.coordinator.bind, interface)
    with _alone(run_file), Store(store_path(run_file)) as store, ExitStack() as closing:
        store.bind_run(spec.digest, spec.to_toml())
        endpoint = Endpoint(metrics, COORDINATOR) if metrics else None
        if endpoint is not None:
            closing.callback(endpoint.close)
            on_event({"event": "metrics", "address": endpoint.address})
        daemon = CoordinatorDaemon(spec, keys, store, where, on_event, endpoint)
        try:
            address_path(run_file).write_text(daemon.link.address + "\n", encoding="utf-8")
            host, port = split_address(advertised_address(daemon.link.address, advertise or spec.coordinator.advertise))
            invite = issue_invite(store, keys, spec.run, host, port, uses=uses, expires_s=expires_s)
            on_event(
                {"event": "listening", "address": daemon.link.address, "invite": str(invite), "run": spec.run.hex()}
            )
            daemon.run()
        finally:
            daemon.link.close(linger_s=0.5)
            address_path(run_file).unlink(missing_ok=True)


def owned_run(run_file: Path) -> tuple[RunSpec, RunKeys]:
    """A run's spec, and the keys that prove that it is ours.

    Raises:
        ConfigError: a file cannot be read, or the keys are those of another run.
    """
    spec = RunSpec.load(run_file)
    keys = RunKeys.load(key_path(run_file))
    if keys.owner_public != spec.owner:
        raise ConfigError(
            f"{key_path(run_file)} is not the key of the owner that {run_file} names",
            hint="bring back the run.key that `wantrain init` wrote together with this run.toml",
        )
    return spec, keys


def issue_invite(
    store: Store, keys: RunKeys, run: bytes, host: str, port: int, *, uses: int, expires_s: float
) -> Invite:
    """Sign an invite and write down the key by which its holder is admitted."""
    expires_unix = int(time.time() + expires_s)
    invite = Invite.issue(keys, run, host, port, expires_unix, uses=uses)
    store.put_invite(InviteRow(invite.ident, invite.curve_key_pair()[0], expires_unix, uses))
    return invite


@contextmanager
def _alone(run_file: Path) -> Iterator[None]:
    """Hold the run's lock: two coordinators would make two histories."""
    path = run_file.with_suffix(".lock")
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise AddressInUseError(
                f"another process is the coordinator of {run_file}", hint="stop that one first"
            ) from None
        yield


@dataclass(slots=True)
class _Clock:
    """Monotonic seconds since the daemon's start."""

    started_at: float

    def now(self) -> float:
        return time.monotonic() - self.started_at


def run_facts(spec: RunSpec) -> co.RunFacts:
    """What a coordinator's core has to know of the run spec."""
    policy = Policy(
        quorum=spec.sync.quorum,
        grace_floor_s=spec.sync.grace_floor_s,
        grace_ceiling_s=spec.sync.grace_ceiling_s,
        deadline_floor_s=spec.sync.deadline_floor_s,
        deadline_ceiling_s=spec.sync.deadline_ceiling_s,
        heartbeat_s=spec.liveness.heartbeat_s,
        suspect_floor_s=spec.liveness.suspect_floor_s,
        suspect_ceiling_s=spec.liveness.suspect_ceiling_s,
    )
    return co.RunFacts(spec.run, spec.to_toml(), spec.digest, spec.streams, __version__, policy, spec.checkpoint.every)


class CoordinatorDaemon:
    """Link, store and core in one loop."""

    def __init__(
        self, spec: RunSpec, keys: RunKeys, store: Store, bind: str, on_event: OnEvent, endpoint: Endpoint | None = None
    ) -> None:
        self.spec = spec
        self.store = store
        self._kill_switch = CoordinatorKillSwitch.from_environment()
        self._on_event = on_event
        self._meter = CoordinatorMeter()
        self._endpoint = endpoint
        self._drops, self._unsent = Drops(), Drops()
        self._clock = _Clock(time.monotonic())
        self._rows = {row.curve_key: row for row in store.peers()}
        self._row_of = {row.peer: row for row in self._rows.values()}
        self._packed: tuple[Record, Message] | None = None
        self._connections: dict[str, bytes] = {}
        """Where each peer's welcomed process is: another one with a copy of its identity may be connected too."""
        self._keys = keys
        self._stopping = False
        self.link = ZmqLink(spec.run, bind=bind, key=(keys.curve_public, keys.curve_secret), admit=self._admit)
        self.core = co.Coordinator(run_facts(spec), self._history())
        self._visits = Visits(spec, store)

    def _history(self) -> co.History:
        store = self.store
        epoch, (view, members), genesis = store.begin_epoch(), store.last_view(), store.genesis()
        names = {peer: row.name for peer, row in self._row_of.items()}
        if genesis is None:
            return co.History(epoch, view, leases=store.leases(), names=names)
        lines = store.commits(1, store.head())
        return co.History(
            epoch,
            view,
            _manifest_from(genesis.manifest),
            genesis.chain,
            tuple(_record_from(line) for _, line in lines),
            store.leases(),
            names,
            tuple(members),
        )

    # ---- the loop

    def run(self) -> None:
        """Serve until told to stop by SIGINT or SIGTERM."""
        before = {number: signal.signal(number, self._stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            tick_at = measure_at = 0.0
            while not self._stopping:
                for event in self.link.poll(TICK_S):
                    self._take(event)
                if (now := self._clock.now()) >= tick_at:
                    tick_at = now + TICK_S
                    self._handle(co.Tick())
                if self._endpoint is not None and now >= measure_at:
                    measure_at = now + MEASURE_EVERY_S
                    self._meter.measured(self.core, self._drops.total)
                    self._endpoint.snapshot = self._meter.ledger.snapshot()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        self._on_event({"event": "stopped"})

    def _stop(self, *_: object) -> None:
        if self._stopping:
            raise KeyboardInterrupt
        self._stopping = True

    def _take(self, event: LinkEvent) -> None:
        match event:
            case Received(source, connection, message):
                try:
                    record = unpack(message)
                except WireError as error:
                    self._dropped(source, error.message)
                    return
                self._received(source, connection, record)
            case Dropped(source, reason, connection):
                self._dropped(source, reason)
                if source and reason.startswith("protocol "):
                    # It cannot read this either, but what it cannot read names our version to it.
                    refusal = Refused("protocol", f"the run speaks protocol {PROTOCOL_VERSION}")
                    self.link.reply(connection, pack(refusal))

    def _dropped(self, source: str, reason: str) -> None:
        times = self._drops.count("dropped", source, self._clock.now())
        if times:
            self._on_event({"event": "dropped", "peer": source, "reason": reason, "times": times})

    def _received(self, source: str, connection: bytes, record: Record) -> None:
        if source == OWNER:
            if isinstance(record, WantSave):
                self._handle(co.SaveWanted())
            if isinstance(record, WantSave | WantStatus):
                self._reply(connection, Status(fitting(self._document())), source)
        elif isinstance(record, Examine):
            self._examine(source, connection, record)
        elif source.startswith(INVITED):
            if isinstance(record, Enroll):
                self.link.reply(connection, pack(self._enroll(source, record)))
        else:
            self._handle(co.FromPeer(source, record, self._row_of[source].curve_key), source, connection)

    def _examine(self, source: str, connection: bytes, record: Examine) -> None:
        invite = "" if not source.startswith(INVITED) else source.removeprefix(INVITED)
        answer = self._visits.examine(invite, record, self.core, self._clock.now(), int(time.time()))
        if answer is None:
            return
        self._on_event({"event": "examined", "reason": answer.invite or "the invite is good"})
        for member in answer.members:
            self._send(member.peer, visitor(record), b"")
        self._reply(connection, answer, source)

    def _reply(self, connection: bytes, record: Record, to: str) -> None:
        """Answer on the very connection that asked, or say why that cannot be."""
        try:
            self.link.reply(connection, pack(record))
        except WireError as error:
            self._unsendable(to, record, error)

    def _unsendable(self, to: str, record: Record, error: WireError) -> None:
        """It is over a limit: a mistake of ours, which must not end the run."""
        times = self._unsent.count("unsendable", to, self._clock.now())
        if times:
            reason = f"{type(record).__name__}: {error.message}"
            self._on_event({"event": "unsendable", "peer": to, "reason": reason, "times": times})

    def _handle(self, event: co.CoordinatorEvent, source: str = "", connection: bytes = b"") -> None:
        events = deque([event])
        while events:
            for effect in self.core.handle(events.popleft(), self._clock.now()):
                match effect:
                    case co.Send(to, record):
                        self._send(to, record, connection if to == source else b"")
                        if self._kill_switch is not None:
                            self._kill_switch.sent(record)
                    case co.Announce(name, details):
                        self._meter.event(name, details)
                        self._on_event({"event": name, **details})
                    case _:
                        events.append(self._persist(effect))

    def _send(self, to: str, record: Record, asked_on: bytes) -> None:
        if asked_on and isinstance(record, Welcome):
            self._connections[to] = asked_on
        connection = asked_on or self._connections.get(to, b"")
        try:
            replied = bool(connection) and self.link.reply(connection, self._message(record))
            if not (replied or asked_on):  # a late Hello may have named a connection that was broken by then
                self.link.send(to, self._message(record))
        except WireError as error:
            self._unsendable(to, record, error)

    def _message(self, record: Record) -> Message:
        """The record packed; once for all who get the same one after another."""
        if self._packed is None or self._packed[0] is not record:
            self._packed = (record, pack(record))
        return self._packed[1]

    def _document(self) -> dict[str, Any]:
        now = self._clock.now()
        return document(self.core, self.spec, self.link.address, now, now, dropped=self._drops.total)

    # ---- who is admitted

    def _admit(self, key: bytes) -> str | None:
        if key == self._keys.status_curve_public:
            return OWNER
        if (row := self._rows.get(key)) is not None:
            return row.peer
        try:
            invite = self.store.invite_by_curve_key(key)
        except StoreError as error:
            self._on_event({"event": "store-failed", "reason": error.message})
            return None
        # Also one that has expired: it is told so, with this clock's time, and gets nothing else.
        return None if invite is None else INVITED + invite.ident

    def _enroll(self, source: str, record: Enroll) -> Enrolled | Refused:
        peer = peer_id(record.identity_key)
        try:
            invite = Invite.from_bytes(record.invite)
            invite.check(self.spec.run, self.spec.owner, int(time.time()))
            if INVITED + invite.ident != source:
                raise InviteError("this connection was opened with another invite")
            if not check_proof(record.identity_key, record.curve_key, self.spec.run, invite.secret, record.proof):
                raise InviteError("the newcomer does not prove that the identity is its own")
            if not self.store.use_invite(invite.ident, peer):
                raise InviteError(
                    f"this invite was for {invite.uses} peer{'s' * (invite.uses > 1)}, all used",
                    hint="ask the run's owner for another: wantrain invite run.toml",
                )
            row = PeerRow(peer, record.name, record.identity_key, record.curve_key, invite.ident)
            self.store.put_peer(row)
        except (InviteError, RefusedError, StoreError) as error:
            self._on_event({"event": "refused", "peer": peer, "name": record.name, "reason": error.message})
            return Refused("invite", error.message, error.hint)
        self._rows = {key: known for key, known in self._rows.items() if known.peer != peer}
        self._rows[row.curve_key] = self._row_of[row.peer] = row
        self._on_event({"event": "enrolled", "peer": peer, "name": record.name})
        return Enrolled(peer)

    # ---- the database

    def _persist(self, effect: co.Persist) -> co.Stored | co.StoreFailed:
        number = effect.record.number if isinstance(effect, co.PersistCommit) else 0
        if self._kill_switch is not None:
            self._kill_switch.at("persist", number)
        answer = self._write(effect)
        if self._kill_switch is not None:
            self._kill_switch.at("persisted", number)
        return answer

    def _write(self, effect: co.Persist) -> co.Stored | co.StoreFailed:
        store = self.store
        try:
            match effect:
                case co.PersistGenesis(manifest, state_digest, chain, leases):
                    store.put_genesis(_body(Genesis(manifest, state_digest)), state_digest, chain, leases)
                case co.PersistDropGenesis():
                    store.drop_genesis()
                case co.PersistCommit(record, leases):
                    store.append_commit(record.number, _body(Commit((record,), record.number)), leases)
                case co.PersistRewind(after, reason, leases):
                    store.truncate_commits(after, reason, leases)
                case co.PersistLeases(rows):
                    store.put_leases(rows)
                case co.PersistView(number, members):
                    store.put_view(number, members)
        except StoreError as error:
            return co.StoreFailed(error.message)
        return co.Stored()


def _body(record: Record) -> bytes:
    packed: bytes = msgpack.packb(pack(record).body)
    return packed


def _record_from(line: bytes) -> CommitRecord:
    commit = _unpacked("Commit", line)
    assert isinstance(commit, Commit)
    return commit.records[0]


def _manifest_from(body: bytes) -> tuple[TensorSpec, ...]:
    genesis = _unpacked("Genesis", body)
    assert isinstance(genesis, Genesis)
    return genesis.manifest


def _unpacked(kind: str, body: bytes) -> Record:
    try:
        return unpack(Message(kind, msgpack.unpackb(body)))
    except (ValueError, WireError) as error:
        raise StoreError(
            f"a line of the commit log cannot be read: {error}", hint="bring back run.db from a backup"
        ) from None
