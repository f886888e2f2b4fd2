"""The coordinator as a pure core: who is in the run, which sync starts when, and what is committed.

It holds no tensor and reads no clock; `coordinator_daemon.py` is its shell. Whatever must survive a restart goes out as
a `Persist` effect and becomes visible to peers only after `Stored` has come back.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from wantrain.errors import ConfigError, WireError
from wantrain.optimizers.stream import Stream, lead
from wantrain.peers.bequests import Bequests
from wantrain.peers.casting import Casting, standing
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
from wantrain.peers.lacks import Lacks
from wantrain.peers.layout import check_streams
from wantrain.peers.lease_desk import LeaseDesk
from wantrain.peers.leases import Leases
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
    TensorSpec,
    View,
    Waiting,
    WantGenesis,
    WantHello,
    WantRecords,
    Welcome,
    pack,
)
from wantrain.peers.pairing import Pairing
from wantrain.peers.round_events import Absent, Reported
from wantrain.peers.round_events import Tick as RoundTick
from wantrain.peers.rounds import NAMED, Round
from wantrain.peers.save_duty import SaveDuty
from wantrain.peers.state_votes import StateVotes
from wantrain.peers.stranded import Stranded
from wantrain.peers.syncs import Syncs
from wantrain.peers.timing import Policy
from wantrain.transport.digest import first_link
from wantrain.transport.wire import encode

GENESIS_AGAIN_S = 5.0
"""How often the peer that is to give the initial weights is asked again."""
SAY_EVERY_S = 1.0
"""How often peers that wait hear why."""
VIEW_EVERY_S = 0.05
"""Shortest time between two views: each goes to every peer and names every peer."""


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
        self.membership = Membership(facts.policy, history.view, history.members)
        self.links = LinkTable()
        self.leases = Leases(history.leases, facts.policy.suspect_ceiling_s, self.name_of)
        self.saves = SaveDuty(facts.save_every)
        first = lead(facts.streams)
        self._desk = LeaseDesk(self.leases, first.name if first is not None else "", self.log, self.name_of)
        streams = {stream.name: stream for stream in facts.streams}
        known = (self.log, self.membership, self.links)
        self._casting = Casting(streams, facts.policy, *known, self.name_of)
        self._syncs = Syncs(streams, facts.policy, *known, self._casting, self._desk, self.saves, self.name_of)
        self.offences = self._syncs.offences
        self._stranded = Stranded(self.log, self.membership, facts.policy, self.name_of)
        self._gossip = any(stream.gossip for stream in facts.streams)
        """Whether every peer has a state of its own."""
        self._candidate = ""
        self._asked_at = 0.0
        self._said_at = 0.0
        self._view_stale = False
        self._view_at = -VIEW_EVERY_S
        self._behind, self._blind = Lacks(), Lacks()
        """Log numbers that peers stand at behind the head, and views that they do not know."""
        self._votes = StateVotes(facts.policy.grace_ceiling_s)
        self._bequests = Bequests()
        self._outdated_until: dict[str, int] = {}
        """Whose state was found not to be the run's, and the revision of the Welcome that says so."""
        self._lack = ("", 0.0)
        """What the run lacks, and since when."""
        self._shown = View(history.view, ())
        """The newest view that is durable."""
        if self.log.chain0:
            self._syncs.open()

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
    def rounds(self) -> Mapping[str, Round | Pairing]:
        """What is under way in each stream; empty while there is no initial state."""
        return self._syncs.rounds

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
        return self._syncs.timing.get(number, {})

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
        if stranded := self._stranded.reason:
            return stranded
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
        """Live peers that nobody can pass updates on to, and why. Nobody waits for them."""
        return self._casting.cut_off()

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
                return self._syncs.save_if_due(now)
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
                return effects + self._member(Left(peer), now) + self._desk.left(peer)
            case _:
                return []

    # ---- peers come, speak and go

    def _hello(self, peer: str, hello: Hello, curve_key: bytes, now: float) -> list[CoordinatorEffect]:
        facts = self.facts
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
        indices |= {name: current.index - 1 for name, current in self._syncs.pairings.items()}
        head = self.head
        self.log.revision += 1
        newest = self.log.newest
        return Welcome(
            peer,
            self.log.revision,
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
                    self.links.gone(peer)
                    self._casting.gone(peer)
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
            effects += self._renew_view(now) + self._syncs.recast(now)
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
        if report.revision <= self.log.first_number:
            # Made before this process was there, and late: newer ones may have come already, to the former process.
            return [Send(peer, self._welcome(peer))]
        if known.report is not None and report.sequence <= known.report.sequence:
            return []
        before = known.report
        paths = {other: path for other, path in report.paths.items() if other in self.membership.peers}
        turned = self.links.reported(peer, paths, report.unreached)
        refetch = self.log.foreign(report)
        behind = self.head - report.log_number
        current = not refetch and report.log_number >= 0 and behind <= self._few
        effects = self._member(Heard(peer, report, current), now)
        if not self._gossip or self.saves.awaits(peer, report.saved):
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
        leading = self.rounds.get(self._desk.stream)
        effects += self._desk.reported(peer, report, leading.busy if leading is not None else (), now)
        if self._casting.reported(peer, report, now):
            details = {"peer": peer, "name": self.name_of(peer), "behind": report.behind}
            effects.append(Announce("chasing" if report.behind else "gaining", details))
        if turned:
            # Before anything starts: the plan would know who is apart, and the rounds not yet who is cut off by that.
            effects += self._syncs.recast(now)
        elif before is None or standing(before) != standing(report):
            effects += self._syncs.show(peer, now)
        lines = {line.stream: line for line in report.syncs} if report.log_number >= 0 else {}
        for said in report.syncs:
            if said.phase == "failed" and said.why:  # also of an attempt that is over: the more say it the better
                for accused in (peer for peer in said.waiting_for if peer in self.membership.peers):
                    self.offences.heard(peer, accused)
        for stream in list(self.rounds):
            line = lines.get(stream)
            event = Absent(peer) if line is None else Reported(peer, line)
            effects += self._syncs.handle(stream, event, now)
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
        staying |= {p: r.log_number for p, r in reports.items() if p in staying and self._is_of_the_run(p, r)}
        early = now - self.membership.began_at < self.facts.policy.heard_within_s
        if not staying and (early or self.membership.expected_back(now)):
            return []  # others may not have had the time yet to come back to this process
        told = self._bequests.heard(peer, staying, leaving, self.head)
        self.log.revision += 1
        return [Send(one, MayLeave(number, self.log.revision, leaving[one].sequence)) for one, number in told.items()]

    def _is_of_the_run(self, peer: str, report: Report) -> bool:
        """Whether the state that a peer has reported is the run's, and it was not asked since to fetch it anew."""
        return report.revision >= self._outdated_until.get(peer, 0) and not self.log.foreign(report)

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
        self._outdated_until[peer] = self.log.revision
        # Who leaves hears that this heir has nothing before it hears of anything that lets it go.
        return effects + self._let_go("", now) + self._member(Outdated(peer), now)

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

    def _names(self, peers: Sequence[str]) -> str:
        named = ", ".join(map(self.name_of, peers[:NAMED]))
        return named if len(peers) <= NAMED else f"{named} and {len(peers) - NAMED} more"

    def _send_records(self, peer: str, first: int) -> list[CoordinatorEffect]:
        if not 1 <= first <= self.head:
            return []
        return [Send(peer, Commit(self.log.lines_from(first), self.head, self.log.revision))]

    # ---- the initial state

    def _genesis(
        self, peer: str, manifest: tuple[TensorSpec, ...], digest: bytes, leases: str
    ) -> list[CoordinatorEffect]:
        if self.head >= 0 or peer != self._candidate or self.log.awaits(PersistGenesis):
            return []
        try:
            check_streams(self.facts.streams, manifest)
        except ConfigError as error:
            return self._refuse_model(peer, f"the model does not fit the run's method: {error.message}", error.hint)
        chain = first_link(self.facts.run, digest)
        if over := self._over_limit(manifest):
            hint = "shorten the names of its tensors, or train fewer of them"
            return self._refuse_model(peer, f"the model's {len(manifest):,} tensors do not fit a message: {over}", hint)

        def adopt(now: float) -> list[CoordinatorEffect]:
            self.log.begin(manifest, chain)
            self._syncs.open()
            effects: list[CoordinatorEffect] = [Announce("genesis", {"peer": peer, "name": self.name_of(peer)})]
            return effects + self._welcome_all() + self._syncs.recast(now)

        said, rows = self._desk.go_on_with(peer, leases)
        return [*said, *self.log.write(PersistGenesis(manifest, digest, chain, rows), adopt)]

    def _refuse_model(self, peer: str, reason: str, hint: str) -> list[CoordinatorEffect]:
        return [Send(peer, Refused("model", reason, hint)), Announce("refused", {"peer": peer, "reason": reason})]

    def _over_limit(self, manifest: tuple[TensorSpec, ...]) -> str:
        """Why a Welcome that names these tensors could not be sent, now or later in the run; or ""."""
        facts, most = self.facts, {stream.name: 2**62 for stream in self.facts.streams}
        paces_s = dict.fromkeys(most, 1e15)
        last = Welcome("p" * 64, 2**62, facts.spec_toml, 2**62, bytes(32), bytes(32), most, manifest, most, paces_s)
        try:
            encode(pack(last), facts.run)
        except WireError as error:
            return error.message
        return ""

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

    # ---- time

    def _tick(self, now: float) -> list[CoordinatorEffect]:
        effects = self.log.retry(now)
        effects += self._member(MembershipTick(), now)
        if (lack := self._lacks()) != self._lack[0]:
            self._lack = (lack, now)
        effects += self._drop_cut_off(now)
        effects += self._renew_view(now)
        effects += self._ask_for_genesis(now)
        effects += self._syncs.recast(now)
        for stream in list(self.rounds):
            effects += self._syncs.handle(stream, RoundTick(), now)
        if now - self._said_at >= SAY_EVERY_S:
            self._said_at = now
            effects += self._say_why()
        return effects + self._syncs.save_if_due(now) + self._rescue(now)

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
        found = self._stranded.look(now)
        if found is None:
            return []
        self._syncs.close()  # nothing starts or commits until this is durable
        if found.after < 0:
            return self.log.write(PersistDropGenesis(), self._forget_genesis)

        def rewind(now: float) -> list[CoordinatorEffect]:
            self.log.rewind(found.after)
            self._votes.rewound(found.after)
            self._syncs.open()
            said = Announce("rewind", {"to": found.after, "reason": found.reason})
            return [said, *self._welcome_all(), *self._syncs.recast(now)]

        back, rows = self._desk.rewound(found.after)
        return [*back, *self.log.write(PersistRewind(found.after, found.reason, rows), rewind)]

    def _forget_genesis(self, now: float) -> list[CoordinatorEffect]:
        self.log.forget()
        self._candidate = ""
        self._votes.rewound(-1)
        return [Announce("genesis-lost", {}), *self._welcome_all()]


__all__ = [
    "Announce", "Coordinator", "CoordinatorEffect", "CoordinatorEvent", "FromPeer", "History", "Persist",
    "PersistCommit", "PersistDropGenesis", "PersistGenesis", "PersistLeases", "PersistRewind", "PersistView",
    "RunFacts", "SaveWanted", "Send", "StoreFailed", "Stored", "Tick",
]  # fmt: skip
