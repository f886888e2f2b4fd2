"""How long an all-reduce will take by what was measured, and the topology that `auto` chooses by it; pure.

With N contributors, R receivers, U bytes of a whole vector up and D down in C chunks, m seconds of work for a message:

direct: two hops. A peer that sends to several at once shares its uplink, so the capacity of the uplink is the largest
rate seen on any of its links (their sum would be the other bound; for the downlink alike), and no link of its own gets
more than was measured on it:

    T = max rtt/2 + max rtt/2 + 2 m                           parts to the owners, results to all
      + (N - 1) U / C / slowest download of an owner          its first chunk is there
      + max(times of `shares.Load`, bytes of a link / rate)   all bytes
      + most messages of a peer * m

ring: 2 (N - 1) hops, each over one link. The first chunk passes them one after another; the rest follows in its wake,
as fast as the slowest link lets it. Link i to i+1 carries all parts but those owned by i, all results but those of i+1:

    T = sum over the longest way of a chunk of (rtt/2 + m + bytes of a chunk / rate)
      + max over links of ((1 - s_i) U + (1 - s_(i+1)) D - (U + D) / C) / rate
      + messages of a link * m

Times are predictions for comparing topologies, good to a factor, not promises.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from math import floor, log
from statistics import median
from typing import TypeAlias

from wantrain.errors import ConfigError
from wantrain.transport.partition import split_chunks
from wantrain.transport.reach import Group, Reach
from wantrain.transport.ring_order import ring_order
from wantrain.transport.shares import Load

MESSAGE_S = 1e-4
"""What a message costs its sender beyond its bytes: the core's decision, frames, a system call."""
MESSAGE_BYTES = 64 << 10
"""A message has at least so many bytes if there are as many to send."""
RING_GAIN = 0.9
"""A ring has to promise at most this part of the direct time: every hop encodes anew, and each peer can hold up all."""
RING_PEERS = 64
"""An order is looked for up to here; beyond, its hops cost more than any order gains."""
RATE_STEP = 1.1
"""Rates closer than this ratio count as equal in the order of a ring, so that noise does not outweigh round trips."""

Pair: TypeAlias = tuple[str, str]
"""(from, to)."""


@dataclass(frozen=True, slots=True)
class Pace:
    """What was measured on the way from one peer to another."""

    rate_bytes_per_s: float
    """0 if unknown."""
    rtt_s: float
    """0 if unknown."""


@dataclass(frozen=True, slots=True)
class Choice:
    """How an attempt is to be done."""

    topology: str
    contributors: tuple[str, ...]
    """In the order of the sum, or of the ring. Who is left out is reached by no owner this time."""
    receivers: tuple[str, ...]
    """Who only gets the result."""
    shards: tuple[int, ...]
    """Chunks that each contributor owns."""
    predicted_s: float
    """0 if unknown."""
    reason: str
    """For people."""
    slowest_s: float = 0.0
    """What one message may take on the slowest link; 0 if unknown."""
    codec: str = ""
    """Codec of the way up if the run leaves it to each sync, else ""."""


def slowest_message_s(peers: Collection[str], links: Mapping[Pair, Pace], chunk_bytes: float) -> float:
    """How long one message may take on the slowest measured link among these peers, in seconds; 0 if none is measured.

    Its sender may be sending one to each of the others at the same time, and a message has at least one chunk.
    """
    size_bytes = (len(peers) - 1) * max(chunk_bytes, MESSAGE_BYTES)
    return max(
        (
            size_bytes / pace.rate_bytes_per_s + pace.rtt_s
            for (a, b), pace in links.items()
            if pace.rate_bytes_per_s > 0 and a in peers and b in peers
        ),
        default=0.0,
    )


@dataclass(frozen=True, slots=True)
class _Paces:
    """The measured paths with something in place of what is unknown."""

    links: Mapping[Pair, Pace]
    uploads: Mapping[str, float]
    downloads: Mapping[str, float]
    rate_bytes_per_s: float
    """The usual one; 0 if not a single one is known."""
    rtt_s: float

    def rate(self, a: str, b: str) -> float:
        """Of a link: as measured, or else what its ends are known to reach."""
        pace = self.links.get((a, b))
        if pace is not None and pace.rate_bytes_per_s > 0:
            return pace.rate_bytes_per_s
        return min(self.uploads.get(a, self.rate_bytes_per_s), self.downloads.get(b, self.rate_bytes_per_s))

    def one_way_s(self, a: str, b: str) -> float:
        """Half of a round trip, measured in either direction."""
        trips = [self.links[pair].rtt_s for pair in ((a, b), (b, a)) if pair in self.links]
        return min((trip for trip in trips if trip > 0), default=self.rtt_s) / 2


def choose(
    topology: str,
    contributors: tuple[str, ...],
    receivers: tuple[str, ...],
    *,
    chunks: int,
    up_bytes: float,
    down_bytes: float,
    links: Mapping[Pair, Pace],
    reach: Reach,
    per_hop: bool,
    message_s: float = MESSAGE_S,
    passed: Mapping[str, int] | None = None,
) -> Choice:
    """Plan one attempt; without any measured link it is direct, in equal shards.

    Args:
        topology: "direct", "ring" or "pair", or "auto" for direct or ring.
        contributors: at least one.
        receivers: who only get the result; pairs are planned without them, a ring if they are fewer than those in it.
        chunks: of the vector.
        up_bytes: of a whole vector as parts.
        down_bytes: of a whole vector as results.
        links: what was measured, by (from, to).
        reach: which pairs cannot reach each other.
        per_hop: whether the codec bears being applied at each hop, so that `auto` may choose a ring.
        message_s: what a message costs its sender beyond its bytes.
        passed: how often in a row each peer was left out because no owner reached it.

    Raises:
        ConfigError: an unknown topology.
    """
    if topology not in ("auto", "direct", "ring", "pair"):
        raise ConfigError(f"unknown topology {topology!r}", hint="choose one of auto, direct, ring, pair")
    task = _Task(contributors, receivers, chunks, up_bytes, down_bytes, _paces(links), reach, message_s)
    if topology == "pair":
        return Choice("pair", contributors, (), task.equal, 0.0, "pair, as asked for")
    if topology != "direct" and len(receivers) >= len(contributors):
        return task.direct(passed or {}).choice("as a ring would leave as many without the update")
    if topology == "ring":
        ring = task.ring()
        return task.direct(passed or {}).choice(f"as {ring.but}") if ring.gap else ring.choice("as asked for")
    direct = task.direct(passed or {})
    if topology == "direct":
        return direct.choice("as asked for")
    if not per_hop:
        return direct.choice("as the codec would lose too much at every hop of a ring")
    if not 3 <= len(contributors) <= RING_PEERS:
        return direct.choice(f"as always with {len(contributors)} contributors")
    if not direct.but and not direct.predicted_s:
        return direct.choice("as no link has been measured")
    ring = task.ring()
    if ring.but:
        return direct.choice(f"as {ring.but}")
    if direct.but:
        return ring.choice(f"as {direct.but}")
    if ring.predicted_s < RING_GAIN * direct.predicted_s:
        return ring.choice(f"as direct would take {direct.predicted_s:.2g} s")
    return direct.choice(f"as a ring would take {ring.predicted_s:.2g} s")


@dataclass(frozen=True, slots=True)
class _Draft:
    topology: str
    contributors: tuple[str, ...]
    shards: tuple[int, ...]
    predicted_s: float
    but: str = ""
    """Why it will not work well."""
    receivers: tuple[str, ...] = ()
    gap: bool = False
    """Whether there are neighbours in it that cannot reach each other."""

    def choice(self, reason: str) -> Choice:
        about = f" in about {self.predicted_s:.2g} s" if self.predicted_s else ""
        though = f", though {self.but}" if self.but else ""
        reason = f"{self.topology}{about}, {reason}{though}"
        return Choice(self.topology, self.contributors, self.receivers, self.shards, self.predicted_s, reason)


@dataclass(frozen=True, slots=True)
class _Task:
    contributors: tuple[str, ...]
    receivers: tuple[str, ...]
    chunks: int
    up_bytes: float
    down_bytes: float
    paces: _Paces
    reach: Reach
    message_s: float

    @property
    def equal(self) -> tuple[int, ...]:
        return split_chunks(self.chunks, [1.0] * len(self.contributors))

    def direct(self, passed: Mapping[str, int]) -> _Draft:
        """Shards by what the links carry; who cannot reach everybody owns nothing, so that owners relay."""
        group = self.reach.group(self.contributors, self.receivers, passed)
        left_out = len(self.contributors) - len(group.contributors)
        but = (
            f"{left_out} of {len(self.contributors)} are left out: no contributor reaches everybody" if left_out else ""
        )
        peers = group.contributors
        load = Load(
            self.up_bytes,
            self.down_bytes,
            len(group.receivers),
            tuple(self.paces.uploads.get(peer, 0.0) for peer in peers),
            tuple(self.paces.downloads.get(peer, 0.0) for peer in peers),
        )
        shards = load.shards(self.chunks, [k for k, peer in enumerate(peers) if peer in group.owners])
        return _Draft("direct", peers, shards, self._direct_s(load, shards, group), but, group.receivers)

    def _direct_s(self, load: Load, shards: tuple[int, ...], group: Group) -> float:
        count, others = len(shards), len(shards) - 1 + len(group.receivers)
        if not self.chunks or not self.paces.rate_bytes_per_s or not others:
            return 0.0
        share = {peer: shard / self.chunks for peer, shard in zip(group.contributors, shards, strict=True)}
        owners = {peer for peer in group.contributors if share[peer]}
        everybody = {*group.contributors, *group.receivers}
        usual = self.paces.rate_bytes_per_s
        first_s = (count - 1) * self.up_bytes / self.chunks / min(self.paces.downloads.get(p, usual) for p in owners)
        moved_s = max(load.times_s([share[peer] for peer in group.contributors]))
        for peer in group.receivers:
            moved_s = max(moved_s, self.down_bytes / self.paces.downloads.get(peer, usual))
        parts_s, results_s = [0.0], [0.0]
        for (a, b), pace in self.paces.links.items():
            if a not in everybody or b not in everybody:
                continue
            if a in share and b in owners:
                parts_s.append(pace.rtt_s / 2)
            if a in owners:
                results_s.append(pace.rtt_s / 2)
            if pace.rate_bytes_per_s > 0:
                part = share.get(b, 0.0) * self.up_bytes if a in share else 0.0
                moved_s = max(moved_s, (part + share.get(a, 0.0) * self.down_bytes) / pace.rate_bytes_per_s)
        latency_s = sum(
            max(trips) or self.paces.rtt_s / 2 for trips in ((parts_s, results_s) if count > 1 else (results_s,))
        )
        messages = max(self.chunks + shard * (others - 1) for shard in shards)
        return latency_s + first_s + moved_s + (2 + messages) * self.message_s

    def ring(self) -> _Draft:
        """Equal shards, in the order whose slowest link is fastest."""
        peers = self.contributors
        if len(peers) > RING_PEERS:
            but = f"no order is looked for among more than {RING_PEERS}"
            gap = any(map(self.reach.apart, peers, (*peers[1:], peers[0])))
            return _Draft("ring", peers, self.equal, self._ring_s(peers), but, gap=gap)
        rates = [[0.0 if a == b or self.reach.apart(a, b) else self._step(a, b) for b in peers] for a in peers]
        order = ring_order(rates, [[self._hop_s(a, b) for b in peers] for a in peers])
        if order is None:
            but = "no ring avoids all pairs that cannot reach each other"
            return _Draft("ring", peers, self.equal, self._ring_s(peers), but, gap=True)
        peers = tuple(peers[k] for k in order)
        return _Draft("ring", peers, self.equal, self._ring_s(peers))

    def _step(self, a: str, b: str) -> float:
        """The rate in steps of RATE_STEP; 1 where none is known at all."""
        rate = self.paces.rate(a, b)
        return float(RATE_STEP ** floor(log(rate, RATE_STEP))) if rate > 0 else 1.0

    def _hop_s(self, a: str, b: str) -> float:
        rate = self.paces.rate(a, b)
        chunk_s = (self.up_bytes + self.down_bytes) / 2 / self.chunks / rate if self.chunks and rate else 0.0
        return self.paces.one_way_s(a, b) + chunk_s

    def _ring_s(self, ring: Sequence[str]) -> float:
        if not self.chunks or not self.paces.rate_bytes_per_s or len(ring) < 2:
            return 0.0
        nexts = [*ring[1:], ring[0]]
        hops = [self._hop_s(a, b) + self.message_s for a, b in zip(ring, nexts, strict=True)]
        # Round twice, but for the link by which the owner is left in the first round and entered in the second.
        way_s = 2 * sum(hops) - min(before + after for before, after in zip([hops[-1], *hops[:-1]], hops, strict=True))
        share = [shard / self.chunks for shard in self.equal]
        moved_s, one = 0.0, (self.up_bytes + self.down_bytes) / self.chunks
        for a, b, s_a, s_b in zip(ring, nexts, share, [*share[1:], share[0]], strict=True):
            carried = (1 - s_a) * self.up_bytes + (1 - s_b) * self.down_bytes
            moved_s = max(moved_s, max(carried - one, 0.0) / self.paces.rate(a, b))
        return way_s + moved_s + 2 * self.chunks * self.message_s


def _paces(links: Mapping[Pair, Pace]) -> _Paces:
    uploads: dict[str, float] = {}
    downloads: dict[str, float] = {}
    for (a, b), pace in links.items():
        if pace.rate_bytes_per_s > 0:
            uploads[a] = max(uploads.get(a, 0.0), pace.rate_bytes_per_s)
            downloads[b] = max(downloads.get(b, 0.0), pace.rate_bytes_per_s)
    rates = [pace.rate_bytes_per_s for pace in links.values() if pace.rate_bytes_per_s > 0]
    trips = [pace.rtt_s for pace in links.values() if pace.rtt_s > 0]
    return _Paces(links, uploads, downloads, median(rates or [0.0]), median(trips or [0.0]))
