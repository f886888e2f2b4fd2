"""Which state is the run's where peers hold different ones at a log number: what most of them have; pure."""

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass

VOTES_KEPT = 64
"""Log numbers whose state digests are kept for comparison; peers report that of the state that they hold now."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What stands at a log number, who has it, and who has something else."""

    digest: bytes
    holders: tuple[str, ...]
    others: tuple[str, ...]


class StateVotes:
    """Digests of the state at a log number, by the peer that reported it, the first one first.

    While no state has most votes nobody can tell who is right. If that lasts, and the members that have not voted yet
    could not outvote it, the one with the most stands, and of several the one reported first.

    Args:
        patience_s: for how long states may differ without a majority for one.
    """

    def __init__(self, patience_s: float) -> None:
        self._patience_s = patience_s
        self._votes: dict[int, dict[str, bytes]] = {}
        self._split_at: float | None = None
        """Since when states differ without a majority for one."""

    def vote(self, peer: str, number: int, digest: bytes, members: Collection[str], now: float) -> Verdict | None:
        """A peer holds this state at a log number. Returns a verdict if there is one, and somebody differs from it."""
        votes = self._votes.setdefault(number, {})
        votes[peer] = digest
        while len(self._votes) > VOTES_KEPT:
            del self._votes[next(iter(self._votes))]
        (stands, count), *others = Counter(votes.values()).most_common()
        if not others:
            self._split_at = None if len(votes) > 1 else self._split_at
            return None
        self._split_at = now if self._split_at is None else self._split_at
        majority = 2 * count > max(len(votes), len(members))
        silent = sum(member not in votes for member in members)
        if not majority and (now - self._split_at < self._patience_s or others[0][1] + silent > count):
            return None  # who has not voted yet may tell who is right, for however long states have differed
        if not any(votes.get(member) == stands for member in members):
            return None  # those who held what stands are gone: there is nobody to fetch it from
        holders = tuple(peer for peer, voted in votes.items() if voted == stands)
        return Verdict(stands, holders, tuple(peer for peer in votes if peer not in holders))

    def withdraw(self, peer: str, number: int) -> None:
        """What a peer held there was false, and is being fetched anew."""
        self._votes.get(number, {}).pop(peer, None)

    def rewound(self, number: int) -> None:
        """The run has gone back to this log number; -1: it has no state any more."""
        self._votes = {at: votes for at, votes in self._votes.items() if at <= number}
