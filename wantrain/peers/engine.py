"""All tensors of a peer: the run's state, contributions, sums and what its trainer is given; bytes in, bytes out.

It knows nothing of syncs, attempts or peers, and sends nothing: `peer.py` calls it for the participant's effects. The
vectors of all streams are worked on chunk by chunk with scratch memory made once; nothing of the model's size is made
besides phi, its outer state and the trainer's segment, and a quarter of it for the residual of a codec that needs one.
What is encoded for others goes from shared memory into a pooled buffer, and from there to the wire.
"""

import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from blake3 import blake3
from torch import Tensor

from wantrain.errors import CodecError, ProtocolBug, WantrainError
from wantrain.optimizers.pair_step import NoLoCo
from wantrain.optimizers.stream import Stream
from wantrain.peers.averaging import Averager, sees_all
from wantrain.peers.common_memory import create_vectors
from wantrain.peers.inheritance import GRANTED, MERGING, MOVING, STAGING, STARTING, Held, Mark
from wantrain.peers.layout import stream_elements
from wantrain.peers.messages import Contribute, Granted, Manifest
from wantrain.peers.residual import square_norm
from wantrain.peers.saved_state import PHI
from wantrain.peers.shared_memory import Segment, segment_bytes
from wantrain.peers.vector import StagedValues, Vector, vector_of
from wantrain.transport.codec import Codec, as_tensor, codec
from wantrain.transport.codec.blocks import not_finite
from wantrain.transport.collective import Payload
from wantrain.transport.device import CodecOf
from wantrain.transport.digest import chunk_digest, state_digest
from wantrain.transport.memory import Pool, big, bytes_of
from wantrain.transport.partition import chunk_elements
from wantrain.transport.wire import size_bytes

PLAIN = "fp32"
"""The codec whose bytes are the values as they lie in memory: nothing has to be copied for it."""


class Engine:
    """The tensors of one peer.

    Args:
        manifest: the run's model.
        streams: the run's streams; phi starts as 0.
        codecs: codecs by name, which may compute elsewhere; all tensors here are on the CPU.

    Raises:
        ConfigError: an unknown codec, merge rule or fragment.
    """

    def __init__(self, manifest: Manifest, streams: Sequence[Stream], codecs: CodecOf = codec) -> None:
        self.segment: Segment | None = None
        """Of the trainer that attached last."""
        self._codec = codecs
        self._vectors = {s.name: vector_of(s, stream_elements(s, manifest), codecs) for s in streams}
        self._held = [vector for vector in self._vectors.values() if vector.stream.held]
        self._state_chunks = [(vector, bounds) for vector in self._held for bounds in vector.bounds]
        longest = max((chunk_elements(vector.elements) for vector in self._vectors.values()), default=0)
        self._mean, self._scratch = big(longest), big(longest)
        self._averager = Averager()
        self._pool = Pool()
        self._common: dict[str, Tensor] = {}
        """Per stream of parameters: where its phi is copied for the trainer to look at."""
        self._left: dict[str, Mark] = {}
        """Per stream: where a former daemon left off with the regions of the segment that was taken over."""
        self._turned: dict[str, str] = {}
        """Per stream: the kind of grant for which that one's `out` is as it has to be."""

    # ---- sizes

    @property
    def state_bytes(self) -> int:
        """Size of the run's state: phi and outer state of all streams that hold one."""
        return sum(4 * tensor.numel() for vector in self._held for tensor in (vector.phi, *vector.slots))

    @property
    def model_bytes(self) -> int:
        """Size of the model in fp32."""
        return sum(4 * vector.elements for vector in self._held if vector.stream.state == "param")

    @property
    def resident_bytes(self) -> int:
        """Memory for tensors now: state, scratch, pooled buffers, residuals and the trainer's segment."""
        residuals = sum(vector.residual.size_bytes for vector in self._vectors.values() if vector.residual is not None)
        return self._fixed_bytes + residuals + (self.segment.size_bytes if self.segment is not None else 0)

    @property
    def expected_bytes(self) -> int:
        """What `resident_bytes` comes to once a trainer has staged: for DiLoCo 4 times the fp32 size of the model.

        out, given and phi of every stream and each slot of its outer state, of a `grad` stream only out and given, int8
        residuals where a codec needs them, three chunks of scratch (one in the trainer's segment) and the most that was
        lent from the pool. A stream whose contributions are answered ahead has a copy of the contribution besides, and
        with `eager` a momentum of its own.
        """
        vectors = self._vectors.values()
        residuals = sum(vector.residual.full_bytes for vector in vectors if vector.residual is not None)
        return self._fixed_bytes + residuals + segment_bytes({v.stream.name: v.elements for v in vectors})

    @property
    def _fixed_bytes(self) -> int:
        scratch = 8 * self._scratch.numel() + self._averager.size_bytes + self._pool.size_bytes
        ahead = sum(vector.ahead.size_bytes for vector in self._vectors.values() if vector.ahead is not None)
        return self.state_bytes + scratch + ahead

    def phi(self, stream: str) -> Tensor:
        """fp32[elements]: the last committed value of a stream, to read only."""
        return self._vectors[stream].phi

    # ---- the trainer's memory

    def open_segment(self, path: str | os.PathLike[str]) -> Segment:
        """Make the memory for a new trainer. The former one's lives on while a contribution lies in it.

        Raises:
            WantrainError: see `Segment.create`.
        """
        segment = Segment.create(path, {name: vector.elements for name, vector in self._vectors.items()})
        self.close()
        self.segment = segment
        for vector in self._vectors.values():
            if vector.ahead is not None:
                vector.ahead.trainer_left()
        self._left, self._turned = {}, {}
        return segment

    def resume_segment(self, path: str | os.PathLike[str]) -> Held:
        """Take over the memory that a former daemon has left to its trainer, and what it has noted down there.

        Raises:
            WantrainError: see `Segment.open`; or it is of another model.
        """
        segment = Segment.open(path)
        if segment.elements != {name: vector.elements for name, vector in self._vectors.items()}:
            raise WantrainError(f"{path} is of another model", hint="start the training command again")
        segment.finish({name: vector.bounds for name, vector in self._vectors.items()})
        segment.take_over()
        self.close()
        self.segment = segment
        held = segment.held()
        self._left, self._turned = dict(held.marks), {}
        return held

    def note_told(self, stream: str, count: int) -> None:
        """What a former daemon has granted was told to the trainer, as the message `count` of its stream."""
        self._trainer.note_phase(stream, GRANTED, count)

    def note_place(self, number: int, chain: bytes) -> None:
        """All that follows from the commit log up to line `number`, of this link, has been granted."""
        if self.segment is not None:
            self.segment.note_place(number, chain)

    def note_reach(self, number: int, chain: bytes) -> None:
        """What follows from the commit log up to line `number`, of this link, is granted from now on."""
        if self.segment is not None:
            self.segment.note_reach(number, chain)

    def close(self) -> None:
        """Let go of the trainer's segment and remove its file."""
        if self.segment is not None:
            self.segment.unlink()
            self.segment.close()
            self.segment = None

    # ---- the common weights, for the trainer to look at

    def open_common(self, path: str | os.PathLike[str]) -> dict[str, int]:
        """Make a file for a copy of the weights of all streams of parameters; how many chunks each has.

        Raises:
            WantrainError: see `create_vectors`.
        """
        self.drop_common()
        weights = {v.stream.name: v for v in self._held if v.stream.state == "param"}
        self._common = create_vectors(Path(path), {name: vector.elements for name, vector in weights.items()})
        return {name: len(vector.bounds) for name, vector in weights.items()}

    def copy_common(self, stream: str, chunk: int) -> None:
        """Copy a chunk of phi to that file."""
        vector = self._vectors[stream]
        start, stop = vector.bounds[chunk]
        self._common[stream][start:stop].copy_(vector.phi[start:stop])

    def drop_common(self) -> None:
        """Let go of that file."""
        self._common = {}

    def adopt_genesis(self) -> bytes:
        """Make the trainer's weights in `out` the run's initial state, with nothing owed; the digest of that state.

        Raises:
            CodecError: a weight is NaN or infinite; the state is then undefined.
        """
        for vector in self._held:
            vector.phi.copy_(self._trainer.out(vector.stream.name))
            if not all(_finite(vector.phi[start:stop]) for start, stop in vector.bounds):
                raise CodecError(
                    f"an initial weight of stream {vector.stream.name} is NaN or infinite",
                    hint="check how the model is initialised, or what was loaded into it",
                )
        self.begin_outer_state()
        self.forget_residuals()
        return self.state_digest()

    def begin_outer_state(self) -> None:
        """Fill all outer state with what it is at the start of a run."""
        for vector in self._held:
            for slot, value in zip(vector.slots, vector.starts, strict=True):
                slot.fill_(value)

    def stage(self, stream: str, offer: Contribute | None = None) -> tuple[float, bool]:
        """Take in what the trainer has put into `out`: weights become delta = given - out, in place; gradients stay.

        It is kept apart from the contribution that is in use until `use_stage`. If a former daemon has begun with it,
        this goes on from there.

        Returns:
            L2 norm, and whether all values are finite (the norm is 0.0 if not, and where it is not needed any more).
        """
        vector, segment = self._vectors[stream], self._trainer
        out, serial = segment.out(stream), offer.serial if offer is not None else 0
        mark = replace(segment.mark(stream), phase=STAGING, count=0, serial=serial)
        left = self._left.pop(stream, None)
        if left is not None and left.serial == serial and left.phase in (STAGING, MERGING, MOVING):
            if left.phase != STAGING:
                self._turned[stream] = "merge" if left.phase == MERGING else "move"
                self._turn(vector, left.phase, left.count)
                vector.incoming = StagedValues(out, 0.0, True)
                return 0.0, True
            mark = left
        segment.note(stream, replace(mark, offered=offer.tokens if offer is not None else 0))
        square = 0.0
        for chunk, (start, stop) in enumerate(vector.bounds):
            if vector.stream.held and chunk >= mark.count:
                segment.subtract(stream, chunk, start, stop, STAGING)
            square += square_norm(out[start:stop])
        finite = math.isfinite(square)
        vector.incoming = StagedValues(out, math.sqrt(square) if finite else 0.0, finite)
        return vector.incoming.norm, finite

    def use_stage(self, stream: str, floor: int = 0) -> None:
        """What was staged last is the contribution from now on, with what is owed to earlier ones added to it.

        `floor`: attempts up to this number were not made with it.
        """
        vector = self._vectors[stream]
        if vector.incoming is None:
            raise ProtocolBug(f"nothing was staged for stream {stream}")
        segment = self.segment
        if segment is not None and vector.incoming.values.data_ptr() == segment.out(stream).data_ptr():
            segment.note_used(stream, segment.mark(stream).serial, floor)
        vector.contribution, vector.incoming = vector.incoming, None
        if vector.ahead is not None:
            vector.contribution = replace(vector.contribution, values=vector.ahead.take(vector.contribution.values))
        if vector.residual is not None:
            vector.residual.use(vector.contribution.norm, self._scratch)

    def use_codec(self, stream: str, name: str) -> None:
        """Write and read contributions in this codec from now on; what earlier ones have dropped stays owed.

        Raises:
            ConfigError: an unknown codec.
        """
        vector = self._vectors[stream]
        vector.up = self._codec(name)
        if vector.residual is not None:
            vector.residual.use_codec(vector.up)

    def grant(self, stream: str, kind: str, answer: Granted | None = None, count: int = 0, share: float = 1.0) -> None:
        """Fill the stream's regions for the trainer; see `shared_memory.py` for what they hold by kind.

        `answer` is what the trainer will be told, as the message `count` of its stream. `share` is what of its sync's
        mean the contribution in use will be, if it is answered ahead of that.
        """
        vector, segment = self._vectors[stream], self._trainer
        turned = self._turned.pop(stream, None)
        grad = not vector.stream.held
        if (kind == "grad") != grad and not (grad and kind == "start"):
            raise ProtocolBug(f"{kind} cannot be granted to stream {stream} of state {vector.stream.state}")
        if kind == "grad":
            if len(vector.mean) != len(vector.bounds):
                raise ProtocolBug(f"there is no mean of stream {stream} to grant")
            for (start, stop), payload in zip(vector.bounds, vector.mean, strict=True):
                vector.down.decode(as_tensor(payload), segment.given(stream)[start:stop])
        elif not grad:
            phase = {"merge": MERGING, "move": MOVING}.get(kind, STARTING)
            if phase == STARTING:
                segment.note_phase(stream, STARTING, 0)
            elif turned is None:
                segment.note_phase(stream, phase, 0)
                self._turn(vector, phase, 0)
            elif turned != kind:
                raise ProtocolBug(f"{kind} is granted to stream {stream}, a former daemon had begun to grant {turned}")
            if vector.ahead is not None and kind == "merge":
                scratch = (self._mean, self._scratch)
                vector.ahead.answer(vector.phi, segment.given(stream), vector.bounds, share, vector.options, scratch)
            else:
                segment.given(stream).copy_(vector.phi)
        self._left.pop(stream, None)
        mark = segment.mark(stream)
        kept = kind == "move" and vector.stream.late == "rebase"  # it comes again with the next contribution
        index, step = (answer.index, answer.global_step) if answer is not None else (0, 0)
        told = replace(mark, phase=GRANTED, count=count, kind=kind, index=index, global_step=step)
        segment.note(stream, told if kept else replace(told, tokens=mark.offered))

    def _turn(self, vector: Vector, phase: int, done: int) -> None:
        """Make what a grant hands over in `out`: the weights at staging, or the old phi; `done` chunks are so already.

        Only then `given` is written: until then each chunk can be made from it.
        """
        segment, stream = self._trainer, vector.stream.name
        for chunk, (start, stop) in enumerate(vector.bounds[done:], start=done):
            if phase == MERGING:
                segment.subtract(stream, chunk, start, stop, MERGING)
            else:
                segment.out(stream)[start:stop].copy_(segment.given(stream)[start:stop])
                segment.note_phase(stream, MOVING, chunk + 1)

    @property
    def _trainer(self) -> Segment:
        if self.segment is None:
            raise ProtocolBug("no trainer has attached")
        return self.segment

    # ---- the all-reduce

    def part(self, stream: str, chunk: int) -> Payload:
        """A chunk of the contribution, encoded for the way up: the same bytes at every call until `use_stage`.

        The buffer is lent until `release`. In fp32 it is the trainer's memory itself, as it is stable until the sync is
        decided and what is sent later is of use to nobody.

        Raises:
            CodecError: it does not encode.
        """
        vector = self._vectors[stream]
        start, stop = vector.bounds[chunk]
        if vector.up.name == PLAIN and not vector.stream.gossip:
            if not vector.used.finite:
                raise not_finite(PLAIN)
            return bytes_of(vector.used.values[start:stop])
        values = vector.own(chunk, self._scratch)
        if vector.residual is not None:
            vector.residual.note_sent(chunk)
        return self._pool.lend(vector.up.max_bytes(stop - start), lambda out: vector.up.encode(values, out))

    def release(self, payload: Payload) -> None:
        """What `part` or `read_state` has given is not read any more: its memory may be used again."""
        self._pool.take_back(payload)

    def reduce(
        self, stream: str, chunk: int, inputs: Sequence[tuple[float, Payload | None]], divisor: float, final: bool
    ) -> Payload:
        """Sum of a chunk, encoded into a new buffer: weight * value in fp32 and in this order, divided by `divisor`.

        With another rule than the mean it is that rule's average of the values, whatever weights and divisor are.

        Args:
            stream: its name.
            chunk: number in the stream's grid.
            inputs: weight and encoded values, which `check` has found good; None for the own contribution as it is.
            divisor: what the sum is divided by.
            final: whether it is written for the way down, as a chunk of the update, or for the way up, as a part.

        Raises:
            CodecError: the sum does not encode: it overflowed.
        """
        vector = self._vectors[stream]
        start, stop = vector.bounds[chunk]
        how = vector.down if final else vector.up
        # The sum of an fp32 result is taken where the result will lie.
        total = torch.empty(stop - start) if how.name == PLAIN else self._mean[: stop - start]
        scratch = self._scratch[: stop - start]
        if sees_all(vector.stream):
            if not final:
                raise ProtocolBug(f"a partial sum of stream {stream}, whose rule has to see all contributions")
            self._averager.combine(vector, chunk, inputs, total, scratch)
            return self._finished(how, total)
        # The first two may change places without changing a bit; to begin with a part saves a copy of the own input.
        first = [*inputs[1::-1], *inputs[2:]] if inputs[0][1] is None else inputs
        for k, (weight, payload) in enumerate(first):
            (vector.add if k else vector.begin)(chunk, weight, payload, total, scratch)
        if divisor != 1.0:
            total.div_(divisor)
        return self._finished(how, total)

    def _finished(self, how: Codec, total: Tensor) -> Payload:
        if how.name != PLAIN:
            return _encoded(how, total)
        if not _finite(total):
            raise not_finite(PLAIN)
        return bytes_of(total)

    def longest(self, stream: str, chunk: int, inputs: Sequence[tuple[float, Payload | None]]) -> int:
        """Position of the contribution to blame for a `reduce` that has failed: the one with the largest value."""
        return self._averager.longest(self._vectors[stream], chunk, inputs, self._scratch)

    def check(self, stream: str, chunk: int, payload: Payload, *, part: bool, up: str = "") -> str | None:
        """Why these encoded bytes may not be used as that chunk of a contribution (`part`) or update, or None.

        `up` is the codec that a contribution is said to be in, if the run leaves that to each sync.
        """
        vector = self._vectors[stream]
        start, stop = vector.bounds[chunk]
        how = (self._codec(up) if up else vector.up) if part else vector.down
        return how.check(as_tensor(payload), stop - start)

    def digest(self, payload: Payload) -> bytes:
        """`chunk_digest` of encoded bytes."""
        return chunk_digest(payload)

    def size_bytes(self, payload: Payload) -> int:
        """Size of encoded bytes."""
        return size_bytes(payload)

    def apply(
        self, stream: str, payloads: Sequence[Payload], skip: frozenset[int] = frozenset(), index: int = 1
    ) -> None:
        """Run the outer update on phi and its outer state; of a `grad` stream keep the mean.

        Args:
            stream: its name.
            payloads: every chunk of the update, encoded.
            skip: chunks of the state that have it in already.
            index: number of the sync, from 1.
        """
        vector = self._vectors[stream]
        if len(payloads) != len(vector.bounds):
            raise ProtocolBug(f"an update of stream {stream} with {len(payloads)} of {len(vector.bounds)} chunks")
        if not vector.stream.held:
            vector.mean = tuple(payloads)
            return
        options = {**vector.options, "index": float(index)}
        for chunk, ((start, stop), payload) in enumerate(zip(vector.bounds, payloads, strict=True)):
            if chunk not in skip:
                mean, scratch = self._mean[: stop - start], self._scratch[: stop - start]
                vector.down.decode(as_tensor(payload), mean)
                slots = tuple(slot[start:stop] for slot in vector.slots)
                vector.rule.apply(vector.phi[start:stop], mean, slots, options, scratch)
        vector.decided = None

    def agree(self, stream: str, payloads: Sequence[Payload], skip: frozenset[int] = frozenset()) -> None:
        """Let a gossip stream's phi become the mean that these chunks hold, as all who took part in it do."""
        vector = self._vectors[stream]
        if not isinstance(vector.rule, NoLoCo):
            raise ProtocolBug(f"stream {stream} has a common phi already")
        for chunk, ((start, stop), payload) in enumerate(zip(vector.bounds, payloads, strict=True)):
            if chunk in skip:
                continue
            mean = self._mean[: stop - start]
            vector.down.decode(as_tensor(payload), mean)
            slots = tuple(slot[start:stop] for slot in vector.slots)
            vector.rule.agree(vector.phi[start:stop], mean, slots, vector.options)
        vector.decided = None

    def spread(self, stream: str, payloads: Sequence[Payload]) -> float:
        """Estimate of the replicas' standard deviation, from the mean of a pair that this peer's contribution is in.

        Of two independent replicas theta_i - theta_j has a root mean square of sqrt(2) times that, and v_i - mean v,
        which is known here, is half of it. To be called before `apply`; 0.0 if the contribution is not known any more.
        """
        vector, square = self._vectors[stream], 0.0
        if vector.decided is None or not isinstance(vector.rule, NoLoCo):
            return 0.0
        for (start, stop), payload in zip(vector.bounds, payloads, strict=True):
            mean, own = self._mean[: stop - start], self._scratch[: stop - start]
            vector.down.decode(as_tensor(payload), mean)
            vector.rule.offer(vector.phi[start:stop], vector.decided.values[start:stop], vector.options, own)
            square += square_norm(own.sub_(mean))
        return math.sqrt(2.0 * square / max(vector.elements, 1))

    # ---- error feedback

    def settle(self, stream: str, taken: bool) -> None:
        """A sync of the stream is committed, which decides the contribution in use, if there is one.

        `taken`: it is in it, and what the codec dropped of it is owed from now on.
        """
        vector = self._vectors[stream]
        if vector.residual is not None:
            vector.residual.settle(vector.used.values if taken else None, (self._mean, self._scratch))
        if vector.ahead is not None and vector.contribution is not None:
            vector.ahead.settle(keep=not taken and vector.stream.late == "rebase")
        vector.decided = vector.contribution if taken and vector.stream.gossip else None
        vector.contribution = None  # and with it the memory of a trainer that is gone

    def forget_residuals(self) -> None:
        """Owe nothing, and guess nothing: the history that this comes from is over."""
        for vector in self._vectors.values():
            if vector.residual is not None:
                vector.residual.clear()
            if vector.ahead is not None:
                vector.ahead.forget()

    def residual(self, stream: str) -> list[Payload]:
        """What is owed, for another peer to take over when this one leaves: int8 chunks; [] if nothing is."""
        residual = self._vectors[stream].residual
        return residual.payloads() if residual is not None else []

    def check_owed(self, stream: str, chunk: int, payload: Payload) -> str | None:
        """Why these bytes cannot be that chunk of a residual that is handed over, or None."""
        residual = self._vectors[stream].residual
        return f"stream {stream} has no residual" if residual is None else residual.check(chunk, payload)

    def add_residual(self, stream: str, payloads: Sequence[Payload]) -> None:
        """Take over what a leaving peer owes; it goes into contributions that are used later.

        Raises:
            CodecError: these are not the chunks of such a residual; nothing has changed then.
        """
        residual = self._vectors[stream].residual
        if residual is None:
            raise CodecError(
                f"a residual for stream {stream}, whose codec {self._vectors[stream].up.name} has none",
                hint="all peers must have got the same run spec",
            )
        residual.add(payloads)

    # ---- the state, in chunks: those of the first stream that holds one, then those of the next

    def read_state(self, k: int) -> Payload:
        """State chunk k, copied: fp32[n] of phi, then fp32[n] of each slot of outer state. Lent until `release`."""
        tensors = self._state_chunk(k)
        needed = sum(4 * tensor.numel() for tensor in tensors)

        def fill(out: Tensor) -> int:
            torch.cat(tensors, out=out.view(torch.float32))
            return needed

        return self._pool.lend(needed, fill)

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

    def digest_steps(self) -> Iterator[bytes]:
        """BLAKE3 of each state chunk in order, as `read_state` gives it; `state_digest` makes one digest of them.

        Every chunk is read when its turn comes: if the state changes meanwhile, begin anew.
        """
        for k in range(len(self._state_chunks)):
            digest = blake3()
            for tensor in self._state_chunk(k):
                digest.update(bytes_of(tensor))
            yield digest.digest()

    def save_steps(self, write: Callable[[Payload], None]) -> Iterator[tuple[bytes, ...] | None]:
        """Give all of the state to `write`, one vector after another: None each time, at last its chunks' digests.

        What is given is the memory itself. The state must not change until the last step.
        """
        chunks: list[bytes] = []
        for vector in self._held:
            digests = [blake3() for _ in vector.bounds]
            for tensor in (vector.phi, *vector.slots):
                for digest, (start, stop) in zip(digests, vector.bounds, strict=True):
                    data = bytes_of(tensor[start:stop])
                    digest.update(data)
                    write(data)
                    yield None
            chunks += [digest.digest() for digest in digests]
        yield tuple(chunks)

    def vectors(self) -> dict[str, dict[str, Tensor]]:
        """Per stream that holds one: fp32[elements] of phi and each slot of outer state by name, to be filled."""
        return {
            vector.stream.name: {PHI: vector.phi, **dict(zip(vector.rule.slots, vector.slots, strict=True))}
            for vector in self._held
        }

    def state_digest(self) -> bytes:
        """The digest of the whole state, with all of `digest_steps` at once."""
        return state_digest(self.digest_steps())

    def _state_chunk(self, k: int) -> tuple[Tensor, ...]:
        vector, (start, stop) = self._state_chunks[k]
        return tuple(tensor[start:stop] for tensor in (vector.phi, *vector.slots))


def _encoded(how: Codec, values: Tensor) -> Payload:
    """Encoded into memory of exactly the size that is needed, as it may be kept for long."""
    out = torch.empty(how.max_bytes(values.numel()), dtype=torch.uint8)
    written = how.encode(values, out)
    return bytes_of(out if written == out.numel() else out[:written].clone())


def _finite(values: Tensor) -> bool:
    """Whether all are finite. A sum is fastest; only if it overflows or is NaN do the extremes have to tell."""
    if not values.numel() or math.isfinite(values.sum().item()):
        return True
    low, high = torch.aminmax(values)
    return math.isfinite(low.item()) and math.isfinite(high.item())
