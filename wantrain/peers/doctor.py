"""`wantrain doctor`: what a peer would meet on its way into a run, looked at without becoming one."""

import platform
import resource
import shutil
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from wantrain import __version__
from wantrain.addresses import advertised_address
from wantrain.errors import ConfigError, InviteError, WantrainError, WireError
from wantrain.interfaces import PEER_BIND
from wantrain.peers.findings import Finding, Met, Room, of_clock, of_codecs, of_invite, of_members, of_room
from wantrain.peers.messages import COORDINATOR, Examine, Examined, Member, pack, unpack
from wantrain.peers.place import segment_directory, state_directory
from wantrain.transport.auth import Identity, Invite
from wantrain.transport.codec.names import NAMES
from wantrain.transport.link import Connected, Disconnected, Dropped, LinkStats, Received
from wantrain.transport.reach import Reach
from wantrain.transport.zmq_link import ZmqLink

TCP_S = 5.0
"""How long the coordinator's port may take to answer."""
ANSWER_S = 8.0
"""How long the coordinator may take to answer."""
MEET_S = 4.0
"""How long peers may take to be dialled, and to dial."""
PROBE_S = 2.0
"""How long links are measured in all."""
AGAIN_S = 1.5

_HOPED = {(True, True): "both", (True, False): "out", (False, True): "in", (False, False): ""}
"""The way to a peer by whether it can be dialled, and whether we can."""
_LISTEN = "see --bind, --advertise, --interface and --outbound-only"


@dataclass(slots=True)
class _Talk:
    """The conversation with the coordinator."""

    answer: Examined | None = None
    key_proven: bool = False
    trouble: str = "no answer"
    refused: bool = False


@dataclass(slots=True)
class Doctor:
    """Looks at everything in order; `findings` may be read while it does.

    Args:
        invite: "wantrain://…".
        bind: where a peer would listen, "host:port"; None: nowhere.
        advertise: "host:port" that others would be told; None: this host's address and the bound port.
        home: where the peer would keep its identity; None: this machine's for the run.
        model_bytes: size of the model in fp32; 0: what the run says.
        device: where chunks would be encoded; the CPU has nothing to look at.
    """

    invite: str
    bind: str | None = PEER_BIND
    advertise: str | None = None
    home: Path | None = None
    model_bytes: int = 0
    device: str = "cpu"
    findings: list[Finding] = field(default_factory=list)

    def run(self) -> Iterator[Finding]:
        """The findings, each as soon as it is there."""
        for finding in self._run():
            self.findings.append(finding)
            yield finding

    def _run(self) -> Iterator[Finding]:
        try:
            invite = Invite.parse(self.invite)
        except InviteError as error:
            yield Finding("invite", "fail", error.message, error.hint)
            yield from self._host(Path(), 0)
            return
        expires = datetime.fromtimestamp(invite.expires_unix, UTC)
        yield Finding(
            "invite", "ok", f"readable: for {invite.address}, valid until {expires:%Y-%m-%d %H:%M} UTC, not altered"
        )
        home = self.home or state_directory() / invite.run.hex() / "peer-1"
        reached = True
        for finding in _dialled(invite):
            reached = reached and finding.level != "fail"
            yield finding
        peers = 0
        if reached:
            for finding in self._meet(invite, home):
                peers += finding.check == "peer"
                yield finding
        yield from self._host(home, peers)

    # ---- the run

    def _meet(self, invite: Invite, home: Path) -> Iterator[Finding]:
        visitor = Identity.create()
        members: dict[bytes, str] = {}
        keys = (visitor.curve_public, visitor.curve_secret)
        address = ""
        try:
            link = ZmqLink(invite.run, bind=self.bind, key=keys, admit=members.get)
        except WantrainError as error:
            yield Finding("listen", "fail", error.message, error.hint or _LISTEN)
            link = ZmqLink(invite.run, key=keys)
        try:
            try:
                if link.address:
                    address = advertised_address(link.address, self.advertise or "")
                    yield Finding("listen", "ok", f"a peer here listens at {link.address}, others dial {address}")
                elif self.bind is None:
                    yield Finding("listen", "ok", "nowhere: a peer here only dials out")
            except WantrainError as error:
                yield Finding("listen", "fail", error.message, error.hint or _LISTEN)
            yield from self._ask(link, invite, home, visitor, address, members)
        finally:
            link.close()

    def _ask(
        self, link: ZmqLink, invite: Invite, home: Path, visitor: Identity, address: str, members: dict[bytes, str]
    ) -> Iterator[Finding]:
        examine = Examine(__version__, invite.to_bytes(), NAMES, visitor.curve_public, address)
        identity = _enrolled(home)
        talk = _talk(link, invite, invite.curve_key_pair(), examine)
        known = identity is not None and (talk.refused or (talk.answer is not None and bool(talk.answer.invite)))
        if known and identity is not None:
            talk = _talk(link, invite, (identity.curve_public, identity.curve_secret), examine)
        if talk.key_proven:
            yield Finding("key", "ok", f"the coordinator at {invite.address} is the one that the invite names")
        answer = talk.answer
        if answer is None:
            yield _unanswered(invite, talk)
            return
        yield of_clock(int(time.time()), answer.now_unix)
        yield of_invite(answer, known=known)
        yield of_codecs(answer, __version__)
        self.model_bytes = self.model_bytes or answer.model_bytes
        if answer.invite:
            return
        others = [member for member in answer.members if identity is None or member.peer != identity.peer]
        yield from of_members(_measure(link, others, answer, members), address)

    # ---- this host

    def _host(self, home: Path, peers: int) -> Iterator[Finding]:
        yield from of_room(_room(home), self.model_bytes, peers)
        try:
            torch = metadata.version("torch")
        except metadata.PackageNotFoundError:
            yield Finding("software", "fail", "PyTorch is not installed", "pip install torch")
            return
        yield Finding("software", "ok", f"Python {platform.python_version()}, PyTorch {torch}, {platform.system()}")
        if self.device != "cpu":
            yield _of_device(self.device)


def _of_device(name: str) -> Finding:
    """Whether there is such a device. PyTorch is loaded only for this, as that takes seconds."""
    from wantrain.transport.device import described, device_of

    try:
        return Finding("device", "ok", f"chunks would be encoded on {described(device_of(name))}")
    except ConfigError as error:
        return Finding("device", "fail", error.message, error.hint or "")


def _dialled(invite: Invite) -> Iterator[Finding]:
    """Whether the coordinator's name is known and its port answers."""
    try:
        found = socket.getaddrinfo(invite.host, invite.port, type=socket.SOCK_STREAM)
    except OSError as error:
        yield Finding(
            "address", "fail", f"{invite.host} is not known: {error.strerror or error}", "check this machine's DNS"
        )
        return
    where = found[0][4][0]
    yield Finding("address", "ok", f"{invite.host} is {where}" if where != invite.host else f"{where} needs no name")
    begin = time.monotonic()
    try:
        with socket.create_connection((invite.host, invite.port), timeout=TCP_S):
            yield Finding("port", "ok", f"{invite.address} answers after {1e3 * (time.monotonic() - begin):.3g} ms")
    except OSError as error:
        why = "no answer" if isinstance(error, TimeoutError) else error.strerror or str(error)
        yield Finding(
            "port",
            "fail",
            f"nobody answers at {invite.address}: {why}",
            f"is `wantrain coordinator` running there, and do firewalls let this machine through to {invite.address}?",
        )


def _talk(link: ZmqLink, invite: Invite, key: tuple[bytes, bytes], examine: Examine) -> _Talk:
    """Ask the coordinator, under this CURVE key."""
    talk = _Talk()
    link.disconnect(COORDINATOR)
    link.connect(COORDINATOR, invite.address, invite.server_key, client_key=key)
    deadline, asked_at, up = time.monotonic() + ANSWER_S, -AGAIN_S, False
    while talk.answer is None and (now := time.monotonic()) < deadline:
        if up and now - asked_at >= AGAIN_S:
            asked_at = now
            link.send(COORDINATOR, pack(examine))
        for event in link.poll(0.1):
            match event:
                case Connected(peer) if peer == COORDINATOR:
                    up = talk.key_proven = True
                    talk.trouble = "connected, but no answer"
                case Disconnected(peer, reason) if peer == COORDINATOR:
                    up, talk.trouble = False, reason
                    if reason.startswith(("refused", "handshake")):
                        talk.refused = reason.startswith("refused")
                        talk.key_proven = talk.refused
                        return talk
                case Dropped(source, reason) if source == COORDINATOR:
                    talk.trouble = reason
                    if reason.startswith("protocol "):
                        return talk
                case Received(source, _, message) if source == COORDINATOR:
                    try:
                        record = unpack(message)
                    except WireError as error:
                        talk.trouble = f"its answer cannot be read: {error.message}"
                        return talk
                    if isinstance(record, Examined):
                        talk.answer = record
    return talk


def _unanswered(invite: Invite, talk: _Talk) -> Finding:
    """Why the coordinator has not told anything."""
    again = "ask the run's owner for a new invite: wantrain invite run.toml"
    if talk.refused:
        try:
            invite.check(invite.run, invite.owner_key, int(time.time()))
        except InviteError as error:
            return Finding("invite", "fail", error.message, again)
        return Finding("invite", "fail", f"the coordinator at {invite.address} does not know this invite", again)
    if talk.trouble.startswith("handshake"):
        text = f"{invite.address} is not the coordinator that the invite names: {talk.trouble}"
        return Finding("key", "fail", text, f"the run may have moved or been made anew; {again}")
    if talk.trouble.startswith("protocol "):
        text = f"the coordinator speaks another protocol: {talk.trouble} (wantrain {__version__})"
        return Finding("version", "fail", text, "install the same version of wantrain on both sides")
    text = f"the coordinator at {invite.address} says nothing: {talk.trouble}"
    return Finding("key", "fail", text, "is something else listening there? look at the coordinator's output")


def _measure(link: ZmqLink, others: Sequence[Member], answer: Examined, members: dict[bytes, str]) -> list[Met]:
    """Dial all peers and be dialled by them, then measure as many links as there is time for."""
    for member in others:
        members[member.curve_key] = member.peer
        if member.address:
            link.connect(member.peer, member.address, member.curve_key)
    hoped = {m.peer: _HOPED[bool(m.address), bool(link.address)] for m in others}
    deadline = time.monotonic() + MEET_S
    while time.monotonic() < deadline and any(link.ways().get(peer, "") != way for peer, way in hoped.items()):
        link.poll(0.05)
    ways = link.ways()
    deadline = time.monotonic() + PROBE_S
    for member in others:
        if member.peer in ways and time.monotonic() < deadline:
            link.probe(member.peer)
            while link.probe(member.peer) and time.monotonic() < deadline:
                link.poll(0.01)
                known = link.stats().get(member.peer, LinkStats())
                if known.rate_bytes_per_s and known.rtt_s:
                    break
    ways, stats = link.ways(), link.stats()
    reach = Reach.of((peer, other) for peer, others_apart in answer.apart.items() for other in others_apart)
    met = []
    for member in others:
        known = stats.get(member.peer, LinkStats())
        relays = [m.name for m in others if m.peer in ways and not reach.apart(m.peer, member.peer)]
        way = ways.get(member.peer, "")
        through = () if way else tuple(relays[:4])
        met.append(Met(member.name, member.address, way, known.rate_bytes_per_s, known.rtt_s, through))
    return met


def _enrolled(home: Path) -> Identity | None:
    """The identity that a peer here would use, if the run has admitted it."""
    if not (home / "enrolled").exists():
        return None
    try:
        return Identity.load(home / "identity")
    except WantrainError:
        return None


def _room(home: Path) -> Room:
    there = home.absolute()
    while not there.exists():
        there = there.parent
    shared = segment_directory()
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    room, disk = shutil.disk_usage(shared).free, shutil.disk_usage(there).free
    return Room(_free_memory_bytes(), room, str(shared), disk, str(there), files)


def _free_memory_bytes() -> int:
    """Memory that a new process may take, by the kernel and by a container's limit; -1 if neither says."""
    free = []
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                free.append(1024 * int(line.split()[1]))
        group = Path("/sys/fs/cgroup")
        limit = (group / "memory.max").read_text(encoding="ascii").strip()
        if limit != "max":
            free.append(max(0, int(limit) - int((group / "memory.current").read_text(encoding="ascii"))))
    except (OSError, ValueError):
        pass
    return min(free, default=-1)
