"""The trainer's side of a run as a shell: does what `peers/trainer.py` decides, and speaks with the peer daemon.

Hooks on the optimizer's step stage, wait and adopt; what the loop may ask and say is `session.py`.
"""

import logging
import math
import os
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

from wantrain.clock import Clock, MonotonicClock
from wantrain.counted import Counted
from wantrain.errors import ConfigError, ModelMismatchError, RefusedError, UnreachableError, WireError
from wantrain.inner_step import InnerSteps, refuse_scaled
from wantrain.look import Evaluated, Look
from wantrain.optimizers.stream import Stream, lead
from wantrain.peers.messages import (
    MAX_VALUES,
    Attach,
    Attached,
    Common,
    Contribute,
    Describe,
    Detach,
    Detached,
    GenesisWritten,
    Granted,
    Leased,
    Log,
    Record,
    Refused,
    Waiting,
    WantCommon,
    pack,
    unpack,
)
from wantrain.peers.shared_memory import Segment
from wantrain.peers.supply import Supply
from wantrain.peers.trainer import (
    Adopt,
    AfterStep,
    BeforeStep,
    OutOfData,
    Stage,
    TrainerCore,
    TrainerEffect,
    WaitedLongEnough,
)
from wantrain.ranks import portion
from wantrain.replica import Replica
from wantrain.shard import Shards
from wantrain.transport.link import Disconnected, Link, Received

DAEMON = "daemon"
ATTACH_EVERY_S = 1.0
JOIN_PATIENCE_S = 600.0
"""The run's first state may have to come over a slow link."""
WAIT_CEILING_S = 120.0
"""Longest wait for a grant, unless the daemon says otherwise, or WANTRAIN_WAIT_CEILING_S."""
LOST_PATIENCE_S = 10.0
"""Silence after the daemon's connection broke, until the trainer goes on alone."""
LOG_EVERY_S = 0.2
MAX_KEPT = 4 * MAX_VALUES
"""Names whose numbers are kept until the daemon can have them; `status` shows fewer."""
SAY_EVERY_S = 5.0
"""A wait is told of when it has lasted this long, and again as often."""
LOOK_EVERY_S = 1.0
"""How often the link is looked at although no grant was announced: a refusal or a lost daemon is not counted there."""
POLL_S = 0.1
STEP_TIME_SMOOTHING = 0.2

logger = logging.getLogger("wantrain")


class TrainerShell(ABC):
    """What `Swarm` does without being asked. To be used by the thread that trains."""

    _ranked = False
    """Whether this process is one of several ranks that train together."""

    def __init__(
        self,
        link: Link,
        replica: Replica,
        *,
        wait_ceiling_s: float | None = None,
        delay: int | None = None,
        clock: Clock = MonotonicClock(),  # noqa: B008
    ) -> None:
        self._delay = delay
        """tau of this trainer alone; None: the run's."""
        self.alone = False
        """Whether the daemon is gone: training goes on, with nobody, until one is started again in its place."""
        self.waited_s = 0.0
        """Seconds that training has been stopped in all, for results that had not come yet."""
        self.staged_s = 0.0
        """Seconds that this thread has spent in all on copies of weights; what a GPU does of them takes it no time."""
        self.peer = ""
        """Name of this peer."""
        self.run = ""
        """Id of the run, 16 hexadecimal digits."""
        self.streams: tuple[Stream, ...] = ()
        """The run's streams."""
        self.described: Describe | None = None
        """What the model is to other software; the daemon is told when it answers."""
        self._link = link
        self._replica = replica
        self._wait_ceiling_s = wait_ceiling_s or WAIT_CEILING_S
        self._ceiling_given = wait_ceiling_s is not None
        self._now = clock.now
        self._core = TrainerCore(())
        self._peer_id = ""
        self._shards = Shards()
        self._told_alone = False
        self._segment: Segment | None = None
        self._boot = os.urandom(8)
        self._offers: dict[str, Contribute] = {}
        """Per stream: what was offered last; it is offered again to a daemon that is started anew."""
        self._away = False
        """Whether the connection had broken, and the daemon has not answered since."""
        self._asked_at = -math.inf
        self._outbox: deque[Record] = deque()
        self._staging: deque[Contribute] = deque()
        """Offers whose values a GPU is still copying to where the daemon reads them."""
        self._inner: InnerSteps | None = None
        self._optimizers: Sequence[torch.optim.Optimizer] = ()
        self._grants = 0
        """Granted messages that came in; the segment counts those that were sent."""
        self._to_start: set[str] = set()
        self._refused: Refused | None = None
        self._leaving = False
        self._closed = False
        self._detached = False
        self._lost_at: float | None = None
        self._looked_at = 0.0
        self._reason = ""
        self._tokens = 0
        self._counted = Counted()
        """What was loaded by `load_state_dict`."""
        self._look = Look()
        self._log: dict[str, float] = {}
        self._told_dropped = False
        self._logged_at = -math.inf
        self._step_s = 0.0
        self._mark = 0.0
        """When the inner step that is under way began, put off by what was waited since."""

    @abstractmethod
    def close(self) -> None:
        """Stop taking part at once."""

    # ---- joining

    def attach(self, address: str = "") -> None:
        """Present the model to the daemon and take over the run's state; for errors see `join`."""
        if address:
            self._link.connect(DAEMON, address, b"")
        began = told = self._now()
        while self._segment is None or self._to_start:
            now = self._now()
            if now - began > JOIN_PATIENCE_S:
                raise UnreachableError(
                    f"the peer daemon gave no state of the run for {JOIN_PATIENCE_S:.0f} s"
                    + (f": {self._reason}" if self._reason else ""),
                    hint="see its log, or `wantrain status`, for what it waits",
                )
            if self._segment is None:
                self._ask(Attach(self._replica.manifest, os.getpid(), self._boot))
            told = self._say("to join", began, told)
            self._poll(POLL_S)

    def _ask(self, request: Attach) -> None:
        """Present this process to the daemon, now and then until it answers."""
        now = self._now()
        if now - self._asked_at >= ATTACH_EVERY_S and self._link.send(DAEMON, pack(request)):
            self._asked_at = now

    def _came_back(self) -> None:
        """Ask the daemon, which may be another one than before, to go on from where both stood."""
        segment = self._segment
        if segment is not None and not self._to_start:
            received, indices = self._core.received, self._core.indices
            path, reader = str(segment.path), self._shards.drawn.reader
            self._ask(Attach(self._replica.manifest, os.getpid(), self._boot, path, received, indices, reader))

    def _attached(self, record: Attached) -> None:
        if self._segment is not None and record.segment == str(self._segment.path):
            # Only a run that has begun anew, without a state, asks a trainer again for its weights.
            if record.genesis:
                self._write_genesis()
            elif self._away:
                logger.warning("the peer daemon is back: training goes on with the run")
                self._resume()
            return
        if self._segment is not None:
            if not self._away:
                return
            logger.warning(
                "the peer daemon is back and cannot go on from here: this trainer starts again from the run's weights"
            )
            self._segment.close()
            self._offers.clear()
            self._resume()
        streams = tuple(_own_delay(stream_of(row), self._delay) for row in record.streams)
        segment = Segment.open(record.segment)
        self.peer, self._peer_id, self.streams, self.run = record.name, record.peer, streams, record.run
        if record.wait_ceiling_s and not self._ceiling_given:
            self._wait_ceiling_s = record.wait_ceiling_s
        self._core = TrainerCore(streams)
        self._away, self._lost_at = False, None
        self._replica.bind(segment, streams)
        self._segment = segment
        self._to_start = {stream.name for stream in streams if stream.held}
        if record.genesis:
            self._write_genesis()

    def _resume(self) -> None:
        """The daemon has answered: offer it again what it may not have, and wait for it again."""
        self.alone, self._away, self._lost_at = False, False, None
        self._hand_over(wait=True)
        self._grants = 0
        self._outbox = deque(self._offers[name] for name in self._core.outstanding if name in self._offers)
        if self._leaving:
            self._outbox.append(Detach("training finished"))

    def _write_genesis(self) -> None:
        for stream in self.streams:
            if stream.held:
                self._replica.write(stream.name)
                self._replica.staged(stream.name, wait=True)
        self._outbox.append(GenesisWritten())

    def hook(self, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        """Follow the optimizers' steps."""
        self._optimizers = optimizers
        self._inner = InnerSteps(optimizers, self._before_step, self._after_step)
        self._mark = self._now()

    def _drop_segment(self) -> None:
        self._replica.release()
        if self._segment is not None:
            self._segment.close()
            self._segment = None

    @contextmanager
    def _unhooked(self) -> Iterator[None]:
        """Steps that optimizers make, and time that passes, are none of the training's."""
        began, hooked = self._now(), self._inner is not None
        self._replica.before_step()
        if self._inner is not None:
            self._inner.close()
        try:
            yield
        finally:
            if hooked:
                self._inner = InnerSteps(self._optimizers, self._before_step, self._after_step)
            self._mark += self._now() - began

    # ---- the common weights

    @contextmanager
    def _evaluating(self) -> Iterator[Evaluated]:
        self._look.refuse("swarm.evaluating")
        evaluated, own = self._shown()
        began = self._now()
        self._look.active = True
        try:
            yield evaluated
        finally:
            self._replica.put_back(own)
            self._look.active = False
            self._mark += self._now() - began

    def _shown(self) -> tuple[Evaluated, list[torch.Tensor]]:
        """Show the common weights; which they are, and what the model's own were."""
        record, vectors = self._common()
        began = self._now()
        own = self._replica.show(vectors)
        self._mark += self._now() - began
        return Evaluated(record.round, record.global_step, record.number), own

    def _common(self) -> tuple[Common, dict[str, torch.Tensor]]:
        """What the daemon has laid down of them; for errors see `common_state_dict`."""
        if any(stream.gossip for stream in self.streams):
            raise ConfigError(
                "in a gossip run (noloco) every peer has weights of its own: there are no common ones",
                hint="evaluate the model as it is; `wantrain checkpoint save` makes all come to one first",
            )
        look = self._look
        look.ask()
        self._reason, began = "", self._now()
        told, asked_at = began, -math.inf
        try:
            while look.answer is None:
                now = self._now()
                if self.alone or now - began > self._wait_ceiling_s:
                    why = "it is gone" if self.alone else f"waited {now - began:.0f} s: {self._reason or 'no reason'}"
                    raise UnreachableError(
                        f"the peer daemon gave no common weights: {why}",
                        hint="see its log, or `wantrain status`, for what it does",
                    )
                if now - asked_at >= ATTACH_EVERY_S and not self._away:
                    asked_at = now if self._link.send(DAEMON, pack(WantCommon(look.serial))) else asked_at
                told = self._say("for the run's common weights", began, told)
                self._poll(POLL_S)
            return look.answer, look.take(self._replica.elements)
        finally:
            look.over()
            self._mark += self._now() - began

    # ---- at every inner step

    def _before_step(self) -> None:
        self._look.refuse("optimizer.step()")
        if self._to_start:  # a daemon that was started anew could not go on from here
            self.attach()
        if self._segment is None:
            return
        self._replica.before_step()
        self._flush()
        began = self._now()
        lr = 0.0
        if any(stream.uneven for stream in self.streams):
            lr = max(float(group.get("lr", 0.0)) for one in self._optimizers for group in one.param_groups)
        self._run(self._core.handle(BeforeStep(lr)))
        self._wait_while_due()
        self._mark += self._now() - began

    def _after_step(self) -> None:
        segment = self._segment
        if segment is None:
            return
        now = self._now()
        seconds = now - self._mark
        self._step_s += (seconds - self._step_s) * (STEP_TIME_SMOOTHING if self._step_s else 1.0)
        self._shards.stepped()
        # The core must count the step before it hears of grants, or their adoption would undo the step.
        self._run(self._core.handle(AfterStep(seconds, self._step_s)))
        self._flush()
        core = self._core
        segment.post_progress(
            steps_left=core.steps_left, step_s=self._step_s, own_steps=core.step, global_step=core.global_step
        )
        if segment.granted != self._grants or now - self._looked_at > LOOK_EVERY_S:
            self._poll(0.0)
        self._wait_while_due()
        self._send_log()
        self._mark = self._now()

    def _wait_while_due(self) -> None:
        """Block while the core waits for a grant, at most for the ceiling."""
        if not self._core.waiting:
            return
        self._reason = ""
        began = told = self._now()
        while self._core.waiting and not self.alone:
            told = self._say(f"for {', '.join(self._core.waiting)}", began, told)
            if self._now() - began > self._wait_ceiling_s:
                logger.warning(
                    "no result for %s in %.0f s: training goes on alone until it comes (%s)",
                    ", ".join(self._core.waiting),
                    self._wait_ceiling_s,
                    self._reason or "the peer daemon gives no reason",
                )
                self._run(self._core.handle(WaitedLongEnough()))
            else:
                self._poll(POLL_S)
        self.waited_s += self._now() - began
        if self.alone and self._segment is not None:
            self._run(self._core.handle(WaitedLongEnough()))

    def _run(self, effects: Sequence[TrainerEffect]) -> None:
        if not effects:
            return
        began = self._now()
        for effect in effects:
            match effect:
                case Stage():
                    self._stage(effect)
                case Adopt(stream, kind, stepped):
                    self._replica.adopt(stream, kind, stepped=stepped)
        self.staged_s += self._now() - began

    def _stage(self, stage: Stage) -> None:
        name = stage.stream
        if self._tokens == self._counted.tokens and any(s.name == name and s.weight == "tokens" for s in self.streams):
            raise ConfigError(
                f"stream {name} weighs contributions by tokens, and none were counted",
                hint="call swarm.tokens(count) for each batch, before optimizer.step()",
            )
        if any(s.name == name and s.state == "grad" for s in self.streams):
            refuse_scaled(self._optimizers)
        self._replica.write(name)
        drawn = self._shards.drawn
        made = (stage.serial, self._core.step, self._all_tokens, stage.granted, drawn, self._core.made(name))
        self._offers[name] = Contribute(name, *made)
        if not self._away:
            self._staging.append(self._offers[name])
            self._flush()

    def _hand_over(self, *, wait: bool) -> None:
        """Let the daemon know of what is staged as far as it is where the daemon reads it, or `wait` until it is."""
        while self._staging and self._replica.staged(self._staging[0].stream, wait=wait):
            self._outbox.append(self._staging.popleft())

    @property
    def _all_tokens(self) -> int:
        """Tokens that what was written last was trained on."""
        return self._new_tokens

    @property
    def _new_tokens(self) -> int:
        """Those that this process has counted, without what `load_state_dict` has told of."""
        return self._tokens - self._counted.tokens

    @property
    def _to_log(self) -> dict[str, float]:
        return dict(self._log)

    # ---- data

    def _draw(self, supply: Supply, own: Iterator[int], count: int, split: tuple[int, int]) -> list[int]:
        """Part `split` of the next samples, `count` for each part; fewer at the end, and where some may come back."""
        drawn: list[int] = []
        while len(drawn) < count * split[1] and (index := self._next_index(supply, own, not drawn)) is not None:
            drawn.append(index)
        return portion(drawn, *split)

    def _next_index(self, supply: Supply, own: Iterator[int], wait: bool) -> int | None:
        """The next sample to train on, or None after the last; waits for a lease if there is none.

        Where some may come back from others it only waits if it is told to.
        """
        self._look.refuse("swarm.shard")
        place = supply.draw(self._now())
        if place is None:
            began = self._now()
            place = self._wait_for_samples(supply, began, wait)
            self._mark += self._now() - began
        if not self.alone:
            self._outbox += self._shards.questions(self._now())
            self._flush()
        if place is not None:
            return self._shards.index(supply, *place)
        return next(own) if self.alone and not (supply.ended or supply.epochs) else None

    def _wait_for_samples(self, supply: Supply, began: float, wait: bool) -> tuple[int, int] | None:
        """Wait for a lease; None if none will come: the data is used up, or the peer daemon is gone."""
        self._reason = "the peer daemon has not taken the question yet; if that lasts, see its log"
        told, since, why = began, began, ""
        while not (supply.ended or self.alone):
            self._outbox += self._shards.questions(self._now())
            if supply.dry and not wait:
                return None
            if supply.dry:  # what it has trained so far is to be in the run: others may wait for just that
                self._run(self._core.handle(OutOfData()))
                self._reason = supply.reason
            told = self._say(f"for samples of data set {supply.data!r}", began, told)
            self._poll(POLL_S)
            now = self._now()
            if (place := supply.draw(now)) is not None:
                return place
            since, why = (since, why) if why == supply.reason else (now, supply.reason)
            if supply.dry and now - since > self._wait_ceiling_s:
                logger.warning("no more samples came back in %.0f s: %s", self._wait_ceiling_s, supply.reason)
                supply.ended = True
        if self.alone and not self._told_alone:
            self._told_alone = True
            logger.warning("data set %r: the leases are used up, and the run is not there to give more", supply.data)
        return None

    # ---- messages

    def _poll(self, timeout_s: float) -> None:
        """Send what is to be sent, react to what has come."""
        self._hand_over(wait=timeout_s > 0)
        self._flush()
        for granted in self._look.released():
            self._react(granted)
        for event in self._link.poll(timeout_s):
            match event:
                case Received(_, _, message):
                    self._react(unpack(message))
                case Disconnected() if not self._away:
                    self._away, self._lost_at = True, self._now()
                    self._asked_at = -math.inf
                    self._hand_over(wait=True)
                    self._outbox.clear()
                    self._look.put_off.clear()  # the daemon tells them again
                    if self._to_start:  # nothing was begun that could be gone on with
                        self._drop_segment()
                        self._boot = os.urandom(8)
        if self._away:
            self._came_back()
        self._looked_at = self._now()
        self._flush()
        if self._refused is not None:
            self.close()
            raise _refusal(self._refused)
        # While joining the daemon may be on its way; JOIN_PATIENCE_S bounds that.
        lost = self._lost_at is not None and self._looked_at - self._lost_at > LOST_PATIENCE_S
        if self._inner is not None and lost and not self.alone:
            logger.error("the peer daemon is gone: training goes on alone until one is started again at its place")
            self.alone = True

    def _react(self, record: Record) -> None:
        match record:
            case Attached():
                told = self._segment is not None and not self._away
                self._attached(record)
                if self.described is not None and not told:
                    self._outbox.append(self.described)
            case Granted() if self._look.active:
                self._look.put_off.append(record)
            case Common():
                self._look.came(record)
            case Granted() if not self._leaving:
                self._grants += 1
                if record.kind == "start":
                    first = lead(self.streams)
                    if first is not None and record.stream == first.name:
                        self._shards.restart()  # no matter why: what was drawn before is not in these weights
                    self._to_start.discard(record.stream)
                    self._replica.begin_at(record.global_step)
                self._run(self._core.handle(record))
            case Leased():
                self._shards.leased(record, self._now())
            case Waiting(reason):
                self._reason = reason
            case Refused():
                self._refused = record
            case Detached():
                self._detached = True

    def _flush(self) -> None:
        self._hand_over(wait=False)
        while self._outbox and self._link.send(DAEMON, pack(self._outbox[0])):
            self._outbox.popleft()

    def _send_log(self) -> None:
        """Send the numbers that were logged, if it is time; what does not go now goes later, with newer ones."""
        if self.alone or self._away or not self._log or self._outbox:
            return
        now = self._now()
        if now - self._logged_at < LOG_EVERY_S:
            return
        for log in self._to_send():
            if not self._link.send(DAEMON, pack(log)):
                return
            self._logged_at = now
            for name in log.values:
                del self._log[name]

    def _keep(self, numbers: Mapping[str, float]) -> None:
        """Keep numbers to be sent: the newest of each name, and of too many names those that were logged last."""
        for name, number in numbers.items():
            self._log.pop(name, None)
            self._log[name] = number
        for name in list(self._log)[:-MAX_KEPT]:
            del self._log[name]
            if not self._told_dropped:
                self._told_dropped = True
                logger.warning("more than %d names are logged: %s and others may be missing in status", MAX_KEPT, name)

    def _to_send(self) -> list[Log]:
        """The numbers that were logged and not sent, in as many messages as they need."""
        items = list(self._to_log.items())
        return [Log(dict(items[k : k + MAX_VALUES])) for k in range(0, len(items), MAX_VALUES)]

    def _say(self, what: str, began: float, told: float) -> float:
        """Tell of a wait, now and then; when it was told of last."""
        now = self._now()
        if now - told < SAY_EVERY_S:
            return told
        logger.warning("waiting %.0f s %s: %s", now - began, what, self._reason or "the peer daemon gives no reason")
        return now


def stream_of(row: dict[str, Any]) -> Stream:
    """A stream from its row in Attached, in which tuples have become lists."""
    try:
        pairs = {
            key: tuple((str(name), float(value)) for name, value in row[key])
            for key in ("merge_options", "schedule_options")
        }
        return Stream(**{**row, **pairs})
    except (KeyError, TypeError, ValueError) as error:
        raise WireError(f"Attached: a row that is no stream: {error}") from None


def _own_delay(stream: Stream, delay: int | None) -> Stream:
    """The stream with this trainer's own delay, where it has one."""
    if delay is None or not stream.held:
        return stream
    if not stream.delay or not 0 <= delay <= stream.every:
        allowed = (
            f"0 to {stream.every}, the steps of a round" if stream.delay else "none: the run's method has no delay"
        )
        raise ConfigError(f"join: delay is {delay}, allowed is {allowed}", hint="leave it out, or set it in [method]")
    return replace(stream, delay=delay, adopt=stream.adopt if delay else "rebase")


def _refusal(refused: Refused) -> RefusedError:
    kind = ModelMismatchError if refused.code == "model" else RefusedError
    return kind(refused.reason, hint=refused.hint)
