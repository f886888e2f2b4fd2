"""Taking part as several ranks of one site: the leader trains as a single process would, the others do what it does.

Only the leader talks to the peer daemon and decides; at each place where it may act (a hook, drawing data, leaving) the
others listen until it tells them to go on. So all stage and adopt at the same inner step, whatever the daemon does.
"""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import msgpack
import torch
from torch import Tensor, nn

from wantrain.errors import WantrainError
from wantrain.inner_step import refuse_scaled
from wantrain.look import Evaluated
from wantrain.peers.supply import Supply
from wantrain.peers.trainer import Stage
from wantrain.ranked_replica import FollowingReplica, LeadingReplica
from wantrain.ranks import Place, Ranks, Told, portion
from wantrain.session import Swarm
from wantrain.trainer_shell import LOOK_EVERY_S, stream_of
from wantrain.transport.link import Link

SPEAK_EVERY_S = 5.0
"""A leader that waits tells the others as often that it is still there."""
_MICROSECONDS = 1e6


class Leader(Swarm):
    """Rank 0: a trainer whose replica is that of all ranks."""

    _ranked = True

    def __init__(self, link: Link, replica: LeadingReplica, ranks: Ranks, **options: Any) -> None:
        super().__init__(link, replica, **options)
        self._ranks, self._parts = ranks, replica
        self._serving = False
        self._attended = False
        """Whether the others listen before the next step."""
        self._quiet = 0
        """After how many of the next steps they do not listen."""
        self._spoke = 0.0
        self._drawn: list[int] = []
        self._evaluated = (0, 0, 0)
        """Round, step and log number of the common weights that were shown last."""
        self._share = float(ranks.size)
        """Tokens of all ranks for each of the leader's own, as counted last."""

    @contextmanager
    def _at(self, place: Place) -> Iterator[None]:
        """A place where the others listen; its end tells them to go on, or of the error."""
        if self._serving:
            yield
            return
        self._serving, self._ranks.place, self._drawn = True, place, []
        try:
            self._ranks.check_launcher()
            yield
            self._go_on()
        except WantrainError as error:
            if not self._ranks.failed:
                self._ranks.tell_failure(error)
            raise
        finally:
            self._serving = False

    def _go_on(self) -> None:
        together = any(not stream.held for stream in self.streams)
        self._attended = together or bool(self._to_start or self._core.waiting)
        self._quiet = 0 if self._attended else self._quiet_steps()
        counts = (self._quiet, self.round, self.global_step, self.own_steps, round(self.waited_s * _MICROSECONDS))
        payload = b""
        if self._ranks.place in (Place.JOIN, Place.DRAW, Place.LOOK):
            payload = msgpack.packb([self.peer, self.run, self._drawn, self._evaluated])
        self._ranks.tell(Told.GO_ON, int(self._attended), int(self.alone), *counts, payload=payload)

    def _quiet_steps(self) -> int:
        """Steps after which nothing will be staged or adopted: the others need not listen. At most a second of them."""
        if self.alone or self._core.outstanding or not self.streams or any(stream.uneven for stream in self.streams):
            return 0
        return max(0, min(self._core.steps_left - 1, int(LOOK_EVERY_S / self._step_s) if self._step_s else 0))

    def attach(self, address: str = "") -> None:
        with self._at(Place.JOIN):
            super().attach(address)

    def leave(self) -> None:
        if self._inner is None:
            super().leave()
            return
        with self._at(Place.LEAVE):
            super().leave()

    def _before_step(self) -> None:
        if self._attended:
            with self._at(Place.BEFORE_STEP):
                super()._before_step()
        else:
            super()._before_step()

    def _after_step(self) -> None:
        if self._quiet:
            self._quiet -= 1
            super()._after_step()
            return
        with self._at(Place.AFTER_STEP):
            super()._after_step()

    def _draw(self, supply: Supply, own: Iterator[int], count: int, split: tuple[int, int]) -> list[int]:
        index, parts = split
        with self._at(Place.DRAW):
            self._drawn = super()._draw(supply, own, count * parts, (0, 1))
            drawn = self._drawn
        return portion(drawn, index, parts)

    def _shown(self) -> tuple[Evaluated, list[Tensor]]:
        with self._at(Place.LOOK):
            evaluated, own = super()._shown()
            self._evaluated = (evaluated.round, evaluated.global_step, evaluated.number)
        return evaluated, own

    def _poll(self, timeout_s: float) -> None:
        if not self._serving:  # what comes may concern all
            return
        super()._poll(timeout_s)
        now = time.monotonic()
        if timeout_s and now - self._spoke > SPEAK_EVERY_S:
            self._spoke = now
            self._ranks.check_launcher()
            self._ranks.tell(Told.STILL)

    def _stage(self, stage: Stage) -> None:
        self._parts.tokens = self._new_tokens
        super()._stage(stage)
        self._share = self._all_tokens / self._new_tokens if self._new_tokens else self._share

    def _hand_over(self, *, wait: bool) -> None:
        if self._serving:  # all ranks have a part in it
            super()._hand_over(wait=wait)

    @property
    def _all_tokens(self) -> int:
        return self._parts.counted

    @property
    def _to_log(self) -> dict[str, float]:
        logged = dict(self._log)
        if "tokens" in logged:
            logged["tokens"] = float(round(logged["tokens"] * self._share))
        return logged


class Follower(Swarm):
    """Another rank: it does to its part of the model what the leader tells, and knows what it is told."""

    _ranked = True

    def __init__(self, link: Link, replica: FollowingReplica, ranks: Ranks) -> None:
        super().__init__(link, replica, wait_ceiling_s=math.inf)
        self._ranks, self._parts = ranks, replica
        self._attended, self._quiet = False, 0
        self._counts = (0, 0, 0)
        self._drawn: list[int] = []
        self._evaluated = (0, 0, 0)

    @property
    def round(self) -> int:
        return self._counts[0]

    @property
    def global_step(self) -> int:
        return self._counts[1]

    @property
    def own_steps(self) -> int:
        return self._counts[2]

    def attach(self, address: str = "") -> None:
        self._listen(Place.JOIN)

    def leave(self) -> None:
        if self._inner is not None:
            self._listen(Place.LEAVE)
        self.close()

    def _before_step(self) -> None:
        self._look.refuse("optimizer.step()")
        self._parts.before_step()
        if self._attended:
            self._listen(Place.BEFORE_STEP)

    def _after_step(self) -> None:
        if not self._quiet:
            self._listen(Place.AFTER_STEP)
            return
        self._quiet -= 1
        rounds, step, own = self._counts
        self._counts = (rounds, step + 1, own + 1)

    def _draw(self, supply: Supply, own: Iterator[int], count: int, split: tuple[int, int]) -> list[int]:
        self._listen(Place.DRAW)
        return portion(self._drawn, *split)

    def _shown(self) -> tuple[Evaluated, list[Tensor]]:
        self._listen(Place.LOOK)
        return Evaluated(*self._evaluated), list(self._parts.shown)

    def _send_log(self) -> None:
        self._log.clear()

    def _listen(self, place: Place) -> None:
        """Do what the leader tells until it says to go on."""
        self._ranks.place = place
        try:
            while True:
                told, words, payload = self._ranks.hear()
                if told == Told.GO_ON:
                    break
                self._obey(told, words, payload)
        except WantrainError:
            self.close()
            raise
        self._attended, self.alone = bool(words[0]), bool(words[1])
        self._quiet = words[2]
        self._counts = (words[3], words[4], words[5])
        self.waited_s = words[6] / _MICROSECONDS
        if payload:
            self.peer, self.run, self._drawn, self._evaluated = msgpack.unpackb(payload)

    def _obey(self, told: Told, words: Sequence[int], payload: bytes) -> None:
        path = host = ""
        if told == Told.BIND:
            path, host, rows = msgpack.unpackb(payload)
            self.streams = tuple(stream_of(row) for row in rows)
        grads = told == Told.WRITE and self.streams[words[0]].state == "grad"
        if grads:
            refuse_scaled(self._optimizers)
        self._parts.tokens = self._new_tokens
        self._parts.obey(told, words, self.streams, path, host)


def ranked(
    model: nn.Module, optimizers: Sequence[torch.optim.Optimizer], ranks: Ranks, link: Link, **options: Any
) -> Swarm:
    """This rank's part, leader or not."""
    if ranks.leads:
        return Leader(link, LeadingReplica(model, optimizers, ranks), ranks, **options)
    return Follower(link, FollowingReplica(model, optimizers, ranks), ranks)
