"""Whether the run has to go back, as nobody holds the head of its log any more or may still come to hold it; pure.

A part of `coordinator.py`, which alone calls it, and goes back.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from wantrain.peers.commit_log import CommitLog
from wantrain.peers.coordinator_events import PersistCommit, PersistDropGenesis, PersistGenesis, PersistRewind
from wantrain.peers.membership import Membership
from wantrain.peers.timing import Policy


@dataclass(frozen=True, slots=True)
class GoBack:
    """The run goes back to log number `after`; -1: nobody has even its initial state, it has to begin anew."""

    after: int
    reason: str


@dataclass
class Stranded:
    """Since when nobody has the state at the head of the log, and how long that is borne.

    Args:
        log: the run's.
        membership: who is here, and what they report.
        policy: how long to wait for those who might come back with what is missing.
        name_of: the name of a peer for people.
    """

    log: CommitLog
    membership: Membership
    policy: Policy
    name_of: Callable[[str], str]
    _since: float | None = None
    """Since when nobody has the state at the head of the log while somebody has an older one."""
    _head: int = -1
    """The newest line at that time: behind a run that commits fast everybody is a line late all the time."""
    _looked_at: float = 0.0
    """After a time in which this process stood still the wait begins anew."""
    _awaited: list[str] = field(default_factory=list)
    """Who is away and might come back with what is missing."""
    _found: tuple[int, bool] = (-1, False)
    """The newest state that somebody holds, and whether anybody is awaited."""
    _found_at: float = 0.0
    """Since when both have been so: reports that say otherwise may be on their way."""

    @property
    def reason(self) -> str:
        """To where the run goes back unless who comes back; "" if it does not."""
        if self._since is None:
            return ""
        known = [report.log_number for report in self.membership.reports.values()]
        back = f"nobody here holds log number {self.log.head}; the run goes back to {max([*known, 0])}"
        if not self._awaited:
            return back
        names = ", ".join(map(self.name_of, self._awaited[:5]))
        return f"{back} unless {names} comes back within {self.policy.deadline_ceiling_s:.0f} s"

    def look(self, now: float) -> GoBack | None:
        """Whether everybody who held the head of the log is gone for good: then to the newest state that is held."""
        policy, log = self.policy, self.log
        if now - self._looked_at > 2 * policy.heartbeat_s:
            self._since = None
        self._looked_at = now
        if log.head < 0 or log.awaits(PersistCommit, PersistGenesis, PersistRewind, PersistDropGenesis):
            self._since = None
            return None
        if log.writing:
            return None
        reports = self.membership.reports
        own = [report for report in reports.values() if not log.foreign(report)]
        held = [report.log_number for report in own if report.log_number >= 0]
        trains = any(report.trainer != "none" for report in reports.values())
        if log.head in held or not (held or (log.head == 0 and trains)):
            self._since = None
            return None
        if self._since is None or self._head != log.head:
            self._since, self._head = now, log.head
        after = max(held, default=-1)
        self._awaited = self._may_hold(after)
        found = (after, bool(self._awaited))
        if found != self._found or self._since == now:
            self._found, self._found_at = found, now
        if now - self._found_at < policy.heard_within_s:
            return None
        if self._awaited and now - self._since < policy.deadline_ceiling_s:
            return None
        if any(now - self.membership.peers[peer].seen_at > 2 * policy.heartbeat_s for peer in reports):
            # This process may have stood still meanwhile: what its peers say is older than the newest line.
            return None
        self._since = None
        return GoBack(after, f"nobody holds log numbers {after + 1} to {log.head} any more")

    def _may_hold(self, number: int) -> list[str]:
        """Who may come to hold a state later than `number`: who took part in a later line, or was here since.

        Not those who are here and have nothing in hand that could be committed: what they had is lost. But who took
        part and reports no state, as it was started again, may have one on its disk and not have read it yet. Who was
        here before this process was may not have come back to it yet.
        """
        made = {peer for record in self.log.records[max(number, 0) :] for peer in record.contributors}
        known = {p: r for p, r in self.membership.reports.items() if r.log_number >= 0 or p not in made}
        bare = {p for p, report in known.items() if all(s.phase in ("ready", "failed") for s in report.syncs)}
        return sorted(made.union(self.membership.peers, self.membership.former) - bare)
