"""A tracker's thread and the bounded queue before it: to offer a point never waits, and what has no room is counted."""

import threading
from contextlib import suppress
from queue import Empty, Full, Queue

from wantrain.errors import WantrainError
from wantrain.tracking.tracker import Open, Point

QUEUE_POINTS = 256
"""Over twenty minutes of points at one in 5 s: longer than a server is usually away."""


class Feed:
    """Points on their way to one tracker. Opening it and writing happen on the thread; `offer` never blocks.

    Args:
        name: as the user asked for it.
        opens: makes the tracker.
        queue_points: how many points may wait.
    """

    def __init__(self, name: str, opens: Open, queue_points: int = QUEUE_POINTS) -> None:
        self.name = name
        self.dropped = 0
        """Points that had no room, or came after the tracker had failed."""
        self._opens = opens
        self._queue: Queue[Point | None] = Queue(queue_points)
        self._trouble = ""
        self._told = False
        # A tracker that hangs must not keep the process from ending.
        self._thread = threading.Thread(target=self._run, name=f"track-{name}", daemon=True)

    def start(self) -> None:
        """Open the tracker, on its thread."""
        self._thread.start()

    def offer(self, point: Point) -> None:
        """Give it a point, if there is room."""
        try:
            if self._trouble:
                raise Full
            self._queue.put_nowait(point)
        except Full:
            self.dropped += 1

    def trouble(self) -> str:
        """Why it was given up, the first time that is asked after it was; else ""."""
        if self._told or not self._trouble:
            return ""
        self._told = True
        return self._trouble

    def end(self) -> None:
        """Nothing comes any more."""
        while True:
            try:
                self._queue.put_nowait(None)
                return
            except Full:
                with suppress(Empty):
                    self._queue.get_nowait()
                    self.dropped += 1

    def join(self, timeout_s: float) -> bool:
        """Wait at most so long until the tracker is closed; whether it is."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            tracker = self._opens()
            while (point := self._queue.get()) is not None:
                tracker.write(point)
            tracker.close()
        except WantrainError as error:
            self._trouble = str(error).replace("\n  next:", ";")
        except Exception as error:  # whatever somebody else's package raises: the run goes on
            self._trouble = f"{type(error).__name__}: {error}"
