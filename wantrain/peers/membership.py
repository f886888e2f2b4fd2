"""Who is alive and who is in the view: pure core over hellos, reports, hints of others and the passing of time."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from wantrain.peers.messages import Hello, Member, Report
from wantrain.peers.timing import PHI_HINTED, Arrivals, Policy

HINTED_HEARTBEATS = 2.5
"""Heartbeats that a peer may miss once another peer has seen its connection break."""
FORMER_KEPT = 8
"""Earlier processes of a peer that are remembered, so that what comes from them late changes nothing."""


# ---- events


@dataclass(frozen=True, slots=True)
class Greeted:
    """A peer with an admitted key said Hello."""

    peer: str
    hello: Hello
    curve_key: bytes


@dataclass(frozen=True, slots=True)
class Heard:
    """A peer reported. `current`: it holds the run's state, and is at most a few lines behind the head of the log."""

    peer: str
    report: Report
    current: bool


@dataclass(frozen=True, slots=True)
class Left:
    """A peer said goodbye."""

    peer: str


@dataclass(frozen=True, slots=True)
class Outdated:
    """A peer's state was found not to be the run's; it has to fetch it anew."""

    peer: str


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


MembershipEvent = Greeted | Heard | Left | Outdated | Tick


# ---- effects


@dataclass(frozen=True, slots=True)
class Joined:
    """A peer is there (again) and catches up."""

    peer: str


@dataclass(frozen=True, slots=True)
class Gone:
    """A peer is out of the view."""

    peer: str
    reason: str


@dataclass(frozen=True, slots=True)
class ViewChanged:
    """The view has a new number."""

    number: int


@dataclass(frozen=True, slots=True)
class IdentityInUse:
    """A second process uses the identity of a live peer; it must be refused."""

    peer: str


MembershipEffect = Joined | Gone | ViewChanged | IdentityInUse


@dataclass(slots=True)
class PeerState:
    """What is known of one peer; `state` is joining, member, lost or left."""

    hello: Hello
    curve_key: bytes
    state: str
    seen_at: float
    arrivals: Arrivals
    report: Report | None = None
    hinted_at: float | None = None
    gone_reason: str = ""
    former: tuple[bytes, ...] = ()
    """Boots of earlier processes of this peer, the last ones."""

    @property
    def alive(self) -> bool:
        return self.state in ("joining", "member")


class Membership:
    """The live peers and the numbered view. The order of the view is the order of becoming a member."""

    def __init__(self, policy: Policy, view: int, former: Sequence[str] = ()) -> None:
        self.view = view
        self.former = tuple(former)
        """Members of the last view that an earlier process of the coordinator has shown."""
        self.began_at = math.inf
        """When the first peer said Hello to this one."""
        self.peers: dict[str, PeerState] = {}
        self._order: list[str] = []
        self._leaving: set[str] = set()
        self._policy = policy

    def handle(self, event: MembershipEvent, now: float) -> list[MembershipEffect]:
        """React to an event at time `now` in seconds."""
        match event:
            case Greeted():
                return self._greeted(event, now)
            case Heard():
                return self._heard(event, now)
            case Left(peer):
                return self._remove(peer, "left", "left")
            case Outdated(peer):
                return self._demote(peer)
            case Tick():
                return self._tick(now)

    @property
    def members(self) -> tuple[str, ...]:
        """The view: peers that hold the run's state, in order."""
        return tuple(self._order)

    @property
    def alive(self) -> list[str]:
        """All who take part, members or not."""
        return [peer for peer, known in self.peers.items() if known.alive]

    @property
    def reports(self) -> dict[str, Report]:
        """What each of them has reported last."""
        return {peer: known.report for peer, known in self.peers.items() if known.alive and known.report is not None}

    @property
    def leaving(self) -> dict[str, Report]:
        """The last reports of those who have said in them that they leave."""
        if not self._leaving:  # nearly always, and this is asked at every report
            return {}
        return {p: k.report for p, k in self.peers.items() if p in self._leaving and k.report is not None}

    def expected_back(self, now: float) -> dict[str, float]:
        """Members of the last view who have not reported yet though they may be well, and until when they may be."""
        until = self.began_at + self._policy.back_within_s
        return {} if now >= until else {peer: until for peer in self.former if self._unheard(peer)}

    def _unheard(self, peer: str) -> bool:
        known = self.peers.get(peer)
        return known is None or (known.alive and known.report is None)

    def roster(self) -> tuple[Member, ...]:
        """The view in order, then the joining."""
        joining = [peer for peer, known in self.peers.items() if known.state == "joining"]
        return tuple(self._member(peer) for peer in (*self._order, *joining))

    def silence_s(self, peer: str) -> float:
        """Seconds of silence after which the peer counts as lost, from its own inter-arrival times."""
        return self._policy.lost_after_s(self.peers[peer].arrivals)

    def _hinted_s(self, peer: str) -> float:
        """The same, once another peer has seen its connection break."""
        known_s = self.peers[peer].arrivals.silence_s(PHI_HINTED)
        return min(self.silence_s(peer), max(HINTED_HEARTBEATS * self._policy.heartbeat_s, known_s))

    def _member(self, peer: str) -> Member:
        known = self.peers[peer]
        return Member(peer, known.hello.name, known.hello.address, known.curve_key, known.state == "member")

    def _greeted(self, event: Greeted, now: float) -> list[MembershipEffect]:
        self.began_at = min(self.began_at, now)
        known = self.peers.get(event.peer)
        if known is not None and known.hello.boot == event.hello.boot:
            return self._greeted_again(known, event, now)
        if known is not None and known.alive and event.hello.boot in known.former:
            return [IdentityInUse(event.peer)]  # a late word of a process that another one has replaced
        recent = known is not None and now - known.seen_at < 2 * self._policy.heartbeat_s
        if known is not None and known.alive and recent and known.hinted_at is None:
            return [IdentityInUse(event.peer)]
        effects: list[MembershipEffect] = []
        if known is not None and known.alive:
            effects += self._remove(event.peer, "lost", "restarted")
        arrivals = Arrivals(self._policy.heartbeat_s)
        former = () if known is None else (*known.former, known.hello.boot)[-FORMER_KEPT:]
        self.peers[event.peer] = PeerState(event.hello, event.curve_key, "joining", now, arrivals, former=former)
        return [*effects, Joined(event.peer), *self._changed()]

    def _greeted_again(self, known: PeerState, event: Greeted, now: float) -> list[MembershipEffect]:
        """The same process says Hello again. Its reports go on counting, so that an old one stays old."""
        digest = event.hello.spec_digest  # which it knows only once it is welcome: no news for the others
        changed = (replace(known.hello, spec_digest=digest), known.curve_key) != (event.hello, event.curve_key)
        known.hello, known.curve_key = event.hello, event.curve_key
        if known.state == "left":
            return []  # a late copy of what it said before
        if known.alive:
            return self._changed() if changed else []
        self._revive(event.peer, now)
        return [Joined(event.peer), *self._changed()]

    def _revive(self, peer: str, now: float) -> None:
        known = self.peers[peer]
        known.state, known.seen_at, known.arrivals = "joining", now, Arrivals(self._policy.heartbeat_s)
        self._note_leaving(peer)

    def _note_leaving(self, peer: str) -> None:
        known = self.peers[peer]
        leaves = known.alive and known.report is not None and known.report.leaving
        (self._leaving.add if leaves else self._leaving.discard)(peer)

    def _heard(self, event: Heard, now: float) -> list[MembershipEffect]:
        known = self.peers[event.peer]
        effects: list[MembershipEffect] = []
        if not known.alive:
            self._revive(event.peer, now)
            effects.append(Joined(event.peer))
        elif known.report is not None:
            known.arrivals.add(now - known.seen_at)
        known.seen_at = now
        known.report = event.report
        self._note_leaving(event.peer)
        known.hinted_at = None
        if known.state == "member" and event.report.log_number < 0:
            return self._demote(event.peer)
        if known.state == "joining" and event.current:
            known.state = "member"
            self._order.append(event.peer)
            return effects + self._changed()
        return effects + (self._changed() if effects else []) + self._hints(event, now)

    def _hints(self, event: Heard, now: float) -> list[MembershipEffect]:
        for suspect in event.report.suspects:
            other = self.peers.get(suspect)
            if other is not None and other.alive and other.hinted_at is None and suspect != event.peer:
                other.hinted_at = now
        return []

    def _tick(self, now: float) -> list[MembershipEffect]:
        effects: list[MembershipEffect] = []
        for peer, known in self.peers.items():
            if not known.alive:
                continue
            silent_s = now - known.seen_at
            if silent_s >= self.silence_s(peer):
                effects += self._remove(peer, "lost", f"not seen for {silent_s:.1f} s")
            elif known.hinted_at is not None and silent_s >= self._hinted_s(peer):
                effects += self._remove(peer, "lost", f"connection broken and not seen for {silent_s:.1f} s")
        return effects

    def _remove(self, peer: str, state: str, reason: str) -> list[MembershipEffect]:
        known = self.peers.get(peer)
        if known is None or not known.alive:
            return []
        known.state = state
        known.gone_reason = reason
        self._note_leaving(peer)
        known.hinted_at = None
        if peer in self._order:
            self._order.remove(peer)
        return [Gone(peer, reason), *self._changed()]

    def _demote(self, peer: str) -> list[MembershipEffect]:
        known = self.peers.get(peer)
        if known is None or known.state != "member":
            return []
        known.state = "joining"
        self._order.remove(peer)
        return self._changed()

    def _changed(self) -> list[MembershipEffect]:
        self.view += 1
        return [ViewChanged(self.view)]
