"""The memory that a trainer and the daemon beside it share: an mmap'ed file with two fp32 regions for each stream.

The daemon creates the file, the trainer opens it. All numbers are little-endian. The file:

    0     magic, 8 bytes; version u32; number of streams u32
    64    i64  inner steps left until the next contribution    written by the trainer, each word on its own
    72    f64  seconds per inner step
    80    i64  own inner steps
    88    i64  the run's step count, as this trainer has it
    128   i64  granted: the daemon adds 1 after every Granted that it has sent
    136   the daemon's place in the commit log: i64 which of two is valid (0: none), and for each i64 number, link
    224   i64  which chunk of which stream lies in the spare region and belongs into `out`; 0: none
    232   the place in the commit log up to which the trainer may have been granted what follows, as at 136
    384   for each stream: length of its name u16, name in UTF-8, elements u64
    4096  for each stream ten i64: the daemon's mark, see `inheritance.Mark`; then, at a multiple of 4096, the spare
          region, of one chunk; then for each stream, each region starting at a multiple of 4096: `out`, then `given`

`out` is the trainer's to write (its weights, or its gradients) until it sends Contribute, then the daemon's until
Granted. `given` is the daemon's to write. When a stream has been granted they hold, by kind,

    start   given = phi
    merge   given = phi (new); out = the trainer's own weights when it staged, computed as old given - delta
    move    given = phi (new); out = old given, the phi that the trainer was last moved by
    grad    given = mean gradient

(phi is what `ahead.py` makes of it if a contribution is answered ahead of its sync), so the trainer takes over: start,
merge without own steps since, and move with late="adopt": theta <- given; merge with own steps since, and move with
late="rebase": theta <- given + (theta - out); grad: p.grad <- given.

A daemon that is started anew goes on with the segment that a killed one has left to their trainer. So whatever cannot
be made twice is written to the spare region first, and each mark is one word, written after what it speaks of.
"""

import contextlib
import mmap
import os
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from wantrain.errors import ConfigError, WantrainError
from wantrain.peers.inheritance import Held, Mark
from wantrain.peers.mapped_file import PAGE_BYTES, create_mapped, damaged, open_mapped, region, region_bytes
from wantrain.transport.partition import chunk_elements

LOCAL_RUN = bytes(8)
"""Run id on the socket between trainer and daemon, which never leaves the machine."""

_MAGIC = b"wantrain"
_VERSION = 4
_HEAD = struct.Struct("<8sII")
_NAME = struct.Struct("<H")
_ELEMENTS = struct.Struct("<Q")
_PROGRESS_AT = 64
_GRANTED_AT = 128
_PLACE_AT = 136
_PLACE = struct.Struct("<q32s")
_SPARE_AT = 224
_REACH_AT = 232
_TABLE_AT = 384
_MAX_ELEMENTS = 2**48
_WORDS = 10
"""Of a mark, in this order: phase and count, then the fields behind them."""
_KINDS = ("", "start", "merge", "move", "grad")
_SHIFT = 40
"""Phase and count share a word, so that they change at one instant."""


class _Place:
    """A line of the commit log and its link, which are true at whatever instant their writer is killed."""

    def __init__(self, memory: memoryview) -> None:
        self._which = memory[:8].cast("q")
        self._both = memory[8 : 8 + 2 * _PLACE.size]

    def note(self, number: int, chain: bytes) -> None:
        other = 1 if self._which[0] == 2 else 2
        _PLACE.pack_into(self._both, (other - 1) * _PLACE.size, number, chain)
        self._which[0] = other

    def read(self) -> tuple[int, bytes]:
        """(-1, b"") if nothing was noted."""
        if self._which[0] not in (1, 2):
            return -1, b""
        number, chain = _PLACE.unpack_from(self._both, (self._which[0] - 1) * _PLACE.size)
        return number, chain


class Segment:
    """A mapped segment; made by `create` or `open`. The memory stays mapped as long as a tensor over it lives."""

    def __init__(self, path: Path, memory: mmap.mmap, elements: Mapping[str, int]) -> None:
        self.path = path
        self.elements = dict(elements)
        self.size_bytes = len(memory)
        self._memory = memory
        # Never memory.close(): torch.frombuffer would be left with tensors over unmapped memory.
        self._out: dict[str, Tensor] = {}
        self._given: dict[str, Tensor] = {}
        for (name, count), start in zip(elements.items(), _starts(elements), strict=True):
            self._out[name] = region(memory, start, count)
            self._given[name] = region(memory, start + region_bytes(count), count)
        self._names = list(elements)
        self._spare = region(memory, PAGE_BYTES + _marks_bytes(elements), _spare_elements(elements))
        whole = memoryview(memory)
        self._marks = whole[PAGE_BYTES : PAGE_BYTES + 8 * _WORDS * len(elements)].cast("q")
        self._place = _Place(whole[_PLACE_AT:])
        self._reach = _Place(whole[_REACH_AT:])
        self._spared = whole[_SPARE_AT : _SPARE_AT + 8].cast("q")
        self._counts = whole[_PROGRESS_AT : _PROGRESS_AT + 32].cast("q")
        self._seconds = whole[_PROGRESS_AT + 8 : _PROGRESS_AT + 16].cast("d")
        self._granted = whole[_GRANTED_AT : _GRANTED_AT + 8].cast("q")

    @classmethod
    def create(cls, path: str | os.PathLike[str], elements: Mapping[str, int]) -> Self:
        """Make the file, readable by its owner only, with all of its memory reserved.

        Args:
            path: absolute path of a file that is not there yet.
            elements: stream name to the length of its vector in elements.

        Raises:
            WantrainError: there is not enough room, or the file cannot be made.
            ConfigError: more streams than the header has room for.
        """
        path = Path(path)
        table = b"".join(_NAME.pack(len(n.encode())) + n.encode() + _ELEMENTS.pack(c) for n, c in elements.items())
        if len(table) > PAGE_BYTES - _TABLE_AT:
            raise ConfigError(
                f"{len(elements)} streams take {len(table)} bytes of header, {PAGE_BYTES - _TABLE_AT} are there",
                hint="use fewer streams, or shorter names",
            )
        memory = create_mapped(path, segment_bytes(elements))
        memory[_TABLE_AT : _TABLE_AT + len(table)] = table
        memory[: _HEAD.size] = _HEAD.pack(_MAGIC, _VERSION, len(elements))
        return cls(path, memory, elements)

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Self:
        """Map a file that `create` has made.

        Raises:
            WantrainError: there is no such file, or it is not a whole segment of this version.
        """
        path = Path(path)
        memory = open_mapped(path)
        if len(memory) < PAGE_BYTES:
            raise damaged(path, f"it has {len(memory)} bytes, less than a header")
        elements = _read_table(path, memory[:PAGE_BYTES])
        if segment_bytes(elements) != len(memory):
            raise damaged(path, f"it has {len(memory)} bytes where its header wants {segment_bytes(elements)}")
        return cls(path, memory, elements)

    def out(self, stream: str) -> Tensor:
        """fp32[elements] view of what the trainer stages."""
        return self._out[stream]

    def given(self, stream: str) -> Tensor:
        """fp32[elements] view of what the daemon hands out."""
        return self._given[stream]

    def whole(self) -> Tensor:
        """uint8[size_bytes] view of all of the memory."""
        return torch.frombuffer(self._memory, dtype=torch.uint8)

    def post_progress(self, *, steps_left: int, step_s: float, own_steps: int, global_step: int = 0) -> None:
        """Trainer: say how far it is; costs less than a microsecond.

        Args:
            steps_left: inner steps until the next contribution.
            step_s: seconds per inner step, 0 if unknown.
            own_steps: inner steps made.
            global_step: the run's step count.
        """
        self._counts[0] = steps_left
        self._seconds[0] = step_s
        self._counts[2] = own_steps
        self._counts[3] = global_step

    def progress(self) -> tuple[int, float, int]:
        """Daemon: (steps_left, step_s, own_steps) as posted last, all 0 before that."""
        return self._counts[0], self._seconds[0], self._counts[2]

    @property
    def global_step(self) -> int:
        """Daemon: the run's step count as the trainer posted it last, 0 before that."""
        return self._counts[3]

    def bump(self) -> None:
        """Daemon: a Granted was sent."""
        self._granted[0] += 1

    @property
    def granted(self) -> int:
        """How many Granted were sent to the trainer of this segment."""
        return self._granted[0]

    # ---- what a daemon that comes after a killed one has to know

    def mark(self, stream: str) -> Mark:
        """What was noted down about a stream."""
        at = self._mark_at(stream)
        phase, count = divmod(self._marks[at], 1 << _SHIFT)
        serial, used, floor, kind, index, step, tokens, offered = self._marks[at + 1 : at + 9].tolist()
        return Mark(phase, count, serial, used, floor, _KINDS[kind % len(_KINDS)], index, step, tokens, offered)

    def note(self, stream: str, mark: Mark) -> None:
        """Note a mark down: its phase and count last, in one word; only then the other fields count."""
        at = self._mark_at(stream)
        rest = (mark.serial, mark.used, mark.floor, _KINDS.index(mark.kind), mark.index, mark.global_step)
        for k, word in enumerate((*rest, mark.tokens, mark.offered), start=1):
            self._marks[at + k] = word
        self._marks[at] = (mark.phase << _SHIFT) + mark.count

    def note_phase(self, stream: str, phase: int, count: int) -> None:
        """Note down how far the daemon is."""
        self._marks[self._mark_at(stream)] = (phase << _SHIFT) + count

    def note_used(self, stream: str, serial: int, floor: int) -> None:
        """Note down that contribution `serial` may become part of attempts above number `floor` from now on."""
        at = self._mark_at(stream)
        self._marks[at + 3] = floor
        self._marks[at + 2] = serial

    def subtract(self, stream: str, chunk: int, start: int, stop: int, phase: int) -> None:
        """out = given - out in elements start to stop, which are the stream's chunk `chunk`, and note that it is done.

        Killed at any instant, `finish` brings it to an end; so no element is subtracted twice.
        """
        spare, out = self._spare[: stop - start], self._out[stream][start:stop]
        torch.sub(self._given[stream][start:stop], out, out=spare)
        self._spared[0] = (self._names.index(stream) << _SHIFT) + chunk + 1
        out.copy_(spare)
        self.note_phase(stream, phase, chunk + 1)
        self._spared[0] = 0

    def finish(self, bounds: Mapping[str, list[tuple[int, int]]]) -> None:
        """Bring what a killed daemon was subtracting to an end; `bounds`: the chunks of each stream."""
        number, chunk = divmod(self._spared[0] - 1, 1 << _SHIFT)
        if number < 0:
            return
        stream = self._names[number]
        start, stop = bounds[stream][chunk]
        self._out[stream][start:stop].copy_(self._spare[: stop - start])
        mark = self.mark(stream)
        self.note_phase(stream, mark.phase, max(mark.count, chunk + 1))
        self._spared[0] = 0

    def note_place(self, number: int, chain: bytes) -> None:
        """Note down that all consequences of the commit log up to line `number`, of this link, are in the marks."""
        self._place.note(number, chain)

    def note_reach(self, number: int, chain: bytes) -> None:
        """Note down that consequences of the commit log up to this line are granted from now on."""
        self._reach.note(number, chain)

    def held(self) -> Held:
        """Everything that was noted down."""
        marks = {name: self.mark(name) for name in self.elements}
        return Held(*self._place.read(), marks, *self._reach.read())

    def take_over(self) -> None:
        """Daemon: count the Granted messages from 0 again, as they are its own from now on."""
        self._granted[0] = 0

    def _mark_at(self, stream: str) -> int:
        return _WORDS * self._names.index(stream)

    def close(self) -> None:
        """Let go of the regions; what others hold of them stays valid, and only then is the memory unmapped."""
        self._out.clear()
        self._given.clear()
        self._spare = torch.empty(0)

    def unlink(self) -> None:
        """Remove the file; the memory lives on in who has mapped it. Again is fine."""
        with contextlib.suppress(FileNotFoundError):
            self.path.unlink()


def _marks_bytes(elements: Mapping[str, int]) -> int:
    return -(-8 * _WORDS * len(elements) // PAGE_BYTES) * PAGE_BYTES


def _spare_elements(elements: Mapping[str, int]) -> int:
    """The longest chunk of all streams."""
    return max((min(count, chunk_elements(count)) for count in elements.values()), default=0)


def _regions_at(elements: Mapping[str, int]) -> int:
    return PAGE_BYTES + _marks_bytes(elements) + region_bytes(_spare_elements(elements))


def _starts(elements: Mapping[str, int]) -> Iterator[int]:
    """Where in the file each stream's two regions begin, in bytes."""
    start = _regions_at(elements)
    for count in elements.values():
        yield start
        start += 2 * region_bytes(count)


def segment_bytes(elements: Mapping[str, int]) -> int:
    """Size of a segment for streams of these lengths."""
    return _regions_at(elements) + 2 * sum(map(region_bytes, elements.values()))


def _read_table(path: Path, header: bytes) -> dict[str, int]:
    magic, version, streams = _HEAD.unpack_from(header)
    if magic != _MAGIC:
        raise damaged(path, "it is no segment")
    if version != _VERSION:
        raise WantrainError(
            f"shared memory {path} has version {version}, here {_VERSION}",
            hint="run trainer and daemon with the same wantrain",
        )
    elements: dict[str, int] = {}
    at = _TABLE_AT
    try:
        for _ in range(streams):
            (length,) = _NAME.unpack_from(header, at)
            at += _NAME.size
            name = header[at : at + length].decode()
            (count,) = _ELEMENTS.unpack_from(header, at + length)
            at += length + _ELEMENTS.size
            if name in elements or count > _MAX_ELEMENTS:
                raise damaged(path, f"its header has {count} elements of stream {name!r}")
            elements[name] = count
    except (struct.error, UnicodeDecodeError) as error:
        raise damaged(path, f"its header is broken: {error}") from None
    return elements
