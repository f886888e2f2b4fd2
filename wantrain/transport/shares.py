"""How much of a vector each contributor of a direct all-reduce owns, from what its links carry; pure.

With N contributors, R receivers, U bytes of a whole vector on the way up (parts) and D on the way down (results), a
contributor that owns the share s of it

    sends     (1 - s) U + s (N - 1 + R) D       its input to the other owners, its shard's mean to everybody
    receives  s (N - 1) U + (1 - s) D           the others' input to its shard, the means of the other shards

and needs as long as the slower of the two takes. All move at once, so the slowest contributor decides.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from math import ceil, floor
from statistics import median

from wantrain.transport.partition import split_chunks

PRECISION = 1e-3
"""Of the least time; far finer than any measured rate."""


@dataclass(frozen=True, slots=True)
class Load:
    """What a direct all-reduce has to move, and how fast each contributor can.

    Args:
        up_bytes: of a whole encoded vector, in the format of the parts.
        down_bytes: the same in the format of the results.
        receivers: how many only get the result.
        upload_bytes_per_s: of each contributor; 0 where unknown.
        download_bytes_per_s: of each contributor; 0 where unknown.
    """

    up_bytes: float
    down_bytes: float
    receivers: int
    upload_bytes_per_s: tuple[float, ...]
    download_bytes_per_s: tuple[float, ...]

    def times_s(self, shares: Sequence[float]) -> list[float]:
        """How long each contributor moves bytes, in seconds, with these shares (fractions that add up to 1)."""
        others = len(shares) - 1
        times = []
        for share, (upload, download) in zip(shares, self._rates(), strict=True):
            sent = (1 - share) * self.up_bytes + share * (others + self.receivers) * self.down_bytes
            received = share * others * self.up_bytes + (1 - share) * self.down_bytes
            times.append(max(sent / upload, received / download))
        return times

    def shards(self, chunks: int, owners: Collection[int] | None = None) -> tuple[int, ...]:
        """Chunks for each contributor such that the slowest is done as early as whole chunks allow.

        Each of the two times above bounds a share by an interval that widens with the time allowed; the least time for
        which the intervals leave room for all chunks is found by bisection. What room is left is used in proportion.

        Args:
            chunks: of the vector.
            owners: indices of the contributors that may own any, at least one; None for all.
        """
        rates = self._rates()
        may_own = [owners is None or k in owners for k in range(len(rates))]
        best = equal = split_chunks(chunks, [float(may) for may in may_own])
        if not chunks or len(set(rates)) == 1:
            return equal
        too_short, enough = self._least_s(rates), max(self.times_s([count / chunks for count in equal]))
        while enough - too_short > PRECISION * enough:
            middle = (too_short + enough) / 2
            room = [
                self._room(chunks if may else 0, chunks, *both, middle)
                for may, both in zip(may_own, rates, strict=True)
            ]
            rest = chunks - sum(low for low, _ in room)
            if all(low <= high for low, high in room) and 0 <= rest <= sum(high - low for low, high in room):
                more = split_chunks(rest, [high - low for low, high in room]) if rest else [0] * len(room)
                best = tuple(low + extra for (low, _), extra in zip(room, more, strict=True))
                enough = middle
            else:
                too_short = middle
        return best

    def _least_s(self, rates: Sequence[tuple[float, float]]) -> float:
        """A time in which it cannot be done: the slowest contributor needs longer whatever its share is."""
        others = len(rates) - 1
        sent = min(self.up_bytes, (others + self.receivers) * self.down_bytes)
        received = min(others * self.up_bytes, self.down_bytes)
        return (1 - PRECISION) * max(max(sent / upload, received / download) for upload, download in rates)

    def _room(self, most: int, chunks: int, upload: float, download: float, time_s: float) -> tuple[int, int]:
        """Fewest and most chunks, up to `most`, with which a contributor is done in time; none if they cross."""
        others = len(self.upload_bytes_per_s) - 1
        low, high = 0.0, float(most)
        for fixed, slope, rate in (
            (self.up_bytes, (others + self.receivers) * self.down_bytes - self.up_bytes, upload),
            (self.down_bytes, others * self.up_bytes - self.down_bytes, download),
        ):  # fixed + slope * share <= rate * time_s
            spare = rate * time_s - fixed
            if slope > 0:
                high = min(high, chunks * spare / slope)
            elif slope < 0:
                low = max(low, chunks * spare / slope)
        return ceil(low), floor(high)

    def _rates(self) -> list[tuple[float, float]]:
        """Upload and download of each; the median of its kind, or else of the other kind, for what is unknown."""
        known = [[r for r in rates if r > 0] for rates in (self.upload_bytes_per_s, self.download_bytes_per_s)]
        upload, download = (median(mine or other or [1.0]) for mine, other in (known, known[::-1]))
        both = zip(self.upload_bytes_per_s, self.download_bytes_per_s, strict=True)
        return [(up if up > 0 else upload, down if down > 0 else download) for up, down in both]
