"""A copy of the run's common weights for a trainer that asks: as of one log number, made between other work; pure.

A stream is copied chunk by chunk. If an update changes it before all streams are copied, it is copied again: what is
handed out is the state at the log number of the moment at which the last chunk was copied.
"""

from collections.abc import Mapping
from typing import Protocol

MOST_TIMES = 3
"""So often a copy may be overtaken by an update; then it is finished in one go, which takes less than an update."""


class Weights(Protocol):
    """What is needed of `wantrain.peers.engine.Engine`; see there."""

    def copy_common(self, stream: str, chunk: int) -> None: ...
    def drop_common(self) -> None: ...


class CommonCopy:
    """At most one copy at a time, of the request that came last."""

    def __init__(self) -> None:
        self.serial: int | None = None
        """Of the request that is being answered."""
        self._left: list[tuple[str, int]] = []
        self._chunks: Mapping[str, int] = {}
        self._path = ""
        self._overtaken = 0

    @property
    def begun(self) -> bool:
        """Whether there is memory for it."""
        return bool(self._path)

    def ask(self, serial: int) -> None:
        """A trainer wants it; asked again with the same number it goes on."""
        if serial != self.serial:
            self.drop()
            self.serial = serial

    def begin(self, path: str, chunks: Mapping[str, int]) -> None:
        """Copy to `path`, which has room for so many chunks of each stream of weights."""
        self._path, self._chunks, self._overtaken = path, chunks, 0
        self._left = [(stream, k) for stream, count in chunks.items() for k in range(count)]

    def changed(self, stream: str) -> None:
        """An update has changed the stream."""
        if not self.begun or stream not in self._chunks:
            return
        done = self._chunks[stream] - sum(name == stream for name, _ in self._left)
        self._overtaken += done > 0
        self._left = [one for one in self._left if one[0] != stream]
        self._left += [(stream, k) for k in range(self._chunks[stream])]

    def start_again(self) -> None:
        """The whole state has become another: nothing of what was copied counts."""
        for stream in self._chunks:
            self.changed(stream)

    def step(self, tensors: Weights) -> str:
        """Copy a chunk, or all that is left if it was overtaken too often; the path once all is copied, else ""."""
        while self._left:
            tensors.copy_common(*self._left.pop(0))
            if self._left and self._overtaken < MOST_TIMES:
                return ""
        path, self._path = self._path, ""
        tensors.drop_common()
        self.serial = None
        return path

    def drop(self) -> None:
        """Nobody wants it any more."""
        self.serial, self._path, self._left = None, "", []
