"""A peer's process: sockets, tensors, clock and the training command around the peer shell."""

import contextlib
import math
import os
import re
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from wantrain.addresses import advertised_address
from wantrain.config import RunSpec
from wantrain.errors import ConfigError, ModelMismatchError, RefusedError, TrainerError, WantrainError, WireError
from wantrain.metrics.peer_meter import Measured
from wantrain.optimizers.stream import lead
from wantrain.peers.admission import Admission, other_protocol
from wantrain.peers.drops import Drops
from wantrain.peers.engine import Engine
from wantrain.peers.events import LeaveRequested, Progress
from wantrain.peers.guest import Guest
from wantrain.peers.inheritance import Held
from wantrain.peers.messages import (
    COORDINATOR,
    MAX_PATHS,
    Attach,
    Attached,
    Contribute,
    Detach,
    Granted,
    LetGo,
    LinkReport,
    Manifest,
    Record,
    Refused,
    Visitor,
    Waiting,
    Welcome,
    pack,
    unpack,
)
from wantrain.peers.monitor import Monitor, Watch
from wantrain.peers.orphan import find_orphan
from wantrain.peers.own_states import OwnStates, Wishes, own_states
from wantrain.peers.participant import Participant, PeerFacts
from wantrain.peers.patience import Patience
from wantrain.peers.peer import Peer
from wantrain.peers.place import SOCKET, Place, open_place, remove_scratch, scratch_directory, segment_directory
from wantrain.peers.sabotage import KillSwitch
from wantrain.peers.shared_memory import LOCAL_RUN
from wantrain.peers.supervisor import Supervisor
from wantrain.peers.visitors import Visitors
from wantrain.tracking.tracker import Source
from wantrain.transport.auth import Invite
from wantrain.transport.codec import codec
from wantrain.transport.collective import Payload
from wantrain.transport.device import CodecOf, codecs_on, device_of
from wantrain.transport.link import Connected, Disconnected, Done, Dropped, LinkEvent, LinkStats, Received
from wantrain.transport.memory import keep_freed_memory, peak_bytes
from wantrain.transport.zmq_link import ZmqLink, wait

TICK_S = 0.1
UNKNOWN_BYTES_PER_S = 125e3
"""What a link of unknown speed is taken to carry at least: 1 Mbit/s."""
BACKLOG_WAIT_S = 0.002
"""Pause while connections are full."""
USER_VALUES = 40
"""Names from `swarm.log` that go into the report."""
PROBE_S = 2.0
"""How long a newcomer probes links in all."""
GOODBYE_S = 1.0
"""How long what was sent last may take to leave."""

OnEvent = Callable[[dict[str, Any]], None]


def serve(
    invite: str,
    command: tuple[str, ...],
    *,
    name: str | None,
    home: Path | None,
    bind: str | None,
    advertise: str | None,
    max_restarts: int,
    give_up_s: float,
    max_upload_bytes_per_s: float | None = None,
    max_upload_per_peer_bytes_per_s: float | None = None,
    wishes: Wishes = Wishes(),  # noqa: B008 - frozen
    device: str = "cpu",
    watch: Watch = Watch(),  # noqa: B008 - frozen
    owner: int | None = None,
    on_event: OnEvent,
) -> int:
    """Take part in a run until its training command is done, or SIGINT or SIGTERM.

    Args:
        invite: "wantrain://…".
        command: the training program and its arguments; () for scripts that attach by themselves.
        name: of this peer, for people; None: the host's.
        home: directory of this peer's identity; None: one of this machine's for the run.
        bind: "host:port" for other peers; port 0 takes any; None: nowhere, this peer only dials out.
        advertise: "host:port" that other peers are told to dial; None: this host's address and the bound port.
        max_restarts: how often the command may fail in a row and be started again.
        give_up_s: how long the coordinator may be unreachable at first, in seconds.
        max_upload_bytes_per_s: limit of all that this peer sends; None: none.
        max_upload_per_peer_bytes_per_s: limit of what it sends to any one peer; None: none.
        wishes: what to begin with, and where to save the state.
        device: where chunks are encoded and decoded, such as "cuda".
        watch: where its numbers go.
        owner: without a command: id of the process with which this one ends; None: scripts come and go.
        on_event: gets everything that happens.

    Returns:
        The exit code: 0 if the peer left as it should.

    Raises:
        WantrainError: see `wantrain.errors`.
    """
    parsed = Invite.parse(invite)
    initial = wishes.find_initial()
    codecs = codecs_on(device_of(device), lambda why: on_event({"event": "device-failed", "reason": why}))
    with (
        _ended_by_sigterm(),
        open_place(parsed.run, home, name) as place,
        scratch_directory(place, segment_directory()) as directory,
        contextlib.ExitStack() as closing,
    ):
        source = Source(parsed.run.hex(), place.identity.peer, place.name, place.path)
        monitor = closing.enter_context(Monitor(watch, source, on_event))
        key = (place.identity.curve_public, place.identity.curve_secret)
        members: dict[bytes, str] = {}
        link = ZmqLink(
            parsed.run,
            bind=bind,
            key=key,
            admit=members.get,
            max_upload_bytes_per_s=max_upload_bytes_per_s,
            max_upload_per_peer_bytes_per_s=max_upload_per_peer_bytes_per_s,
        )
        closing.callback(lambda: link.close(GOODBYE_S))
        address = "" if bind is None else advertised_address(link.address, advertise or "")
        on_event({"event": "listening", "address": address, "name": place.name, "peer": place.identity.peer})
        admission = Admission(link, parsed, place, address, on_event, initial=initial is not None)
        welcome = admission.run(give_up_s)
        spec = _spec_of(parsed, welcome)
        states = own_states(
            place.path, spec, welcome, wishes, initial, lambda event, details: on_event({"event": event, **details})
        )
        closing.callback(states.disk.close)
        stays = not command and owner is None
        daemon = PeerDaemon(
            link, place, spec, welcome, admission, members, directory, states, on_event, monitor, stays=stays
        )
        closing.callback(daemon.close)
        daemon.codecs = codecs
        if command:
            daemon.supervise(command, max_restarts)
        else:
            daemon.receive_guests(owner)
        return daemon.run(admission.events)


def _spec_of(invite: Invite, welcome: Welcome) -> RunSpec:
    spec = RunSpec.parse(welcome.spec, "the run spec from the coordinator")
    if (spec.run, spec.owner) != (invite.run, invite.owner_key):
        raise RefusedError(
            "the coordinator's run spec is not that of the invite", hint="ask the run's owner for a new invite"
        )
    return spec


@contextlib.contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Before the loop takes signals itself, SIGTERM ends the process, which first removes what it has made."""

    def end(number: int, _: object) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class PeerDaemon:
    """The peer's surroundings (see `wantrain.peers.peer.Surroundings`) and its loop."""

    def __init__(
        self,
        link: ZmqLink,
        place: Place,
        spec: RunSpec,
        welcome: Welcome,
        admission: Admission,
        members: dict[bytes, str],
        directory: Path,
        states: OwnStates,
        on_event: OnEvent,
        monitor: Monitor,
        *,
        stays: bool = False,
    ) -> None:
        keep_freed_memory()
        torch.set_num_threads(1)
        self.link = link
        self.spec = spec
        self._on_event = on_event
        self._monitor = monitor
        self._drops = Drops()
        self._members = members
        self._visitors = Visitors(link, members)
        self._directory = directory
        self._trainer_link = ZmqLink(LOCAL_RUN, bind=self._trainer_address)
        self._trainer_connection = b""
        self._to_trainer: deque[Record] = deque()
        self._supervisor: Supervisor | Guest | None = None
        self._kill_switch = KillSwitch.from_environment()
        self._engine: Engine | None = None
        self.codecs: CodecOf = codec
        """Codecs by name, which may compute on a device."""
        self._segments = 0
        self._commons = 0
        self._exit: tuple[int, str, str] | None = None
        self._failure: WantrainError | None = None
        self._turned_away = ""
        """Why the present training process was refused."""
        self._signals, self._told = 0, False
        self._was_current = False
        self._patience = Patience()
        """With which the run's state is waited for."""
        self._pace = (0.0, 0.0, 0.0)
        self._unprobed: list[str] = []
        """Peers that were reached and of whose link nothing may be known."""
        self._probe_until = math.inf
        facts = PeerFacts(
            me=place.identity.peer,
            run=spec.run,
            hello=replace(admission.hello, spec_digest=spec.digest),
            streams=spec.streams,
            heartbeat_s=spec.liveness.heartbeat_s,
            keep_bytes=spec.log.keep_mb * 2**20,
            keep_updates=spec.log.keep_updates,
            saved=states.saved,
            initial=states.initial,
            saves_at_end=spec.checkpoint.every > 0,
        )
        self.peer = Peer(Participant(facts), self, states.disk, stays=stays)
        self.peer.receive(COORDINATOR, welcome, (), time.monotonic())
        # Now that the options are known: whether they come to the same here as at the coordinator.
        self.send(COORDINATOR, facts.hello)

    def supervise(self, command: Sequence[str], max_restarts: int) -> None:
        """Start the training command with the loop, unless the process that a killed daemon had started still runs."""
        environment = {"WANTRAIN_DAEMON": self._trainer_address}
        self._supervisor = Supervisor(command, environment, max_restarts, self._directory)
        self._adopt_orphan(self._supervisor)

    def receive_guests(self, owner: int | None) -> None:
        """Let scripts attach that are started elsewhere; `owner`: the only one, with which this process ends."""
        self._supervisor = Guest(owner, self._directory)
        self._adopt_orphan(self._supervisor)
        self.note("ready", {"daemon": self._trainer_address})

    @property
    def _trainer_address(self) -> str:
        return f"ipc://{self._directory / SOCKET}"

    def _adopt_orphan(self, supervisor: Supervisor | Guest) -> None:
        orphan = find_orphan(self._directory)
        if orphan is not None:
            now = time.monotonic()
            supervisor.adopt(orphan, now)
            self.peer.trainer_starting(now)
            self.note("orphan", {"pid": orphan.pid, "reason": "the training process has outlived its former daemon"})

    # ---- the loop

    def run(self, first: Sequence[LinkEvent] = ()) -> int:
        """Take part until the end; returns the exit code.

        Raises:
            WantrainError: the run or the trainer ended this peer.
        """
        before = {number: signal.signal(number, self._signalled) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            for event in first:
                self._take(event)
            tick_at, busy = 0.0, False
            while self._exit is None:
                pause_s = 0.0 if busy else BACKLOG_WAIT_S if self.peer.backlog else TICK_S / 2
                wait((self.link, self._trainer_link), pause_s)
                events = self.link.poll(0.0)
                for event in events:
                    self._take(event)
                said = self._trainer_link.poll(0.0)
                for event in said:
                    self._take_from_trainer(event)
                now = time.monotonic()
                if now >= tick_at:
                    tick_at = now + TICK_S
                    self._tick(now)
                busy = self.peer.pump(now)
                if self.peer.core.held_back:
                    busy = self.peer.save_step(now) or busy
                busy = self.peer.common_step() or busy
                self._flush_to_trainer()
                busy = busy or (not events and not said and self.peer.idle_work(now))
            return self._end(*self._exit)
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _signalled(self, number: int, _: object) -> None:
        self._signals += 1
        if self._signals > 1:
            if self._supervisor is not None:
                self._supervisor.kill()
            remove_scratch(self._directory, segment_directory())
            os._exit(128 + number)

    def _tick(self, now: float) -> None:
        if self._signals:
            if not self._told:
                self._told = True
                self.note("leaving", {"reason": "finishing what is in flight; signal again to leave at once"})
            self.peer.handle(LeaveRequested("told to by SIGINT or SIGTERM"), now)
        self._watch_trainer(now)
        self._visitors.tick(now)
        self._probe(now)
        if self.peer.core.complete != self._was_current:
            self._was_current = self.peer.core.complete
            details = {"number": self.peer.core.applied, "fetched_bytes": self.peer.fetched_bytes}
            self.note("current" if self._was_current else "catching-up", details)
        told = self._supervisor is not None and self._supervisor.speaks
        if self._patience.runs_out(not (self.peer.core.complete or told), now):
            self.note("waiting", {"reason": self.peer.core.waiting(now)})
        progress = self._progress(now)
        self.peer.handle(progress, now)
        self.peer.tick(now)
        if self._monitor.due(now):
            self._monitor.measure(self._measured(progress), self.peer.values, now)

    def _probe(self, now: float) -> None:
        """Measure links of which nothing is known, one after another, while nothing else is sent; then never again."""
        if self._unprobed and not self.peer.backlog and now < self._probe_until:
            self._probe_until = min(self._probe_until, now + PROBE_S)
            self.link.probe(self._unprobed.pop(0))

    def _watch_trainer(self, now: float) -> None:
        supervisor = self._supervisor
        if supervisor is None or self._signals or self._exit is not None:
            return
        if supervisor.ended(now):
            self.note("trainer-exit", {"reason": supervisor.describe_exit(), "restarts": supervisor.restarts})
            self._trainer_connection = b""
            self._to_trainer.clear()
            self.peer.trainer_gone(now)
            if self._failure is not None:
                self.peer.handle(LeaveRequested(self._failure.message), now)
            elif supervisor.exit_code == 0 or self.peer.finished:
                self.peer.handle(LeaveRequested("training finished"), now)
            elif not supervisor.restart_later(now):
                times = f", {supervisor.restarts + 1} times in a row" if supervisor.restarts else ""
                reason = f"the training command {supervisor.describe_exit()}{times}"
                reason += f"; this peer had turned it away: {self._turned_away}" if self._turned_away else ""
                self._fail(TrainerError(reason, hint="see its output above"), now)
            self._turned_away = ""
        try:
            if supervisor.start_if_due(now):
                self.peer.trainer_starting(now)
        except OSError as error:
            hint = "check the program's name and path: wantrain peer '<invite>' -- python train.py"
            self._fail(ConfigError(f"the training command cannot be started: {error}", hint=hint), now)

    def _fail(self, failure: WantrainError, now: float) -> None:
        """Leave the run, and end with this error."""
        self._failure = failure
        self.peer.handle(LeaveRequested(failure.message), now)

    def _end(self, code: int, reason: str, hint: str) -> int:
        supervisor = self._supervisor
        self.note("left", {"reason": reason})
        now = time.monotonic()
        self._monitor.measure(self._measured(self._progress(now)), self.peer.values, now)
        if supervisor is not None:
            if code == 0 and self._failure is None and isinstance(supervisor, Supervisor):
                self._outlive(supervisor)
            supervisor.end()
        if self._failure is not None:
            raise self._failure
        if code:
            raise RefusedError(reason, hint=hint)
        return 0

    def _outlive(self, supervisor: Supervisor) -> None:
        """The run is over for this peer: let the script go on until it ends by itself, or a signal comes."""
        hint = "let the script end here; to take part again, start `wantrain peer` again"
        left = pack(Refused("left", "this peer has left the run", hint))
        while supervisor.running and not self._signals:
            wait((self._trainer_link,), TICK_S)
            for event in self._trainer_link.poll(0.0):
                if isinstance(event, Received) and isinstance(self._said_by_trainer(event), Attach):
                    self._trainer_link.reply(event.connection, left)
            supervisor.ended(time.monotonic())

    def close(self) -> None:
        """Let go of memory and the trainer's socket."""
        if self._supervisor is not None:
            self._supervisor.end()
        self._trainer_link.close(GOODBYE_S)
        if self._engine is not None:
            self._engine.close()

    # ---- what comes in

    def _take(self, event: LinkEvent) -> None:
        now = time.monotonic()
        if self._visitors.concerns(event):
            return
        match event:
            case Received(source, _, message):
                try:
                    record = unpack(message)
                except WireError as error:
                    self.note("dropped", {"peer": source, "reason": error.message})
                    return
                if isinstance(record, Visitor):
                    if source == COORDINATOR:
                        self._visitors.announced(record, now)
                    return
                self.peer.receive(source, record, message.buffers, now)
            case Connected(peer):
                self.peer.link_changed(peer, True, "", now)
                if peer != COORDINATOR:
                    self._unprobed.append(peer)
            case Disconnected(peer, reason):
                self.peer.link_changed(peer, False, reason, now)
            case Dropped(source, reason):
                self.note("dropped", {"peer": source, "reason": reason})
                if source == COORDINATOR and reason.startswith("protocol "):
                    self._fail(other_protocol(reason), now)

    def _said_by_trainer(self, event: LinkEvent) -> Record | None:
        """What a trainer says by this event, if it is anything."""
        if isinstance(event, Dropped):
            self.note("dropped", {"peer": "trainer", "reason": event.reason})
        if not isinstance(event, Received):
            return None
        try:
            return unpack(event.message)
        except WireError as error:
            self.note("dropped", {"peer": "trainer", "reason": error.message})
            return None

    def _take_from_trainer(self, event: LinkEvent) -> None:
        now = time.monotonic()
        record = self._said_by_trainer(event)
        if not isinstance(event, Received) or record is None:
            return
        guest = self._supervisor if isinstance(self._supervisor, Guest) else None
        if isinstance(record, Attach) and guest is not None and not guest.admits(record.pid):
            hint = "end that one first, or start a peer of its own for this one"
            busy = Refused("busy", "another process trains at this peer", hint)
            self._trainer_link.reply(event.connection, pack(busy))
            return
        if isinstance(record, Attach):
            if self._supervisor is not None:
                self._supervisor.attached(record.pid)
            if self._trainer_connection != event.connection:  # else it asks again, as it has no answer yet
                self._to_trainer.clear()
                self.note("attached", {"pid": record.pid})
            self._trainer_connection = event.connection
        if event.connection == self._trainer_connection:
            if isinstance(record, Contribute):
                self._monitor.meter.contributed(record.stream, now)
            self.peer.from_trainer(record, now)
            if guest is not None and isinstance(record, Detach | LetGo):
                guest.let_go("it has left" if isinstance(record, Detach) else "it has let go without leaving")

    def _progress(self, now: float) -> Progress:
        engine = self._engine
        segment = engine.segment if engine is not None else None
        steps_left, step_s, own_steps = segment.progress() if segment is not None else (0, 0.0, 0)
        stats = dict(list(self.peer.values.items())[:USER_VALUES])
        counters = self.link.stats().values()
        stats["step"] = float(own_steps)
        first = lead(self.spec.streams)
        stats["round"] = 0.0 if first is None else float(self.peer.core.indices[first.name])
        stats["bytes_sent"] = float(sum(counter.bytes_sent for counter in counters))
        stats["bytes_received"] = float(sum(counter.bytes_received for counter in counters))
        stats["fetched_bytes"] = float(self.peer.fetched_bytes)
        stats["pause_s"] = self.peer.pause_s
        if self.peer.spread is not None:
            stats["replica_spread"] = self.peer.spread
        stats["dropped"], stats["unasked"] = float(self._drops.total), float(self.peer.unasked)
        stats["peak_bytes"] = float(peak_bytes())
        if engine is not None:
            stats["model_bytes"] = float(engine.model_bytes)
            stats["tensor_bytes"] = float(engine.resident_bytes)
        stats["tokens_per_s"] = self._tokens_per_s(stats.get("tokens", 0.0), now)
        ways = self.link.ways()
        eta_s = steps_left * step_s if step_s > 0 else -1.0
        return Progress(eta_s, stats, self._paths(ways), frozenset(ways), max(step_s, 0.0))

    def _measured(self, progress: Progress) -> Measured:
        core, segment = self.peer.core, self._engine.segment if self._engine is not None else None
        return Measured(
            stats=progress.stats,
            links=self.link.stats(),
            names={peer: member.name for peer, member in core.members.items()},
            step_s=progress.step_s,
            global_step=segment.global_step if segment is not None else 0,
            log_number=core.applied,
            members=sum(member.current for member in core.members.values()) + core.complete,
        )

    def _paths(self, ways: Mapping[str, str]) -> dict[str, LinkReport]:
        """What the link has measured on its way to each peer, and who has dialled whom."""
        stats = self.link.stats()
        paths = {}
        for peer in self.peer.core.members:
            known = stats.get(peer, LinkStats())
            if peer in ways or known.rtt_s or known.rate_bytes_per_s:
                paths[peer] = LinkReport(
                    known.rate_bytes_per_s, known.rtt_s, known.loss, known.lanes, known.congestion, ways.get(peer, "")
                )
        return dict(islice(paths.items(), MAX_PATHS))

    def _tokens_per_s(self, tokens: float, now: float) -> float:
        """Tokens per second over windows of a few seconds."""
        since, before, rate = self._pace
        if tokens < before or not before:  # the first count may be of earlier processes, too
            self._pace = (now, tokens, 0.0)
        elif now - since >= 3.0:
            self._pace = (now, tokens, (tokens - before) / (now - since))
        return round(self._pace[2] or rate, 1)

    # ---- Surroundings

    def send(self, to: str, record: Record) -> bool:
        return self.link.send(to, pack(record))

    def send_bulk(self, to: str, record: Record, payloads: tuple[Payload, ...], done: Done | None = None) -> bool:
        if self._kill_switch is not None:
            self._kill_switch.sending(record)
        return self.link.send_bulk(to, pack(record, *payloads), done)

    def bulk_bytes(self, to: str) -> int:
        return self.link.bulk_bytes(to)

    def clears_s(self, to: str) -> float:
        known = self.link.stats().get(to)
        if known is None or not known.in_flight_bytes:
            return 0.0
        return known.in_flight_bytes / (known.rate_bytes_per_s or UNKNOWN_BYTES_PER_S)

    def under_way(self) -> bool:
        return any(known.in_flight_bytes for known in self.link.stats().values())

    def dial(self, peer: str, address: str, curve_key: bytes) -> None:
        for key in [key for key, known in self._members.items() if known == peer]:
            del self._members[key]
        self._members[curve_key] = peer
        if address:
            try:
                self.link.connect(peer, address, curve_key)
            except ConfigError as error:
                self.note("bad-address", {"peer": peer, "address": address, "reason": error.message})
        else:
            self.link.disconnect(peer)  # it had one before

    def hang_up(self, peer: str) -> None:
        for key in [key for key, known in self._members.items() if known == peer]:
            del self._members[key]
        self.link.disconnect(peer)

    def open_model(self, manifest: Manifest) -> Engine:
        if self._engine is not None:  # its memory is wanted
            self._engine.close()
        self._engine = Engine(manifest, self.spec.streams, self.codecs)
        return self._engine

    def open_segment(self, tensors: Any) -> str:
        while True:
            self._segments += 1
            path = segment_directory() / f"{self._directory.name}-{self._segments}"
            if not path.exists():  # a former daemon may have left some
                tensors.open_segment(path)
                return str(path)

    def resume_segment(self, tensors: Any, path: str) -> Held | None:
        if not re.fullmatch(rf"{re.escape(str(segment_directory() / self._directory.name))}-[0-9]+", path):
            self.note("resume-failed", {"reason": f"{path} is not of this place"})
            return None
        try:
            held: Held = tensors.resume_segment(path)
        except WantrainError as error:
            self.note("resume-failed", {"reason": error.message})
            return None
        return held

    def open_common(self, tensors: Any) -> tuple[str, dict[str, int]]:
        for left in segment_directory().glob(f"{self._directory.name}-phi-*"):
            left.unlink(missing_ok=True)  # of a trainer that has gone before it took it, or of a former daemon
        self._commons += 1
        path = segment_directory() / f"{self._directory.name}-phi-{self._commons}"
        return str(path), tensors.open_common(path)

    def tell_trainer(self, record: Record) -> None:
        if not self._trainer_connection:
            return
        if isinstance(record, Attached):
            record = replace(record, wait_ceiling_s=self.spec.sync.wait_ceiling_s)
        # A grant must not get lost: from then on trainer and peer would count differently.
        if self._to_trainer and isinstance(record, Waiting):
            return
        self._to_trainer.append(record)
        self._flush_to_trainer()

    def _flush_to_trainer(self) -> None:
        """Send what the trainer's connection takes; the rest with the next turn of the loop."""
        while self._to_trainer and self._trainer_connection:
            record = self._to_trainer[0]
            if not self._trainer_link.reply(self._trainer_connection, pack(record)):
                return
            self._to_trainer.popleft()
            if isinstance(record, Granted):
                segment = self._engine.segment if self._engine is not None else None
                if segment is not None:
                    segment.bump()

    def trainer_refused(self, refusal: Refused) -> None:
        self._turned_away = refusal.reason
        if refusal.code == "model" and isinstance(self._supervisor, Supervisor):
            self._failure = ModelMismatchError(refusal.reason, hint=refusal.hint)

    def note(self, event: str, details: dict[str, Any]) -> None:
        self._monitor.meter.event(event, details, time.monotonic())
        if event in ("dropped", "rejected"):
            times = self._drops.count(event, details.get("peer", ""), time.monotonic())
            if not times:
                return
            details = {**details, "times": times}
        self._on_event({"event": event, **details})

    def exit(self, code: int, reason: str, hint: str) -> None:
        self._exit = (code, reason, hint)
