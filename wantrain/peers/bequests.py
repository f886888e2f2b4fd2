"""Who of those that leave may go: what a leaving peer holds has to be held by somebody who stays; pure.

Two that leave at the same instant must not count on each other. So a leaving peer says in its reports that it leaves,
and the coordinator, which hears of all of them in one order, counts only on those who have not said so.
"""

from collections.abc import Mapping

from wantrain.peers.messages import Report


class Bequests:
    """What leaving peers have been told."""

    def __init__(self) -> None:
        self.waiting: dict[str, int] = {}
        """Who has said that it leaves, and up to which log number it was told that somebody who stays has the state."""

    def heard(self, peer: str, staying: Mapping[str, int], leaving: Mapping[str, Report], head: int) -> dict[str, int]:
        """`peer` has reported: whom to tell that it need not stay for log numbers up to which one.

        Args:
            peer: hears it again, as the last answer may be lost, if it leaves.
            staying: by peer that has not said that it leaves: the log number of the state that it holds, -1 if none.
            leaving: the last reports of those who have.
            head: last log number of the run; if nobody stays there is nobody to wait for.
        """
        if not leaving:
            self.waiting = {}
            return {}
        held = max(staying.values(), default=head)
        news = {one: held for one in leaving if one == peer or self.waiting.get(one) != held}
        self.waiting = dict.fromkeys(leaving, held)
        return news

    def reason(self, peer: str, report: Report) -> str:
        """For what a leaving peer waits, or ""."""
        held = self.waiting.get(peer, report.log_number)
        return (
            f"for another peer to hold the state at log number {report.log_number}" if held < report.log_number else ""
        )
