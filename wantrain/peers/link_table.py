"""What all peers have measured on their ways to each other, as the coordinator knows it from their reports; pure."""

from collections.abc import Collection, Mapping

from wantrain.peers.messages import LinkReport
from wantrain.peers.reports import differs
from wantrain.transport.cost import Pace


class LinkTable:
    """Measured paths by directed pair (from, to)."""

    def __init__(self) -> None:
        self.version = 0
        """Grows when something changes that a plan may depend on."""
        self.paths: dict[str, dict[str, LinkReport]] = {}
        """As reported last: by the peer that sends, then by the one that receives."""
        self._paces: dict[tuple[str, str], Pace] = {}
        self._cut: dict[str, frozenset[str]] = {}

    @property
    def paces(self) -> Mapping[tuple[str, str], Pace]:
        """Rate and round trip of every pair of which something is known."""
        return self._paces

    @property
    def cut(self) -> frozenset[tuple[str, str]]:
        """Pairs that cannot reach each other, as one of the two says; in both directions."""
        pairs = {(peer, other) for peer, others in self._cut.items() for other in others}
        return frozenset(pairs | {(b, a) for a, b in pairs})

    def reported(self, peer: str, paths: Mapping[str, LinkReport], suspects: Collection[str]) -> None:
        """Take in what a peer says of its ways to some others, and of all whom it cannot reach."""
        self.paths.setdefault(peer, {}).update(paths)
        changed = self._cut.get(peer, frozenset()) != frozenset(suspects)
        self._cut[peer] = frozenset(suspects)
        for other, path in paths.items():
            pace, known = Pace(path.rate_bytes_per_s, path.rtt_s), self._paces.get((peer, other))
            if path.rate_bytes_per_s > 0 and (known is None or differs(known, pace)):
                self._paces[peer, other] = pace
                changed = True
        self.version += changed

    def gone(self, peer: str) -> None:
        """A peer has left; what was measured to it and by it may be wrong when it comes back."""
        self.paths.pop(peer, None)
        for others in self.paths.values():
            others.pop(peer, None)
        self._cut.pop(peer, None)
        self._paces = {pair: pace for pair, pace in self._paces.items() if peer not in pair}
        self.version += 1
