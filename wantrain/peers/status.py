"""The run as one JSON document: made by the coordinator, asked for by `wantrain status` with the owner's key."""

import json
import math
import time
from itertools import islice
from pathlib import Path
from typing import Any

from wantrain.addresses import advertised_address, split_address
from wantrain.config import RunSpec, key_path
from wantrain.errors import UnreachableError
from wantrain.peers.coordinator import Coordinator
from wantrain.peers.membership import PeerState
from wantrain.peers.messages import COORDINATOR, Status, WantSave, WantStatus, pack, unpack
from wantrain.peers.pairing import Pairing
from wantrain.transport.auth import RunKeys
from wantrain.transport.link import Connected, Disconnected, Received
from wantrain.transport.wire import MAX_HEADER_BYTES, PROTOCOL_VERSION
from wantrain.transport.zmq_link import ZmqLink

DOCUMENT_BYTES = MAX_HEADER_BYTES - 1024
"""Of the JSON in one message."""
LISTS = ("peers", "syncs", "links", "relayed", "commits")
"""Parts of the document of which rows may be left out."""
COMMITS_SHOWN = 20
LINKS_SHOWN = 1024
"""Most measured links in one document, which has to fit one message."""
PAIRS_SHOWN = 256
RELAYS_SHOWN = 4
ASK_EVERY_S = 1.0
WAYS = {"both": "direct", "out": "direct, dialled by it only", "in": "direct, dialled by the other only", "": "none"}
"""`LinkReport.way` in words."""


def address_path(run_file: Path) -> Path:
    """Where a running coordinator writes the address that it listens on: beside run.toml."""
    return run_file.with_suffix(".address")


def document(
    core: Coordinator, spec: RunSpec, address: str, uptime_s: float, now: float, *, dropped: int = 0
) -> dict[str, Any]:
    """The state of the run; times are in seconds, digests in hex."""
    names = core.name_of
    commits = []
    for record in core.records[-COMMITS_SHOWN:]:
        timing = dict(core.timing(record.number))
        committed_at = timing.pop("committed_at", None)
        commits.append(
            {
                "number": record.number,
                "stream": record.sync.stream,
                "index": record.sync.index,
                "attempt": record.sync.attempt,
                "contributors": [names(peer) for peer in record.contributors],
                "digest": record.digest.hex(),
                "age_s": None if committed_at is None else round(now - committed_at, 3),
                **timing,
            }
        )
    return {
        "run": {
            "id": spec.run.hex(),
            "name": spec.name,
            "method": spec.method.name,
            "codec": spec.wiring.codec,
            "down": spec.wiring.down or spec.wiring.codec,
            "topology": spec.wire.topology,
            "protocol": PROTOCOL_VERSION,
            "version": core.facts.version,
        },
        "coordinator": {"address": address, "epoch": core.epoch, "uptime_s": round(uptime_s, 3), "dropped": dropped},
        "log": {"head": core.head, "chain": core.chain(core.head).hex()},
        "view": {"number": core.membership.view, "members": list(core.membership.members)},
        "peers": [_peer(core, peer, known, now) for peer, known in core.membership.peers.items()],
        "syncs": [
            {
                "stream": stream,
                "index": current.index,
                "attempt": current.start.sync.attempt if current.start else None,
                "phase": current.phase.value,
                "ready": [names(peer) for peer in current.ready],
                "waiting_for": [names(peer) for peer in current.waiting_for],
                "reason": current.reason,
                "age_s": round(current.age_s(now), 3),
            }
            for stream, current in core.rounds.items()
        ],
        "links": _links(core),
        "relayed": _relayed(core),
        "data": core.leases.figures(),
        "commits": commits,
        "saved": _saved(core),
        "replica_spread": _spread(core),
        "reason": core.reason(now),
    }


def fitting(found: dict[str, Any]) -> str:
    """The document as JSON that fits one message: if need be without the last rows; `left_out` says how many."""
    left_out: dict[str, int] = {}
    while len(text := json.dumps({**found, "left_out": left_out})) > DOCUMENT_BYTES:
        rows = {name: len(json.dumps(found[name])) for name in LISTS if found[name]}
        if not rows:
            break
        longest = max(rows, key=rows.__getitem__)
        keep = 3 * len(found[longest]) // 4
        left_out[longest] = left_out.get(longest, 0) + len(found[longest]) - keep
        found = {**found, longest: found[longest][:keep]}
    return text


def _saved(core: Coordinator) -> dict[str, Any]:
    """Which state is on disk, at whom, which one is due (-1: none) and who has been asked for it."""
    number, peer = core.saves.newest(core.head)
    apart = any(isinstance(current, Pairing) and current.wants_consensus for current in core.rounds.values())
    return {
        "number": number,
        "name": core.name_of(peer),
        "due": core.saves.due(core.head),
        "writer": core.name_of(core.saves.writer),
        "trouble": core.saves.trouble or ("all replicas come to one first, in their next exchange" if apart else ""),
    }


def _spread(core: Coordinator) -> float | None:
    """The replicas' standard deviation, from what the members have seen of their last partners; None without any."""
    reports = [core.membership.peers[peer].report for peer in core.membership.members]
    seen = [report.stats["replica_spread"] for report in reports if report and "replica_spread" in report.stats]
    return math.sqrt(sum(spread**2 for spread in seen) / len(seen)) if seen else None


def _links(core: Coordinator) -> list[dict[str, Any]]:
    """What peers have measured on their ways to each other, as they reported it last."""
    names = core.name_of
    return [
        {
            "from": names(peer),
            "to": names(other),
            "rate_bytes_per_s": round(path.rate_bytes_per_s),
            "rtt_s": round(path.rtt_s, 6),
            "loss": path.loss,
            "lanes": path.lanes,
            "congestion": path.congestion,
            "way": WAYS[path.way],
        }
        for peer, paths in core.links.paths.items()
        for other, path in paths.items()
    ][:LINKS_SHOWN]


def _relayed(core: Coordinator) -> list[dict[str, Any]]:
    """Pairs of live peers without a connection to each other: why, and who passes on what they exchange."""
    names, reach = core.name_of, core.links.reach
    if reach.whole:
        return []
    alive = core.membership.alive
    pairs = ((a, b) for k, a in enumerate(alive) for b in alive[k + 1 :] if reach.apart(a, b))
    return [
        {
            "pair": [names(a), names(b)],
            "why": "both can only dial out" if reach.outbound.issuperset((a, b)) else "no connection between them",
            "through": [names(peer) for peer in islice(reach.relays(a, b, alive), RELAYS_SHOWN)],
        }
        for a, b in islice(pairs, PAIRS_SHOWN)
    ]


def _peer(core: Coordinator, peer: str, known: PeerState, now: float) -> dict[str, Any]:
    report = known.report
    guilty = core.offences.guilty.get(peer)
    late = known.gone_reason if not known.alive else ""
    for stream, current in core.rounds.items():
        if known.alive and peer in current.waiting_for:
            late = f"{stream}#{current.index} waits for it for {current.age_s(now):.1f} s"
    return {
        "peer": peer,
        "name": known.hello.name,
        "state": known.state,
        "address": known.hello.address,
        "log_number": report.log_number if report else -1,
        "chain": report.chain.hex() if report else "",
        "state_number": report.state_number if report else -1,
        "state_digest": report.state_digest.hex() if report else "",
        "trainer": report.trainer if report else "none",
        "last_seen_s": round(now - known.seen_at, 3),
        "waiting": report.waiting if report else "",
        "late": late,
        "rejected": {"times": guilty.times, "reason": guilty.reason} if guilty else None,
        "syncs": [
            {"stream": line.stream, "index": line.index, "phase": line.phase, "attempt": line.attempt}
            for line in (report.syncs if report else ())
        ],
        "stats": dict(report.stats) if report else {},
    }


def query(run_file: Path, timeout_s: float, ask: WantStatus | WantSave = WantStatus()) -> dict[str, Any]:  # noqa: B008
    """Ask the coordinator of a run that was started on this machine for its status, or to have the state saved.

    Raises:
        ConfigError: run.toml or its keys cannot be used.
        UnreachableError: the coordinator does not answer within timeout_s seconds.
    """
    spec = RunSpec.load(run_file)
    keys = RunKeys.load(key_path(run_file))
    hint = f"start it: wantrain coordinator {run_file}"
    try:
        address = address_path(run_file).read_text(encoding="utf-8").strip()
    except OSError:
        if not spec.coordinator.advertise and split_address(spec.coordinator.bind, lowest_port=0)[1] == 0:
            raise UnreachableError(f"no coordinator of {run_file} runs on this machine", hint=hint) from None
        address = advertised_address(spec.coordinator.bind, spec.coordinator.advertise)
    link = ZmqLink(spec.run, key=(keys.status_curve_public, keys.status_curve_secret))
    why = "no answer"
    try:
        link.connect(COORDINATOR, address, keys.curve_public)
        deadline = time.monotonic() + timeout_s
        asked_at = -ASK_EVERY_S
        up = False
        while (now := time.monotonic()) < deadline:
            if up and now - asked_at >= ASK_EVERY_S:
                asked_at = now
                link.send(COORDINATOR, pack(ask))
            for event in link.poll(min(0.1, deadline - now)):
                match event:
                    case Connected():
                        up = True
                    case Disconnected(_, reason):
                        up, why = False, reason
                    case Received(_, _, message) if message.kind == "Status":
                        record = unpack(message)
                        assert isinstance(record, Status)
                        found: dict[str, Any] = json.loads(record.document)
                        return found
    finally:
        link.close()
    raise UnreachableError(f"the coordinator at {address} does not answer within {timeout_s:g} s: {why}", hint=hint)
