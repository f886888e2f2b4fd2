"""Tensors that remember what they are made of: the real engine's interface, and any sum shows who is in it.

A chunk of phi is a link of a hash chain over the updates applied to it; a trainer's weights are the phi that they were
last moved by plus a set of own inner steps. A contribution is that set. Nothing is rounded, so equality is exact.
"""

import hashlib
import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from wantrain.errors import CodecError
from wantrain.optimizers.stream import Stream
from wantrain.peers.layout import stream_chunks
from wantrain.peers.messages import TensorSpec


class Violation(AssertionError):  # noqa: N818 - it is a finding, not an error of the program
    """A guarantee was broken."""


@dataclass(frozen=True, slots=True)
class Weights:
    """A trainer's weights: the phi it was last moved by, per chunk, and own inner steps on top."""

    base: tuple[str, ...]
    steps: frozenset[int]
    flaw: str = ""


@dataclass(frozen=True, slots=True)
class Contribution:
    """What a trainer staged: own steps (or a gradient), by whom."""

    ident: int
    who: str
    steps: frozenset[int]
    flaw: str = ""
    """part: it does not encode; sum: a sum with it does not."""


@dataclass(frozen=True, slots=True)
class PartOf:
    """One chunk of a contribution, encoded."""

    contribution: Contribution
    chunk: int


@dataclass(frozen=True, slots=True)
class SumOf:
    """One chunk of an update, encoded: the contributions in it, in order, with their weights."""

    chunk: int
    inputs: tuple[tuple[float, Contribution], ...]


def link(previous: str, what: object) -> str:
    """The next state of a chunk. What comes from a flipped bit is marked with "!", which the tested code cannot see."""
    return "!" * previous.startswith("!") + hashlib.blake2b(f"{previous}|{what}".encode(), digest_size=12).hexdigest()


@dataclass(slots=True)
class Regions:
    """Memory shared with one trainer process."""

    out: dict[str, Any] = field(default_factory=dict)
    given: dict[str, Any] = field(default_factory=dict)


class SymbolicTensors:
    """See `wantrain.peers.peer.Tensors`."""

    _idents = itertools.count(1)

    def __init__(self, who: str, manifest: Sequence[TensorSpec], streams: Sequence[Stream]) -> None:
        self.who = who
        self.streams = {stream.name: stream for stream in streams}
        self.chunks = {stream.name: stream_chunks(stream, manifest) for stream in streams}
        self.phi: dict[str, list[str]] = {s.name: [""] * self.chunks[s.name] for s in streams if s.state == "param"}
        self.gradient: dict[str, Any] = {}
        self.regions = Regions()
        self._incoming: dict[str, Contribution] = {}
        self._staged: dict[str, Contribution] = {}
        self._state = [(name, chunk) for name, phi in self.phi.items() for chunk in range(len(phi))]

    @property
    def tainted(self) -> bool:
        """Whether something in the state comes from a flipped bit."""
        return any(chunk.startswith("!") for phi in self.phi.values() for chunk in phi)

    def flip_a_bit(self, rng: random.Random) -> None:
        """Let the memory fail."""
        stream, chunk = rng.choice(self._state)
        self.phi[stream][chunk] = "!" + self.phi[stream][chunk]

    def open_segment(self) -> Regions:
        self.regions = Regions()
        return self.regions

    def adopt_genesis(self) -> bytes:
        if "nan" in self.regions.out.values():
            raise CodecError("an initial weight is NaN")
        for name, phi in self.phi.items():
            self.phi[name] = [link("genesis", (self.regions.out[name], chunk)) for chunk in range(len(phi))]
        return self.state_digest()

    def stage(self, stream: str) -> tuple[float, bool]:
        out = self.regions.out[stream]
        if self.streams[stream].state == "grad":
            steps = out
        else:
            if out == "nan":
                return 0.0, False
            if out.base != self.regions.given[stream]:
                raise Violation(f"{self.who} took a difference against a phi that its weights were not moved by")
            steps = out.steps
        flaw = "" if self.streams[stream].state == "grad" else out.flaw
        self._incoming[stream] = Contribution(next(self._idents), self.who, steps, flaw)
        return 1e30 if flaw else 1.0, True

    def use_stage(self, stream: str) -> None:
        self._staged[stream] = self._incoming[stream]

    def part(self, stream: str, chunk: int) -> PartOf:
        if self._staged[stream].flaw == "part":
            raise CodecError("too large to encode")
        return PartOf(self._staged[stream], chunk)

    def reduce(self, stream: str, chunk: int, inputs: Sequence[tuple[float, PartOf | None]]) -> SumOf:
        whole = [(weight, self._staged[stream] if part is None else part.contribution) for weight, part in inputs]
        if any(contribution.flaw for _, contribution in whole):
            raise CodecError("the sum is too large to encode")
        return SumOf(chunk, tuple(whole))

    def check(self, stream: str, chunk: int, payload: object) -> str | None:
        if isinstance(payload, PartOf | SumOf) and payload.chunk == chunk:
            return None
        return "not a chunk of this stream"

    def digest(self, payload: object) -> bytes:
        return hashlib.sha256(repr(payload).encode()).digest()

    def size_bytes(self, payload: object) -> int:
        return 100

    def apply(self, stream: str, payloads: Sequence[SumOf], skip: frozenset[int]) -> None:
        if self.streams[stream].state == "grad":
            self.gradient[stream] = tuple(payloads)
            return
        phi = self.phi[stream]
        for chunk, payload in enumerate(payloads):
            if chunk not in skip:
                phi[chunk] = link(phi[chunk], payload)

    def grant(self, stream: str, kind: str) -> None:
        regions = self.regions
        if self.streams[stream].state == "grad":
            if kind != "grad":
                return
            regions.given[stream] = self.gradient[stream]
            return
        if kind == "merge":
            contribution = self._staged[stream]
            regions.out[stream] = Weights(regions.given[stream], contribution.steps)
        elif kind == "move":
            regions.out[stream] = Weights(regions.given[stream], frozenset())
        regions.given[stream] = tuple(self.phi[stream])

    def read_state(self, k: int) -> str:
        stream, chunk = self._state[k]
        return self.phi[stream][chunk]

    def check_state(self, k: int, payload: object) -> str | None:
        return None if isinstance(payload, str) and payload else "not a chunk of state"

    def store_state(self, k: int, payload: str) -> None:
        stream, chunk = self._state[k]
        self.phi[stream][chunk] = payload

    def state_digest(self) -> bytes:
        return hashlib.sha256(repr(sorted(self.phi.items())).encode()).digest()

    def digest_steps(self) -> Iterator[bytes | None]:
        yield self.state_digest()
