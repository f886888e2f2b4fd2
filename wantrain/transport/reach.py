"""Who can exchange bytes with whom, and what follows: owners that relay, parts of a run that are cut off; pure.

Two peers that can both only dial out never meet. Nothing is sent twice for them: what they own would have to pass a
third peer, so they own nothing, and whoever both reach owns it instead and sums what each of them sends.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Group:
    """Peers that can do one direct all-reduce together."""

    owners: frozenset[str]
    """Contributors that reach all others of the group; at least one."""
    contributors: tuple[str, ...]
    receivers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Reach:
    """Which pairs are apart: a link works in either direction once it is up, so this is symmetric.

    Args:
        outbound: peers that can only dial out; no two of them reach each other.
        cut: by peer, others that it does not reach although one of them can be dialled; in both directions.
    """

    outbound: frozenset[str] = frozenset()
    cut: Mapping[str, frozenset[str]] = field(default_factory=dict)

    @staticmethod
    def of(pairs: Iterable[tuple[str, str]], outbound: Iterable[str] = ()) -> "Reach":
        """From pairs that do not reach each other."""
        cut: dict[str, set[str]] = {}
        for a, b in pairs:
            cut.setdefault(a, set()).add(b)
            cut.setdefault(b, set()).add(a)
        return Reach(frozenset(outbound), {peer: frozenset(others) for peer, others in cut.items()})

    @property
    def whole(self) -> bool:
        """Whether everybody reaches everybody."""
        return len(self.outbound) < 2 and not any(self.cut.values())

    def apart(self, a: str, b: str) -> bool:
        """Whether two different peers cannot exchange a byte."""
        return a != b and ((a in self.outbound and b in self.outbound) or b in self.cut.get(a, ()))

    def missing(self, peer: str, among: Iterable[str]) -> tuple[str, ...]:
        """Whom of these a peer does not reach, in their order."""
        return tuple(other for other in among if self.apart(peer, other))

    def relays(self, a: str, b: str, among: Iterable[str]) -> tuple[str, ...]:
        """Who of these reaches both, in their order."""
        return tuple(p for p in among if p not in (a, b) and not self.apart(p, a) and not self.apart(p, b))

    def group(self, contributors: Sequence[str], receivers: Sequence[str], passed: Mapping[str, int]) -> Group:
        """The largest group around one owner, all of these peers if one of the contributors reaches everybody.

        Of equal ones that whose update most get: what only a few hold leaves the others without a way to it.

        Args:
            contributors: at least one.
            receivers: who would only get the result; those whom not all owners reach fetch it from others later.
            passed: how often in a row each contributor was left out: so much more it counts.
        """
        owners = self._owners(contributors, (*contributors, *receivers))
        if owners:
            return Group(owners, tuple(contributors), tuple(receivers))

        def worth(peer: str) -> tuple[int, int]:
            inside = sum(1 + passed.get(other, 0) for other in contributors if not self.apart(peer, other))
            return inside, len(receivers) - len(self.missing(peer, receivers))

        centre = max(contributors, key=worth)
        inside = tuple(peer for peer in contributors if not self.apart(centre, peer))
        owners = self._owners(inside, inside)
        return Group(owners, inside, tuple(peer for peer in receivers if not self.missing(peer, owners)))

    def _owners(self, contributors: Sequence[str], everybody: Sequence[str]) -> frozenset[str]:
        inside = frozenset(everybody)
        outbound = self.outbound & inside
        alone = len(outbound) < 2
        return frozenset(
            peer
            for peer in contributors
            if (alone or peer not in outbound) and inside.isdisjoint(self.cut.get(peer, frozenset()))
        )

    def parts(self, peers: Sequence[str]) -> list[tuple[str, ...]]:
        """The peers in parts between which not even a third peer passes anything on, each in the given order."""
        if self.whole:
            return [tuple(peers)] if peers else []
        left, found = dict.fromkeys(peers), []
        while left:
            first = next(iter(left))
            del left[first]
            part, todo = {first}, [first]
            while todo and left:
                peer = todo.pop()
                near = [other for other in left if not self.apart(peer, other)]
                for other in near:
                    del left[other]
                part.update(near)
                todo += near
            found.append(tuple(peer for peer in peers if peer in part))
        return found


NAMED = 4
"""Peers that a reason names; of more it says how many."""


def apart_in_words(reach: Reach, peer: str, others: Sequence[str], name_of: Callable[[str], str]) -> str:
    """Why a peer reaches none of some others, for people."""
    names = ", ".join(map(name_of, others[:NAMED])) + (f" and {len(others) - NAMED} more" if others[NAMED:] else "")
    if peer in reach.outbound and reach.outbound.issuperset(others):
        return f"it can only dial out, and so can {names}"
    return f"it has no connection to {names}"
