"""Virtual time: actions in the order of their time, and threads that take turns, so that one runs at any moment.

The order depends on nothing but what was asked for: the same program does the same, however fast its threads are.
"""

import heapq
import threading
from collections.abc import Callable

import torch

from wantrain.errors import ProtocolBug


class Ended(BaseException):  # noqa: N818 - no error: the simulation ends this thread where it waits
    """Unwinds a thread that is to end."""


class Task:
    """A thread of a timeline; its state of torch's default random generator is its own."""

    def __init__(self, timeline: "Timeline", work: Callable[[], None] | None) -> None:
        self.over = work is None
        self._timeline = timeline
        self._work = work
        self._turn = threading.Lock()
        self._turn.acquire()
        self._pauses = 0
        self._ending = False
        if work is not None:
            threading.Thread(target=self._run, daemon=True).start()

    def pause(self, until_s: float) -> None:
        """Let virtual time pass; `wake` may end it early. To be called by this task.

        Raises:
            Ended: the task is to end.
        """
        if self._ending:
            raise Ended
        self._timeline.resume(self, until_s)
        self._timeline.switch(self)
        if self._ending:
            raise Ended

    def wake(self) -> None:
        """End its pause now."""
        if not self.over:
            self._timeline.resume(self, self._timeline.now())

    def end(self) -> None:
        """End the thread at the pause in which it is; what it has opened is closed as after an error."""
        self._ending = True
        self.wake()

    # ---- for the timeline

    @property
    def pauses(self) -> int:
        """Number of the pause in which it is: a wake that was meant for an earlier one is none."""
        return self._pauses

    def go_on(self, *, here: bool = False) -> None:
        """Its pause is over; `here`: it is the thread that runs."""
        self._pauses += 1
        if not here:
            self._turn.release()

    def take_turn(self) -> None:
        """Wait until it is to run."""
        self._turn.acquire()

    def _run(self) -> None:
        assert self._work is not None
        self._turn.acquire()
        try:
            if not self._ending:
                self._work()
        except Ended:
            pass
        except BaseException as error:
            self._timeline.fail(error)
        self.over = True
        self._timeline.leave()


class Timeline:
    """The clock, the queue of what is to happen, and whose turn it is. Also a `wantrain.clock.Clock`."""

    def __init__(self) -> None:
        self._now = 0.0
        self._queue: list[tuple[float, int, Task | None, int, Callable[[], None] | None]] = []
        self._count = 0
        self._main = Task(self, None)
        self._tasks: list[Task] = []
        self._failure: BaseException | None = None
        self._stopped = False

    def now(self) -> float:
        """Virtual time in seconds."""
        return self._now

    def after(self, delay_s: float, action: Callable[[], None]) -> None:
        """Do something in so many seconds; it must not block."""
        self._push(self._now + delay_s, None, 0, action)

    def start(self, work: Callable[[], None]) -> Task:
        """A new thread, whose first turn comes now."""
        task = Task(self, work)
        self._tasks.append(task)
        self.resume(task, self._now)
        return task

    def run(self) -> None:
        """Let virtual time pass until `stop`, and end all threads. To be called by the thread that made this.

        Raises:
            BaseException: what an action or a thread has raised.
        """
        try:
            self.switch(self._main)
        except KeyboardInterrupt as error:
            # Some other thread has the turn; it gives it back at its next pause.
            self.fail(error)
            self._main.take_turn()
        self._stopped = True
        for task in self._tasks:
            if not task.over:
                task.end()
                task.go_on()
                self._main.take_turn()
        if self._failure is not None:
            raise self._failure

    def stop(self) -> None:
        """Nothing happens any more."""
        self._stopped = True

    def fail(self, error: BaseException) -> None:
        """Stop, and let `run` raise this."""
        self._failure = self._failure or error

    # ---- for tasks

    def resume(self, task: Task, at_s: float) -> None:
        """Let a task go on at that time, unless it does so earlier."""
        self._push(at_s, task, task.pauses, None)

    def switch(self, me: Task) -> None:
        """Let others run until it is this task's turn again."""
        random = torch.get_rng_state()
        following = self._next()
        following.go_on(here=following is me)
        if following is not me:
            me.take_turn()
        torch.set_rng_state(random)

    def leave(self) -> None:
        """A task is over: others run."""
        self._next().go_on()

    def _push(self, at_s: float, task: Task | None, pause: int, action: Callable[[], None] | None) -> None:
        self._count += 1
        heapq.heappush(self._queue, (at_s, self._count, task, pause, action))

    def _next(self) -> Task:
        """Do what is to be done until it is a task's turn."""
        while self._failure is None and not self._stopped:
            if not self._queue:
                self.fail(ProtocolBug("nothing will ever happen again"))
                break
            at_s, _, task, pause, action = heapq.heappop(self._queue)
            if task is not None and (task.over or task.pauses != pause):
                continue
            self._now = max(self._now, at_s)
            if task is not None:
                return task
            assert action is not None
            try:
                action()
            except BaseException as error:
                self.fail(error)
        return self._main
