"""How fast a TCP connection may be let send: little more than its path has been seen to carry; pure.

bbr begins by sending at 2.89 times the rate that it has measured, until that has not grown for three round trips in
which there was always something to send (Cardwell et al. 2016, "BBR: Congestion-Based Congestion Control", startup).
A sync that is sent within a few round trips never gives it those: every one goes out at that speed for ever, and
overflows the path's queue now and then. What it measures while it sends the losses again it takes for the path's rate,
a thirtieth of the true one for example, from which it comes back by a quarter every eight round trips.
"""

HEADROOM = 1.4
"""A connection may send at so many times the path's best rate: so it finds out when the path gets faster."""
GROWTH = 1.25
"""A rate that is not so many times the best one so far has not grown; bbr says the same."""
FLAT_SAMPLES = 3
"""After so many of them in turn the best one is taken for the path's."""
EVIDENCE_BYTES = 512 << 10
"""A sample says something about the path only if at least this much was sent since the last that did."""
AT_SPEED, FALLEN = 0.5, 0.25
"""Parts of a connection's share of the path: from the one on it has been up to speed, below the other it has fallen."""


class Pacing:
    """What a path has been seen to carry, and what follows for each connection on it.

    Several share the path, and each may have all of it when the others have nothing to send: the limit is for one that
    is alone, where a burst goes out at once.
    """

    def __init__(self) -> None:
        self._best_bytes_per_s = 0
        self._flat = 0
        self._sent_bytes = 0

    def sample(self, rate_bytes_per_s: int, sent_bytes: int) -> int | None:
        """Take in at which rate the kernel has seen bytes arrive last.

        Args:
            rate_bytes_per_s: of all connections together.
            sent_bytes: what they have sent since the last call.

        Returns:
            The limit from now on; None for none.
        """
        self._sent_bytes += sent_bytes
        if rate_bytes_per_s > 0 and self._sent_bytes >= EVIDENCE_BYTES:
            self._sent_bytes = 0
            grown = rate_bytes_per_s > GROWTH * self._best_bytes_per_s
            self._flat = 0 if grown else self._flat + 1
            self._best_bytes_per_s = max(self._best_bytes_per_s, rate_bytes_per_s)
        return int(HEADROOM * self._best_bytes_per_s) if self._flat >= FLAT_SAMPLES else None

    def at_speed(self, lane_bytes_per_s: int, lanes: int, *, was: bool) -> bool:
        """Whether what a connection takes the path for is its share of what the path carries.

        Args:
            lane_bytes_per_s: what its congestion control takes the path for.
            lanes: connections that share the path.
            was: what this said of it last; False for a new one, which is still finding out.

        Returns:
            Between AT_SPEED and FALLEN what it was.
        """
        least_bytes_per_s = (FALLEN if was else AT_SPEED) * self._best_bytes_per_s / lanes
        return 0 < least_bytes_per_s <= lane_bytes_per_s
