"""What `wantrain doctor` has found, in words: each finding ok, a warning or a failure, with the next step; pure."""

from collections.abc import Iterable
from dataclasses import dataclass
from math import ceil

from wantrain.peers.messages import Examined

CLOCK_WARN_S = 60
"""Clocks that differ by more are named: nothing but the expiry of invites depends on them."""
PROCESS_BYTES = 220 << 20
"""What a daemon takes beside the model: Python, PyTorch and buffers."""
MODEL_COPIES = 4
"""fp32 sizes of the model that a daemon holds: phi, the outer momentum, and two in memory shared with the trainer."""
SHARED_COPIES = 2
HOME_BYTES = 16 << 20
"""For the identity, and some room."""
FILES = 100
"""Descriptors of a daemon without any other peer."""
FILES_PER_PEER, MOST_FILES_PER_PEER = 20, 150
"""With one bulk connection each way, and with as many as a long path gets."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One line. `level` is ok, warn or fail; `next` is the next step unless it is ok."""

    check: str
    level: str
    text: str
    next: str = ""


@dataclass(frozen=True, slots=True)
class Met:
    """The way to one live peer, as it was measured."""

    name: str
    address: str
    """Where it can be dialled, "" if it only dials out."""
    way: str
    """"both", "out", "in" or "", as `Link.ways` has it."""
    rate_bytes_per_s: float = 0.0
    """Towards it; 0 if unknown."""
    rtt_s: float = 0.0
    through: tuple[str, ...] = ()
    """Who reaches both it and us, if there is no connection."""


@dataclass(frozen=True, slots=True)
class Room:
    """What this host has free."""

    memory_bytes: int
    """-1 if it cannot be told."""
    shared_bytes: int
    shared_path: str
    home_bytes: int
    home_path: str
    files: int
    """Descriptors that a process may open."""


def of_clock(now_unix: int, theirs_unix: int) -> Finding:
    """This clock against the coordinator's."""
    apart = now_unix - theirs_unix
    words = f"this clock is {abs(apart)} s {'ahead of' if apart > 0 else 'behind'} the coordinator's"
    if abs(apart) <= CLOCK_WARN_S:
        return Finding("clock", "ok", words if apart else "this clock and the coordinator's agree")
    return Finding(
        "clock", "warn", f"{words}: invites expire by the coordinator's", "set the clock, for example by timedatectl"
    )


def of_invite(answer: Examined, *, known: bool) -> Finding:
    """What the coordinator says of the invite; `known`: it has admitted this machine's identity already."""
    if not answer.invite:
        if known:
            return Finding("invite", "ok", "not needed: the run knows this machine's identity already")
        uses = f"{answer.uses_left} use{'s' * (answer.uses_left != 1)}"
        return Finding("invite", "ok", f"good, with {uses} left; this check takes none")
    return Finding(
        "invite", "fail", f"refused: {answer.invite}", "ask the run's owner for another: wantrain invite run.toml"
    )


def of_codecs(answer: Examined, version: str) -> Finding:
    """Whether this version can take part."""
    if answer.missing_codecs:
        missing = ", ".join(answer.missing_codecs)
        return Finding(
            "version",
            "fail",
            f"the run uses codecs that this wantrain {version} does not have: {missing}",
            f"install wantrain {answer.version}, as at the coordinator",
        )
    if answer.version != version:
        text = f"wantrain {version} here, {answer.version} at the coordinator, with the same protocol and codecs"
        return Finding("version", "ok", text)
    return Finding("version", "ok", f"wantrain {version} on both sides, and all of the run's codecs")


def of_members(met: Iterable[Met], address: str) -> list[Finding]:
    """One finding for each live peer; `address` is where this machine would be dialled, "" for nowhere."""
    findings = [_of_member(peer, address) for peer in met]
    return findings or [Finding("peers", "ok", "nobody takes part yet: there is no peer to reach")]


def _of_member(peer: Met, address: str) -> Finding:
    measured = [f"round trip {1e3 * peer.rtt_s:.3g} ms"] if peer.rtt_s else []
    measured += [f"{_rate(peer.rate_bytes_per_s)} towards it"] if peer.rate_bytes_per_s else []
    figures = "".join(f", {figure}" for figure in measured)
    if peer.way == "both":
        return Finding("peer", "ok", f"{peer.name}: direct, either side can dial{figures}")
    if peer.way == "out":
        why = f", it cannot dial {address}" if address else ""
        return Finding("peer", "ok", f"{peer.name}: direct, only this machine can dial{why}{figures}")
    if peer.way == "in":
        why = f"; {peer.address} cannot be dialled from here" if peer.address else ""
        return Finding("peer", "ok", f"{peer.name}: direct, only it can dial{why}{figures}")
    can = f"{peer.address} cannot be dialled from here" if peer.address else "it only dials out"
    could = f"it cannot dial {address}" if address else "this machine only dials out"
    step = "forward a port to this machine and name it: --bind 0.0.0.0:7701 --advertise PUBLIC_HOST:7701"
    if peer.through:
        return Finding("peer", "warn", f"{peer.name}: relayed through {', '.join(peer.through)}: {can}, {could}", step)
    return Finding("peer", "fail", f"{peer.name}: no way at all: {can}, {could}, nobody reaches both", step)


def of_room(room: Room, model_bytes: int, peers: int) -> list[Finding]:
    """Memory, shared memory, disk and descriptors for a model of this size (0: unknown) and so many other peers."""
    findings = []
    if not model_bytes:
        findings.append(
            Finding("model", "warn", "the run has no model yet, its size is unknown", "give it by --size-mb (as fp32)")
        )
    else:
        findings.append(Finding("model", "ok", f"{_size(model_bytes)} as fp32"))
    needed = MODEL_COPIES * model_bytes + PROCESS_BYTES
    if room.memory_bytes < 0:
        findings.append(Finding("memory", "warn", "free memory cannot be told here", f"see to {_size(needed)} of it"))
    else:
        where = "for the daemon, besides the trainer"
        findings.append(_enough("memory", room.memory_bytes, needed, where, "free some, or add memory"))
    shared = SHARED_COPIES * model_bytes
    step = "make it larger: mount -o remount,size=… /dev/shm (in a container: --shm-size)"
    findings.append(_enough("shared memory", room.shared_bytes, shared, f"in {room.shared_path}", step))
    step = "free some, or choose another directory by --home"
    findings.append(_enough("disk", room.home_bytes, HOME_BYTES, f"in {room.home_path}", step))
    least, most = FILES + FILES_PER_PEER * peers, FILES + MOST_FILES_PER_PEER * peers
    words = f"a process may open {room.files} files"
    if room.files < most:
        level = "fail" if room.files < least else "warn"
        words += f", {least} to {most} are needed for {peers} other peers, by the length of the paths"
        findings.append(Finding("files", level, words, f"raise it: ulimit -n {most}"))
    else:
        findings.append(Finding("files", "ok", words))
    return findings


def _enough(check: str, free: int, needed: int, where: str, step: str) -> Finding:
    words = f"{_size(free)} free {where}, {_size(needed)} needed"
    return Finding(check, "ok", words) if free >= needed else Finding(check, "fail", words, step)


def _size(size_bytes: int) -> str:
    scale, unit = next(((s, u) for s, u in ((10**9, "GB"), (10**6, "MB")) if size_bytes >= s), (10**6, "MB"))
    return f"{ceil(10 * size_bytes / scale) / 10:g} {unit}"


def _rate(bytes_per_s: float) -> str:
    bits = 8 * bytes_per_s
    return f"{bits / 1e9:.3g} Gbit/s" if bits >= 1e9 else f"{bits / 1e6:.3g} Mbit/s"
