"""What a peer holds of one stream: committed value, contribution, and the codecs and the rule that they go through."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from wantrain.errors import ProtocolBug
from wantrain.optimizers.merge import Merge, merge
from wantrain.optimizers.pair_step import NoLoCo
from wantrain.optimizers.stream import Stream
from wantrain.peers.ahead import Ahead
from wantrain.peers.residual import FORMAT, Residual
from wantrain.transport.codec import Codec, as_tensor
from wantrain.transport.codec.names import AUTO, choices, format_of
from wantrain.transport.collective import Payload
from wantrain.transport.device import CodecOf
from wantrain.transport.memory import big
from wantrain.transport.partition import chunk_bounds


@dataclass(frozen=True, slots=True, eq=False)
class StagedValues:
    """What a trainer has staged."""

    values: Tensor
    """fp32[elements] in its segment, which nobody writes until the contribution is decided."""
    norm: float
    finite: bool


@dataclass(slots=True, eq=False)
class Vector:
    """One stream on one peer. All tensors are on the CPU."""

    stream: Stream
    up: Codec
    """Of the running attempt, if the run leaves it to each sync."""
    down: Codec
    rule: Merge
    options: Mapping[str, float]
    elements: int
    bounds: list[tuple[int, int]]
    phi: Tensor
    """fp32[elements], the last committed value; fp32[0] for a `grad` stream."""
    slots: tuple[Tensor, ...]
    """Outer state, each like phi."""
    starts: tuple[float, ...]
    """What each of them is filled with at the start of a run."""
    residual: Residual | None
    """Of a codec with error feedback, also if only some syncs use one."""
    ahead: Ahead | None = None
    """Of a stream whose contributions are answered before their sync is decided."""
    mean: tuple[Payload, ...] = ()
    """The last update of a `grad` stream, encoded; it is decoded straight into the trainer's memory."""
    incoming: StagedValues | None = None
    contribution: StagedValues | None = None
    decided: StagedValues | None = None
    """Of a gossip stream: the contribution that the update to be applied next has in it."""

    @property
    def used(self) -> StagedValues:
        """The contribution in use.

        Raises:
            ProtocolBug: there is none.
        """
        if self.contribution is None:
            raise ProtocolBug(f"stream {self.stream.name} has no contribution")
        return self.contribution

    def own(self, chunk: int, out: Tensor) -> Tensor:
        """fp32[n] of what this peer contributes to a chunk: what was staged, with the residual if there is one.

        Without a common phi it is what the rule makes of it. That, or the sum with the residual, is made in `out`, fp32
        of n or more; what was staged is never changed.
        """
        start, stop = self.bounds[chunk]
        values = self.used.values[start:stop]
        if isinstance(self.rule, NoLoCo):
            self.rule.offer(self.phi[start:stop], values, self.options, out[: stop - start])
            return out[: stop - start]
        return values if self.residual is None else self.residual.add_to(chunk, values, out)

    def add(self, chunk: int, weight: float, payload: Payload | None, total: Tensor, scratch: Tensor) -> None:
        """total += weight * value, in fp32: of a part, or of the own contribution (None). `scratch`: like `total`."""
        if payload is None:
            values = self._own_summed(chunk, scratch)
            total.add_(values if weight == 1.0 else torch.mul(values, weight, out=scratch))
        else:
            self.up.accumulate(as_tensor(payload), weight, total)

    def begin(self, chunk: int, weight: float, payload: Payload | None, total: Tensor, scratch: Tensor) -> None:
        """total = weight * value, as `add` would have it on zeros, but faster."""
        if payload is None:
            torch.mul(self._own_summed(chunk, scratch), weight, out=total)
        else:
            self.up.decode(as_tensor(payload), total)
            if weight != 1.0:
                total.mul_(weight)

    def _own_summed(self, chunk: int, scratch: Tensor) -> Tensor:
        if self.residual is not None:
            self.residual.note_summed(chunk)
        return self.own(chunk, scratch)


def vector_of(stream: Stream, elements: int, codec: CodecOf) -> Vector:
    """The vector of a stream at the start of a run: phi and outer state 0. `codec`: by name.

    Raises:
        ConfigError: an unknown codec or merge rule.
    """
    rule = merge(stream.merge)
    options = {**rule.options, **dict(stream.merge_options)}
    up, down = stream.codecs
    first = choices(up)[0] or up
    bounds = chunk_bounds(elements)
    return Vector(
        stream=stream,
        up=codec(first),
        down=codec(down),
        rule=rule,
        options=options,
        elements=elements,
        bounds=bounds,
        phi=big(elements if stream.held else 0),
        slots=tuple(big(elements) for _ in rule.slots) if stream.held else (),
        starts=rule.start(options) if stream.held else (),
        residual=Residual(codec(first), bounds, codec(FORMAT)) if up == AUTO or format_of(up).error_feedback else None,
        ahead=Ahead(elements, rule, eager=stream.answer == "eager") if stream.answer != "result" else None,
    )
