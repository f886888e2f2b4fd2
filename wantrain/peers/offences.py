"""Who contributes what cannot be used: accusations of peers, who is to blame for them, and norms out of line; pure.

Bytes between two peers are authenticated but not signed, so one peer's word stands against the other's. What it costs
to be blamed is bounded: some syncs without the own contribution, more with every time.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from statistics import median_low

NORM_LIMIT = 1000.0
"""A contribution whose norm is so many times the median one is left out. Norms of peers that train differ by a few
times, with several rounds' progress in one of them by some more; what is beyond that has diverged."""
COMPARED = 3
"""Contributions that it takes to say that one is out of line."""


def out_of_line(norms: Mapping[str, float]) -> dict[str, str]:
    """Contributors whose norm, as they report it, says that their training has broken, with the reason.

    All zeros while most others move, or far more than others. Who lies about its norm is not found here: robust
    averages are for that.
    """
    if len(norms) < COMPARED:
        return {}
    usual = median_low(norms.values())
    found = {}
    for peer, norm in norms.items():
        if usual > 0.0 and norm == 0.0:
            found[peer] = f"its contribution is all zeros, the median norm is {usual:.3g}"
        elif usual > 0.0 and norm > NORM_LIMIT * usual:
            found[peer] = f"its contribution has norm {norm:.3g}, more than {NORM_LIMIT:g} times the median {usual:.3g}"
    return found


@dataclass(slots=True)
class Offence:
    """What one peer has been found guilty of."""

    times: int
    reason: str
    """Of the last time."""


@dataclass(slots=True)
class Offences:
    """All accusations in one life of the coordinator."""

    guilty: dict[str, Offence] = field(default_factory=dict)
    _diverged: Counter[str] = field(default_factory=Counter)
    """Per peer: syncs since its last contribution in which it was out of line."""
    _accusers: dict[str, set[str]] = field(default_factory=dict)
    """Per accused peer: who has accused it."""

    def heard(self, by: str, accused: str) -> None:
        """A peer says that another one has sent it what cannot be used."""
        if by != accused:
            self._accusers.setdefault(accused, set()).add(by)

    def judge(self, by: str, accused: str) -> str:
        """Who is to blame: the accused, unless the accuser is the only one to accuse two or more."""
        self.heard(by, accused)
        alone = [peer for peer, accusers in self._accusers.items() if accusers == {by}]
        return by if accused in alone and len(alone) > 1 else accused

    def diverged(self, peer: str) -> bool:
        """A peer was left out for its norm; whether it had better begin anew from the run's state.

        It keeps what it has trained and would be out of line for ever: at the second time, the fourth, the eighth, …
        """
        self._diverged[peer] += 1
        return self._diverged[peer] > 1 and self._diverged[peer].bit_count() == 1

    def contributed(self, peers: Iterable[str]) -> None:
        """These are in a commit."""
        for peer in peers:
            self._diverged.pop(peer, None)

    def punish(self, peer: str, reason: str) -> int:
        """Write down an offence; how often this peer has offended."""
        known = self.guilty.setdefault(peer, Offence(0, ""))
        known.times += 1
        known.reason = reason
        return known.times
