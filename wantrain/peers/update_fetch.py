"""One committed update that is fetched from other peers' logs, also if some of them lie; a pure core.

A part of `recovery.py`, which alone calls it. Its chunks are known to be right only together, by the digest in the line
of the commit log. If they are not, and several peers have given them, each is asked for all of it alone: what is right
then shows who had lied.
"""

from wantrain.peers import catchup
from wantrain.peers.effects import Effect, Tell
from wantrain.peers.events import FromPeer
from wantrain.peers.messages import CommitRecord, WantUpdate
from wantrain.transport.collective import Payload
from wantrain.transport.digest import update_digest

ALONE_S = 30.0
"""Who was asked alone and has given nothing new for so long is followed by the next."""
ROUND_S = 1.0
"""Time from one round of asking each alone in vain to the next."""


class UpdateFetch:
    """The chunks of one update as they come.

    Args:
        record: the update's line of the commit log.
        chunks: how many it has.
        now: seconds on the clock of all other calls.
    """

    def __init__(self, record: CommitRecord, chunks: int, now: float) -> None:
        self.record = record
        self.begun_at = now
        self.vain = 0
        """Rounds of asking everybody in vain."""
        self.dropped = False
        """Whether somebody has answered that it no longer keeps the update."""
        self.liars: set[str] = set()
        """Who is known to have sent something false; for the caller to take."""
        self._chunks = chunks
        self._came: dict[int, FromPeer] = {}
        self._false: dict[int, FromPeer] = {}
        """What came from several peers and was not right as a whole."""
        self._peers = catchup.Sources(())
        self._line: list[str] = []
        """Who is still to be asked alone in this round; the first is being asked. Empty while all are."""
        self._moved_at = 0.0
        self._round_at: float | None = None
        """When the next round begins, while nobody is asked."""
        self._fetch = catchup.Fetch(range(chunks))

    @property
    def sources(self) -> tuple[str, ...]:
        """Who is asked."""
        return self._fetch.sources

    @property
    def asked(self) -> tuple[str, ...]:
        """All who are asked, one after another."""
        return self._peers.peers

    @property
    def payloads(self) -> tuple[Payload, ...] | None:
        """The whole update; None while anything is missing."""
        if self._fetch.missing:
            return None
        return tuple(self._came[chunk].payload for chunk in range(self._chunks))

    def wants(self, number: int, chunk: int) -> bool:
        """Whether this chunk is of use."""
        return number == self.record.number and chunk in self._fetch.missing

    def handle(self, event: catchup.FetchEvent, now: float) -> list[Effect]:
        """Sources change, deny or are silent."""
        if isinstance(event, catchup.Sources):
            self._peers = event
            if self._line:
                return [] if self._line[0] in event.peers else self._next(now)
        if self._round_at is not None:
            return self._next(now) if now >= self._round_at else []
        if self._line and isinstance(event, catchup.Tick) and now - self._moved_at >= ALONE_S:
            return self._next(now)
        return self._do(event, now)

    def came(self, event: FromPeer, chunk: int, now: float) -> list[Effect]:
        """A chunk that is wanted."""
        self._moved_at = now
        self._came[chunk] = event
        effects = self._do(catchup.Came(event.source, chunk), now)
        if self._fetch.missing:
            return effects
        came = self._came
        if update_digest(came[k].digest for k in range(self._chunks)) == self.record.digest:
            self.liars |= {false.source for k, false in self._false.items() if false.digest != came[k].digest}
            return effects
        givers = {one.source for one in came.values()}
        if len(givers) == 1:
            self.liars |= givers
        else:
            self._false = dict(came)
        return effects + self._next(now)

    def _do(self, event: catchup.FetchEvent, now: float) -> list[Effect]:
        effects: list[Effect] = []
        for effect in self._fetch.handle(event, now):
            match effect:
                case catchup.Want(source, chunks):
                    effects.append(Tell(source, WantUpdate(self.record.number, chunks)))
                case catchup.Exhausted() if self._line:
                    effects += self._next(now)
                case catchup.Exhausted():
                    self.vain += 1
        return effects

    def _next(self, now: float) -> list[Effect]:
        """Begin again, with one peer alone: the next in line, those who have lied at its end."""
        last = self._peers.last | self.liars
        line = [peer for peer in self._line[1:] if peer in self._peers.peers]
        if self._line and not line:
            self.vain += 1
            self._round_at = now + ROUND_S
        else:
            line = line or sorted(self._peers.peers, key=lambda peer: peer in last)
            self._round_at = None
        self._line, self._came, self._moved_at = line, {}, now
        self._fetch = catchup.Fetch(range(self._chunks))
        return self._do(catchup.Sources(tuple(self._line[:1])), now)
