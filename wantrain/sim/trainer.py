"""A worker of a simulated run: the user's model, optimizer and step in a thread, joined to the run as in a script."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from wantrain.errors import ConfigError
from wantrain.inner_step import in_order
from wantrain.peers.shared_memory import LOCAL_RUN
from wantrain.replica import Replica
from wantrain.session import Swarm
from wantrain.sim.result import WorkerResult
from wantrain.sim.timeline import Task, Timeline
from wantrain.trainer_shell import DAEMON
from wantrain.transport.link import LinkEvent
from wantrain.transport.memory_link import MemoryHub, MemoryLink

TRAINER = "trainer"


@dataclass(frozen=True, slots=True)
class Worker:
    """What the function `worker(i)` returns; a plain tuple of the first three will do."""

    model: nn.Module
    optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer]
    """As `wantrain.join` takes it."""
    step: Callable[[], Tensor | float]
    """Makes one training step, `optimizer.step()` included, and returns the loss."""
    tokens: int = 0
    """Tokens in a step, for methods that weigh contributions by them."""


class TrainerLink(MemoryLink):
    """The trainer's end; to wait on it is to let virtual time pass."""

    task: Task
    timeline: Timeline
    waiting = False

    def poll(self, timeout_s: float) -> list[LinkEvent]:
        events = super().poll(0.0)
        if events or timeout_s <= 0:
            return events
        self.waiting = True
        try:
            self.task.pause(self.timeline.now() + timeout_s)
        finally:
            self.waiting = False
        return super().poll(0.0)

    def told(self) -> None:
        """Something has come."""
        if self.waiting:
            self.task.wake()


class Trainer:
    """One worker.

    Args:
        number: of the worker.
        build: the user's function.
        seed: of torch's default generator: while it builds the same for all, then one for each worker.
        pace: steps in the time of one usual step.
    """

    def __init__(self, number: int, build: Callable[[int], object], seed: int, pace: float) -> None:
        self.result = WorkerResult(f"w{number}")
        self.pace = pace
        self.leaving = False
        self.worker: Worker | None = None
        self.random: Tensor | None = None
        """State of torch's default generator with which it goes on."""
        self.link: TrainerLink | None = None
        self.swarm: Swarm | None = None
        self._number = number
        self._build = build
        self._seed = seed

    def told(self) -> None:
        """Something has come for it."""
        if self.link is not None:
            self.link.told()

    def prepare(self) -> Worker:
        """Make the worker, or go on with the one of an earlier run.

        Raises:
            ConfigError: the user's function returns something else.
        """
        if self.worker is None:
            torch.manual_seed(self._seed)
            made = self._build(self._number)
            made = Worker(*made) if isinstance(made, tuple) and len(made) in (3, 4) else made
            if not isinstance(made, Worker) or not isinstance(made.model, nn.Module) or not callable(made.step):
                raise ConfigError(
                    f"worker({self._number}) returned {type(made).__name__}, allowed is (model, optimizer, step)",
                    hint="step is a function without arguments: one training step, which returns the loss",
                )
            self.worker = made
            torch.manual_seed((self._seed + 1) * 1_000_003 + self._number)
        elif self.random is not None:
            torch.set_rng_state(self.random)
        return self.worker

    def train(
        self,
        hub: MemoryHub,
        timeline: Timeline,
        task: Task,
        *,
        steps: int,
        step_s: float,
        wait_ceiling_s: float,
        begin: Callable[[], float],
        finish: Callable[[], None],
        restart: int = 0,
        settle: Callable[[], None] = lambda: None,
        again: Callable[[], None] = lambda: None,
    ) -> None:
        """Train until the run has made so many steps, or the worker is to leave; in the task's thread.

        Args:
            hub: where its daemon is.
            timeline: virtual time.
            task: this thread.
            steps: of the run.
            step_s: virtual time that a usual step takes.
            wait_ceiling_s: see `wantrain.trainer_shell.TrainerShell`.
            begin: called when the run's weights are here; blocks until training begins; when that was.
            finish: called after the last step; blocks until it may leave.
            restart: the run's step at which it ends and starts again; 0: none.
            settle: called then; blocks until nothing that it has contributed is under way.
            again: called when it has ended.
        """
        worker, result = self.prepare(), self.result
        optimizers = in_order(worker.optimizer)
        try:
            for goal in (*([restart] if restart else []), steps):
                self.link = link = TrainerLink(hub, TRAINER, LOCAL_RUN)
                link.task, link.timeline = task, timeline
                replica = Replica(worker.model, optimizers)
                swarm = self.swarm = Swarm(link, replica, wait_ceiling_s=wait_ceiling_s, clock=timeline)
                link.connect(DAEMON, "", b"")
                swarm.attach()
                swarm.hook(optimizers)
                began_s, waited_s = begin(), result.waited_s
                while swarm.global_step < goal and not self.leaving:
                    task.pause(timeline.now() + step_s / self.pace)
                    if worker.tokens:
                        swarm.tokens(worker.tokens)
                    made = swarm.own_steps
                    loss = float(worker.step())
                    if swarm.own_steps > made:
                        result.losses.append(loss)
                        result.step_times_s.append(timeline.now() - began_s)
                    result.waited_s = waited_s + swarm.waited_s
                if self.leaving or goal == steps:
                    break
                settle()
                swarm.close()
                again()
            result.ended = "left" if self.leaving else "finished"
            finish()
            swarm.leave()
        except Exception as error:
            error.add_note(f"in worker {self._number} of the simulated run, after {len(result.losses)} steps")
            raise
        finally:
            if self.swarm is not None:
                self.swarm.close()
            self.random = torch.get_rng_state()
