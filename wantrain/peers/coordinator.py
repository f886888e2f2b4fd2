"""The coordinator as a pure core: who is in the run, which sync starts when, and what is committed.

It holds no tensor and reads no clock; `coordinator_daemon.py` is its shell. Whatever must survive a restart goes out as
a `Persist` effect and becomes visible to peers only after `Stored` has come back.
"""

import json
import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

from wantrain.errors import ConfigError
from wantrain.optimizers.stream import Stream, lead
from wantrain.peers import rounds
from wantrain.peers.bequests import Bequests
from wantrain.peers.chase import Chasers
from wantrain.peers.commit_log import CommitLog, History
from wantrain.peers.compatibility import refusal
from wantrain.peers.coordinator_events import (
    Announce,
    CoordinatorEffect,
    CoordinatorEvent,
    FromPeer,
    Persist,
    PersistCommit,
    PersistDropGenesis,
    PersistGenesis,
    PersistLeases,
    PersistRewind,
    PersistView,
    SaveWanted,
    Send,
    Stored,
    StoreFailed,
    Tick,
)
from wantrain.peers.layout import check_streams, stream_chunks, stream_elements
from wantrain.peers.leases import Back, Leases
from wantrain.peers.link_table import LinkTable
from wantrain.peers.membership import (
    Gone,
    Greeted,
    Heard,
    IdentityInUse,
    Joined,
    Left,
    Membership,
    MembershipEffect,
    MembershipEvent,
    Outdated,
    ViewChanged,
)
from wantrain.peers.membership import Tick as MembershipTick
from wantrain.peers.messages import (
    MAX_EXTRA,
    MAX_RECORDS,
    Commit,
    CommitRecord,
    Genesis,
    Hello,
    Leave,
    MayLeave,
    NotSaved,
    Record,
    Refetch,
    Refused,
    Report,
    SaveState,
    StartOver,
    TensorSpec,
    View,
    Waiting,
    WantGenesis,
    WantHello,
    WantRecords,
    Welcome,
)
from wantrain.peers.offences import Offences
from wantrain.peers.pairing import Pairing
from wantrain.peers.planner import Planner
from wantrain.peers.save_duty import SaveDuty
from wantrain.peers.state_votes import StateVotes
from wantrain.peers.tempo import pace_of
from wantrain.peers.timing import Policy
from wantrain.transport.digest import first_link
from wantrain.transport.reach import apart_in_words

ATTEMPTS_PER_EPOCH = 10**9
"""Attempt numbers of one life of the coordinator; those of the next life are larger than all of them."""
GENESIS_AGAIN_S = 5.0
"""How often the peer that is to give the initial weights is asked again."""
SAY_EVERY_S = 1.0
"""How often peers that wait hear why."""
VIEW_EVERY_S = 0.05
"""Shortest time between two views: each goes to every peer and names every peer."""
TIMINGS_KEPT = 1024
RESEND_S = 1.0
"""A peer that reports the same lack twice gets what it lacks again, at most this often."""


@dataclass(frozen=True, slots=True)
class RunFacts:
    """What the coordinator knows of the run from its spec."""

    run: bytes
    spec_toml: str
    spec_digest: bytes
    streams: tuple[Stream, ...]
    version: str
    policy: Policy
    save_every: int = 0
    """Commits between two saved states; 0: only on demand."""


class _Lacks:
    """What each peer lacks by its reports. It has been sent once; it may be on its way, or lost."""

    def __init__(self) -> None:
        self._said: dict[str, tuple[int, float]] = {}
        """What it is, and since when, or when it was sent again."""

    def again(self, peer: str, what: int, now: float) -> bool:
        """Whether this has to be sent again."""
        said, at = self._said.get(peer, (None, now))
        if said == what and now - at < RESEND_S:
            return False
        self._said[peer] = (what, now)
        return said == what


class Coordinator:
    """The core. `handle` is its only mutator.

    Args:
        facts: the run spec's part in it.
        history: what was durable when this process started.
    """

    def __init__(self, facts: RunFacts, history: History) -> None:
        self.facts = facts
        self.epoch = history.epoch
        self._admitted = history.names
        self.log = CommitLog(history)
        self.membership = Membership(facts.policy, history.view)
        self.rounds: dict[str, rounds.Round | Pairing] = {}
        self.links = LinkTable()
        self.offences = Offences()
        self.leases = Leases(history.leases, facts.policy.suspect_ceiling_s, self.name_of)
        self._gossip = any(stream.gossip for stream in facts.streams)
        """Whether every peer has a state of its own."""
        self._streams = {stream.name: stream for stream in facts.streams}
        first = lead(facts.streams)
        self._lead = "" if first is None else first.name
        """The stream whose commits confirm what its contributors have drawn of the data."""
        self.saves = SaveDuty(facts.save_every)
        self._attempts = history.epoch * ATTEMPTS_PER_EPOCH
        self._revision = history.epoch * ATTEMPTS_PER_EPOCH
        self._candidate = ""
        self._fresh: dict[str, float] = {}
        """Peers that have not been ready since they, or their trainers, came into the running run; and until when
        nobody waits for them."""
        self._asked_at = 0.0
        self._said_at = 0.0
        self._view_stale = False
        self._view_at = -VIEW_EVERY_S
        self._stranded_at: float | None = None
        """Since when nobody has the state at the head of the log while somebody has an older one."""
        self._stranded_head = -1
        """The newest line at that time: behind a run that commits fast everybody is a line late all the time."""
        self._looked_at = 0.0
        """When that was looked at last: after a time in which this process stood still the wait begins anew."""
        self._awaited: list[str] = []
        """While stranded: who is away and might come back with what is missing."""
        self._behind, self._blind = _Lacks(), _Lacks()
        """Log numbers that peers stand at behind the head, and views that they do not know."""
        self._votes = StateVotes(facts.policy.grace_ceiling_s)
        self._chasers = Chasers(facts.policy.deadline_ceiling_s)
        self._bequests = Bequests()
        self._began_at = math.inf
        """When the first peer said Hello to this process."""
        self._lack = ("", 0.0)
        """What the run lacks, and since when."""
        self._planners: dict[str, Planner] = {}
        self._timing: dict[int, dict[str, Any]] = {}
        self._shown = View(history.view, ())
        """The newest view that is durable."""
        if self.log.chain0:
            self._open_rounds()

    # ---- what others may read

    @property
    def head(self) -> int:
        """Last committed log number; 0 is the initial state, -1 means there is none."""
        return self.log.head

    @property
    def records(self) -> Sequence[CommitRecord]:
        """The commit log, from line 1."""
        return self.log.records

    @property
    def manifest(self) -> tuple[TensorSpec, ...]:
        """The run's model, () before there is one."""
        return self.log.manifest

    @property
    def trouble(self) -> str:
        """Why the store cannot be written, or ""."""
        return self.log.trouble

    def chain(self, number: int) -> bytes:
        """Link `number` of the digest chain, b"" for -1."""
        return self.log.chain(number)

    def name_of(self, peer: str) -> str:
        """A peer's name for people."""
        known = self.membership.peers.get(peer)
        return known.hello.name if known else self._admitted.get(peer, peer)

    def timing(self, number: int) -> dict[str, Any]:
        """How commit `number` went: topology, codec, gather_s, move_s, predicted_s, …; empty for old commits."""
        return self._timing.get(number, {})

    def reason(self, now: float | None = None) -> str:
        """Why the run waits, or ""; given the time also for how long it has waited for what it lacks."""
        lack = self._lacks()
        if lack:
            known, since = self._lack
            return f"{lack} ({now - since:.1f} s)" if now is not None and known == lack else lack
        return "; ".join([r.reason for r in self.rounds.values() if r.reason] + list(self.cut_off().values())[:1])

    def _lacks(self) -> str:
        """What no sync can do without, and whom it depends on; "" if nothing is missing."""
        if self.trouble:
            return f"the commit log cannot be written: {self.trouble}"
        if not self.membership.alive:
            return "no peer is connected"
        if self.head < 0:
            who = f"from {self.name_of(self._candidate)}" if self._candidate else "of a peer whose trainer has started"
            return f"waiting for the initial weights {who}"
        if self._stranded_at is not None:
            return self._stranded_words()
        if not self.membership.members:
            if any(report.log_number >= 0 for report in self.membership.reports.values()):
                return f"no live peer has caught up with log number {self.head} yet"
            number, peer = self.saves.newest(self.head)
            one = f"one of them back ({self.name_of(peer)} has saved it at {number})" if peer else "one of them back"
            return (
                f"every peer that held the run's state at log number {self.head} is gone: "
                f"bring {one}, or make a new run with `wantrain init`"
            )
        return ""

    def cut_off(self) -> dict[str, str]:
        """Live peers that nobody can pass updates on to, by no way, and why. Nobody waits for them.

        The others are the part of the run that holds the newest state; the largest one, if several do.
        """
        if self.links.reach.whole:
            return {}
        parts = self.links.parts(tuple(self.membership.alive))
        if len(parts) < 2:
            return {}
        newest = {peer for peer, report in self.membership.reports.items() if report.log_number == self.head}
        main = max(parts, key=lambda part: (not newest.isdisjoint(part), len(part)))
        others = [peer for part in parts if part is not main for peer in part]
        return {
            peer: f"{self.name_of(peer)} is cut off: {apart_in_words(self.links.reach, peer, main, self.name_of)}; "
            "start a peer that both sides reach, or make one of them reachable by --advertise"
            for peer in others
        }

    def _stranded_words(self) -> str:
        known = [report.log_number for report in self.membership.reports.values()]
        back = f"nobody here holds log number {self.head}; the run goes back to {max([*known, 0])}"
        if not self._awaited:
            return back
        patience_s = self.facts.policy.deadline_ceiling_s
        return f"{back} unless {self._names(self._awaited[:5])} comes back within {patience_s:.0f} s"

    # ---- the one mutator

    def handle(self, event: CoordinatorEvent, now: float) -> list[CoordinatorEffect]:
        """React to an event at time `now` in seconds. A record that a peer may not send is ignored."""
        match event:
            case FromPeer(peer, Hello() as hello, curve_key):
                return self._hello(peer, hello, curve_key, now)
            case FromPeer(peer, record):
                known = self.membership.peers.get(peer)
                if known is None:
                    return [Send(peer, WantHello())]
                if known.state == "left" and not isinstance(record, Leave):
                    return []
                return self._from_known(peer, record, now)
            case SaveWanted():
                self.saves.demand(self.head)
                return self._save_if_due(now)
            case Stored():
                return self.log.stored(now)
            case StoreFailed(reason):
                return [Announce("store-failed", {"reason": reason})] if self.log.failed(reason, now) else []
            case Tick():
                return self._tick(now)

    def _from_known(self, peer: str, record: Record, now: float) -> list[CoordinatorEffect]:
        match record:
            case Report():
                return self._report(peer, record, now)
            case Genesis(manifest, state_digest, leases):
                return self._genesis(peer, manifest, state_digest, leases)
            case WantRecords(first):
                return self._send_records(peer, first)
            case NotSaved(number, reason):
                self.saves.failed(peer, reason)
                who = {"peer": peer, "name": self.name_of(peer)}
                return [Announce("save-failed", {**who, "number": number, "reason": reason})]
            case Leave(boot, reason):
                if boot != self.membership.peers[peer].hello.boot:
                    return []  # the goodbye of an earlier process of this peer, which has come back
                effects: list[CoordinatorEffect] = [Announce("leaving", {"peer": peer, "reason": reason})]
                return effects + self._member(Left(peer), now) + self._write_leases(self.leases.left(peer))
            case _:
                return []

    # ---- peers come, speak and go

    def _hello(self, peer: str, hello: Hello, curve_key: bytes, now: float) -> list[CoordinatorEffect]:
        self._began_at, facts = min(self._began_at, now), self.facts
        refused = refusal(hello, facts.version, facts.spec_digest, facts.streams)
        if refused is not None:
            return [Send(peer, refused), Announce("refused", {"peer": peer, "reason": refused.reason})]
        effects = self._member(Greeted(peer, hello, curve_key), now)
        if any(isinstance(e, Send) and e.to == peer and isinstance(e.record, Refused) for e in effects):
            return effects
        self.links.greeted(peer, hello.address)
        new = self.membership.peers[peer].report is None
        if self._gossip and new and self.log.awaits_line_of(peer):
            # With its index it would pass by that line of its former process, whose trainer may live on and contribute
            # once more what is in it. It asks again, and finds the line in the log.
            return [*effects, Send(peer, Waiting(self.reason(now)))]
        # Who was told that nobody else is here, and may leave, is told at once that somebody is.
        return [Send(peer, self._welcome(peer)), *effects, *self._let_go("", now), Send(peer, self._shown)]

    def _welcome(self, peer: str) -> Welcome:
        indices = {stream.name: self.log.committed[stream.name] for stream in self.facts.streams}
        # A newcomer's first sync comes after all that a former process of it may have been in.
        indices |= {name: current.index - 1 for name, current in self._pairings.items()}
        head = self.head
        self._revision += 1
        newest = self.log.newest
        return Welcome(
            peer,
            self._revision,
            self.facts.spec_toml,
            head,
            self.chain(head),
            self.log.chain0,
            indices,
            self.manifest,
            {stream: record.steps for stream, record in newest.items()},
            {stream: record.pace_s for stream, record in newest.items()},
        )

    def _welcome_all(self) -> list[CoordinatorEffect]:
        return [Send(peer, self._welcome(peer)) for peer in self.membership.alive]

    def _member(self, event: MembershipEvent, now: float) -> list[CoordinatorEffect]:
        return self._interpret(self.membership.handle(event, now), now)

    def _interpret(self, changes: Sequence[MembershipEffect], now: float) -> list[CoordinatorEffect]:
        effects: list[CoordinatorEffect] = []
        changed = False
        for change in changes:
            match change:
                case Joined(peer):
                    self.links.greeted(peer, self.membership.peers[peer].hello.address)
                    effects.append(Announce("joined", {"peer": peer, "name": self.name_of(peer)}))
                case Gone(peer, reason):
                    event = "left" if reason == "left" else "lost"
                    effects.append(Announce(event, {"peer": peer, "name": self.name_of(peer), "reason": reason}))
                    self._fresh.pop(peer, None)
                    self.links.gone(peer)
                    self._chasers.gone(peer)
                    if peer == self._candidate:
                        self._candidate = ""
                case IdentityInUse(peer):
                    refused = Refused(
                        "identity-in-use",
                        f"another live process uses the identity of {self.name_of(peer)} ({peer})",
                        "give each peer on a machine a --home directory of its own",
                    )
                    effects += [Send(peer, refused), Announce("refused", {"peer": peer, "reason": refused.reason})]
                case ViewChanged():
                    changed = True
        if changed:
            self._view_stale = True
            effects += self._renew_view(now) + self._recast(now)
        return effects

    def _renew_view(self, now: float) -> list[CoordinatorEffect]:
        """Write and show the view that has changed; where many come at once, one for all of them."""
        if not self._view_stale or now - self._view_at < VIEW_EVERY_S:
            return []
        self._view_stale, self._view_at = False, now
        view = View(self.membership.view, self.membership.roster())
        members = self.membership.members
        announced = Announce("view", {"number": view.number, "members": [self.name_of(p) for p in members]})
        return [announced, *self.log.write(PersistView(view.number, members), lambda _now: self._show(view))]

    def _show(self, view: View) -> list[CoordinatorEffect]:
        self._shown = view
        return [Send(member.peer, view) for member in view.members]

    def _report(self, peer: str, report: Report, now: float) -> list[CoordinatorEffect]:
        known = self.membership.peers[peer]
        if report.boot != known.hello.boot:
            return [Send(peer, WantHello())]
        if report.revision <= self.epoch * ATTEMPTS_PER_EPOCH:
            # Made before this process was there, and late: newer ones may have come already, to the former process.
            return [Send(peer, self._welcome(peer))]
        if known.report is not None and report.sequence <= known.report.sequence:
            return []
        before = known.report
        turned = self.links.reported(peer, report.paths, report.unreached)
        refetch = self._foreign_history(report)
        behind = self.head - report.log_number
        current = not refetch and report.log_number >= 0 and behind <= self._few
        effects = self._member(Heard(peer, report, current), now)
        if not self._gossip or (peer == self.saves.writer and report.saved >= self.saves.number):
            self.saves.reported(peer, -1 if refetch else report.saved)  # any other state is that peer's own
        if not refetch and report.saved > (before.saved if before is not None else -1):
            effects.append(Announce("saved", {"peer": peer, "name": self.name_of(peer), "number": report.saved}))
        if refetch:
            return effects + self._outdated(peer, report.log_number, report.chain, refetch, now)
        if 0 <= report.log_number < self.head:
            again = self._behind.again(peer, report.log_number, now)
            effects += self._send_records(peer, report.log_number + 1) if again else []
        elif report.log_number < 0 <= self.head and self._behind.again(peer, -1, now):
            effects.append(Send(peer, self._welcome(peer)))
        if report.view < self._shown.number and self._blind.again(peer, self._shown.number, now):
            effects.append(Send(peer, self._shown))
        effects += self._compare_state(peer, report, now)
        effects += self._lease(peer, report, now)
        self._note_fresh(peer, report, now)
        if self._chasers.reported(peer, report.behind, now):
            details = {"peer": peer, "name": self.name_of(peer), "behind": report.behind}
            effects.append(Announce("chasing" if report.behind else "gaining", details))
        if turned:
            # Before anything starts: the plan would know who is apart, and the rounds not yet who is cut off by that.
            effects += self._recast(now)
        elif before is None or _standing(before) != _standing(report):
            effects += self._show_seen(peer, now)
        lines = {line.stream: line for line in report.syncs} if report.log_number >= 0 else {}
        for said in report.syncs:
            if said.phase == "failed" and said.why:  # also of an attempt that is over: the more say it the better
                for accused in self.membership.peers.keys() & said.waiting_for:
                    self.offences.heard(peer, accused)
        for stream in list(self.rounds):
            line = lines.get(stream)
            event = rounds.Absent(peer) if line is None else rounds.Reported(peer, line)
            effects += self._round(stream, event, now)
        return effects + self._let_go(peer, now)

    def _let_go(self, peer: str, now: float) -> list[CoordinatorEffect]:
        """Tell those who leave, after a report of this peer, what of their state is held by somebody who stays.

        After anything else, with "" for the peer, only those hear it for whom it is news.
        """
        leaving = self.membership.leaving
        if not leaving and not self._bequests.waiting:
            return []
        reports = self.membership.reports
        staying = {one: -1 for one in self.membership.alive if one not in leaving}
        staying |= {p: r.log_number for p, r in reports.items() if p in staying and not self._foreign_history(r)}
        if not staying and now - self._began_at < self._usual_s:
            return []  # others may not have had the time yet to come back to this process
        told = self._bequests.heard(peer, staying, leaving, self.head)
        self._revision += 1
        return [Send(one, MayLeave(number, self._revision)) for one, number in told.items()]

    def _note_fresh(self, peer: str, report: Report, now: float) -> None:
        """Nobody waits for the first contribution of a newcomer, or of a trainer that was started again.

        Not for ever, though: where rounds are shorter than a message takes it would never be in time by itself.
        """
        if any(line.staged and line.phase == "ready" for line in report.syncs):
            self._fresh.pop(peer, None)
        elif self.head > 0 and (report.log_number < 0 or report.trainer == "starting"):
            self._fresh[peer] = now + self.facts.policy.grace_ceiling_s

    def _foreign_history(self, report: Report) -> str:
        """Why a peer's log cannot be this run's, or ""."""
        if report.log_number < 0:
            return ""
        if report.log_number > self.head:
            return f"log number {report.log_number} is beyond the run's {self.head}"
        if report.chain != self.chain(report.log_number):
            return f"another history up to log number {report.log_number}"
        return ""

    @property
    def _usual_s(self) -> float:
        """In which time everybody is heard of who is well."""
        return self.facts.policy.grace_floor_s + 2 * self.facts.policy.heartbeat_s

    @property
    def _few(self) -> int:
        """How many lines of the log are written in the time of one sync of every stream and one more."""
        return 2 * len(self.facts.streams) * max(1, len(self.membership.members) if self._gossip else 1)

    def _outdated(
        self, peer: str, number: int, chain: bytes, reason: str, now: float, stands: bytes = b""
    ) -> list[CoordinatorEffect]:
        effects: list[CoordinatorEffect] = [
            Announce("refetch", {"peer": peer, "name": self.name_of(peer), "reason": reason}),
            Send(peer, Refetch(number, chain, reason, stands)),
            Send(peer, self._welcome(peer)),
        ]
        return effects + self._member(Outdated(peer), now)

    def _compare_state(self, peer: str, report: Report, now: float) -> list[CoordinatorEffect]:
        """Who holds another state than most at its log number fetches anew what differs, even if further by now."""
        number = report.state_number
        if self._gossip or number < 0 or number != report.log_number or not report.state_digest:
            return []
        verdict = self._votes.vote(peer, number, report.state_digest, self.membership.members, now)
        effects: list[CoordinatorEffect] = []
        for other in () if verdict is None else verdict.others:
            known = self.membership.peers[other]
            if verdict is not None and known.report is not None and known.report.log_number >= number:
                self._votes.withdraw(other, number)
                reason = f"state digest at {number} differs from that of {self._names(verdict.holders)}"
                effects += self._outdated(other, number, self.chain(number), reason, now, verdict.digest)
        return effects

    def _names(self, peers: Iterable[str]) -> str:
        return ", ".join(map(self.name_of, peers))

    def _send_records(self, peer: str, first: int) -> list[CoordinatorEffect]:
        if not 1 <= first <= self.head:
            return []
        return [Send(peer, Commit(tuple(self.records[first - 1 : first - 1 + MAX_RECORDS]), self.head))]

    # ---- data leases

    def _lease(self, peer: str, report: Report, now: float) -> list[CoordinatorEffect]:
        """What a report says of the trainer as a reader of data, and the answers to what it asks."""
        round_now = self.rounds.get(self._lead)
        busy = round_now.busy if round_now is not None else ()
        staged = {line.drawn.reader for line in report.syncs if line.stream == self._lead and line.staged}
        back = self.leases.reported(peer, report.reader, staged, busy=peer in busy, now=now)
        effects = self._write_leases(back)
        for want in report.wants if report.reader else ():
            if want.reader != report.reader:
                continue
            answer, back = self.leases.wanted(peer, want, busy, now)
            effects += self._write_leases(back, () if answer is None else (Send(peer, answer),))
        return effects

    def _returned(self, back: Back) -> Announce:
        details = {"data": back.data, "peer": back.peer, "name": self.name_of(back.peer), "samples": back.samples}
        return Announce("samples-back", {**details, "why": back.why})

    def _write_leases(self, back: Sequence[Back], told: Sequence[Send] = ()) -> list[CoordinatorEffect]:
        """Write what has changed, then tell."""
        rows = self.leases.rows()
        effects: list[CoordinatorEffect] = [self._returned(one) for one in back if one.samples]
        if rows:
            return effects + self.log.write(PersistLeases(rows), lambda _now: list(told))
        # What is told may rest on what is not durable yet; the next report asks again.
        return effects if self.log.writing else effects + list(told)

    # ---- the initial state

    def _genesis(
        self, peer: str, manifest: tuple[TensorSpec, ...], digest: bytes, leases: str
    ) -> list[CoordinatorEffect]:
        if self.head >= 0 or peer != self._candidate or self.log.awaits(PersistGenesis):
            return []
        try:
            check_streams(self.facts.streams, manifest)
        except ConfigError as error:
            refusal = Refused("model", f"the model does not fit the run's method: {error.message}", error.hint)
            return [Send(peer, refusal), Announce("refused", {"peer": peer, "reason": refusal.reason})]
        chain = first_link(self.facts.run, digest)

        def adopt(now: float) -> list[CoordinatorEffect]:
            self.log.begin(manifest, chain)
            self._open_rounds()
            effects: list[CoordinatorEffect] = [Announce("genesis", {"peer": peer, "name": self.name_of(peer)})]
            return effects + self._welcome_all() + self._recast(now)

        # First the leases: if only they get written this peer is asked again, and they stay as they are.
        effects = self._go_on_with(peer, leases) if leases and not self.leases.data else []
        return effects + self.log.write(PersistGenesis(manifest, digest, chain), adopt)

    def _go_on_with(self, peer: str, leases: str) -> list[CoordinatorEffect]:
        """Use the data from where another run had left it."""
        try:
            self.leases.restore(json.loads(leases))
        except ValueError as error:
            return [Announce("begun-without-leases", {"peer": peer, "name": self.name_of(peer), "reason": str(error)})]
        return self._write_leases([])

    def _ask_for_genesis(self, now: float) -> list[CoordinatorEffect]:
        if self.head >= 0 or (self._candidate and now - self._asked_at < GENESIS_AGAIN_S):
            return []
        reports = self.membership.reports
        initial = [peer for peer in self.membership.alive if self.membership.peers[peer].hello.initial]
        trainers = initial or [p for p, report in reports.items() if report.trainer not in ("none", "done")]
        if not trainers:
            return []
        if self._candidate not in trainers:
            self._candidate = trainers[0]
        self._asked_at = now
        return [Send(self._candidate, WantGenesis())]

    # ---- syncs and commits

    def _open_rounds(self) -> None:
        self.rounds, self._planners = {}, {}
        for stream in self.facts.streams:
            elements, chunks = stream_elements(stream, self.manifest), stream_chunks(stream, self.manifest)
            planner = self._planners[stream.name] = Planner(stream, elements, chunks, self.links, self._step_s)
            if stream.gossip:
                self.rounds[stream.name] = Pairing(
                    stream.name,
                    planner.plan,
                    [record for record in self.records if record.sync.stream == stream.name],
                    self.facts.policy,
                    self._next_attempt,
                    self.name_of,
                    offences=self.offences,
                    together=planner.together,
                    last=stream.last,
                )
                continue
            self.rounds[stream.name] = rounds.Round(
                stream.name,
                planner.plan,
                self.log.committed[stream.name] + 1,
                self.facts.policy,
                self._next_attempt,
                self.name_of,
                weighted=stream.weight != "equal",
                offences=self.offences,
                together=planner.together,
            )

    def _step_s(self, peers: Collection[str]) -> float:
        """How long an inner step usually takes these peers, in seconds; 0 if none has said."""
        reports = [known.report for peer in peers if (known := self.membership.peers.get(peer)) is not None]
        timed = [report.step_s for report in reports if report is not None and report.step_s > 0]
        return median(timed or [0.0])

    def _next_attempt(self) -> int:
        self._attempts += 1
        return self._attempts

    def _recast(self, now: float) -> list[CoordinatorEffect]:
        cut_off = self.cut_off()
        seen = [self._seen(peer, peer in cut_off, now) for peer in self.membership.members]
        expected = {one.peer: one.expected_at for one in seen if one.trains}
        abreast = frozenset(one.peer for one in seen if one.abreast)
        chasing = self._chasers.waited_for(now)
        view, live = self.membership.view, self.membership.members
        cast = rounds.Cast(view, live, abreast, expected, chasing, frozenset(cut_off))
        effects: list[CoordinatorEffect] = []
        for stream in list(self.rounds):
            coming = {peer: at for peer, at in expected.items() if not self._is_past(peer, stream)}
            effects += self._round(stream, replace(cast, expected=coming), now)
        return effects

    def _is_past(self, peer: str, stream: str) -> bool:
        """Whether a peer has staged for a sync that is due after this stream's next one, and not for that.

        It has missed that one, or is out of step, and may wait for the other one until everybody comes there: if it
        was waited for meanwhile, each would wait for the other.
        """
        report = self.membership.peers[peer].report
        if report is None or len(self._streams) < 2:
            return False
        due = self._streams[stream].steps(self.rounds[stream].index)
        staged = {line.stream: line.index for line in report.syncs if line.staged and line.stream in self._streams}
        later = any(self._streams[name].steps(index) > due for name, index in staged.items())
        return later and staged.get(stream) != self.rounds[stream].index

    def _seen(self, peer: str, cut_off: bool, now: float) -> rounds.Seen:
        known = self.membership.peers[peer]
        report = known.report
        if report is None:
            return rounds.Seen(peer, False, False, None)
        trains = report.trainer in ("starting", "training", "waiting") and now >= self._fresh.get(peer, now)
        trains = trains and not cut_off
        expected_at = known.seen_at + report.eta_s if report.eta_s >= 0 else None
        return rounds.Seen(peer, report.log_number == self.head, trains, expected_at)

    def _show_seen(self, peer: str, now: float) -> list[CoordinatorEffect]:
        """Tell the rounds of one peer: with many of them, a whole cast for each report would be too much."""
        if self.membership.peers[peer].state != "member":
            return []
        seen = self._seen(peer, peer in self.cut_off(), now)
        effects: list[CoordinatorEffect] = []
        for stream in list(self.rounds):
            trains = seen.trains and not self._is_past(peer, stream)
            effects += self._round(stream, replace(seen, trains=trains), now)
        return effects

    def _round(self, stream: str, event: rounds.RoundEvent, now: float) -> list[CoordinatorEffect]:
        effects: list[CoordinatorEffect] = []
        for effect in self.rounds[stream].handle(event, now):
            match effect:
                case rounds.Tell(to, record):
                    effects.append(Send(to, record))
                case rounds.Persist():
                    effects += self._commit(effect)
                case rounds.Aborted(sync, reason, dropped):
                    names = [self.name_of(peer) for peer in dropped]
                    effects.append(Announce("abort", {"sync": str(sync), "reason": reason, "dropped": names}))
                case rounds.LeftBehind(sync, peer, reason):
                    details = {"sync": str(sync), "name": self.name_of(peer), "reason": reason}
                    effects.append(Announce("left-behind", details))
                case rounds.Rejected(where, peer, by, reason, diverged):
                    effects.append(self._rejected(where, peer, by, reason))
                    if diverged and self.offences.diverged(peer):
                        effects.append(Send(peer, StartOver(stream, self.rounds[stream].index_of(peer), reason)))
                case rounds.Committed():
                    pass
        return effects

    def _rejected(self, where: str, peer: str, by: str, reason: str) -> Announce:
        guilty = self.offences.guilty.get(peer)
        details = {"sync": where, "peer": peer, "name": self.name_of(peer), "reason": reason}
        details |= {"by": self.name_of(by)} if by else {}
        return Announce("rejected", {**details, "times": guilty.times if guilty else 0})

    def _commit(self, done: rounds.Persist) -> list[CoordinatorEffect]:
        start = done.start
        known = [self.membership.peers[peer].report for peer in start.contributors if peer in self.membership.peers]
        pace_s = pace_of(report.step_s for report in known if report is not None)
        made = (start.contributors, start.weights, done.digest, done.steps, pace_s)
        record = self.log.next_record(start.sync, *made, consensus=start.consensus)
        if start.sync.stream == self._lead:
            self.leases.committed(record.number, done.drawn)
        timing = {
            "gather_s": done.gather_s,
            "move_s": done.move_s,
            "predicted_s": done.predicted_s,
            "topology": start.topology,
            "codec": start.codec or next(s.codec for s in self.facts.streams if s.name == start.sync.stream),
            "shards": list(start.shards),
            "plan": done.plan,
        }

        self._planners[start.sync.stream].took(start.codec, done.predicted_s, done.move_s)

        def announce(now: float) -> list[CoordinatorEffect]:
            self.log.append(record)
            if isinstance(current := self.rounds.get(start.sync.stream), Pairing):
                current.committed(record)
            self.offences.contributed(start.contributors)
            self._timing[record.number] = {**timing, "committed_at": now}
            self._timing.pop(record.number - TIMINGS_KEPT, None)
            names = [self.name_of(peer) for peer in start.contributors]
            details = {"number": record.number, "sync": str(start.sync), "contributors": names, **timing}
            commit = Commit((record,), self.head)
            effects: list[CoordinatorEffect] = [Send(peer, commit) for peer in self.membership.alive]
            effects.append(Announce("commit", details))
            if record.consensus:
                effects += self._save_if_due(now)  # before anybody goes on from there
            return effects + self._round(start.sync.stream, rounds.Persisted(start.sync.attempt), now)

        return self.log.write(PersistCommit(record, self.leases.rows()), announce)

    # ---- time

    def _tick(self, now: float) -> list[CoordinatorEffect]:
        effects = self.log.retry(now)
        effects += self._member(MembershipTick(), now)
        if (lack := self._lacks()) != self._lack[0]:
            self._lack = (lack, now)
        effects += self._drop_cut_off(now)
        effects += self._renew_view(now)
        effects += self._ask_for_genesis(now)
        effects += self._recast(now)
        for stream in list(self.rounds):
            effects += self._round(stream, rounds.Tick(), now)
        if now - self._said_at >= SAY_EVERY_S:
            self._said_at = now
            effects += self._say_why()
        return effects + self._save_if_due(now) + self._rescue(now)

    @property
    def _pairings(self) -> dict[str, Pairing]:
        """The rounds of streams that are exchanged in pairs."""
        return {name: current for name, current in self.rounds.items() if isinstance(current, Pairing)}

    def _save_if_due(self, now: float) -> list[CoordinatorEffect]:
        effects: list[CoordinatorEffect] = []
        members, least = self.membership.members, 0
        for pairing in self._pairings.values():
            members, least = self._savers(pairing), pairing.agreed
            if not members:
                return []
        asks = self.saves.tick(self.head, members, now, least=least)
        for pairing in self._pairings.values():
            pairing.held_back = self.saves.writer
        for ask in asks:
            leases = self.leases.snapshot(ask.number)
            extra = json.dumps({"leases": leases}) if leases else ""
            if len(extra) > MAX_EXTRA:
                reason = f"the leases of the data take {len(extra):,} bytes, allowed are {MAX_EXTRA:,}"
                effects.append(Announce("saved-without-leases", {"number": ask.number, "reason": reason}))
                extra = ""
            effects.append(Send(ask.peer, SaveState(ask.number, extra)))
        return effects

    def _savers(self, pairing: Pairing) -> tuple[str, ...]:
        """Who may save the state of a gossip run: who still is where all replicas have come to one; else they have to.

        Whoever does it is in no exchange until it is done.
        """
        agreed = pairing.agreed_still(self.membership.members)
        writing = self.saves.writer in agreed
        pending = self.saves.pending(self.head)
        pairing.held_back = self.saves.writer if pending and writing else ""
        pairing.wants_consensus = (
            pending and not writing and not (agreed and pairing.agreed >= self.saves.due(self.head))
        )
        return agreed if pending and not pairing.wants_consensus else ()

    def _drop_cut_off(self, now: float) -> list[CoordinatorEffect]:
        """Who is cut off and behind holds the run's state no longer: nobody is to fetch the old one from it."""
        cut_off, oldest = self.cut_off(), self.head - self._few
        reports = self.membership.reports if cut_off else {}
        behind = [peer for peer in cut_off if peer in reports and reports[peer].log_number < oldest]
        return [effect for peer in behind for effect in self._member(Outdated(peer), now)]

    def _say_why(self) -> list[CoordinatorEffect]:
        """Tell those who are ready for whom they wait, and those without the state why nobody gives it."""
        reports, lack = self.membership.reports, self._lacks()
        told = {peer: lack for peer, report in reports.items() if lack and report.log_number < self.head}
        told |= {peer: why for current in self.rounds.values() for peer, why in current.told().items()}
        told |= self.cut_off()
        waiting = {p: self._bequests.reason(p, reports[p]) for p in self._bequests.waiting if p in reports}
        told |= {peer: why for peer, why in waiting.items() if why}
        return [Send(peer, Waiting(reason)) for peer, reason in told.items()]

    def _rescue(self, now: float) -> list[CoordinatorEffect]:
        """If everybody who held the head of the log is gone for good, go back to the newest state that is held."""
        policy = self.facts.policy
        if now - self._looked_at > 2 * policy.heartbeat_s:
            self._stranded_at = None
        self._looked_at = now
        if self.head < 0 or self.log.awaits(PersistCommit, PersistGenesis, PersistRewind, PersistDropGenesis):
            self._stranded_at = None
            return []
        if self.log.writing:
            return []
        reports = self.membership.reports
        own = [report for report in reports.values() if not self._foreign_history(report)]
        held = [report.log_number for report in own if report.log_number >= 0]
        trains = any(report.trainer != "none" for report in reports.values())
        if self.head in held or not (held or (self.head == 0 and trains)):
            self._stranded_at = None
            return []
        if self._stranded_at is None or self._stranded_head != self.head:
            self._stranded_at, self._stranded_head = now, self.head
        after = max(held, default=-1)
        self._awaited = self._may_hold(after)
        if now - self._stranded_at < (policy.deadline_ceiling_s if self._awaited else self._usual_s):
            return []
        if any(now - self.membership.peers[peer].seen_at > 2 * policy.heartbeat_s for peer in reports):
            # This process may have stood still meanwhile: what its peers say is older than the newest line.
            return []
        self._stranded_at = None
        # Nothing starts or commits until this is durable.
        self.rounds = {}
        if not held:
            return self.log.write(PersistDropGenesis(), self._forget_genesis)
        reason = f"nobody holds log numbers {after + 1} to {self.head} any more"

        def rewind(now: float) -> list[CoordinatorEffect]:
            self.log.rewind(after)
            self._votes.rewound(after)
            self._open_rounds()
            return [Announce("rewind", {"to": after, "reason": reason}), *self._welcome_all(), *self._recast(now)]

        back = [self._returned(one) for one in self.leases.rewound(after)]
        return [*back, *self.log.write(PersistRewind(after, reason, self.leases.rows()), rewind)]

    def _may_hold(self, number: int) -> list[str]:
        """Who may come to hold a state later than `number`: who took part in a later line, or was here since.

        Not those who are here and have nothing in hand that could be committed: what they had is lost. But who took
        part and reports no state, as it was started again, may have one on its disk and not have read it yet.
        """
        made = {peer for record in self.records[max(number, 0) :] for peer in record.contributors}
        known = {p: r for p, r in self.membership.reports.items() if r.log_number >= 0 or p not in made}
        bare = {p for p, report in known.items() if all(s.phase in ("ready", "failed") for s in report.syncs)}
        return sorted((made | set(self.membership.peers)) - bare)

    def _forget_genesis(self, now: float) -> list[CoordinatorEffect]:
        self.log.forget()
        self._candidate = ""
        self._votes.rewound(-1)
        return [Announce("genesis-lost", {}), *self._welcome_all()]


def _standing(report: Report) -> tuple[object, ...]:
    """What of a report decides who is waited for."""
    staged = [(line.stream, line.index) for line in report.syncs if line.staged]
    return report.trainer, report.log_number, staged


__all__ = [
    "Announce", "Coordinator", "CoordinatorEffect", "CoordinatorEvent", "FromPeer", "History", "Persist",
    "PersistCommit", "PersistDropGenesis", "PersistGenesis", "PersistLeases", "PersistRewind", "PersistView",
    "RunFacts", "SaveWanted", "Send", "StoreFailed", "Stored", "Tick",
]  # fmt: skip
