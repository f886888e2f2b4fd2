"""The other peers of the run as one peer sees them: who they are, and which of them it has a way to; pure."""

from collections.abc import Sequence

from wantrain.peers.effects import Dial, Effect, HangUp
from wantrain.peers.messages import MAX_UNREACHED, Member


class Neighbours:
    """All but oneself.

    Args:
        me: this peer.
        address: where others dial it; "" if it can only dial out.
    """

    def __init__(self, me: str, address: str) -> None:
        self.members: dict[str, Member] = {}
        self.suspects: dict[str, str] = {}
        """Whose connection has broken, and why."""
        self._me = me
        self._address = address
        self._reached: frozenset[str] | None = None
        """To whom connections are up; None while that is not known."""

    def viewed(self, members: Sequence[Member]) -> list[Effect]:
        """The run's peers are these now."""
        others = {member.peer: member for member in members if member.peer != self._me}
        effects: list[Effect] = [HangUp(peer) for peer in self.members if peer not in others]
        for peer, member in others.items():
            known = self.members.get(peer)
            if known is None or (known.address, known.curve_key) != (member.address, member.curve_key):
                effects.append(Dial(peer, member.address, member.curve_key))
        self.members = others
        self.suspects = {p: why for p, why in self.suspects.items() if p in others and others[p].address}
        return effects

    def linked(self, peer: str, up: bool, reason: str) -> None:
        """A connection came up, or broke."""
        if up:
            self.suspects.pop(peer, None)
        elif peer in self.members and self.members[peer].address:
            self.suspects[peer] = reason

    def reach(self, reached: frozenset[str] | None) -> bool:
        """Connections are up to these; whether that is news."""
        before, self._reached = self._reached, reached
        return reached != before

    def apart(self, member: Member) -> bool:
        """Whether there is no way to a peer: neither of the two can be dialled, or no connection is up."""
        both_outbound = not (member.address or self._address)
        return both_outbound or (self._reached is not None and member.peer not in self._reached)

    @property
    def sources(self) -> tuple[str, ...]:
        """Who holds the run's state and has a connection to here."""
        return tuple(peer for peer, member in self.members.items() if member.current and not self.apart(member))

    @property
    def beyond_reach(self) -> list[str]:
        """Who holds the run's state and has none, by name."""
        return [member.name for member in self.members.values() if member.current and self.apart(member)]

    @property
    def unreached(self) -> tuple[str, ...]:
        """For the report: the coordinator knows by itself who can only dial out."""
        mine = self._address
        apart = [peer for peer, member in self.members.items() if (member.address or mine) and self.apart(member)]
        return tuple(apart[:MAX_UNREACHED])

    def name_of(self, peer: str) -> str:
        """A peer's name for people."""
        return self.members[peer].name if peer in self.members else peer
