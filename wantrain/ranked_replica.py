"""The copy of the model that the ranks of a site have together: each its part, staged and adopted at one inner step.

The leader's methods are those of any replica; each tells the other ranks, which do the same to their parts. Ranks on
another host than the leader cannot map the segment: the leader copies their parts in and out for them.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import msgpack
import torch
from torch import Tensor, nn

from wantrain.errors import ConfigError, WantrainError
from wantrain.local_shard import Extent, writers
from wantrain.optimizers.stream import Stream
from wantrain.peers.layout import stream_elements
from wantrain.peers.shared_memory import Segment
from wantrain.ranks import LEADER, Ranks, Told, host_id
from wantrain.replica import Regions, Replica

BLOCK_ELEMENTS = 1 << 18
"""Values that travel at once to and from a rank on another host: 1 MiB."""
MOST_DIMS = 8
KINDS = ("start", "merge", "move", "grad")


class RankedReplica(Replica):
    """One rank's part. What it does, all ranks do at the same time.

    Args:
        model: whose parameters they are; the same on all ranks, whole or as DTensors.
        optimizers: that train them.
        ranks: of the site.

    Raises:
        ConfigError: the ranks have different models, or not all of one between them; or see `Replica`.
    """

    def __init__(self, model: nn.Module, optimizers: Sequence[torch.optim.Optimizer], ranks: Ranks) -> None:
        super().__init__(model, optimizers)
        self.ranks = ranks
        self.tokens = 0
        """Tokens that this rank was trained on."""
        self.counted = 0
        """Tokens of all ranks when a stream was written last."""
        self._queued = any(parameter.is_cuda for parameter in self._parameters.values())
        """Whether copies may last longer than the call that makes them."""
        shapes = msgpack.packb([[asdict(tensor) for tensor in self.manifest], self._queued])
        ranks.agree("model", shapes, "every rank has all parameters; pipelines over ranks cannot be joined")
        self._parts = self._all_extents()
        """The boxes of each parameter by rank."""
        shapes_of = {tensor.name: tensor.shape for tensor in self.manifest}
        self._writers = {name: writers(name, shapes_of[name], boxes) for name, boxes in self._parts.items()}
        """Which ranks write their part of each parameter."""
        self._writes = {name for name, several in self._writers.items() if ranks.rank in several}
        self._far: list[int] = []
        """Ranks on other hosts."""
        self._views_of: dict[tuple[int, str], list[tuple[Tensor, Tensor, bool]]] = {}
        """Leader: by rank and stream the parts of ranks on other hosts in the segment: `out`, `given`, if it writes."""
        self._block = torch.empty(0)

    def _all_extents(self) -> dict[str, tuple[Extent, ...]]:
        own = torch.zeros(len(self._boxes), 2, MOST_DIMS, dtype=torch.int64)
        for row, (name, box) in zip(own, self._boxes.items(), strict=True):
            if (dims := len(box.sizes)) > MOST_DIMS:
                raise ConfigError(f"{name} has {dims} dimensions, allowed are {MOST_DIMS}", hint="flatten some of them")
            row[:, :dims] = torch.tensor([box.starts, box.sizes])
        said = self.ranks.gather(own).tolist()
        found: dict[str, tuple[Extent, ...]] = {}
        for place, (name, box) in enumerate(self._boxes.items()):
            dims = len(box.sizes)
            rows = [rank[place] for rank in said]
            found[name] = tuple(Extent(tuple(starts[:dims]), tuple(sizes[:dims])) for starts, sizes in rows)
        return found

    def join_memory(self, regions: Segment | None, path: str, host: str, streams: Sequence[Stream]) -> None:
        """Bind to the segment at `path` on the leader's host; without it, to memory of this process's own.

        Raises:
            WantrainError: some rank cannot; the same on all.
        """
        self._views_of.clear()
        if regions is None and host == host_id():
            regions = _opened(path)
        near = self.ranks.gather(torch.tensor([regions is not None]))
        self._far = [rank for rank in range(self.ranks.size) if not near[rank]]
        failure = None
        try:
            super().bind(regions or Elsewhere(streams, self), streams)
            if self.ranks.leads and regions is not None:
                for rank in self._far:
                    boxes = {name: parts[rank] for name, parts in self._parts.items()}
                    for stream in self._streams:
                        out, given = regions.out(stream), regions.given(stream)
                        self._views_of[rank, stream] = [
                            (
                                spot.part(out, boxes[spot.name])[0],
                                spot.part(given, boxes[spot.name])[0],
                                rank in self._writers[spot.name],
                            )
                            for spot in self._spots(stream)
                        ]
        except WantrainError as error:
            failure = error
        if self._far and not len(self._block):
            self._block = torch.empty(BLOCK_ELEMENTS)
        self.ranks.settle(failure)

    def release(self) -> None:
        """Let go of the segment's regions."""
        super().release()
        self._views_of.clear()

    def write_part(self, stream: str) -> None:
        """Copy this rank's part; over when all ranks have, or have begun to and `finish_part` ends it.

        Raises:
            WantrainError: some rank cannot; the same on all.
        """
        failure = None
        try:
            super().write(stream)
        except WantrainError as error:
            failure = error
        if not self._queued:
            self._bring(stream)
        self.counted = self.ranks.settle(failure, self.tokens)

    def finish_part(self, stream: str) -> None:
        """Wait until what all ranks have begun to copy is there."""
        super().staged(stream, wait=True)
        self._bring(stream)
        self.ranks.settle()

    def _bring(self, stream: str) -> None:
        """Have what ranks on other hosts have written in the segment."""
        for rank in self._far:
            if self.ranks.leads:
                self._receive(rank, [out for out, _, writes in self._views_of[rank, stream] if writes])
            elif rank == self.ranks.rank:
                self._send(LEADER, [piece.out for piece in self._views[stream] if piece.writes])

    def adopt_part(self, stream: str, kind: str, *, stepped: bool) -> None:
        """Take over this rank's part; over when all ranks have."""
        moves = kind == "move" or (kind == "merge" and stepped)
        for rank in self._far:
            if self.ranks.leads:
                views = self._views_of[rank, stream]
                self._send(rank, [given for _, given, _ in views] + [out for out, _, _ in views if moves])
            elif rank == self.ranks.rank:
                pieces = self._views[stream]
                self._receive(LEADER, [p.given for p in pieces] + [p.out for p in pieces if moves])
        super().adopt(stream, kind, stepped=stepped)
        self.ranks.settle()

    def show_part(self, vectors: Mapping[str, Tensor] | None) -> list[Tensor]:
        """Put other weights, which the leader has, into all ranks' parameters; what this one's were."""
        if not len(self._block):
            self._block = torch.empty(BLOCK_ELEMENTS)
        if vectors is None:
            nothing = Elsewhere([stream for stream in self._streams.values() if stream.name in self.elements], self)
            vectors = {name: nothing.given(name) for name in self.elements}
        own = self._boxes
        pieces = [p for name, vector in vectors.items() for p in self._pieces(name, vector, vector, own)]
        if not self.ranks.leads:
            self._receive(LEADER, [piece.given for piece in pieces])
        for rank in range(1, self.ranks.size) if self.ranks.leads else ():
            boxes = {name: parts[rank] for name, parts in self._parts.items()}
            theirs = [p.given for name, vector in vectors.items() for p in self._pieces(name, vector, vector, boxes)]
            self._send(rank, theirs)
        before = self._show(pieces)
        self.ranks.settle()
        return before

    def _send(self, rank: int, views: Sequence[Tensor]) -> None:
        for view in views:
            for part in blocks(view, len(self._block)):
                block = self._block[: part.numel()]
                block.view(part.shape).copy_(part)
                self.ranks.send(rank, block)

    def _receive(self, rank: int, views: Sequence[Tensor]) -> None:
        for view in views:
            for part in blocks(view, len(self._block)):
                block = self._block[: part.numel()]
                self.ranks.receive(rank, block)
                part.copy_(block.view(part.shape))


class LeadingReplica(RankedReplica):
    """The leader's: what is done to it is done to all ranks' parts."""

    def __init__(self, model: nn.Module, optimizers: Sequence[torch.optim.Optimizer], ranks: Ranks) -> None:
        super().__init__(model, optimizers, ranks)
        self._unfinished: set[str] = set()
        """Streams that were written and not yet finished."""

    def bind(self, segment: Regions, streams: Sequence[Stream]) -> None:
        """Bind all ranks; for errors see `Replica.bind`, of any rank."""
        assert isinstance(segment, Segment)
        path, host = str(segment.path), host_id()
        self._unfinished.clear()
        rows: list[dict[str, Any]] = [asdict(stream) for stream in streams]
        self.ranks.tell(Told.BIND, payload=msgpack.packb([path, host, rows]))
        self.join_memory(segment, path, host, streams)

    def write(self, stream: str) -> None:
        """Have all ranks copy their parts."""
        self.ranks.tell(Told.WRITE, self._number(stream))
        self.write_part(stream)
        if self._queued:
            self._unfinished.add(stream)

    def staged(self, stream: str, *, wait: bool) -> bool:
        """Whether what all ranks have written is in the stream's `out`; the others are about as far as this one."""
        if stream not in self._unfinished:
            return True
        if not (wait or super().staged(stream, wait=False)):
            return False
        self.ranks.tell(Told.FINISH, self._number(stream))
        self.finish_part(stream)
        self._unfinished.discard(stream)
        return True

    def adopt(self, stream: str, kind: str, *, stepped: bool) -> None:
        """Have all ranks take over their parts."""
        self.ranks.tell(Told.ADOPT, self._number(stream), KINDS.index(kind), int(stepped))
        self.adopt_part(stream, kind, stepped=stepped)

    def show(self, vectors: Mapping[str, Tensor]) -> list[Tensor]:
        """Put other weights into all ranks' parameters; what the own ones were."""
        self.ranks.tell(Told.SHOW)
        return self.show_part(vectors)

    def begin_at(self, step: int) -> None:
        """The run's step count where all ranks begin."""
        self.ranks.tell(Told.BEGIN_AT, step)
        super().begin_at(step)

    def _number(self, stream: str) -> int:
        return list(self._streams).index(stream)


class FollowingReplica(RankedReplica):
    """Another rank's: it does what the leader tells."""

    shown: Sequence[Tensor] = ()
    """What the parameters were before the last weights that were shown."""

    def obey(self, told: Told, words: Sequence[int], streams: Sequence[Stream], path: str, host: str) -> None:
        """Do it; for errors see `RankedReplica`. `streams`, `path` and `host` are of `Told.BIND`."""
        match told:
            case Told.BIND:
                self.release()
                self.join_memory(None, path, host, streams)
            case Told.WRITE:
                self.write_part(list(self._streams)[words[0]])
            case Told.FINISH:
                self.finish_part(list(self._streams)[words[0]])
            case Told.ADOPT:
                self.adopt_part(list(self._streams)[words[0]], KINDS[words[1]], stepped=bool(words[2]))
            case Told.BEGIN_AT:
                self.begin_at(words[0])
            case Told.SHOW:
                self.shown = self.show_part(None)


class Elsewhere:
    """The shapes of a segment's vectors without their memory, which is on another host."""

    def __init__(self, streams: Sequence[Stream], replica: Replica) -> None:
        self._elements = {stream.name: stream_elements(stream, replica.manifest) for stream in streams}

    def out(self, stream: str) -> Tensor:
        """fp32[elements] on device meta."""
        return torch.empty(self._elements[stream], device="meta")

    def given(self, stream: str) -> Tensor:
        """The same."""
        return self.out(stream)

    def whole(self) -> Tensor:
        """Nothing."""
        return torch.empty(0)


def _opened(path: str) -> Segment | None:
    """The segment, if this host has it."""
    try:
        return Segment.open(path)
    except WantrainError:
        return None


def blocks(view: Tensor, most: int) -> Iterator[Tensor]:
    """A tensor in parts of at most `most` values, cut along its first dimensions; nothing for an empty one."""
    if not view.numel():
        return
    if view.numel() <= most:
        yield view
        return
    rows = most // (view.numel() // len(view))
    if rows:
        for first in range(0, len(view), rows):
            yield view[first : first + rows]
    else:
        for row in view:
            yield from blocks(row, most)
