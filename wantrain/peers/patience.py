"""When to tell that something lasts: after some seconds, and then each time when it has lasted twice as long; pure."""

from dataclasses import dataclass

FIRST_S = 5.0


@dataclass(slots=True)
class Patience:
    """Of one thing that may last."""

    _since: float | None = None
    _tell_after_s: float = FIRST_S

    def runs_out(self, lasts: bool, now: float) -> bool:
        """Whether to tell of it now.

        Args:
            lasts: whether it does at present; when it does not, the next time begins anew.
            now: monotonic time in seconds.
        """
        if not lasts:
            self._since, self._tell_after_s = None, FIRST_S
            return False
        if self._since is None:
            self._since = now
        if now - self._since < self._tell_after_s:
            return False
        self._tell_after_s = 2 * (now - self._since)
        return True
