"""What of a state is false, once it is known that something is: digests of its chunks beside those that stand; pure.

A part of `recovery.py`, which alone calls it. The digest of a state is one over the digests of its chunks, so a list of
these can be checked by who knows the digest that stands: nobody can lie about it.
"""

from collections import OrderedDict
from dataclasses import dataclass

from wantrain.peers import catchup
from wantrain.transport.digest import DIGEST_BYTES, state_digest

KEPT = 16
"""Log numbers whose chunk digests are kept, 32 bytes for each chunk: for the moment in which states are compared."""


@dataclass(frozen=True, slots=True)
class Position:
    """A place in the history: log number, link of the chain, and the last sync of every stream there."""

    number: int
    chain: bytes
    indices: dict[str, int]


class Ledger:
    """Digests of the chunks of the state at hand at the last log numbers, and who gave those that were fetched."""

    def __init__(self) -> None:
        self.givers: dict[int, str] = {}
        self._kept: OrderedDict[int, tuple[bytes, tuple[bytes, ...]]] = OrderedDict()

    def keep(self, number: int, chain: bytes, digests: tuple[bytes, ...]) -> None:
        """The state at hand was digested at a log number with this link of the chain."""
        self._kept[number] = (chain, digests)
        if len(self._kept) > KEPT:
            self._kept.popitem(last=False)
            # Compared so often without a difference: what is false in it now was not given by anybody.
            self.givers = {}

    def at(self, number: int) -> tuple[bytes, tuple[bytes, ...]]:
        """Link of the chain and chunk digests at a log number; b"" and none if they are not known."""
        return self._kept.get(number, (b"", ()))

    def forget(self) -> None:
        """Chunks of the state are replaced: earlier digests say nothing about it."""
        self._kept.clear()


class Repair:
    """Gets the list of digests that stands from some peer, and compares.

    Args:
        number: log number of the state that was compared.
        digest: the digest that stands there.
        own: digests of the own state's chunks there.
        before: where the own state stands by now.
    """

    def __init__(self, number: int, digest: bytes, own: tuple[bytes, ...], before: Position) -> None:
        self.number = number
        self.before = before
        self._digest = digest
        self._own = own
        self._fetch = catchup.Fetch((0,))

    @property
    def sources(self) -> tuple[str, ...]:
        """Who is asked."""
        return self._fetch.sources

    def handle(self, event: catchup.FetchEvent, now: float) -> list[catchup.FetchEffect]:
        """Whom to ask for the list."""
        return self._fetch.handle(event, now)

    def false_chunks(self, digests: bytes) -> list[int] | None:
        """Which chunks of the own state are not those that stand; None if this is not the list."""
        chunks = [digests[k : k + DIGEST_BYTES] for k in range(0, len(digests), DIGEST_BYTES)]
        if len(chunks) != len(self._own) or state_digest(chunks) != self._digest:
            return None
        return [k for k, (own, stands) in enumerate(zip(self._own, chunks, strict=True)) if own != stands]
