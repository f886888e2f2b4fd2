"""What the coordinator writes and tells of the data leases: nothing is told before it is written; pure.

A part of its core. `leases.py` decides who has which samples.
"""

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from wantrain.peers.commit_log import CommitLog
from wantrain.peers.coordinator_events import Announce, CoordinatorEffect, PersistLeases, Send
from wantrain.peers.leases import Back, Leases, Rows
from wantrain.peers.messages import MAX_EXTRA, CommitRecord, Drawn, Report, SaveState
from wantrain.peers.save_duty import Ask


@dataclass
class LeaseDesk:
    """Where peers ask for samples, and where their answers wait until they may be told.

    Args:
        leases: who has which samples.
        stream: its commits confirm what their contributors have drawn of the data; "" if none does.
        log: writes rows of leases in turn with all else.
        name_of: the name of a peer for people.
    """

    leases: Leases
    stream: str
    log: CommitLog
    name_of: Callable[[str], str]

    def reported(self, peer: str, report: Report, busy: Collection[str], now: float) -> list[CoordinatorEffect]:
        """What a report says of the trainer as a reader of data, and the answers to what it asks.

        Args:
            busy: contributors to a commit that is under way and may confirm what they have drawn.
        """
        staged = {line.drawn.reader for line in report.syncs if line.stream == self.stream and line.staged}
        back = self.leases.reported(peer, report.reader, staged, busy=peer in busy, now=now)
        effects = self._write(back)
        for want in report.wants if report.reader else ():
            if want.reader != report.reader:
                continue
            answer, back = self.leases.wanted(peer, want, busy, now)
            effects += self._write(back, () if answer is None else (Send(peer, answer),))
        return effects

    def left(self, peer: str) -> list[CoordinatorEffect]:
        """A peer has said goodbye."""
        return self._write(self.leases.left(peer))

    def committed(self, record: CommitRecord, drawn: Mapping[str, Drawn]) -> Rows:
        """This line is to be written, with what its contributors have drawn; the rows to write with it."""
        if record.sync.stream == self.stream:
            self.leases.committed(record.number, drawn)
        return self.leases.rows()

    def rewound(self, after: int) -> tuple[list[Announce], Rows]:
        """The log goes back; the rows to write with that."""
        return [self._returned(one) for one in self.leases.rewound(after)], self.leases.rows()

    def go_on_with(self, peer: str, leases: str) -> tuple[list[Announce], Rows]:
        """Use the data from where another run had left it; `leases` is JSON, as `peer` has it, or "".

        The rows are to be written with the run's beginning.
        """
        if not leases or self.leases.data:
            return [], {}
        try:
            self.leases.restore(json.loads(leases))
        except (ValueError, RecursionError) as error:
            details = {"peer": peer, "name": self.name_of(peer), "reason": str(error)}
            return [Announce("begun-without-leases", details)], {}
        return [], self.leases.rows()

    def save(self, ask: Ask) -> list[CoordinatorEffect]:
        """Ask a peer to save the state, and the leases with it."""
        effects: list[CoordinatorEffect] = []
        leases = self.leases.snapshot(ask.number)
        extra = json.dumps({"leases": leases}) if leases else ""
        if len(extra) > MAX_EXTRA:
            reason = f"the leases of the data take {len(extra):,} bytes, allowed are {MAX_EXTRA:,}"
            effects.append(Announce("saved-without-leases", {"number": ask.number, "reason": reason}))
            extra = ""
        return [*effects, Send(ask.peer, SaveState(ask.number, extra))]

    def _returned(self, back: Back) -> Announce:
        details = {"data": back.data, "peer": back.peer, "name": self.name_of(back.peer), "samples": back.samples}
        return Announce("samples-back", {**details, "why": back.why})

    def _write(self, back: Sequence[Back], told: Sequence[Send] = ()) -> list[CoordinatorEffect]:
        """Write what has changed, then tell."""
        rows = self.leases.rows()
        effects: list[CoordinatorEffect] = [self._returned(one) for one in back if one.samples]
        if rows:
            return effects + self.log.write(PersistLeases(rows), lambda _now: list(told))
        # What is told may rest on what is not durable yet; the next report asks again.
        return effects if self.log.writing else effects + list(told)
