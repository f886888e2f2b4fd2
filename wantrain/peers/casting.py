"""What the rounds are to know of peers: who is at the head, who trains and until when it is waited for; pure.

A part of the coordinator's core.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from statistics import median

from wantrain.optimizers.stream import Stream
from wantrain.peers.chase import Chasers
from wantrain.peers.commit_log import CommitLog
from wantrain.peers.link_table import LinkTable
from wantrain.peers.membership import Membership
from wantrain.peers.messages import Report
from wantrain.peers.round_events import Cast, Seen
from wantrain.peers.timing import Policy
from wantrain.transport.reach import apart_in_words


def standing(report: Report) -> tuple[object, ...]:
    """What of a report decides who is waited for."""
    staged = [(line.stream, line.index) for line in report.syncs if line.staged]
    return report.trainer, report.log_number, staged


@dataclass
class Casting:
    """Who of the run's peers is waited for by which stream.

    Args:
        streams: the run's, by name.
        policy: for how long at most nobody waits for a newcomer, and everybody for who chases the head.
        log: the run's.
        membership: who is here, and what they report.
        links: who has no way to whom.
        name_of: the name of a peer for people.
    """

    streams: Mapping[str, Stream]
    policy: Policy
    log: CommitLog
    membership: Membership
    links: LinkTable
    name_of: Callable[[str], str]
    _chasers: Chasers = field(init=False)
    _fresh: dict[str, float] = field(default_factory=dict)
    """Peers that have not been ready since they, or their trainers, came into the running run; and until when nobody
    waits for them."""

    def __post_init__(self) -> None:
        self._chasers = Chasers(self.policy.deadline_ceiling_s)

    def reported(self, peer: str, report: Report, now: float) -> bool:
        """A peer has reported; whether it is news that it chases the head of the log, or does not any more.

        Nobody waits for the first contribution of a newcomer, or of a trainer that was started again. Not for ever,
        though: where rounds are shorter than a message takes it would never be in time by itself.
        """
        if any(line.staged and line.phase == "ready" for line in report.syncs):
            self._fresh.pop(peer, None)
        elif self.log.head > 0 and (report.log_number < 0 or report.trainer == "starting"):
            self._fresh[peer] = now + self.policy.grace_ceiling_s
        return self._chasers.reported(peer, report.behind, now)

    def gone(self, peer: str) -> None:
        """A peer has left."""
        self._fresh.pop(peer, None)
        self._chasers.gone(peer)

    def cut_off(self) -> dict[str, str]:
        """Live peers that nobody can pass updates on to, by no way, and why. Nobody waits for them.

        The others are the part of the run that holds the newest state; the largest one, if several do.
        """
        reach, members = self.links.reach, self.membership
        if reach.whole:
            return {}
        parts = self.links.parts(tuple(members.alive))
        if len(parts) < 2:
            return {}
        newest = {peer for peer, report in members.reports.items() if report.log_number == self.log.head}
        main = max(parts, key=lambda part: (not newest.isdisjoint(part), len(part)))
        others = [peer for part in parts if part is not main for peer in part]
        return {
            peer: f"{self.name_of(peer)} is cut off: {apart_in_words(reach, peer, main, self.name_of)}; "
            "start a peer that both sides reach, or make one of them reachable by --advertise"
            for peer in others
        }

    def cast(self, indices: Mapping[str, int], now: float) -> dict[str, Cast]:
        """Who is there, by stream; `indices`: of the sync that comes next in each."""
        cut_off, view, live = self.cut_off(), self.membership.view, self.membership.members
        seen = [self._seen(peer, peer in cut_off, now) for peer in live]
        expected = {one.peer: one.expected_at for one in seen if one.trains}
        expected |= self.membership.expected_back(now)
        abreast = frozenset(one.peer for one in seen if one.abreast)
        cast = Cast(view, live, abreast, expected, self._chasers.waited_for(now), frozenset(cut_off))
        return {
            stream: replace(cast, expected={p: at for p, at in expected.items() if not self._is_past(p, stream, index)})
            for stream, index in indices.items()
        }

    def seen(self, peer: str, indices: Mapping[str, int], now: float) -> dict[str, Seen]:
        """The same of one peer: with many of them, a whole cast for each report would be too much."""
        if self.membership.peers[peer].state != "member":
            return {}
        seen = self._seen(peer, peer in self.cut_off(), now)
        return {
            stream: replace(seen, trains=seen.trains and not self._is_past(peer, stream, index))
            for stream, index in indices.items()
        }

    def step_s(self, peers: Collection[str]) -> float:
        """How long an inner step usually takes these peers, in seconds; 0 if none has said."""
        reports = [known.report for peer in peers if (known := self.membership.peers.get(peer)) is not None]
        timed = [report.step_s for report in reports if report is not None and report.step_s > 0]
        return median(timed or [0.0])

    def _seen(self, peer: str, cut_off: bool, now: float) -> Seen:
        known = self.membership.peers[peer]
        report = known.report
        if report is None:
            return Seen(peer, False, False, None)
        trains = report.trainer in ("starting", "training", "waiting") and now >= self._fresh.get(peer, now)
        trains = trains and not cut_off
        expected_at = known.seen_at + report.eta_s if report.eta_s >= 0 else None
        return Seen(peer, report.log_number == self.log.head, trains, expected_at)

    def _is_past(self, peer: str, stream: str, index: int) -> bool:
        """Whether a peer has staged for a sync that is due after this stream's next one, and not for that.

        It has missed that one, or is out of step, and may wait for the other one until everybody comes there: if it
        was waited for meanwhile, each would wait for the other.
        """
        known = self.membership.peers.get(peer)
        report = known.report if known is not None else None
        if report is None or len(self.streams) < 2:
            return False
        due = self.streams[stream].steps(index)
        staged = {line.stream: line.index for line in report.syncs if line.staged and line.stream in self.streams}
        later = any(self.streams[name].steps(staged_for) > due for name, staged_for in staged.items())
        return later and staged.get(stream) != index
