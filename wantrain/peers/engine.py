"""All tensors of a peer: the run's state, contributions, sums and what its trainer is given; bytes in, bytes out.

It knows nothing of syncs, attempts or peers, and sends nothing: `peer.py` calls it for the participant's effects. The
vectors of all streams are worked on chunk by chunk with scratch memory made once; nothing of the model's size is made
besides phi, its outer state, a mean gradient for each `grad` stream, and the trainer's segment.
"""

import hashlib
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from wantrain.errors import CodecError, ProtocolBug
from wantrain.optimizers.merge import Merge, merge
from wantrain.optimizers.stream import Stream
from wantrain.peers.layout import stream_elements
from wantrain.peers.messages import Manifest
from wantrain.peers.shared_memory import Segment
from wantrain.transport.codec import Codec, as_tensor, codec
from wantrain.transport.digest import chunk_digest
from wantrain.transport.direct import Payload
from wantrain.transport.partition import chunk_bounds, chunk_elements
from wantrain.transport.wire import size_bytes


@dataclass(slots=True, eq=False)
class _Vector:
    """What the engine holds of one stream. All tensors are fp32[elements] on the CPU."""

    stream: Stream
    codec: Codec
    rule: Merge
    options: Mapping[str, float]
    bounds: list[tuple[int, int]]
    value: Tensor
    """phi of a `param` stream, the mean gradient of a `grad` stream."""
    slots: tuple[Tensor, ...]
    contribution: Tensor | None = None
    incoming: Tensor | None = None
    encoded: dict[int, Payload] = field(default_factory=dict)
    """Chunks of the contribution that were encoded."""


class Engine:
    """The tensors of one peer.

    Args:
        manifest: the run's model.
        streams: the run's streams; `param` streams start with phi = 0.

    Raises:
        ConfigError: an unknown codec, merge rule or fragment.
    """

    def __init__(self, manifest: Manifest, streams: Sequence[Stream]) -> None:
        self.segment: Segment | None = None
        """Of the trainer that attached last."""
        self._vectors = {stream.name: _vector(stream, stream_elements(stream, manifest)) for stream in streams}
        self._params = [vector for vector in self._vectors.values() if vector.stream.state == "param"]
        self._state_chunks = [(vector, bounds) for vector in self._params for bounds in vector.bounds]
        longest = max((chunk_elements(v.value.numel()) for v in self._vectors.values()), default=0)
        self._mean, self._scratch = torch.zeros(longest), torch.zeros(longest)

    # ---- sizes

    @property
    def state_bytes(self) -> int:
        """Size of the run's state: phi and outer state of all `param` streams."""
        return sum(4 * tensor.numel() for vector in self._params for tensor in (vector.value, *vector.slots))

    @property
    def resident_bytes(self) -> int:
        """Memory for tensors: state, mean gradients, scratch and the trainer's segment."""
        means = sum(4 * v.value.numel() for v in self._vectors.values() if v.stream.state == "grad")
        return self.state_bytes + means + 8 * self._scratch.numel() + (self.segment.size_bytes if self.segment else 0)

    def phi(self, stream: str) -> Tensor:
        """fp32[elements]: the last committed value of a `param` stream, to read only."""
        return self._vectors[stream].value

    # ---- the trainer's memory

    def open_segment(self, path: str | os.PathLike[str]) -> Segment:
        """Make the memory for a new trainer. The former one's lives on while a contribution lies in it.

        Raises:
            WantrainError: see `Segment.create`.
        """
        segment = Segment.create(path, {name: vector.value.numel() for name, vector in self._vectors.items()})
        self.close()
        self.segment = segment
        return segment

    def close(self) -> None:
        """Let go of the trainer's segment and remove its file."""
        if self.segment is not None:
            self.segment.unlink()
            self.segment.close()
            self.segment = None

    def adopt_genesis(self) -> bytes:
        """Make the trainer's weights in `out` the run's initial state; the digest of that state.

        Raises:
            CodecError: a weight is NaN or infinite; the state is then undefined.
        """
        for vector in self._params:
            vector.value.copy_(self._trainer.out(vector.stream.name))
            if not all(_finite(vector.value[start:stop]) for start, stop in vector.bounds):
                raise CodecError(
                    f"an initial weight of stream {vector.stream.name} is NaN or infinite",
                    hint="check how the model is initialised, or what was loaded into it",
                )
            for slot in vector.slots:
                slot.zero_()
        return self.state_digest()

    def stage(self, stream: str) -> tuple[float, bool]:
        """Take in what the trainer has put into `out`: weights become delta = given - out, in place; gradients stay.

        It is kept apart from the contribution that is in use until `use_stage`.

        Returns:
            L2 norm, and whether all values are finite (the norm is 0.0 if not).
        """
        vector = self._vectors[stream]
        out, given = self._trainer.out(stream), self._trainer.given(stream)
        square, finite = 0.0, True
        for start, stop in vector.bounds:
            chunk = out[start:stop]
            if vector.stream.state == "param":
                torch.sub(given[start:stop], chunk, out=chunk)
            finite = finite and _finite(chunk)
            # In float64, as squares of finite fp32 values may overflow fp32.
            square += float(torch.linalg.vector_norm(chunk, dtype=torch.float64)) ** 2 if finite else 0.0
        vector.incoming = out
        return (math.sqrt(square) if finite else 0.0), finite

    def use_stage(self, stream: str) -> None:
        """What was staged last is the contribution from now on."""
        vector = self._vectors[stream]
        if vector.incoming is None:
            raise ProtocolBug(f"nothing was staged for stream {stream}")
        vector.contribution, vector.incoming = vector.incoming, None
        vector.encoded = {}

    def grant(self, stream: str, kind: str) -> None:
        """Fill the stream's regions for the trainer; see `shared_memory.py` for what they hold by kind."""
        vector = self._vectors[stream]
        out, given = self._trainer.out(stream), self._trainer.given(stream)
        if vector.stream.state == "grad" and kind == "start":
            return  # the mean gradient is not to be had: the trainer keeps its own
        if (kind == "grad") != (vector.stream.state == "grad"):
            raise ProtocolBug(f"{kind} cannot be granted to stream {stream} of state {vector.stream.state}")
        for start, stop in vector.bounds:
            chunk, base = out[start:stop], given[start:stop]
            if kind == "merge":
                torch.sub(base, chunk, out=chunk)
            elif kind == "move":
                chunk.copy_(base)
            base.copy_(vector.value[start:stop])

    @property
    def _trainer(self) -> Segment:
        if self.segment is None:
            raise ProtocolBug("no trainer has attached")
        return self.segment

    # ---- the all-reduce

    def part(self, stream: str, chunk: int) -> Payload:
        """A chunk of the contribution, encoded once; the same buffer at every call until `use_stage`.

        Raises:
            CodecError: it does not encode.
        """
        vector = self._vectors[stream]
        if chunk not in vector.encoded:
            start, stop = vector.bounds[chunk]
            vector.encoded[chunk] = _encoded(vector.codec, _contribution(vector)[start:stop])
        return vector.encoded[chunk]

    def reduce(self, stream: str, chunk: int, inputs: Sequence[tuple[float, Payload | None]]) -> Payload:
        """Weighted mean of a chunk, encoded into a new buffer: fp32 sum of weight * value in this order, divided.

        Args:
            stream: its name.
            chunk: number in the stream's grid.
            inputs: weight and encoded values, which `check` has found good; None for the own contribution as it is.

        Raises:
            CodecError: the mean does not encode: it overflowed.
        """
        vector = self._vectors[stream]
        start, stop = vector.bounds[chunk]
        mean, product = self._mean[: stop - start], self._scratch[: stop - start]
        mean.zero_()
        for weight, payload in inputs:
            if payload is None:
                torch.mul(_contribution(vector)[start:stop], weight, out=product)
                mean.add_(product)
            else:
                vector.codec.accumulate(as_tensor(payload), weight, mean)
        mean.div_(sum(weight for weight, _ in inputs))
        return _encoded(vector.codec, mean)

    def check(self, stream: str, chunk: int, payload: Payload) -> str | None:
        """Why these encoded bytes may not be used as that chunk, or None."""
        vector = self._vectors[stream]
        start, stop = vector.bounds[chunk]
        return vector.codec.check(as_tensor(payload), stop - start)

    def digest(self, payload: Payload) -> bytes:
        """SHA-256 of encoded bytes."""
        return chunk_digest(payload)

    def size_bytes(self, payload: Payload) -> int:
        """Size of encoded bytes."""
        return size_bytes(payload)

    def apply(self, stream: str, payloads: Sequence[Payload], skip: frozenset[int] = frozenset()) -> None:
        """Run the outer update of a `param` stream on phi and its outer state; keep the mean of a `grad` stream.

        Args:
            stream: its name.
            payloads: every chunk of the update, encoded.
            skip: chunks of the state that have it in already.
        """
        vector = self._vectors[stream]
        for chunk, ((start, stop), payload) in enumerate(zip(vector.bounds, payloads, strict=True)):
            if vector.stream.state == "grad":
                vector.codec.decode(as_tensor(payload), vector.value[start:stop])
            elif chunk not in skip:
                mean, scratch = self._mean[: stop - start], self._scratch[: stop - start]
                vector.codec.decode(as_tensor(payload), mean)
                slots = tuple(slot[start:stop] for slot in vector.slots)
                vector.rule.apply(vector.value[start:stop], mean, slots, vector.options, scratch)

    # ---- the state, in chunks: those of the first `param` stream, then those of the next

    def read_state(self, k: int) -> Payload:
        """State chunk k, copied: fp32[n] of phi, then fp32[n] of each slot of outer state."""
        tensors = self._state_chunk(k)
        copy = torch.empty(sum(tensor.numel() for tensor in tensors))
        torch.cat(tensors, out=copy)
        return _bytes_of(copy)

    def check_state(self, k: int, payload: Payload) -> str | None:
        """Why these bytes cannot be state chunk k, or None."""
        needed = sum(4 * tensor.numel() for tensor in self._state_chunk(k))
        if size_bytes(payload) != needed:
            return f"{size_bytes(payload)} bytes where {needed} belong"
        return None if _finite(as_tensor(payload).view(torch.float32)) else "a value is NaN or infinite"

    def store_state(self, k: int, payload: Payload) -> None:
        """Take over state chunk k, which `check_state` has found good."""
        tensors = self._state_chunk(k)
        values = as_tensor(payload).view(torch.float32)
        for tensor, part in zip(tensors, values.chunk(len(tensors)), strict=True):
            tensor.copy_(part)

    def digest_steps(self) -> Iterator[bytes | None]:
        """Digest of the state, SHA-256 over its chunks' SHA-256 in order: None after each chunk, at last the digest.

        Every chunk is read when its turn comes: if the state changes meanwhile, begin anew.
        """
        whole = hashlib.sha256(b"state")
        for k in range(len(self._state_chunks)):
            digest = hashlib.sha256()
            for tensor in self._state_chunk(k):
                digest.update(_bytes_of(tensor))
            whole.update(digest.digest())
            yield None
        yield whole.digest()

    def state_digest(self) -> bytes:
        """The digest of `digest_steps` at once."""
        return next(digest for digest in self.digest_steps() if digest is not None)

    def _state_chunk(self, k: int) -> tuple[Tensor, ...]:
        vector, (start, stop) = self._state_chunks[k]
        return tuple(tensor[start:stop] for tensor in (vector.value, *vector.slots))


def _vector(stream: Stream, elements: int) -> _Vector:
    rule = merge(stream.merge)
    slots = rule.slots if stream.state == "param" else ()
    return _Vector(
        stream=stream,
        codec=codec(stream.codec),
        rule=rule,
        options={**rule.options, **dict(stream.merge_options)},
        bounds=chunk_bounds(elements),
        value=torch.zeros(elements),
        slots=tuple(torch.zeros(elements) for _ in slots),
    )


def _contribution(vector: _Vector) -> Tensor:
    if vector.contribution is None:
        raise ProtocolBug(f"stream {vector.stream.name} has no contribution")
    return vector.contribution


def _encoded(how: Codec, values: Tensor) -> Payload:
    out = torch.empty(how.encoded_bytes(values.numel()), dtype=torch.uint8)
    how.encode(values, out)
    return _bytes_of(out)


def _bytes_of(tensor: Tensor) -> memoryview:
    """The tensor's memory as bytes, kept alive by the view."""
    return tensor.view(torch.uint8).numpy().data


def _finite(values: Tensor) -> bool:
    """Whether all are finite. A sum is fastest; only if it overflows or is NaN do the extremes have to tell."""
    if not values.numel() or math.isfinite(values.sum().item()):
        return True
    low, high = torch.aminmax(values)
    return math.isfinite(low.item()) and math.isfinite(high.item())
