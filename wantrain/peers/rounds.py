"""The syncs of one stream as the coordinator sees them: gather who is ready, start an attempt, commit it or abort it.

Pure core. It decides for one stream and one index at a time; the coordinator numbers commits and keeps the log.
Decisions are durable before they are visible: `Persist` comes first, and only `Persisted` lets the commit be known.
"""

import math
from collections import Counter, deque
from collections.abc import Callable, Collection
from dataclasses import dataclass
from enum import Enum
from itertools import islice
from typing import Any

from wantrain.errors import ProtocolBug
from wantrain.peers.messages import Abort, Drawn, Start, SyncId, SyncReport
from wantrain.peers.offences import Offences, out_of_line
from wantrain.peers.planner import Plan
from wantrain.peers.round_events import (
    Aborted,
    Absent,
    Cast,
    Committed,
    LeftBehind,
    Persist,
    Persisted,
    Rejected,
    Reported,
    RoundEffect,
    RoundEvent,
    Seen,
    Tell,
    Tick,
)
from wantrain.peers.tempo import steps_of
from wantrain.peers.timing import Duration, Policy
from wantrain.transport.cost import Choice

DIGEST_RETRIES = 2
"""Attempts with the same peers after their digests differed without a majority, before one is left out."""
MAX_BENCH_SYNCS = 64
"""Longest that a peer which stalled or spoiled syncs is left out, in syncs; it doubles with each time."""
AGAIN_S = 0.25
"""Between the first two attempts of a sync for which there are only peers that were left out; it doubles with each."""
NAMED = 8
"""Peers that a reason names; of more it says how many."""
MOST_WEIGHED = 16
"""Of so many who may have stalled a sync, the likeliest, it is worked out who could go on without them."""
BRIEF_EVERY_S = 0.5
"""A peer whose report shows that it missed a START or ABORT gets it again, at most this often."""


class Phase(Enum):
    GATHERING = "gathering"
    MOVING = "moving"
    COMMITTING = "committing"


@dataclass(slots=True)
class _Held:
    """What a participant of the running attempt last said about it."""

    done: bytes = b""
    missing: int = -1
    waiting_for: tuple[str, ...] = ()
    progress_at: float = 0.0


class Round:
    """The current sync of one stream.

    Args:
        stream: its name.
        plan: chooses topology, order and shards of an attempt.
        index: the sync that comes next, from 1.
        next_attempt: gives a new attempt number, larger than any before, also over restarts.
        name_of: the name of a peer for people.
        weighted: whether contributions count by the weights that peers report.
        offences: who has contributed what cannot be used; the run's, for all streams.
        together: how many of some contributors could go on with each other.
        moves: how long attempts took so far, if others have made some already.
        consensus: whether those in it are to agree on one value; see `CommitRecord.consensus`.
    """

    def __init__(
        self,
        stream: str,
        plan: Plan,
        index: int,
        policy: Policy,
        next_attempt: Callable[[], int],
        name_of: Callable[[str], str] = str,
        *,
        weighted: bool = True,
        offences: Offences | None = None,
        together: Callable[[tuple[str, ...]], int] = len,
        moves: Duration | None = None,
        consensus: bool = False,
    ) -> None:
        self.stream = stream
        self.index = index
        self.phase = Phase.GATHERING
        self.start: Start | None = None
        self._reason: Callable[[], str] = str
        """Makes the words only when somebody reads them: with many peers that costs more than the decision."""
        self._plan = plan
        self._policy = policy
        self._next_attempt = next_attempt
        self._name_of = name_of
        self._weighted = weighted
        self._offences = offences or Offences()
        self._together = together
        self._consensus = consensus
        self._view = 0
        self._live: dict[str, None] = {}
        """Peers of the view, in order."""
        self._abreast: set[str] = set()
        self._expected: dict[str, float | None] = {}
        self._chasing: dict[str, int] = {}
        self._cut_off: frozenset[str] = frozenset()
        """Live peers whose updates the others could not have."""
        self._ready: dict[str, SyncReport] = {}
        """Of live peers only."""
        self._late: dict[str, None] = {}
        """Who is expected, not benched and not ready."""
        self._first_ready_at = 0.0
        self._quorum_at: float | None = None
        self._held: dict[str, _Held] = {}
        self._undone: dict[str, None] = {}
        """Those held of whom no DONE has come."""
        self._drawn: dict[str, Drawn] = {}
        """Of the contributors to the running attempt."""
        self._steps = 0
        """In the longest of their contributions."""
        self._started_at = 0.0
        self._progress_at = 0.0
        self._move = moves or Duration()
        self._choice = Choice("direct", (), (), (), 0.0, "")
        self._direct_only = False
        """Whether a ring has stalled in this sync, which does not show who stalls it."""
        self._excluded: set[str] = set()
        """Dropped from this sync's further attempts."""
        self._unfit: set[str] = set()
        """Those of them whose contribution may be what does not encode, or whose update most would not get."""
        self._again_s = 0.0
        self._again_at = 0.0
        """Before then there is no further attempt with none but those who were left out."""
        self._ties = 0
        self._in_vain: Counter[str] = Counter()
        """Syncs in a row that have waited for a peer until the end of the grace time, and gone on without it."""
        self._go_ahead: dict[str, int] = {}
        """Up to which sync nobody waits for such a peer; if it is ready by itself it takes part."""
        self._bench: dict[str, int] = {}
        self._stalls: Counter[str] = Counter()
        self._briefed_at: dict[str, float] = {}
        self._history: deque[object] = deque(maxlen=30)

    def handle(self, event: RoundEvent, now: float) -> list[RoundEffect]:
        """React to an event at time `now` in seconds.

        Raises:
            ProtocolBug: the event is impossible in this phase.
        """
        self._history.append((self.phase, type(event).__name__))
        action = _TABLE.get((self.phase, type(event)))
        if action is None:
            raise ProtocolBug(f"{type(event).__name__} in phase {self.phase}: {list(self._history)}")
        effects: list[RoundEffect] = action(self, event, now)
        return effects

    def index_of(self, peer: str) -> int:
        """The sync that a peer itself is ready for: the same for all."""
        return self.index

    # ---- what status prints

    @property
    def reason(self) -> str:
        """Why the sync waits, or what it does; "" if nothing is going on."""
        return self._reason()

    @property
    def ready(self) -> tuple[str, ...]:
        """Peers that are ready (gathering) or done (moving)."""
        if self.phase is Phase.GATHERING:
            return tuple(self._ready)
        return tuple(peer for peer in self._held if peer not in self._undone)

    @property
    def waiting_for(self) -> tuple[str, ...]:
        """Peers that the sync waits for now."""
        if self.phase is Phase.GATHERING:
            return tuple(self._late) if self._ready else ()
        return tuple(self._undone)

    @property
    def busy(self) -> tuple[str, ...]:
        """Contributors to what is moved or committed now."""
        return self.start.contributors if self.start is not None else ()

    def told(self) -> dict[str, str]:
        """What those who are ready may be told about why nothing happens."""
        return dict.fromkeys(self.ready, self.reason) if self.reason else {}

    def age_s(self, now: float) -> float:
        """Seconds since the sync's first peer was ready, or the attempt was started."""
        if self.phase is not Phase.GATHERING:
            return now - self._started_at
        return now - self._first_ready_at if self._ready else 0.0

    def _names(self, peers: Collection[str]) -> str:
        named = ", ".join(map(self._name_of, islice(peers, NAMED)))
        return named if len(peers) <= NAMED else f"{named} and {len(peers) - NAMED} more"

    # ---- gathering

    def _gather_report(self, event: Reported, now: float) -> list[RoundEffect]:
        report = event.sync
        if report.index != self.index or report.phase != "ready" or not report.staged:
            return self._brief(event, now)
        if event.peer not in self._live:
            return []
        # Who is cut off may have been ready for long: nobody is late for its sake.
        if not self._ready or (event.peer not in self._cut_off and self._cut_off.issuperset(self._ready)):
            self._first_ready_at = now
        self._ready[event.peer] = report
        self._late.pop(event.peer, None)
        self._in_vain.pop(event.peer, None)
        self._go_ahead.pop(event.peer, None)
        return self._start_if_ready(now)

    def _gather_absent(self, event: Absent, now: float) -> list[RoundEffect]:
        if self._ready.pop(event.peer, None) is None:
            return []
        self._judge(event.peer)
        return self._start_if_ready(now)

    def _gather_cast(self, event: Cast, now: float) -> list[RoundEffect]:
        self._take_cast(event)
        return self._start_if_ready(now)

    def _gather_seen(self, event: Seen, now: float) -> list[RoundEffect]:
        self._take_seen(event)
        return self._start_if_ready(now)

    def _gather_tick(self, event: Tick, now: float) -> list[RoundEffect]:
        return self._start_if_ready(now)

    def _take_cast(self, event: Cast) -> None:
        self._view, self._live = event.view, dict.fromkeys(event.live)
        self._abreast, self._expected = set(event.abreast), dict(event.expected)
        self._chasing, self._cut_off = event.chasing, event.cut_off
        self._ready = {peer: report for peer, report in self._ready.items() if peer in self._live}
        self._judge_all()

    def _take_seen(self, event: Seen) -> None:
        (self._abreast.add if event.abreast else self._abreast.discard)(event.peer)
        if event.trains:
            self._expected[event.peer] = event.expected_at
        else:
            self._expected.pop(event.peer, None)
        self._judge(event.peer)

    def _benched(self, peer: str) -> bool:
        return peer in self._excluded or peer in self._cut_off or self._bench.get(peer, 0) >= self.index

    def _awaited(self, peer: str) -> bool:
        return peer not in self._ready and not self._benched(peer) and self._go_ahead.get(peer, 0) < self.index

    def _judge(self, peer: str) -> None:
        """Find out whether a peer is late."""
        if peer in self._expected and self._awaited(peer):
            self._late[peer] = None
        else:
            self._late.pop(peer, None)

    def _judge_all(self) -> None:
        self._late = {peer: None for peer in self._expected if self._awaited(peer)}

    def _wait_no_more(self) -> None:
        """Whoever was waited for in vain is not waited for in the next 1, 3, 7 … syncs, unless it shows up."""
        for peer in self._late:
            self._in_vain[peer] += 1
            self._go_ahead[peer] = self.index + min(2 ** self._in_vain[peer], MAX_BENCH_SYNCS) - 1

    def _start_if_ready(self, now: float) -> list[RoundEffect]:
        late, policy = self._late, self._policy
        if not self._ready:
            self._quorum_at = None
            self._reason = str
            return []
        inside = len(self._ready) - sum(
            peer in self._ready for peer in self._excluded.union(self._bench, self._cut_off) if self._benched(peer)
        )
        if not inside:
            apart = self._cut_off.issuperset(self._ready)
            waited: Collection[str] = self._expected if apart else late
            if waited and now < self._first_ready_at + (policy.deadline_ceiling_s if apart else policy.grace_ceiling_s):
                why = "cut off" if apart else "left out after a failed attempt"
                self._reason = lambda: f"{self._names(self._ready)} {why}; waiting for {self._names(waited)}"
                return []
        elif late:
            limit_at = self._first_ready_at + policy.grace_ceiling_s
            if inside >= math.ceil(policy.quorum * (inside + len(late))):
                self._quorum_at = now if self._quorum_at is None else self._quorum_at
                limit_at = min(limit_at, self._quorum_at + self._grace_s(self._quorum_at))
            else:
                self._quorum_at = None
            if now < limit_at:
                self._reason = lambda: (
                    f"waiting for {len(late)} of {inside + len(late)} to be ready: "
                    f"{self._names(late)}; going on without in {limit_at - now:.1f} s"
                )
                return []
            self._wait_no_more()
        if self._chasing and now < (limit_at := self._first_ready_at + policy.grace_ceiling_s):
            chasing = self._chasing
            self._reason = lambda: (
                f"waiting for {self._names(chasing)} to catch up, {max(chasing.values())} commits behind and not "
                f"gaining; going on without in {limit_at - now:.1f} s"
            )
            return []
        ready = [peer for peer in self._live if peer in self._ready]
        contributors = [peer for peer in ready if not self._benched(peer)]
        if not contributors:
            # Nobody else is there: better with those who were left out than not at all, the unfit one at a time.
            if now < self._again_at:
                self._reason = lambda: (
                    f"{self._names(ready)} left out after a failed attempt, and nobody else is ready; "
                    f"trying again in {self._again_at - now:.1f} s"
                )
                return []
            self._again_s = min(max(2 * self._again_s, AGAIN_S), policy.grace_ceiling_s)
            self._again_at = now + self._again_s
            fit = [peer for peer in ready if peer not in self._unfit]
            fit = [peer for peer in fit if peer not in self._cut_off] or fit
            contributors = fit or [min(ready, key=lambda peer: self._ready[peer].norm)]
        return self._begin_attempt(contributors, now)

    def _grace_s(self, since: float) -> float:
        """How long those who are late may still take: until they are expected, if that is within the ceiling.

        A peer expected only after the ceiling is not waited for at all: its contribution goes into a later sync.
        """
        policy = self._policy
        grace_s = policy.grace_floor_s
        for peer in self._late:
            expected_at = self._expected[peer]
            if expected_at is None:
                return policy.grace_ceiling_s
            still_s = 1.25 * (expected_at - since) + policy.grace_floor_s
            if still_s <= policy.grace_ceiling_s:
                grace_s = max(grace_s, still_s)
        return grace_s

    def _begin_attempt(self, contributors: list[str], now: float) -> list[RoundEffect]:
        effects: list[RoundEffect] = []
        for peer, reason in out_of_line({peer: self._ready[peer].norm for peer in contributors}).items():
            contributors.remove(peer)
            self._excluded.add(peer)
            self._unfit.add(peer)
            diverged = self._ready[peer].norm > 0.0
            effects.append(Rejected(f"{self.stream}#{self.index}", peer, "", reason, diverged))
        # Who is behind the log fetches this update later too, and need not be waited for.
        inside = set(contributors)
        receivers = tuple(p for p in self._live if p not in inside and p in self._abreast and not self._benched(p))
        choice = self._choice = self._plan(tuple(contributors), receivers, self._direct_only)
        self.start = Start(
            sync=SyncId(self.stream, self.index, self._next_attempt()),
            view=self._view,
            contributors=choice.contributors,
            weights=tuple(self._ready[peer].weight if self._weighted else 1.0 for peer in choice.contributors),
            receivers=choice.receivers,
            shards=choice.shards,
            topology=choice.topology,
            consensus=self._consensus,
            codec=choice.codec,
        )
        self.phase = Phase.MOVING
        self._started_at = self._progress_at = now
        self._drawn = {peer: self._ready[peer].drawn for peer in self.start.contributors}
        self._steps = steps_of(self._ready[peer].steps for peer in self.start.contributors)
        self._held = {peer: _Held(progress_at=now) for peer in (*self.start.contributors, *self.start.receivers)}
        self._undone = dict.fromkeys(self._held)
        sync = self.start.sync
        self._reason = lambda: f"moving {sync} among {len(choice.contributors)}"
        return effects + [Tell(peer, self.start) for peer in self._held]

    # ---- moving

    def _move_report(self, event: Reported, now: float) -> list[RoundEffect]:
        assert self.start is not None
        report = event.sync
        held = self._held.get(event.peer)
        if held is None or report.index != self.index or report.attempt != self.start.sync.attempt:
            return self._brief(event, now)
        if report.staged and event.peer in self._drawn:
            self._drawn[event.peer] = report.drawn
        if report.phase == "done" and report.digest and not held.done:
            held.done = report.digest
            del self._undone[event.peer]
            held.progress_at = self._progress_at = now
            return self._commit_if_done(now)
        if report.phase == "failed":
            return self._fail(event, now)
        if report.phase == "moving":
            held.waiting_for = report.waiting_for
            if held.missing < 0 or report.missing < held.missing:
                held.missing = report.missing
                held.progress_at = self._progress_at = now
        return []

    def _move_absent(self, event: Absent, now: float) -> list[RoundEffect]:
        assert self.start is not None
        held = self._held.get(event.peer)
        if held is None or held.done:
            return []
        if event.peer in self.start.contributors:
            self._ready.pop(event.peer, None)
            return self._abort(f"{self._name_of(event.peer)} has lost its contribution", (), now)
        return self._start_again(event.peer, now)

    def _fail(self, event: Reported, now: float) -> list[RoundEffect]:
        """A contribution cannot be used: wrong bytes, or values too large to encode. Who is blamed is left out."""
        assert self.start is not None
        among = self.start.contributors
        blamed = tuple(peer for peer in event.sync.waiting_for if peer in among)
        if blamed and blamed[0] != event.peer:
            return self._accused(event.peer, blamed[0], event.sync.why, now)
        if not blamed:
            norms = {peer: self._ready[peer].norm for peer in among if peer in self._ready}
            blamed = (max(norms, key=lambda peer: (norms[peer], among.index(peer))),) if norms else ()
        self._unfit.update(blamed)
        return self._abort(f"{self._name_of(event.peer)} cannot encode a chunk", blamed, now)

    def _accused(self, by: str, accused: str, why: str, now: float) -> list[RoundEffect]:
        """One peer says that another's contribution cannot be used: one of the two is left out, longer each time."""
        assert self.start is not None
        culprit = self._offences.judge(by, accused)
        reason = why if culprit == accused else f"it alone says of several peers: {why}"
        if self._bench.get(culprit, 0) < self.index:  # else it was let in for want of others, and is found out again
            times = self._offences.punish(culprit, reason)
            self._bench[culprit] = self.index + min(2 ** (times - 1), MAX_BENCH_SYNCS) - 1
        self._unfit.add(culprit)
        rejected = Rejected(str(self.start.sync), culprit, by, reason)
        return [rejected, *self._abort(f"{self._name_of(accused)} is said to contribute: {why}", (culprit,), now)]

    def _move_cast(self, event: Cast, now: float) -> list[RoundEffect]:
        assert self.start is not None
        self._take_cast(event)
        lost = [peer for peer in self._held if peer not in self._live]
        if not lost:
            return []
        for peer in lost:
            self._briefed_at.pop(peer, None)
            self._let_go(peer)
        finished = bool(self._held) and not self._undone
        if finished or not set(lost) & set(self.start.contributors):
            return self._commit_if_done(now)
        return self._abort(f"lost {self._names(lost)}", (), now)

    def _let_go(self, peer: str) -> None:
        del self._held[peer]
        self._undone.pop(peer, None)

    def _move_seen(self, event: Seen, now: float) -> list[RoundEffect]:
        self._take_seen(event)
        return []

    def _move_tick(self, event: Tick, now: float) -> list[RoundEffect]:
        assert self.start is not None
        policy = self._policy
        deadline_s = policy.stalled_after_s(self._move, self._choice.predicted_s, self._choice.slowest_s)
        stalled = [p for p in self._undone if now - self._held[p].progress_at >= deadline_s]
        behind = [peer for peer in stalled if peer in self.start.receivers]
        if behind and len(behind) == len(stalled):
            return self._leave_behind(behind, f"received nothing new for {deadline_s:.1f} s", now)
        if not stalled or now - self._progress_at < deadline_s:
            sync, undone, held = self.start.sync, self._undone, self._held
            self._reason = lambda: f"moving {sync}: {len(undone)} of {len(held)} not done: {self._names(undone)}"
            return []
        if self.start.topology != "direct":
            self._direct_only = True
            return self._abort(f"the ring stalled for {deadline_s:.1f} s; trying directly, which shows who", (), now)
        culprit = self._culprit(stalled)
        self._stall(culprit)
        return self._abort(f"{self._name_of(culprit)} stalled the sync for {deadline_s:.1f} s", (culprit,), now)

    def _leave_behind(self, behind: list[str], reason: str, now: float) -> list[RoundEffect]:
        """Go on without a receiver that gets nothing; or, once in a sync, without who gives nothing to most.

        An update that only the few hold leaves the many waiting for a way to them, who could go on with each other.
        """
        assert self.start is not None
        giver = self._gives_to_few(behind)
        if giver and giver not in self._unfit:
            self._stall(giver)
            self._unfit.add(giver)
            self._ready.pop(giver, None)
            self._go_ahead.clear()  # whoever was waited for in vain is all the more welcome
            return self._abort(f"most that train get nothing from {self._name_of(giver)}", (giver,), now)
        self._stall(behind[0])
        self._let_go(behind[0])
        return [LeftBehind(self.start.sync, behind[0], reason), *self._commit_if_done(now)]

    def _gives_to_few(self, behind: list[str]) -> str:
        """The contributor that most of those behind wait for, if more who train lack the update than hold it; or ""."""
        assert self.start is not None
        contributors = self.start.contributors
        votes = Counter(p for peer in behind for p in self._held[peer].waiting_for if p in contributors)
        done = [peer for peer in self._expected if peer in self._held and peer not in self._undone]
        lacking = [peer for peer in self._expected if peer in self._abreast and peer not in done]
        if not votes or len(lacking) <= len(done) or not self._undone.keys().isdisjoint(contributors):
            return ""
        return max(votes, key=lambda peer: (votes[peer], contributors.index(peer)))

    def _culprit(self, stalled: list[str]) -> str:
        """Who is cut off by now; else the one without whom most can go on together, whom most of the stalled wait for.

        Where all reach each other every choice leaves as many. But where two that only dial out meet at a third, and
        the path from it to one of them is dead, most wait for that third, without whom nobody could go on with anybody.
        Among equals it is one that is stalled itself, then the last of them.
        """
        assert self.start is not None
        votes = Counter(peer for reporter in stalled for peer in self._held[reporter].waiting_for)
        order = {peer: k for k, peer in enumerate(self.start.contributors)}
        suspects = [peer for peer in order if peer in votes or peer in stalled]
        apart = self._cut_off
        likely = sorted(suspects, key=lambda p: (p in apart, votes[p], p in stalled, order[p]), reverse=True)
        left = {
            peer: self._together(tuple(other for other in order if other != peer)) for peer in likely[:MOST_WEIGHED]
        }
        return max(suspects, key=lambda p: (p in apart, left.get(p, 0), votes[p], p in stalled, order[p]))

    def _stall(self, peer: str) -> None:
        self._stalls[peer] += 1
        self._bench[peer] = self.index + min(2 ** self._stalls[peer], MAX_BENCH_SYNCS) - 1

    def _commit_if_done(self, now: float) -> list[RoundEffect]:
        assert self.start is not None
        if not self._held:
            return self._abort("everybody in it was lost", (), now)
        if self._undone:
            return []
        digests = Counter(held.done for held in self._held.values())
        (digest, count), *others = digests.most_common()
        if others:
            return self._differ(digest, count, now)
        self.phase = Phase.COMMITTING
        sync = self.start.sync
        self._reason = lambda: f"writing the commit of {sync}"
        gather_s, move_s = self._started_at - self._first_ready_at, now - self._started_at
        self._move.add(move_s)  # not what the store takes to write it
        return [
            Persist(
                self.start,
                digest,
                gather_s,
                move_s,
                self._choice.predicted_s,
                self._choice.reason,
                self._drawn,
                self._steps,
            )
        ]

    def _differ(self, digest: bytes, count: int, now: float) -> list[RoundEffect]:
        assert self.start is not None
        dissent = tuple(peer for peer, held in self._held.items() if held.done != digest)
        if count <= len(dissent):
            self._ties += 1
            dissent = () if self._ties <= DIGEST_RETRIES else (self.start.contributors[-1],)
        return self._abort(f"digests differ, apart: {self._names(dissent) or 'no majority'}", dissent, now)

    def _abort(self, reason: str, dropped: tuple[str, ...], now: float) -> list[RoundEffect]:
        assert self.start is not None
        sync = self.start.sync
        effects: list[RoundEffect] = [Aborted(sync, reason, dropped)]
        effects += [Tell(peer, Abort(sync, reason)) for peer in self._held]
        self._excluded.update(dropped)
        self._leave_attempt()
        # The grace time is not given anew: whoever is ready starts again at once.
        return effects + self._start_if_ready(now)

    def _leave_attempt(self) -> None:
        self.phase = Phase.GATHERING
        self.start = None
        self._held, self._undone = {}, {}
        self._judge_all()

    # ---- committing

    def _commit_absent(self, event: Absent, now: float) -> list[RoundEffect]:
        return []

    def _commit_report(self, event: Reported, now: float) -> list[RoundEffect]:
        return []

    def _commit_cast(self, event: Cast, now: float) -> list[RoundEffect]:
        self._take_cast(event)
        return []

    def _commit_seen(self, event: Seen, now: float) -> list[RoundEffect]:
        self._take_seen(event)
        return []

    def _persisted(self, event: Persisted, now: float) -> list[RoundEffect]:
        for peer in self._held:
            self._stalls.pop(peer, None)
        self.index += 1
        self._ready = {}
        self._excluded, self._unfit = set(), set()
        self._again_s, self._again_at = 0.0, 0.0
        self._ties, self._direct_only = 0, False
        self._quorum_at = None
        self._leave_attempt()
        self._reason = str
        return [Committed()]

    def _idle(self, event: Tick, now: float) -> list[RoundEffect]:
        return []

    # ---- a peer that missed something

    def _brief(self, event: Reported, now: float) -> list[RoundEffect]:
        """Tell a peer again what its report shows that it does not know."""
        report = event.sync
        if report.index != self.index:
            return []
        if self.start is not None and event.peer in self._held:
            return self._start_again(event.peer, now)
        if report.phase == "ready" or not self._may_brief(event.peer, now):
            return []
        return [Tell(event.peer, Abort(SyncId(self.stream, report.index, report.attempt), "the attempt is over"))]

    def _start_again(self, peer: str, now: float) -> list[RoundEffect]:
        return [Tell(peer, self.start)] if self.start is not None and self._may_brief(peer, now) else []

    def _may_brief(self, peer: str, now: float) -> bool:
        if now - self._briefed_at.get(peer, -math.inf) < BRIEF_EVERY_S:
            return False
        self._briefed_at[peer] = now
        return True


_TABLE: dict[tuple[Phase, type], Any] = {
    (Phase.GATHERING, Reported): Round._gather_report,
    (Phase.GATHERING, Absent): Round._gather_absent,
    (Phase.GATHERING, Cast): Round._gather_cast,
    (Phase.GATHERING, Tick): Round._gather_tick,
    (Phase.GATHERING, Seen): Round._gather_seen,
    (Phase.MOVING, Reported): Round._move_report,
    (Phase.MOVING, Absent): Round._move_absent,
    (Phase.MOVING, Cast): Round._move_cast,
    (Phase.MOVING, Tick): Round._move_tick,
    (Phase.MOVING, Seen): Round._move_seen,
    (Phase.COMMITTING, Reported): Round._commit_report,
    (Phase.COMMITTING, Absent): Round._commit_absent,
    (Phase.COMMITTING, Cast): Round._commit_cast,
    (Phase.COMMITTING, Seen): Round._commit_seen,
    (Phase.COMMITTING, Persisted): Round._persisted,
    (Phase.COMMITTING, Tick): Round._idle,
}

__all__ = [
    "Aborted",
    "Absent",
    "Cast",
    "Committed",
    "LeftBehind",
    "Persist",
    "Persisted",
    "Rejected",
    "Reported",
    "RoundEffect",
    "RoundEvent",
    "Seen",
    "Tell",
    "Tick",
    "Phase",
    "Round",
]
