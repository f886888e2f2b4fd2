"""A run of many workers in this process: coordinator, peers and trainers on one virtual clock."""

import copy
import hashlib
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from wantrain.config import RunSpec
from wantrain.errors import ConfigError, WantrainError
from wantrain.lab.shape import Shape
from wantrain.optimizers.stream import lead
from wantrain.peers.memory_store import MemoryStore
from wantrain.peers.messages import COORDINATOR
from wantrain.peers.place import segment_directory
from wantrain.sim import churn as churning
from wantrain.sim.churn import Churn, Join, Kill, Leave, Pace, Restart
from wantrain.sim.coordinator import VirtualCoordinator
from wantrain.sim.result import Result, Round, phi_of
from wantrain.sim.site import HIGH_WATER, Kept, Site
from wantrain.sim.timeline import Task, Timeline
from wantrain.sim.trainer import Trainer, Worker
from wantrain.transport.memory_link import MemoryHub
from wantrain.wrappers import plain_name

PEERS_MOST = 1024
SETTLE_S = 0.1
"""How often it is looked whether all workers are in the run, before they begin to train."""
STALL_S = 1000.0
"""Virtual time without a step of anybody after which the run counts as stalled: longer than any wait in it."""
LOOK_S = 10.0

Values = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Saved:
    """What a later run goes on with: the coordinator's log, each peer's state, and the workers as they are."""

    digest: bytes
    """Of the run spec."""
    store: MemoryStore
    kept: dict[int, Kept | None]
    trainers: dict[int, Trainer]
    """Those that had finished, by number."""


def train(
    worker: Callable[[int], Worker | tuple[Any, ...]],
    *,
    peers: int,
    steps: int,
    method: str = "diloco",
    options: Values | None = None,
    codec: str = "",
    down: str = "",
    topology: str = "auto",
    evaluate: Callable[[nn.Module], float] | None = None,
    evaluate_every: int = 1,
    churn: Sequence[Churn] = (),
    seed: int = 0,
    step_s: float = 0.1,
    link: str = "",
    run: Mapping[str, Values] | None = None,
    resume: Result | None = None,
) -> Result:
    """Train with many workers in this process, on virtual time; the same arguments give the same result, bit for bit.

    torch's default random generator belongs to each worker alone; other generators are the workers' own affair.

    Args:
        worker: makes worker i: (model, optimizer, step), or a `Worker`. All begin with the weights of one of them.
        peers: workers at the start.
        steps: inner steps of the run; each worker trains until the run has made them.
        method: as in [method] of run.toml.
        options: of the method, as there.
        codec: of contributions, as in [wire]; "": the method's own.
        down: codec of what comes back, as there.
        topology: as there.
        evaluate: gets a copy of the model with phi in it after every round; its value goes into `Result.rounds`.
        evaluate_every: rounds from one evaluation to the next; the first and the last are always evaluated.
        churn: who joins, leaves, is killed, or trains at another pace, and when.
        seed: of torch's default generator.
        step_s: virtual time that a step takes, in seconds; what waits are measured against.
        link: what every peer is connected by, as "rate=100mbit,rtt=100ms": the rate is that at which a peer can send to
            all others together, half of the round trip what a message takes. "": bytes take no time.
        run: more tables of run.toml, such as {"sync": {"quorum": 1.0}}.
        resume: an earlier run with the same options; it is gone on with from what its peers have saved at its end. The
            workers' models, optimizers and data go on as they are. Its `steps` count.

    Raises:
        ConfigError: something that cannot be used; says what, and what is allowed.
        WantrainError: the run stalled, or nobody is left.
        Exception: what `worker`, `step` or `evaluate` has raised, with a note which worker it was.
    """
    if not 1 <= peers <= PEERS_MOST:
        raise ConfigError(f"peers is {peers}, allowed is 1 to {PEERS_MOST}", hint="try peers=4")
    for name, value in (("step_s", step_s), ("evaluate_every", evaluate_every)):
        if not value > 0:
            raise ConfigError(f"{name} is {value}, allowed is more than 0", hint="leave it out for the default")
    shape = Shape.parse(link) if link else Shape()
    if shape != Shape(shape.rate_bytes_per_s, shape.delay_s, queue_bytes=shape.queue_bytes):
        raise ConfigError(f"link is {link!r}, allowed are rate, rtt and delay", hint="the network lab loses packets")
    churning.check(churn, peers)
    tables: dict[str, Any] = {
        "run": {"id": hashlib.sha256(str(seed).encode()).hexdigest()[:16], "owner": "0" * 64},
        "method": {"name": method, **(options or {})},
        "wire": {"codec": codec, "down": down, "topology": topology},
        "checkpoint": {"every": 0},
    }
    for section, values in (run or {}).items():
        tables[section] = {**tables.get(section, {}), **values}
    spec = RunSpec.of(tables, "sim")
    first = min(stream.offset or stream.every for stream in spec.streams)
    if not steps >= first:
        raise ConfigError(
            f"steps is {steps}, allowed is {first} and more: the first sync of {method} comes after so many",
            hint="train longer, or lower the method's `every`",
        )
    saved: Saved | None = None if resume is None else resume.saved
    if saved is not None and saved.digest != spec.digest:
        raise ConfigError("resume: that run had other options", hint="give the same method, options, codec and seed")
    if saved is not None and len(saved.trainers) != peers:
        raise ConfigError(f"peers is {peers}, allowed is {len(saved.trainers)}: so many had finished", hint="give that")
    folders = tempfile.TemporaryDirectory(prefix="wantrain-sim-", dir=segment_directory())
    with folders as folder, torch.random.fork_rng(devices=[]):
        world = _World(
            spec, Path(folder), worker, steps, step_s, shape, seed, evaluate, evaluate_every, saved, churn
        )  # fmt: skip
        return world.run(range(peers) if saved is None else sorted(saved.trainers))


class _World:
    """Everything in one run."""

    def __init__(
        self,
        spec: RunSpec,
        folder: Path,
        build: Callable[[int], object],
        steps: int,
        step_s: float,
        shape: Shape,
        seed: int,
        evaluate: Callable[[nn.Module], float] | None,
        evaluate_every: int,
        saved: Saved | None,
        churn: Sequence[Churn],
    ) -> None:
        self.spec, self.folder, self.build = spec, folder, build
        self.steps, self.step_s, self.seed = steps, step_s, seed
        self.evaluate, self.evaluate_every = evaluate, evaluate_every
        self.saved, self.churn = saved, churn
        self.timeline = Timeline()
        self.hub = MemoryHub(
            HIGH_WATER,
            now=self.timeline.now,
            delay_s=shape.delay_s,
            rate_bytes_per_s=shape.rate_bytes_per_s,
            told=self._told,
        )
        self.store = MemoryStore() if saved is None else copy.deepcopy(saved.store)
        self.coordinator = VirtualCoordinator(self.timeline, self.hub, spec, self.store, self._announced)
        first = lead(spec.streams)
        assert first is not None, "every method has a stream of parameters"
        self.lead, self.gossip = first.name, first.gossip
        self.sites: dict[int, Site] = {}
        self.trainers: dict[int, Trainer] = {}
        self.tasks: dict[int, Task] = {}
        self.rounds: list[Round] = []
        self.aborts: list[str] = []
        self.rejected: list[str] = []
        self._shown: nn.Module | None = None
        """The copy of the model that is evaluated."""
        self._seen = len(self.store.records)
        """Commits that somebody has applied."""
        self._to_begin: set[int] = set()
        """Workers of the start that are not there yet, or of those who start again."""
        self._open = False
        """Whether they may train."""
        self._at_restart: set[int] = set()
        """Workers that have come to the step at which all start again."""
        self._began_s = -1.0
        self._coming = sum(isinstance(change, Join) for change in churn)
        self._moved = (0, 0.0)
        """Steps of all workers, and when there were last more of them."""

    def run(self, numbers: Sequence[int]) -> Result:
        """From the first process to the last step."""
        self.coordinator.start()
        self._to_begin = set(numbers)
        for number in numbers:
            self._add(number, 1.0)
        self.timeline.after(LOOK_S, self._look)
        try:
            self.timeline.run()
            return self._result()
        finally:
            for site in self.sites.values():
                site.close()

    # ---- who is there

    def _add(self, number: int, pace: float) -> None:
        trainer = self.trainers[number] = Trainer(number, self.build, self.seed, pace)
        kept = None
        if self.saved is not None and number in self.saved.trainers:
            earlier, kept = self.saved.trainers[number], self.saved.kept[number]
            trainer.worker, trainer.random = earlier.worker, earlier.random
        site = self.sites[number] = Site(
            trainer.result.name,
            self.timeline,
            self.hub,
            self.spec,
            self.folder,
            kept,
            self._noted,
            self.timeline.fail,
            doom=next((c for c in self.churn if isinstance(c, Kill) and c.worker == number and c.sync), None),
            killed=lambda: self._kill(number),
        )
        site.start(trainer.told)
        self.tasks[number] = self.timeline.start(lambda: self._work(number))

    def _work(self, number: int) -> None:
        """A worker's thread."""
        task = self.tasks[number]
        self.trainers[number].train(
            self.sites[number].local,
            self.timeline,
            task,
            steps=self.steps,
            step_s=self.step_s,
            wait_ceiling_s=self.spec.sync.wait_ceiling_s,
            begin=lambda: self._begin(number, task),
            finish=lambda: self._finish(number, task),
            restart=next((change.step for change in self.churn if isinstance(change, Restart)), 0),
            settle=lambda: self._settle(number, task),
            again=lambda: self.sites[number].trainer_again(),
        )
        self._stop_if_over()

    def _begin(self, number: int, task: Task) -> float:
        """Wait until all workers of the start are there, or of a restart; when training began."""
        if number not in self._to_begin:
            return self._began_s
        self._to_begin.remove(number)
        if self._to_begin:
            while not self._open:
                task.pause(self.timeline.now() + STALL_S)
            return self._began_s
        again = self._began_s >= 0
        while not again and len(self.coordinator.core.membership.members) < len(self.trainers):
            task.pause(self.timeline.now() + SETTLE_S)
        if again or self.saved is not None:  # until then nobody waits for a trainer that was started again
            settled_s = self.spec.sync.grace_ceiling_s + 2 * self.spec.liveness.heartbeat_s
            task.pause(self.timeline.now() + settled_s)
        self._open = True
        if not again:
            self._began_s = self.timeline.now()
            self._look_at(self.sites[number], (), last=False)
            self._plan()
        for other in self.tasks.values():
            if other is not task:
                other.wake()
        return self._began_s

    def _finish(self, number: int, task: Task) -> None:
        """Wait for those who have yet to apply what was committed: all who could give it to them may leave at once."""
        patience_s = self.timeline.now() + self.spec.sync.grace_ceiling_s
        while self.timeline.now() < patience_s and any(
            site.alive and not site.left and site.peer.core.applied < len(self.store.records)
            for other, site in self.sites.items()
            if other != number and self.trainers[other].result.ended != "killed"
        ):
            task.pause(self.timeline.now() + SETTLE_S)

    def _settle(self, number: int, task: Task) -> None:
        """Wait until all trainers are here, and what they have contributed is decided."""
        self._at_restart.add(number)
        self._to_begin.add(number)
        self._open = False
        task.pause(self.timeline.now() + SETTLE_S)  # what it has just staged is still to come to its peer
        while any(t.result.ended == "training" and k not in self._at_restart for k, t in self.trainers.items()) or any(
            site.alive and not site.left and not site.settled(len(self.store.records)) for site in self.sites.values()
        ):
            task.pause(self.timeline.now() + SETTLE_S)

    def _plan(self) -> None:
        """Let what is in the schedule happen in its time."""
        number = max(self.trainers) + 1
        for change in self.churn:
            match change:
                case Join(at, pace):
                    self.timeline.after(at * self.step_s, partial(self._join, number, pace))
                    number += 1
                case Leave(at, worker):
                    self.timeline.after(at * self.step_s, partial(self._leave, worker))
                case Pace(at, worker, pace):
                    self.timeline.after(at * self.step_s, partial(self._set_pace, worker, pace))
                case Kill(worker, at, 0):
                    self.timeline.after(at * self.step_s, partial(self._kill, worker))

    def _join(self, number: int, pace: float) -> None:
        self._coming -= 1
        self._add(number, pace)

    def _leave(self, number: int) -> None:
        if number in self.trainers:
            self.trainers[number].leaving = True

    def _set_pace(self, number: int, pace: float) -> None:
        if number in self.trainers:
            self.trainers[number].pace = pace

    def _kill(self, number: int) -> None:
        trainer = self.trainers.get(number)
        if trainer is not None and trainer.result.ended == "training":
            trainer.result.ended = "killed"
            self.sites[number].die()
            self.tasks[number].end()
            self._stop_if_over()

    # ---- what happens

    def _told(self, name: str, in_s: float) -> None:
        if name == COORDINATOR:
            self.coordinator.soon(in_s)
        else:
            self.sites[int(name[1:])].soon(in_s)

    def _announced(self, event: str, details: dict[str, Any]) -> None:
        if event == "abort":
            self.aborts.append(f"{details['sync']}: {details['reason']}")
        elif event == "rejected":
            self.rejected.append(f"{details['sync']}: {details['name']}: {details['reason']}")

    def _noted(self, site: Site, event: str, details: dict[str, Any]) -> None:
        if event == "commit" and self.gossip:
            if self.rounds and min(one.peer.core.indices[self.lead] for one in self._current()) > self.rounds[-1].index:
                self._look_at(site, tuple(one.name for one in self._current()), last=False)
        elif event == "commit" and details["number"] > self._seen:
            self._seen = details["number"]
            record = self.store.records[self._seen - 1]
            if record.sync.stream == self.lead:
                self._look_at(site, record.contributors, last=False)

    def _current(self) -> list[Site]:
        """Peers that are there and hold a state of the run."""
        return [site for site in self.sites.values() if site.current and (site.alive or site.left)]

    def _phi(self, site: Site) -> dict[str, Tensor]:
        """phi as a peer holds it; in gossip runs the mean over all peers."""
        sites = self._current() if self.gossip else [site]
        held = [phi_of(one.engine, self.spec.streams, one.manifest) for one in sites if one.engine is not None]
        if len(held) == 1:
            return held[0]
        return {name: torch.stack([phi[name] for phi in held]).mean(0) for name in held[0]}

    def _look_at(self, site: Site, contributors: tuple[str, ...], *, last: bool) -> None:
        """Note down a round, and evaluate phi if it is its turn."""
        index = min(one.peer.core.indices[self.lead] for one in (self._current() if self.gossip else [site]))
        step = max((t.swarm.global_step for t in self.trainers.values() if t.swarm is not None), default=0)
        turn = last or not self.rounds or (index - self.rounds[0].index) % self.evaluate_every == 0
        loss = self._evaluated(site) if turn else None
        self.rounds.append(Round(index, step, self.timeline.now() - self._began_s, contributors, loss))

    def _evaluated(self, site: Site) -> float | None:
        worker = next((t.worker for t in self.trainers.values() if t.worker is not None), None)
        if self.evaluate is None or worker is None:
            return None
        model = getattr(worker.model, "_orig_mod", worker.model)
        if self._shown is None:
            self._shown = copy.deepcopy(model)
        phi = self._phi(site)
        with torch.no_grad():
            for name, parameter in self._shown.named_parameters():
                if plain_name(name) in phi:
                    parameter.copy_(phi[plain_name(name)])
            for ours, theirs in zip(self._shown.buffers(), model.buffers(), strict=True):
                ours.copy_(theirs)
            return float(self.evaluate(self._shown))

    def _look(self) -> None:
        """Fail if nothing happens any more."""
        now = self.timeline.now()
        steps = sum(len(trainer.result.losses) for trainer in self.trainers.values())
        if steps > self._moved[0]:
            self._moved = (steps, now)
        elif now - self._moved[1] > STALL_S:
            why = self.coordinator.core.reason(now) or "step() makes no step of the optimizer"
            self.timeline.fail(
                WantrainError(
                    f"no worker has made a step for {STALL_S:.0f} s of virtual time: {why}",
                    hint="step() has to call optimizer.step(); see also [sync] and [liveness] of run.toml",
                )
            )
        self.timeline.after(LOOK_S, self._look)

    def _stop_if_over(self) -> None:
        if any(trainer.result.ended == "training" for trainer in self.trainers.values()):
            return
        finished = any(trainer.result.ended == "finished" for trainer in self.trainers.values())
        if not finished and not self._coming:
            reason = f"all workers are gone after {len(self.store.records)} commits, before the run has its steps"
            self.timeline.fail(WantrainError(reason, hint="let one of them stay in `churn`"))
        elif finished:
            self.timeline.stop()

    # ---- what comes out

    def _result(self) -> Result:
        current = self._current()
        newest = max(current, key=lambda site: site.peer.core.applied)
        if self.rounds[-1].loss is None and self.evaluate is not None:
            self.rounds.pop()
            self._look_at(newest, self.store.records[-1].contributors, last=True)
        for number, trainer in self.trainers.items():
            site, result = self.sites[number], trainer.result
            result.sync_bytes, result.served_bytes = site.sent.sync_bytes, site.sent.served_bytes
            if site in current and site.engine is not None:
                result.state_dict = phi_of(site.engine, self.spec.streams, site.manifest)
                result.number = site.peer.core.applied
        finished = {number: t for number, t in self.trainers.items() if t.result.ended == "finished"}
        kept = {number: self.sites[number].keep(self.store.chain0) for number in finished}
        return Result(
            rounds=self.rounds,
            workers=[self.trainers[number].result for number in sorted(self.trainers)],
            commits=list(self.store.records),
            state_dict=self._phi(newest),
            aborts=self.aborts,
            rejected=self.rejected,
            saved=Saved(self.spec.digest, self.store, kept, finished),
        )
