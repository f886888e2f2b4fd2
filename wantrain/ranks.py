"""The ranks of one site as a group: what its leader, rank 0, tells the others, and what all find out together.

A group of gloo's own beside the training's, so that messages neither wait for the device nor mix with its collectives.
"""

import datetime
import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from enum import IntEnum
from pathlib import Path
from typing import Any

import msgpack
import torch
import torch.distributed as dist
from torch import Tensor

from wantrain.errors import ConfigError, TrainerError, WantrainError, kind_named

LEADER = 0
PATIENCE = datetime.timedelta(minutes=30)
"""How long a rank waits for another. A leader that waits for the run speaks up; who dies is noticed at once."""
MAX_PAYLOAD_BYTES = 64 << 20
ERROR_BYTES = 2048
"""Room for what a rank says of its failure."""
_WORDS = 12
ALONE_HINT = "torch.distributed.init_process_group() (or init_device_mesh) comes before wantrain.join, on every rank"
GONE_HINT = "torchrun ends the others, and the peer starts all of them again; the first error above is the cause"


class Told(IntEnum):
    """What the leader tells the others to do."""

    GO_ON = 0
    STILL = 1
    FAIL = 2
    BIND = 3
    WRITE = 4
    ADOPT = 5
    BEGIN_AT = 6
    FINISH = 7
    SHOW = 8


class Place(IntEnum):
    """Where in the loop a rank listens; all are at the same place, or the ranks have gone different ways."""

    JOIN = 0
    BEFORE_STEP = 1
    AFTER_STEP = 2
    DRAW = 3
    LEAVE = 4
    LOOK = 5


_PLACES = {
    Place.JOIN: "wantrain.join",
    Place.BEFORE_STEP: "optimizer.step()",
    Place.AFTER_STEP: "optimizer.step()",
    Place.DRAW: "swarm.shard",
    Place.LEAVE: "swarm.leave",
    Place.LOOK: "swarm.evaluating",
}


def host_id() -> str:
    """The running system that this process shares memory with others in."""
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    return os.uname().nodename


def site_ranks() -> "Ranks | None":
    """The ranks that this process is one of; None if it trains alone. To be called by all of them.

    Raises:
        ConfigError: torchrun has started several, and they do not know each other yet.
    """
    ready = dist.is_available() and dist.is_initialized()
    text = os.environ.get("WORLD_SIZE", "1")
    if not ready and text not in ("", "1"):
        raise ConfigError(f"WORLD_SIZE is {text}, and torch.distributed is not initialised", hint=ALONE_HINT)
    if not ready or dist.get_world_size() == 1:
        return None
    launcher = os.getppid() if "TORCHELASTIC_RUN_ID" in os.environ else 0
    group = dist.new_group(backend="gloo", timeout=PATIENCE)
    return Ranks(group, dist.get_rank(), dist.get_world_size(), launcher)


class Ranks:
    """All ranks of a site. Every method is called by all of them, in the same order.

    Args:
        group: of gloo, with all of them.
        rank: of this process.
        size: how many there are.
        launcher: process id of the torchrun that has started this process; 0 if none has.
    """

    def __init__(self, group: Any, rank: int, size: int, launcher: int = 0) -> None:
        self.rank, self.size = rank, size
        self.place = Place.JOIN
        """Where this rank is."""
        self.failed = False
        """Whether all ranks know of an error, or one of them is gone: there is nothing more to tell."""
        self._group = group
        self._words = torch.zeros(_WORDS, dtype=torch.int64)
        self._launcher = launcher

    @property
    def leads(self) -> bool:
        """Whether this is the rank that talks to the peer daemon."""
        return self.rank == LEADER

    def check_launcher(self) -> None:
        """See that the torchrun that has started this process lives: whoever starts anew starts all ranks.

        Raises:
            TrainerError: it does not.
        """
        if self._launcher and os.getppid() != self._launcher:
            raise TrainerError("the torchrun that had started this process is gone", hint="the peer starts another")

    # ---- from the leader to the others

    def tell(self, what: Told, *words: int, payload: bytes = b"") -> None:
        """Leader: tell the others."""
        self._words.zero_()
        head = torch.tensor([what, self.place, len(payload), len(words), *words])
        self._words[: len(head)] = head
        with self._together():
            self._group.broadcast(self._words, LEADER).wait()
            if payload:
                self._group.broadcast(torch.frombuffer(bytearray(payload), dtype=torch.uint8), LEADER).wait()

    def tell_failure(self, error: WantrainError) -> None:
        """Leader: this error ends the part of all ranks."""
        self.tell(Told.FAIL, payload=_packed(error))
        self.failed = True

    def hear(self) -> tuple[Told, list[int], bytes]:
        """Others: what the leader tells.

        Raises:
            ConfigError: it is at another place of the loop.
            TrainerError: it is gone.
            WantrainError: the one that it has met.
        """
        with self._together():
            self._group.broadcast(self._words, LEADER).wait()
            what, place, size, count, *words = self._words.tolist()
            if not (0 <= size <= MAX_PAYLOAD_BYTES and 0 <= count <= len(words)):
                raise ConfigError("rank 0 sends what is no message", hint="run all ranks with the same wantrain")
            payload = torch.empty(size, dtype=torch.uint8)
            if size:
                self._group.broadcast(payload, LEADER).wait()
        data = payload.numpy().tobytes()
        if what == Told.FAIL:
            self.failed = True
            raise _unpacked(data)
        if place != self.place:
            raise ConfigError(
                f"rank {self.rank} is in {_PLACES[self.place]} and rank 0 in {_PLACES[Place(place)]}",
                hint="all ranks make the same steps, draw from the same data sets, and leave together",
            )
        return Told(what), words[:count], data

    # ---- what all find out together

    def gather(self, words: Tensor) -> Tensor:
        """int64[size, n] of every rank's int64[n]."""
        with self._together():
            found = [torch.empty_like(words) for _ in range(self.size)]
            self._group.allgather([found], [words]).wait()
        return torch.stack(found)

    def settle(self, failure: WantrainError | None = None, count: int = 0) -> int:
        """All ranks have done what they were told; the sum of their counts.

        Raises:
            WantrainError: that of the first rank that has failed; the same on all.
        """
        told = torch.tensor([failure is not None, count])
        with self._together():
            self._group.allreduce([told]).wait()
            failures, total = told.tolist()
            if not failures:
                return int(total)
            text = torch.zeros(ERROR_BYTES, dtype=torch.uint8)
            if failure is not None:
                data = _packed(failure)
                text[: len(data)] = torch.frombuffer(bytearray(data), dtype=torch.uint8)
            said = self.gather(text)
        self.failed = True
        first = next(rank for rank in range(self.size) if said[rank].any())
        raise _unpacked(said[first].numpy().tobytes(), f"rank {first}: ")

    def agree(self, what: str, data: bytes, hint: str) -> None:
        """See that all ranks have the same.

        Raises:
            ConfigError: some do not.
        """
        digest = torch.frombuffer(bytearray(hashlib.sha256(data).digest()), dtype=torch.int64)
        said = self.gather(digest)
        others = [rank for rank in range(self.size) if not torch.equal(said[rank], said[LEADER])]
        if others:
            self.failed = True
            raise ConfigError(f"rank {others[0]} has another {what} than rank 0", hint=hint)

    def send(self, rank: int, values: Tensor) -> None:
        """Send values to a rank that receives as many."""
        with self._together():
            self._group.send([values], rank, 0).wait()

    def receive(self, rank: int, values: Tensor) -> None:
        """Receive values of a rank in place."""
        with self._together():
            self._group.recv([values], rank, 0).wait()

    @contextmanager
    def _together(self) -> Iterator[None]:
        """What gloo raises when a process is gone, as an error that says so."""
        try:
            yield
        except RuntimeError as error:
            self.failed = True
            reason = str(error).partition("\n")[0]
            raise TrainerError(f"rank {self.rank} has lost the other ranks: {reason}", hint=GONE_HINT) from error


def _packed(error: WantrainError) -> bytes:
    size = ERROR_BYTES
    while True:
        data: bytes = msgpack.packb([type(error).__name__, error.message[:size], error.hint[:size]])
        if len(data) <= ERROR_BYTES:
            return data
        size //= 2


def _unpacked(data: bytes, prefix: str = "") -> WantrainError:
    unpacker = msgpack.Unpacker()
    unpacker.feed(data)
    name, message, hint = unpacker.unpack()
    return (kind_named(name) or WantrainError)(f"{prefix}{message}", hint=hint)


def split_of(split: tuple[int, int] | None) -> tuple[int, int]:
    """Which part of how many of what a site draws is this process's.

    Raises:
        ConfigError: there is no such part.
    """
    ready = dist.is_available() and dist.is_initialized()
    rank, size = (dist.get_rank(), dist.get_world_size()) if ready else (0, 1)
    index, count = (rank, size) if split is None else split
    if not 0 <= index < count <= size:
        raise ConfigError(
            f"shard: split is {split}, allowed is (part, parts) with part < parts, and parts up to the ranks: {size}",
            hint="leave it out, unless ranks are to get the same samples",
        )
    return index, count


def portion(drawn: Sequence[int], index: int, count: int) -> list[int]:
    """Part `index` of `count` of the samples that were drawn for all ranks: as even as can be, and none of them empty.

    If there are fewer samples than parts, as it may be at the end of the data, some are in several parts.
    """
    if len(drawn) < count:
        return [drawn[index % len(drawn)]] if drawn else []
    size, more = divmod(len(drawn), count)
    start = index * size + min(index, more)
    return list(drawn[start : start + size + (index < more)])
