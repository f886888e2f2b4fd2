"""What peers lack by their reports, and when it has to be sent again; pure."""

RESEND_S = 1.0
"""A peer that reports the same lack twice gets what it lacks again, at most this often."""


class Lacks:
    """What each peer lacks by its reports. It has been sent once; it may be on its way, or lost."""

    def __init__(self) -> None:
        self._said: dict[str, tuple[int, float]] = {}
        """What it is, and since when, or when it was sent again."""

    def again(self, peer: str, what: int, now: float) -> bool:
        """Whether this has to be sent again."""
        said, at = self._said.get(peer, (None, now))
        if said == what and now - at < RESEND_S:
            return False
        self._said[peer] = (what, now)
        return said == what
