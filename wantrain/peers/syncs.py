"""The syncs of all streams: rounds that hear of peers, and the commits that they decide on, written, then told; pure.

A part of `coordinator.py`, which alone calls it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from wantrain.optimizers.stream import Stream
from wantrain.peers.casting import Casting
from wantrain.peers.commit_log import CommitLog
from wantrain.peers.coordinator_events import Announce, CoordinatorEffect, PersistCommit, Send
from wantrain.peers.layout import stream_chunks, stream_elements
from wantrain.peers.lease_desk import LeaseDesk
from wantrain.peers.link_table import LinkTable
from wantrain.peers.membership import Membership
from wantrain.peers.messages import Commit, StartOver
from wantrain.peers.offences import Offences
from wantrain.peers.pairing import Pairing
from wantrain.peers.planner import Planner
from wantrain.peers.round_events import Aborted, Committed, LeftBehind, Persist, Persisted, Rejected, RoundEvent, Tell
from wantrain.peers.rounds import Round
from wantrain.peers.save_duty import SaveDuty
from wantrain.peers.tempo import pace_of
from wantrain.peers.timing import Policy

TIMINGS_KEPT = 1024


@dataclass
class Syncs:
    """What is exchanged and committed, from when the run has an initial state.

    Args:
        streams: the run's, by name.
        policy: how long is waited for peers.
        log: the run's.
        membership: who is here, and what they report.
        links: what plans are made from.
        casting: who is waited for.
        desk: of the leases, which commits confirm.
        saves: who saves the state, and when.
        name_of: the name of a peer for people.
    """

    streams: Mapping[str, Stream]
    policy: Policy
    log: CommitLog
    membership: Membership
    links: LinkTable
    casting: Casting
    desk: LeaseDesk
    saves: SaveDuty
    name_of: Callable[[str], str]
    rounds: dict[str, Round | Pairing] = field(default_factory=dict)
    """What is under way in each stream."""
    offences: Offences = field(default_factory=Offences)
    timing: dict[int, dict[str, Any]] = field(default_factory=dict)
    """How each of the newest commits went."""
    _planners: dict[str, Planner] = field(default_factory=dict)
    _attempt: int = field(init=False)
    """Number of the last attempt; each has a larger one than all before."""

    def __post_init__(self) -> None:
        self._attempt = self.log.first_number

    @property
    def pairings(self) -> dict[str, Pairing]:
        """The rounds of streams that are exchanged in pairs."""
        return {name: current for name, current in self.rounds.items() if isinstance(current, Pairing)}

    def open(self) -> None:
        """Begin the syncs that come after those in the log."""
        self.rounds, self._planners = {}, {}
        log = self.log
        for stream in self.streams.values():
            elements, chunks = stream_elements(stream, log.manifest), stream_chunks(stream, log.manifest)
            planner = self._planners[stream.name] = Planner(stream, elements, chunks, self.links, self.casting.step_s)
            if stream.gossip:
                self.rounds[stream.name] = Pairing(
                    stream.name,
                    planner.plan,
                    [record for record in log.records if record.sync.stream == stream.name],
                    self.policy,
                    self._next_attempt,
                    self.name_of,
                    offences=self.offences,
                    together=planner.together,
                    last=stream.last,
                )
                continue
            self.rounds[stream.name] = Round(
                stream.name,
                planner.plan,
                log.committed[stream.name] + 1,
                self.policy,
                self._next_attempt,
                self.name_of,
                weighted=stream.weight != "equal",
                offences=self.offences,
                together=planner.together,
            )

    def close(self) -> None:
        """Nothing starts or commits until they are opened again."""
        self.rounds = {}

    def _next_attempt(self) -> int:
        self._attempt += 1
        return self._attempt

    # ---- what happens

    def handle(self, stream: str, event: RoundEvent, now: float) -> list[CoordinatorEffect]:
        """React to an event in one stream at time `now` in seconds."""
        effects: list[CoordinatorEffect] = []
        for effect in self.rounds[stream].handle(event, now):
            match effect:
                case Tell(to, record):
                    effects.append(Send(to, record))
                case Persist():
                    effects += self._commit(effect)
                case Aborted(sync, reason, dropped):
                    names = [self.name_of(peer) for peer in dropped]
                    effects.append(Announce("abort", {"sync": str(sync), "reason": reason, "dropped": names}))
                case LeftBehind(sync, peer, reason):
                    details = {"sync": str(sync), "name": self.name_of(peer), "reason": reason}
                    effects.append(Announce("left-behind", details))
                case Rejected(where, peer, by, reason, diverged):
                    effects.append(self._rejected(where, peer, by, reason))
                    if diverged and self.offences.diverged(peer):
                        effects.append(Send(peer, StartOver(stream, self.rounds[stream].index_of(peer), reason)))
                case Committed():
                    pass
        return effects

    def recast(self, now: float) -> list[CoordinatorEffect]:
        """Tell the rounds who is there."""
        casts = self.casting.cast({stream: current.index for stream, current in self.rounds.items()}, now)
        return [effect for stream, cast in casts.items() for effect in self.handle(stream, cast, now)]

    def show(self, peer: str, now: float) -> list[CoordinatorEffect]:
        """Tell the rounds of one peer."""
        seen = self.casting.seen(peer, {stream: current.index for stream, current in self.rounds.items()}, now)
        return [effect for stream, one in seen.items() for effect in self.handle(stream, one, now)]

    def save_if_due(self, now: float) -> list[CoordinatorEffect]:
        """Ask a peer to save the run's state, if one is due."""
        if not self.rounds:
            return []  # the log is about to go back
        pairings = tuple(self.pairings.values())
        asks = self.saves.ask(self.log.head, self.membership.members, pairings, now)
        return [effect for ask in asks for effect in self.desk.save(ask)]

    def _rejected(self, where: str, peer: str, by: str, reason: str) -> Announce:
        guilty = self.offences.guilty.get(peer)
        details = {"sync": where, "peer": peer, "name": self.name_of(peer), "reason": reason}
        details |= {"by": self.name_of(by)} if by else {}
        return Announce("rejected", {**details, "times": guilty.times if guilty else 0})

    def _commit(self, done: Persist) -> list[CoordinatorEffect]:
        start = done.start
        peers = self.membership.peers
        known = [peers[peer].report for peer in start.contributors if peer in peers]
        pace_s = pace_of(report.step_s for report in known if report is not None)
        made = (start.contributors, start.weights, done.digest, done.steps, pace_s)
        record = self.log.next_record(start.sync, *made, consensus=start.consensus)
        timing = {
            "gather_s": done.gather_s,
            "move_s": done.move_s,
            "predicted_s": done.predicted_s,
            "topology": start.topology,
            "codec": start.codec or self.streams[start.sync.stream].codec,
            "shards": list(start.shards),
            "plan": done.plan,
        }
        self._planners[start.sync.stream].took(start.codec, done.predicted_s, done.move_s)

        def announce(now: float) -> list[CoordinatorEffect]:
            self.log.append(record)
            if isinstance(current := self.rounds.get(start.sync.stream), Pairing):
                current.committed(record)
            self.offences.contributed(start.contributors)
            self.timing[record.number] = {**timing, "committed_at": now}
            self.timing.pop(record.number - TIMINGS_KEPT, None)
            names = [self.name_of(peer) for peer in start.contributors]
            details = {"number": record.number, "sync": str(start.sync), "contributors": names, **timing}
            commit = Commit((record,), self.log.head, self.log.revision)
            effects: list[CoordinatorEffect] = [Send(peer, commit) for peer in self.membership.alive]
            effects.append(Announce("commit", details))
            if record.consensus:
                effects += self.save_if_due(now)  # before anybody goes on from there
            return effects + self.handle(start.sync.stream, Persisted(start.sync.attempt), now)

        return self.log.write(PersistCommit(record, self.desk.committed(record, done.drawn)), announce)
