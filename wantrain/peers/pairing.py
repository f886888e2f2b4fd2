"""The syncs of a gossip stream as the coordinator sees them: groups drawn at random, a `Round` for each; pure.

A group is two peers, or one that has no partner. It gathers, moves and commits as the sync of any stream does, and no
other group waits for it. A sync's index is one more than the largest last index of those in it: it grows for every
peer, but groups that know nothing of each other may use the same.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from wantrain.errors import ProtocolBug
from wantrain.peers.messages import Abort, CommitRecord, Start, SyncId, SyncReport
from wantrain.peers.offences import Offences
from wantrain.peers.planner import Plan
from wantrain.peers.round_events import (
    Aborted,
    Absent,
    Cast,
    Persisted,
    Reported,
    RoundEffect,
    RoundEvent,
    Seen,
    Tell,
    Tick,
)
from wantrain.peers.rounds import BRIEF_EVERY_S, MAX_BENCH_SYNCS, NAMED, Phase, Round
from wantrain.peers.timing import Duration, Policy
from wantrain.transport.pair import matching


@dataclass(slots=True, eq=False)
class _Group:
    """Peers that exchange with each other next."""

    members: dict[str, None]
    round: Round
    consensus: bool
    broken: bool = False
    """Whether somebody has left it."""


class Pairing:
    """All that is under way in one gossip stream; to the coordinator it is what a `Round` is of any other stream.

    Args:
        stream: its name.
        plan: chooses topology, order and shards of an attempt.
        committed: its lines of the commit log.
        policy: how long a group waits; of two, one is quorum enough.
        next_attempt: gives a new attempt number, larger than any before, also over restarts.
        name_of: the name of a peer for people.
        offences: who has contributed what cannot be used.
        together: how many of some contributors could go on with each other.
        last: sync with which the run ends, 0 if none: as soon as somebody is ready for it, everybody is in one group.
    """

    def __init__(
        self,
        stream: str,
        plan: Plan,
        committed: Iterable[CommitRecord],
        policy: Policy,
        next_attempt: Callable[[], int],
        name_of: Callable[[str], str] = str,
        *,
        offences: Offences | None = None,
        together: Callable[[tuple[str, ...]], int] = len,
        last: int = 0,
    ) -> None:
        self.stream = stream
        self.agreed = 0
        """Log number of the last line at which all in it came to one value, in this life of the coordinator; or 0."""
        self.wants_consensus = False
        """Whether the next group is to be everybody."""
        self.held_back = ""
        """A peer that is not to be in any group for now."""
        self._plan = plan
        self._policy = policy
        self._next_attempt = next_attempt
        self._name_of = name_of
        self._offences = offences
        self._together = together
        self._final = last
        self._moves = Duration()
        self._groups: list[_Group] = []
        self._group_of: dict[str, _Group] = {}
        self._cast = Cast(0, (), frozenset(), {})
        self._lines: dict[str, SyncReport] = {}
        """Of live peers that are ready, or were when their group began."""
        self._last: dict[str, int] = {}
        """Per peer the index of its last sync; what it says of that or earlier ones is old."""
        self._last_line: dict[str, int] = {}
        """Per peer that has been live ever since, the log number of its last sync in this life of the coordinator."""
        self._highest = 0
        self._stalls: Counter[str] = Counter()
        self._alone: Counter[str] = Counter()
        """How many syncs a peer that has stalled or spoiled one takes alone."""
        self._in_vain: Counter[str] = Counter()
        self._unawaited: Counter[str] = Counter()
        """For how many draws nobody waits for a peer that was waited for in vain."""
        self._briefed_at: dict[str, float] = {}
        for record in committed:
            self._count(record)

    # ---- what others may read

    @property
    def index(self) -> int:
        """More than the index of any sync that was started or committed."""
        return self._highest + 1

    def index_of(self, peer: str) -> int:
        """The sync that a peer itself is ready for: it may have been in fewer than those that it is grouped with."""
        line = self._lines.get(peer)
        return self.index if line is None else line.index

    @property
    def phase(self) -> Phase:
        """Whether anything moves."""
        return Phase.MOVING if any(group.round.start for group in self._groups) else Phase.GATHERING

    @property
    def start(self) -> Start | None:
        """The attempt that was begun last of those that move."""
        starts = [group.round.start for group in self._groups if group.round.start is not None]
        return max(starts, key=lambda start: start.sync.attempt, default=None)

    @property
    def busy(self) -> tuple[str, ...]:
        """Contributors to what is moved or committed now."""
        return tuple(peer for group in self._groups for peer in group.round.busy)

    @property
    def ready(self) -> tuple[str, ...]:
        """Peers that are ready, or done."""
        grouped = [peer for group in self._groups for peer in group.round.ready]
        return (*grouped, *[peer for peer in self._lines if peer not in self._group_of])

    @property
    def waiting_for(self) -> tuple[str, ...]:
        """Peers that others wait for now."""
        return tuple(peer for group in self._groups for peer in group.round.waiting_for)

    @property
    def reason(self) -> str:
        """Why groups wait, or what they do; "" if nothing is going on."""
        reasons = [group.round.reason for group in self._groups if group.round.reason]
        more = [f"and {len(reasons) - NAMED} more pairs"] if len(reasons) > NAMED else []
        return "; ".join(reasons[:NAMED] + more)

    def told(self) -> dict[str, str]:
        """What those who are ready may be told about why nothing happens."""
        told = {peer: why for group in self._groups for peer, why in group.round.told().items()}
        if self._agrees:
            waiting = "waiting for the pairs that exchange now: then all replicas come to one"
            told |= {peer: waiting for peer in self._lines if peer not in self._group_of}
        return told

    @property
    def _agrees(self) -> bool:
        """Whether the next group is everybody."""
        at_end = self._final and any(line.index >= self._final for line in self._lines.values())
        return self.wants_consensus or bool(at_end)

    def age_s(self, now: float) -> float:
        """Seconds since the first of the groups that are at it began to wait, or to move."""
        return max((group.round.age_s(now) for group in self._groups), default=0.0)

    def agreed_still(self, peers: Iterable[str]) -> tuple[str, ...]:
        """Those of the peers whose state is the one that was agreed upon at `agreed`."""
        return tuple(peer for peer in peers if self._last_line.get(peer) == self.agreed)

    # ---- the one mutator

    def handle(self, event: RoundEvent, now: float) -> list[RoundEffect]:
        """React to an event at time `now` in seconds.

        Raises:
            ProtocolBug: a commit of an attempt that is not being committed.
        """
        return self._react(event, now) + self._match(now)

    def _react(self, event: RoundEvent, now: float) -> list[RoundEffect]:
        match event:
            case Reported():
                return self._reported(event, now)
            case Absent(peer):
                self._lines.pop(peer, None)
                return self._to_group(peer, event, now)
            case Cast():
                return self._recast(event, now)
            case Seen(peer):
                expected = {name: at for name, at in self._cast.expected.items() if name != peer}
                if event.trains:
                    expected[peer] = event.expected_at
                self._cast = replace(self._cast, expected=expected)
                return self._to_group(peer, replace(event, abreast=False), now)
            case Tick():
                return [effect for group in list(self._groups) for effect in self._do(group, event, now)]
            case Persisted():
                return self._persisted(event, now)

    def committed(self, record: CommitRecord) -> None:
        """A line of this stream is durable; `Persisted` follows."""
        self._count(record)
        self._last_line |= {peer: record.number for peer in record.contributors if peer in self._cast.live}
        if record.consensus:
            self.agreed = record.number

    def _count(self, record: CommitRecord) -> None:
        self._last |= dict.fromkeys(record.contributors, record.sync.index)
        self._highest = max(self._highest, record.sync.index)

    # ---- what peers say

    def _reported(self, event: Reported, now: float) -> list[RoundEffect]:
        peer, line = event.peer, event.sync
        if line.index <= self._last.get(peer, 0):
            return []  # it does not know yet that this sync is committed
        if line.phase == "ready" and line.staged and peer in self._cast.live:
            self._lines[peer] = line
        group = self._group_of.get(peer)
        if group is None:
            return [] if line.phase == "ready" else self._over(peer, line, now)
        if group.round.phase is Phase.GATHERING:
            group.round.index = max(group.round.index, line.index)
        own = replace(event, sync=replace(line, index=group.round.index))
        return self._do(group, own, now)

    def _over(self, peer: str, line: SyncReport, now: float) -> list[RoundEffect]:
        """Tell a peer that the attempt that it is in is over."""
        decided = any(g.round.start is not None and g.round.start.sync.attempt == line.attempt for g in self._groups)
        if decided or now - self._briefed_at.get(peer, -math.inf) < BRIEF_EVERY_S:
            return []
        self._briefed_at[peer] = now
        return [Tell(peer, Abort(SyncId(self.stream, line.index, line.attempt), "the attempt is over"))]

    def _to_group(self, peer: str, event: RoundEvent, now: float) -> list[RoundEffect]:
        group = self._group_of.get(peer)
        return self._do(group, event, now) if group is not None else []

    def _recast(self, cast: Cast, now: float) -> list[RoundEffect]:
        self._cast = cast
        live = set(cast.live)
        self._lines = {peer: line for peer, line in self._lines.items() if peer in live}
        self._last_line = {peer: number for peer, number in self._last_line.items() if peer in live}
        effects: list[RoundEffect] = []
        for group in list(self._groups):
            for peer in [peer for peer in group.members if peer not in live]:
                self._leave(group, peer)
            effects += self._do(group, self._cast_of(group), now)
        return effects

    def _cast_of(self, group: _Group) -> Cast:
        """What the round of a group knows of the run: its members, and no receivers."""
        cast = self._cast
        live = tuple(peer for peer in cast.live if peer in group.members)
        known = {peer: cast.expected.get(peer) for peer in live if peer in cast.expected or peer in self._lines}
        return Cast(cast.view, live, frozenset(), known)

    # ---- groups

    def _match(self, now: float) -> list[RoundEffect]:
        """Draw groups for all that have none, as soon as one of them is ready."""
        if self._agrees:
            return self._gather_all(now)
        # Who was lost and is back while its attempt is written down is in no group, but what it has staged is in that.
        taken = {*self._group_of, *self.busy, self.held_back}
        free = [peer for peer in self._cast.live if peer not in taken]
        effects: list[RoundEffect] = []
        for peer in [peer for peer in free if peer in self._lines and self._alone[peer]]:
            self._alone[peer] -= 1
            free.remove(peer)
            effects += self._begin((peer,), now)
        if not any(peer in self._lines for peer in free):
            return effects
        awaited = [peer for peer in free if peer in self._lines or self._awaited(peer)]
        self._unawaited -= Counter(dict.fromkeys(self._unawaited, 1))
        for pair in matching(self._next_attempt(), awaited):
            apart = len(pair) > 1 and self._together(pair) < len(pair)
            for members in [(peer,) for peer in pair] if apart else [pair]:
                effects += self._begin(members, now)
        return effects

    def _awaited(self, peer: str) -> bool:
        return peer in self._cast.expected and not self._alone[peer] and not self._unawaited[peer]

    def _gather_all(self, now: float) -> list[RoundEffect]:
        """One group of all, when the pairs that are exchanging are through; those that have not begun are dissolved."""
        for group in [group for group in self._groups if not group.consensus and group.round.start is None]:
            self._dissolve(group)
        free = [peer for peer in self._cast.live if peer != self.held_back]
        if self._groups or not any(peer in self._lines for peer in free):
            return []
        return self._begin([p for p in free if p in self._lines or self._awaited(p)], now, consensus=True)

    def _begin(self, members: Iterable[str], now: float, *, consensus: bool = False) -> list[RoundEffect]:
        policy = self._policy if consensus else replace(self._policy, quorum=0.5)
        current = Round(
            self.stream, self._plan, 0, policy, self._next_attempt, self._name_of,
            weighted=False, offences=self._offences, together=self._together, moves=self._moves, consensus=consensus,
        )  # fmt: skip
        group = _Group(dict.fromkeys(members), current, consensus)
        self._groups.append(group)
        self._group_of |= dict.fromkeys(group.members, group)
        lines = {peer: self._lines[peer] for peer in group.members if peer in self._lines}
        current.index = max([line.index for line in lines.values()], default=1)
        effects = self._do(group, self._cast_of(group), now)
        for peer, line in lines.items():
            if self._group_of.get(peer) is group:
                effects += self._do(group, Reported(peer, replace(line, index=current.index)), now)
        return effects

    def _do(self, group: _Group, event: RoundEvent, now: float) -> list[RoundEffect]:
        """Let the round of a group handle an event. Who spoils its attempt goes on alone."""
        current, before = group.round, group.round.start
        effects = current.handle(event, now)
        dropped = [peer for effect in effects if isinstance(effect, Aborted) for peer in effect.dropped]
        for peer in [peer for peer in dropped if peer in group.members]:
            self._stalls[peer] += 1
            self._alone[peer] = min(2 ** self._stalls[peer], MAX_BENCH_SYNCS) - 1
            if len(group.members) > 1:
                self._leave(group, peer)
                effects += current.handle(self._cast_of(group), now)
        start = current.start
        if start is not None and start is not before:
            self._highest = max(self._highest, start.sync.index)
            for peer in [p for p in group.members if p not in start.contributors and p not in self._lines]:
                self._in_vain[peer] += 1
                self._unawaited[peer] = min(2 ** self._in_vain[peer], MAX_BENCH_SYNCS) - 1
                self._leave(group, peer)
        left_over = group.broken or not any(peer in self._cast.expected for peer in group.members)
        if left_over and start is None and not any(peer in self._lines for peer in group.members):
            self._dissolve(group)
        return effects

    def _persisted(self, event: Persisted, now: float) -> list[RoundEffect]:
        for group in self._groups:
            start = group.round.start
            if start is not None and start.sync.attempt == event.attempt:
                break
        else:
            raise ProtocolBug(f"attempt {event.attempt} of stream {self.stream} is committed and not under way")
        effects = group.round.handle(event, now)
        for peer in start.contributors:
            self._lines.pop(peer, None)
            if len(start.contributors) > 1:
                for counter in (self._stalls, self._in_vain, self._unawaited):
                    counter.pop(peer, None)
        self.wants_consensus = self.wants_consensus and not group.consensus
        self._dissolve(group)
        return effects

    def _leave(self, group: _Group, peer: str) -> None:
        group.broken = True
        del group.members[peer]
        del self._group_of[peer]

    def _dissolve(self, group: _Group) -> None:
        if group in self._groups:
            self._groups.remove(group)
        for peer in list(group.members):
            self._leave(group, peer)
