"""What all peers know of their ways to each other, as the coordinator has it from their reports; pure."""

from collections.abc import Collection, Mapping, Sequence

from wantrain.peers.messages import LinkReport
from wantrain.peers.reports import differs
from wantrain.transport.cost import Pace
from wantrain.transport.reach import Reach


class LinkTable:
    """Measured paths by directed pair (from, to), and which pairs have no way to each other."""

    def __init__(self) -> None:
        self.version = 0
        """Grows when something changes that a plan may depend on."""
        self.paths: dict[str, dict[str, LinkReport]] = {}
        """As reported last: by the peer that sends, then by the one that receives."""
        self._paces: dict[tuple[str, str], Pace] = {}
        self._outbound: set[str] = set()
        self._unreached: dict[str, frozenset[str]] = {}
        self._reach: tuple[int, Reach] | None = None
        self._parts: tuple[int, Sequence[str], list[tuple[str, ...]]] | None = None

    @property
    def paces(self) -> Mapping[tuple[str, str], Pace]:
        """Rate and round trip of every pair of which something is known."""
        return self._paces

    @property
    def reach(self) -> Reach:
        """Who is apart: both can only dial out, or one of the two says that it has no connection to the other."""
        if self._reach is None or self._reach[0] != self.version:
            pairs = ((peer, other) for peer, others in self._unreached.items() for other in others)
            self._reach = (self.version, Reach.of(pairs, self._outbound))
        return self._reach[1]

    def parts(self, peers: Sequence[str]) -> list[tuple[str, ...]]:
        """See `Reach.parts`; the same object while nothing has changed."""
        if self._parts is None or self._parts[:2] != (self.version, peers):
            self._parts = (self.version, peers, self.reach.parts(peers))
        return self._parts[2]

    def greeted(self, peer: str, address: str) -> None:
        """A peer has said where it can be dialled, "" if nowhere: known before anybody has to find out."""
        if (peer in self._outbound) == bool(address):
            self._outbound ^= {peer}
            self.version += 1

    def reported(self, peer: str, paths: Mapping[str, LinkReport], unreached: Collection[str]) -> bool:
        """Take in what a peer says of its ways to some others, and of all to whom it has none.

        Returns:
            Whether it has lost its way to somebody, or has one again: others may be cut off now.
        """
        self.paths.setdefault(peer, {}).update(paths)
        others = frozenset(unreached) - {peer}  # whoever is apart from itself could not be in any part
        changed = turned = self._unreached.get(peer, frozenset()) != others
        self._unreached[peer] = others
        for other, path in paths.items():
            pace, known = Pace(path.rate_bytes_per_s, path.rtt_s), self._paces.get((peer, other))
            if path.rate_bytes_per_s > 0 and (known is None or differs(known, pace)):
                self._paces[peer, other] = pace
                changed = True
        self.version += changed
        return turned

    def gone(self, peer: str) -> None:
        """A peer has left; what was measured to it and by it may be wrong when it comes back."""
        self.paths.pop(peer, None)
        for others in self.paths.values():
            others.pop(peer, None)
        self._unreached.pop(peer, None)
        self._outbound.discard(peer)
        self._paces = {pair: pace for pair, pace in self._paces.items() if peer not in pair}
        self.version += 1
