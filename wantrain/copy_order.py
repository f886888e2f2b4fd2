"""What waits for what where the trainer's parameters are on a device that works through queues; pure, no torch.

The device has the training queue, which the user's loop fills, and beside it one of wantrain's for copies between
parameters and the memory that is shared with the daemon. The host fills both and waits for neither, but for one
thing: it tells the daemon of what was staged only when that has been copied.

    staging    copies wait for training (the step that made the values), training for copies before it changes values
    adoption   copies wait for training (the step that still uses the old values), training for copies at once
"""

from collections.abc import Callable, Sequence
from typing import Protocol

Work = Callable[[], None]


class Mark(Protocol):
    """A place in a queue; a torch.cuda.Event is one."""

    def query(self) -> bool:
        """Whether the device has come past it."""

    def synchronize(self) -> None:
        """Block until it has."""


class Queues(Protocol):
    """The two queues of a device, filled by the calling thread."""

    def copies_wait(self) -> None:
        """What is put on the copies' queue from now on begins when all that training was given so far is done."""

    def training_waits(self) -> None:
        """What training is given from now on begins when all that is on the copies' queue is done."""

    def copy(self, work: Sequence[Work]) -> None:
        """Put work on the copies' queue."""

    def mark(self) -> Mark:
        """The end of the copies' queue."""


class CopyOrder:
    """The order of copies on one device."""

    def __init__(self, queues: Queues) -> None:
        self._queues = queues
        self._reading = False
        """Whether copies may still read what the training queue has not been told to leave alone."""

    def read(self, work: Sequence[Work], *, kept: bool) -> Mark:
        """Copy from parameters to shared memory; the mark says when that is there.

        Args:
            work: the copies.
            kept: nobody changes what is read before `before_change` is called. So it is with parameters; gradients may
                be cleared or freed at any time, and training waits for their copies at once.
        """
        self._queues.copies_wait()
        self._queues.copy(work)
        self._reading = True
        mark = self._queues.mark()
        if not kept:
            self.before_change()
        return mark

    def write(self, work: Sequence[Work]) -> None:
        """Copy from shared memory to parameters, which training uses from now on."""
        self._queues.copies_wait()
        self._queues.copy(work)
        self._reading = True
        self.before_change()

    def before_change(self) -> None:
        """Training changes parameters from now on."""
        if self._reading:
            self._queues.training_waits()
            self._reading = False

    def finish(self) -> None:
        """Block until the copies' queue is empty."""
        self._queues.mark().synchronize()
