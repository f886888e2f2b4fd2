"""wantrain as a contestant: one `Member` over ZeroMQ in this process."""

import os
import time
from typing import Any

import torch

from wantrain.bench import inputs
from wantrain.bench.member import STREAM, Member
from wantrain.bench.traffic import group_of
from wantrain.bench.worker import Json, Setup, wait_until
from wantrain.errors import UnreachableError, WantrainError
from wantrain.optimizers.stream import Stream
from wantrain.peers.place import segment_directory
from wantrain.transport.auth import Identity
from wantrain.transport.codec.names import format_of
from wantrain.transport.collective import Plan
from wantrain.transport.link import Connected
from wantrain.transport.memory import keep_freed_memory
from wantrain.transport.partition import chunk_bounds, split_chunks
from wantrain.transport.zmq_link import ZmqLink

RUN = b"benchrun"
STEP_S = 0.05


def peer_name(index: int) -> str:
    """What peer `index` is called."""
    return f"peer-{index}"


def plan_of(peers: int, elements: int) -> Plan:
    """Everybody contributes with weight 1 and owns the same number of chunks, give or take one."""
    shards = split_chunks(len(chunk_bounds(elements)), [1.0] * peers)
    return Plan(tuple(map(peer_name, range(peers))), (1.0,) * peers, (), shards)


class Swarm:
    """See `Contestant`."""

    serves = True

    def __init__(self, setup: Setup) -> None:
        keep_freed_memory()
        torch.set_num_threads(1)
        self._setup = setup
        self._me = peer_name(setup.index)
        self._feedback = format_of(setup.codec).error_feedback
        self._admitted: dict[bytes, str] = {}
        identity = Identity.create()
        self._public = identity.curve_public
        bind = f"{setup.host}:0"
        if setup.encrypt:
            keys = (identity.curve_public, identity.curve_secret)
            self._link = ZmqLink(RUN, bind=bind, key=keys, admit=self._admitted.get)
        else:
            self._link = ZmqLink(RUN, bind=bind, plain=True, name=self._me)
        self._member: Member | None = None
        self._first: tuple[bytes, int] | None = None
        self._sent_bytes = 0

    def listen(self) -> Json:
        return {"address": self._link.address, "key": self._public.hex() if self._setup.encrypt else ""}

    def meet(self, roster: list[Json]) -> None:
        setup = self._setup
        waiting = set()
        for index, other in enumerate(roster):
            if index != setup.index:
                self._admitted[bytes.fromhex(other["key"])] = peer_name(index)
                self._link.connect(peer_name(index), other["address"], bytes.fromhex(other["key"]))
                waiting.add(peer_name(index))
        deadline = time.monotonic() + setup.timeout_s
        while waiting:
            if time.monotonic() > deadline:
                raise UnreachableError(f"no connection to {', '.join(sorted(waiting))} in {setup.timeout_s:g} s")
            waiting -= {event.peer for event in self._link.poll(STEP_S) if isinstance(event, Connected)}
        self._member = Member(
            self._me,
            plan_of(setup.peers, setup.elements),
            setup.topology,
            Stream(STREAM, merge="mean", codec=setup.codec, down=setup.down),
            setup.elements,
            self._link,
            segment_directory() / f"wantrain-bench-{os.getpid()}",
        )

    def prepare(self, number: int, variant: str, watch: bool) -> None:
        self._made.prepare(number, self._setup.index, watch=watch)
        self._sent_bytes = self._all_sent()

    def run(self, at: float) -> Json:
        member = self._made
        wait_until(at)
        member.begin()
        while not member.digest:
            member.step(STEP_S)
            if time.monotonic() > at + self._setup.timeout_s:
                raise WantrainError(
                    f"{self._me} has no result after {self._setup.timeout_s:g} s",
                    hint="allow more time, or use a smaller vector",
                )
        end = time.monotonic()
        first = member.first_byte_at
        return {
            "end": end,
            "first_byte_s": None if first is None else first - at,
            "digest": member.digest.hex(),
            "group": self._group,
        }

    def wait(self, seconds: float) -> None:
        if self._member is not None:
            self._member.step(seconds)
        else:
            self._link.poll(seconds)

    def verify(self, full: bool) -> Json:
        member = self._made
        if self._feedback:
            member.settle()
        values = (member.digest, inputs.bits_sum(member.result))
        if self._first is None or self._feedback:
            self._first = values
        elif values != self._first:
            raise WantrainError(f"{self._me} got other bits than in the first all-reduce of the same vectors")
        answer: Json = {
            "sent_bytes": self._all_sent() - self._sent_bytes,
            "spent_s": member.spent.by_name,
            "links": self._links(),
        }
        if full:
            group = [member.plan.contributors.index(peer) for peer in self._group]
            answer["error"], answer["worst_error"] = inputs.distance(member.result, group, -1.0)
        return answer

    def close(self) -> None:
        if self._member is not None:
            self._member.close()
        self._link.close()

    @property
    def _made(self) -> Member:
        assert self._member is not None, "meet comes first"
        return self._member

    @property
    def _group(self) -> tuple[str, ...]:
        return group_of(self._setup.topology, self._made.plan.contributors, self._me)

    def _all_sent(self) -> int:
        return sum(counted.bytes_sent for counted in self._link.stats().values())

    def _links(self) -> dict[str, Any]:
        """What the link says of its ways to others, for the report."""
        return {
            peer: {"lanes": counted.lanes, "congestion": counted.congestion, "rtt_s": counted.rtt_s}
            for peer, counted in self._link.stats().items()
            if peer
        }
