"""Tensors that remember what they are made of: the real engine's interface, and any sum shows who is in it.

A chunk of phi is a link of a hash chain over the updates applied to it; a trainer's weights are the phi that they were
last moved by plus a set of own inner steps. A contribution is that set. Nothing is rounded, so equality is exact.
"""

import hashlib
import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

from wantrain.errors import CodecError
from wantrain.optimizers.stream import Stream
from wantrain.peers.inheritance import GRANTED, MERGING, MOVING, STAGING, STARTING, Held, Mark
from wantrain.peers.layout import stream_chunks
from wantrain.peers.messages import Contribute, Granted, TensorSpec
from wantrain.transport.codec.names import format_of
from wantrain.transport.digest import state_digest

CACHED = 512
"""Chunks whose digests and links are remembered: peers go through the same ones at about the same time."""


NO_MARK = Mark()


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

    def __hash__(self) -> int:
        return self.ident


@dataclass(frozen=True, slots=True)
class PartOf:
    """One chunk of a contribution, encoded."""

    contribution: Contribution
    chunk: int
    codec: str = ""
    """If each sync chooses its own."""


@dataclass(frozen=True, slots=True)
class SumOf:
    """One chunk of an update, or of a sum on its way, encoded: the contributions in it, in order, with weights."""

    chunk: int
    inputs: tuple[tuple[float, Contribution], ...]
    final: bool = True
    codec: str = ""
    """Of a sum on its way, as that of a part."""


@lru_cache(maxsize=CACHED)
def link(previous: str, what: object) -> str:
    """The next state of a chunk. What comes from a flipped bit is marked with "!", which the tested code cannot see."""
    return "!" * previous.startswith("!") + hashlib.blake2b(f"{previous}|{what}".encode(), digest_size=12).hexdigest()


@lru_cache(maxsize=CACHED)
def digest_of(payload: object) -> bytes:
    """Digest of a chunk; every peer asks for that of the same ones."""
    return hashlib.sha256(repr(payload).encode()).digest()


@dataclass(slots=True)
class Regions:
    """Memory shared with one trainer process."""

    out: dict[str, Any] = field(default_factory=dict)
    given: dict[str, Any] = field(default_factory=dict)
    marks: dict[str, Mark] = field(default_factory=dict)
    place: tuple[int, bytes] = (-1, b"")
    reach: tuple[int, bytes] = (-1, b"")
    taken_in: dict[str, Contribution] = field(default_factory=dict)
    """What the daemon has made of `out`."""


class SymbolicTensors:
    """See `wantrain.peers.peer.Tensors`."""

    _idents = itertools.count(1)

    def __init__(self, who: str, manifest: Sequence[TensorSpec], streams: Sequence[Stream]) -> None:
        self.who = who
        self.streams = {stream.name: stream for stream in streams}
        self.chunks = {stream.name: stream_chunks(stream, manifest) for stream in streams}
        self.phi: dict[str, list[str]] = {s.name: [""] * self.chunks[s.name] for s in streams if s.held}
        self.gradient: dict[str, Any] = {}
        self.regions = Regions()
        self._left: dict[str, Mark] = {}
        self._turned: dict[str, str] = {}
        self._incoming: dict[str, Contribution] = {}
        self._staged: dict[str, Contribution] = {}
        self._in_use: set[str] = set()
        self.up: dict[str, str] = dict.fromkeys(self.streams, "")
        self.kept: dict[str, Contribution] = {}
        """Per stream: the contribution whose error is kept."""
        self._settled: dict[str, tuple[Contribution | None, bool]] = {}
        self._owed: dict[str, Contribution] = {}
        """Per stream that is answered ahead: what was in no sync, and is part of the next contribution."""
        self._orphaned = False
        self.taken_over = 0
        """Residuals of others, whole."""
        self.shown: dict[str, list[str]] = {}
        """Per stream of weights: the copy that a trainer has asked for."""
        self.changes = 0
        """How often the state has changed."""
        self._state = [(name, chunk) for name, phi in self.phi.items() for chunk in range(len(phi))]

    @property
    def tainted(self) -> bool:
        """Whether something in the state comes from a flipped bit."""
        return any(chunk.startswith("!") for phi in self.phi.values() for chunk in phi)

    def flip_a_bit(self, rng: random.Random) -> None:
        """Let the memory fail."""
        self.changes += 1
        stream, chunk = rng.choice(self._state)
        self.phi[stream][chunk] = "!" + self.phi[stream][chunk]

    def open_segment(self) -> Regions:
        self.regions = Regions()
        self._owed, self._orphaned = {}, True
        self._left, self._turned = {}, {}
        return self.regions

    def resume_segment(self, regions: Regions) -> Held:
        self.regions = regions
        marks = {name: regions.marks.get(name, Mark()) for name in self.streams}
        self._left, self._turned = dict(marks), {}
        return Held(*regions.place, marks, *regions.reach)

    def instant(self) -> None:
        """The process may be killed right here, between two writes to the shared memory."""

    def note(self, stream: str, **fields: Any) -> None:
        """Change the stream's mark."""
        self.instant()
        self.regions.marks[stream] = replace(self.regions.marks.get(stream, NO_MARK), **fields)
        self.instant()

    def note_told(self, stream: str, count: int) -> None:
        self.note(stream, phase=GRANTED, count=count)

    def note_place(self, number: int, chain: bytes) -> None:
        self.instant()
        self.regions.place = (number, chain)

    def note_reach(self, number: int, chain: bytes) -> None:
        self.instant()
        self.regions.reach = (number, chain)

    def adopt_genesis(self) -> bytes:
        if "nan" in self.regions.out.values():
            raise CodecError("an initial weight is NaN")
        self.changes += 1
        for name, phi in self.phi.items():
            self.phi[name] = [link("genesis", (self.regions.out[name], chunk)) for chunk in range(len(phi))]
        return self.state_digest()

    def stage(self, stream: str, offer: Contribute | None = None) -> tuple[float, bool]:
        assert offer is not None
        out = self.regions.out[stream]
        left = self._left.pop(stream, None)
        if left is not None and left.serial == offer.serial and left.phase in (STAGING, MERGING, MOVING):
            self._incoming[stream] = self.regions.taken_in[stream]
            if left.phase != STAGING:
                self._turned[stream] = "merge" if left.phase == MERGING else "move"
                if not left.count:
                    self._turn(stream, left.phase)
            return 1.0, True
        if not self.streams[stream].held:
            steps = out
        else:
            if out == "nan":
                return 0.0, False
            if out.base != self.regions.given[stream]:
                raise Violation(f"{self.who} took a difference against a phi that its weights were not moved by")
            steps = out.steps
        flaw = "" if not self.streams[stream].held else out.flaw
        contribution = Contribution(next(self._idents), self.who, steps, flaw)
        self._incoming[stream] = self.regions.taken_in[stream] = contribution
        self.note(stream, phase=STAGING, count=0, serial=offer.serial, offered=offer.tokens)
        return 1e30 if flaw else 1.0, True

    def use_stage(self, stream: str, floor: int = 0) -> None:
        self.note(stream, floor=floor)
        if self._incoming[stream] is self.regions.taken_in.get(stream):
            self.note(stream, used=self.regions.marks[stream].serial)
        self._staged[stream] = self._incoming[stream]
        if (owed := self._owed.pop(stream, None)) is not None:
            both = self._incoming[stream].steps | owed.steps
            self._staged[stream] = replace(self._incoming[stream], ident=next(self._idents), steps=both)
        self._in_use.add(stream)
        self._orphaned = False

    def use_codec(self, stream: str, codec: str) -> None:
        self.up[stream] = codec

    def settle(self, stream: str, taken: bool) -> None:
        if taken and stream not in self._in_use:
            raise Violation(f"{self.who}: a sync of {stream} has taken in a contribution that is not in use")
        stated = self.streams[stream]
        keeps = stated.answer != "result" and stated.late == "rebase" and not self._orphaned
        if stream in self._in_use and not taken and keeps:
            self._owed[stream] = self._staged[stream]
        self._in_use.discard(stream)
        self._settled[stream] = (self._staged.get(stream), taken)
        if taken and self.up[stream] and not format_of(self.up[stream]).error_feedback:
            self.kept.pop(stream, None)
        elif taken:
            self.kept[stream] = self._staged[stream]

    def in_hand(self, stream: str) -> frozenset[int]:
        """Inner steps that the trainer has given up to this daemon and no sync has taken in."""
        held = [self._owed.get(stream), self._staged.get(stream) if stream in self._in_use else None]
        return frozenset().union(*(contribution.steps for contribution in held if contribution is not None))

    def forget_residuals(self) -> None:
        self.kept, self._owed = {}, {}
        self._orphaned = True

    def residual(self, stream: str) -> list[object]:
        return [("owed", self.kept[stream])] * self.chunks[stream] if stream in self.kept else []

    def check_owed(self, stream: str, chunk: int, payload: Any) -> str | None:
        return None

    def add_residual(self, stream: str, payloads: Sequence[object]) -> None:
        self.taken_over += len(payloads) == self.chunks[stream]

    def release(self, payload: object) -> None:
        pass

    def _used(self, stream: str) -> Contribution:
        if stream not in self._in_use:
            raise Violation(f"{self.who} sends of stream {stream}, of which nothing is in use")
        return self._staged[stream]

    def part(self, stream: str, chunk: int) -> PartOf:
        if self._used(stream).flaw == "part":
            raise CodecError("too large to encode")
        return PartOf(self._used(stream), chunk, self.up[stream])

    def reduce(
        self,
        stream: str,
        chunk: int,
        inputs: Sequence[tuple[float, PartOf | SumOf | None]],
        divisor: float,
        final: bool,
    ) -> SumOf:
        whole: list[tuple[float, Contribution]] = []
        if self.streams[stream].average != "mean" and (not final or any(isinstance(p, SumOf) for _, p in inputs)):
            raise Violation(f"{self.who} averaged partial sums of {stream}, whose rule has to see all contributions")
        for weight, part in inputs:
            if part is not None and part.codec != self.up[stream]:
                raise Violation(f"{self.who} reads {part} as {self.up[stream]}")
            if isinstance(part, SumOf):
                if weight != 1.0 or part.final:
                    raise Violation(f"{self.who} summed {part} with weight {weight}")
                whole += part.inputs
            else:
                whole.append((weight, self._used(stream) if part is None else part.contribution))
        if divisor != (sum(weight for weight, _ in whole) if final else 1.0):
            raise Violation(f"{self.who} divided the sum of {whole} by {divisor}")
        if any(contribution.flaw for _, contribution in whole):
            raise CodecError("the sum is too large to encode")
        return SumOf(chunk, tuple(whole), final, "" if final else self.up[stream])

    def longest(self, stream: str, chunk: int, inputs: Sequence[tuple[float, PartOf | SumOf | None]]) -> int:
        found = [self._used(stream) if p is None else p.contribution for _, p in inputs if not isinstance(p, SumOf)]
        return next(k for k, contribution in enumerate(found) if contribution.flaw)

    def check(self, stream: str, chunk: int, payload: object, *, part: bool, up: str) -> str | None:
        if isinstance(payload, PartOf | SumOf) and payload.codec != up:
            raise Violation(f"{payload} came to {self.who} as {up}")
        kinds = isinstance(payload, PartOf) or (isinstance(payload, SumOf) and payload.final != part)
        return None if kinds and payload.chunk == chunk else "not a chunk of this stream"

    def digest(self, payload: object) -> bytes:
        return digest_of(payload)

    def size_bytes(self, payload: object) -> int:
        return 100

    def apply(self, stream: str, payloads: Sequence[SumOf], skip: frozenset[int], index: int) -> None:
        # Nothing is settled where another's state is copied, or a line comes again after what is staged.
        contribution, taken = self._settled.pop(stream, (None, False))
        inside = any(mine is contribution for payload in payloads for _, mine in payload.inputs)
        if payloads and taken and not inside:
            raise Violation(f"{self.who} keeps the error of {contribution}, which the update does not hold")
        if not self.streams[stream].held:
            self.gradient[stream] = tuple(payloads)
            return
        self.changes += 1
        phi = self.phi[stream]
        for chunk, payload in enumerate(payloads):
            if chunk not in skip:
                phi[chunk] = link(phi[chunk], payload)

    def agree(self, stream: str, payloads: Sequence[SumOf], skip: frozenset[int]) -> None:
        self._settled.pop(stream, None)
        self.changes += 1
        phi = self.phi[stream]
        self.phi[stream] = [phi[k] if k in skip else link("consensus", p) for k, p in enumerate(payloads)]

    def spread(self, stream: str, payloads: Sequence[SumOf]) -> float:
        return 0.0

    def grant(self, stream: str, kind: str, answer: Granted | None = None, count: int = 0, share: float = 1.0) -> None:
        assert answer is not None
        regions = self.regions
        turned = self._turned.pop(stream, None)
        self._left.pop(stream, None)
        if not self.streams[stream].held:
            if kind == "grad":
                regions.given[stream] = self.gradient[stream]
        else:
            phase = {"merge": MERGING, "move": MOVING}.get(kind, STARTING)
            if phase == STARTING or turned is None:
                self.note(stream, phase=phase, count=0)
                if phase != STARTING:
                    self._turn(stream, phase)
            elif turned != kind:
                raise Violation(f"{self.who}: {kind} is granted where a former daemon had begun with {turned}")
            guess = ""
            if kind == "merge" and self.streams[stream].answer == "eager" and stream in self._in_use:
                guess = f"+{self._staged[stream].ident}*{share}"
            regions.given[stream] = tuple(chunk + guess for chunk in self.phi[stream])
        self.note(stream, phase=GRANTED, count=count, kind=kind, index=answer.index, global_step=answer.global_step)

    def _turn(self, stream: str, phase: int) -> None:
        """What a grant hands over in `out`."""
        steps = self.regions.taken_in[stream].steps if phase == MERGING else frozenset()
        self.regions.out[stream] = Weights(self.regions.given[stream], steps)
        self.note(stream, phase=phase, count=1)

    def open_common(self) -> dict[str, int]:
        self.shown = {s.name: ["?"] * self.chunks[s.name] for s in self.streams.values() if s.state == "param"}
        return {name: len(chunks) for name, chunks in self.shown.items()}

    def copy_common(self, stream: str, chunk: int) -> None:
        self.shown[stream][chunk] = self.phi[stream][chunk]

    def drop_common(self) -> None:
        pass

    def read_state(self, k: int) -> str:
        stream, chunk = self._state[k]
        return self.phi[stream][chunk]

    def check_state(self, k: int, payload: object) -> str | None:
        return None if isinstance(payload, str) and payload else "not a chunk of state"

    def store_state(self, k: int, payload: str) -> None:
        self.changes += 1
        stream, chunk = self._state[k]
        self.phi[stream][chunk] = payload

    def state_digest(self) -> bytes:
        return state_digest(self.digest_steps())

    def save_steps(self, write: Callable[[Any], None]) -> Iterator[tuple[bytes, ...] | None]:
        digests = []
        for stream, chunk in self._state:
            write(self.phi[stream][chunk])
            digests.append(self.digest(self.phi[stream][chunk]))
            yield None
        yield tuple(digests)

    def digest_steps(self) -> Iterator[bytes]:
        for stream, chunk in self._state:
            yield self.digest(self.phi[stream][chunk])
