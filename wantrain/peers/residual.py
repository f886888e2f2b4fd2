"""Error feedback: what a lossy codec dropped of a peer's contributions, kept until a sync has taken them in.

For one stream, with Q the codec of the way up, delta what the trainer staged and e the residual,

    c = delta + s·e,  s = min(1, 2·‖delta‖ / ‖e‖);  sent: Q(c);  then e <- c - Q(c)

(EF-SGD, arXiv 1901.09847, algorithm 1; the bound on e is ours). Where each sync chooses its codec, Q is that of the
attempt; one that needs no error feedback takes e along like any other, and leaves nothing owed. c is made anew
wherever it is needed, and e changes only when it is known what became of a contribution: an aborted attempt leaves no
trace, and a retry sends the same bytes. e is kept as int8 blocks, a quarter of the size of the model.
"""

import contextlib
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from wantrain.errors import CodecError, ProtocolBug
from wantrain.transport.codec import Codec, as_tensor, codec
from wantrain.transport.codec.names import format_of
from wantrain.transport.memory import big, bytes_of
from wantrain.transport.wire import Buffer

MAX_SHARE = 2.0
"""Largest ‖e‖ / ‖delta‖: an old error must not outweigh what was learned since."""
MAX_ROUNDS = 2
"""Commits without this peer's contribution after which its residual is too old to be added to anything."""
FORMAT = "int8"
"""Codec of the residual itself."""


class Residual:
    """The residual of one stream on one peer; zero at first, and then it takes no memory.

    Args:
        up: codec of the way up, until `use_codec`.
        bounds: the stream's chunks as (start, stop) element ranges.
        kept: the codec of the residual itself, where that is not computed on the CPU.
    """

    def __init__(self, up: Codec, bounds: Sequence[tuple[int, int]], kept: Codec | None = None) -> None:
        self._up = up
        self._kept = kept or codec(FORMAT)
        self._keeps = True
        self.use_codec(up)
        self._lengths = [stop - start for start, stop in bounds]
        self._blocks: list[Tensor] | None = None
        """e: each chunk encoded, uint8; None for zero."""
        self._waiting: list[Tensor] | None = None
        """What others handed over while a contribution was in use."""
        self._scale = 1.0
        self._in_use = False
        self._exact: set[int] = set()
        """Chunks of the contribution in use that went into a sum as they are."""
        self._rounds = 0
        """Commits since e was made, without a contribution of this peer."""

    @property
    def size_bytes(self) -> int:
        """Memory that it takes now."""
        return sum(block.numel() for blocks in (self._blocks, self._waiting) for block in blocks or ())

    @property
    def full_bytes(self) -> int:
        """Memory that it takes once it is not zero."""
        return sum(self._kept.max_bytes(length) for length in self._lengths)

    def use_codec(self, up: Codec) -> None:
        """Contributions are sent in this codec from now on."""
        self._up, self._keeps = up, format_of(up.name).error_feedback

    # ---- a contribution

    def use(self, norm: float, work: Tensor) -> None:
        """A contribution is used from now on; how much of e goes into it.

        Args:
            norm: ‖delta‖, L2.
            work: fp32 of a chunk's length or more; its content is lost.
        """
        self._in_use, self._exact, self._scale = True, set(), 1.0
        if self._blocks is not None:
            square = sum(square_norm(self._decoded(chunk, work)) for chunk in range(len(self._lengths)))
            limit = MAX_SHARE * norm
            self._scale = limit / math.sqrt(square) if square > limit * limit else 1.0

    def add_to(self, chunk: int, delta: Tensor, out: Tensor) -> Tensor:
        """c of a chunk, fp32[n]: in `out`, fp32[n], or `delta` itself if there is nothing to add."""
        if self._blocks is None:
            return delta
        return self._decoded(chunk, out).mul_(self._scale).add_(delta)

    def note_sent(self, chunk: int) -> None:
        """c of the chunk was encoded for others."""
        self._exact.discard(chunk)

    def note_summed(self, chunk: int) -> None:
        """c of the chunk went into a sum as it is: nothing of it is lost."""
        self._exact.add(chunk)

    def settle(self, delta: Tensor | None, work: tuple[Tensor, Tensor]) -> None:
        """A sync is committed.

        Args:
            delta: fp32[elements], the contribution in use if the sync has taken it in; None if it has not: then e stays
                until it is too old.
            work: two tensors as in `use`.

        Raises:
            ProtocolBug: a contribution was taken in while none was in use.
        """
        if delta is not None:
            if not self._in_use:
                raise ProtocolBug("a contribution was taken in twice, or before it was used")
            self._renew(delta, *work)
        elif self._blocks is not None:
            self._rounds += 1
            if self._rounds >= MAX_ROUNDS:
                self._blocks = None
        self._in_use = False
        if self._waiting is not None:
            waiting, self._waiting = self._waiting, None
            with contextlib.suppress(CodecError):  # too large together: what others owed is lost
                self._blocks = self._sum(self._blocks, waiting)

    def _renew(self, delta: Tensor, contribution: Tensor, decoded: Tensor) -> None:
        """e <- c - Q(c), chunk by chunk in place; 0 where c went into a sum as it is, or what Q drops is not kept."""
        if not self._keeps:
            self._blocks = None
            return
        encoded = torch.empty(self._up.max_bytes(max(self._lengths, default=0)), dtype=torch.uint8)
        blocks = self._blocks if self._blocks is not None else self._zero()
        start = 0
        for chunk, length in enumerate(self._lengths):
            if chunk in self._exact:
                blocks[chunk].zero_()
            else:
                c, q = contribution[:length], decoded[:length]
                values = self.add_to(chunk, delta[start : start + length], c)
                out = encoded[: self._up.max_bytes(length)]
                self._up.decode(out[: self._up.encode(values, out)], q)
                torch.sub(values, q, out=c)
                try:
                    self._kept.encode(c, blocks[chunk])
                except CodecError:  # values at the very end of fp32: their error is beyond it
                    blocks[chunk].zero_()
            start += length
        self._blocks, self._rounds = blocks, 0

    def clear(self) -> None:
        """e is zero, whatever it was: it belongs to a history that is over."""
        self._blocks = self._waiting = None
        self._in_use, self._rounds = False, 0

    # ---- from one peer to another

    def payloads(self) -> list[memoryview]:
        """e for somebody else to keep: int8 blocks of each chunk, copied; [] for zero."""
        return [bytes_of(block.clone()) for block in self._blocks or ()]

    def check(self, chunk: int, payload: Buffer) -> str | None:
        """Why these bytes cannot be a chunk of a residual, or None."""
        return self._kept.check(as_tensor(payload), self._lengths[chunk])

    def add(self, payloads: Sequence[Buffer]) -> None:
        """Add what a leaving peer had; a contribution that is in use is not changed by it.

        Raises:
            CodecError: these are not the chunks of such a stream, or their sum is not finite; nothing has changed then.
        """
        given = [as_tensor(payload) for payload in payloads]
        if len(given) != len(self._lengths):
            raise CodecError(f"a residual of {len(given)} chunks where {len(self._lengths)} belong", hint=_HINT)
        for block, length in zip(given, self._lengths, strict=True):
            if (flaw := self._kept.check(block, length)) is not None:
                raise CodecError(f"a residual that cannot be used: {flaw}", hint=_HINT)
        if self._in_use:
            self._waiting = self._sum(self._waiting, given)
        else:
            self._blocks = self._sum(self._blocks, given)

    def _sum(self, mine: list[Tensor] | None, given: list[Tensor]) -> list[Tensor]:
        """Both added in fp32 and encoded anew, in new memory."""
        self._rounds = 0 if self._blocks is None else self._rounds
        blocks = self._zero()
        for chunk, length in enumerate(self._lengths):
            total = torch.zeros(length)
            for part in (mine[chunk] if mine is not None else None, given[chunk]):
                if part is not None:
                    self._kept.accumulate(part, 1.0, total)
            self._kept.encode(total, blocks[chunk])
        return blocks

    # ---- memory

    def _zero(self) -> list[Tensor]:
        """Blocks of zero; they decode to zeros."""
        store = big(-(-self.full_bytes // 4)).view(torch.uint8)[: self.full_bytes]
        return list(torch.split(store, [self._kept.max_bytes(length) for length in self._lengths]))

    def _decoded(self, chunk: int, out: Tensor) -> Tensor:
        assert self._blocks is not None
        values = out[: self._lengths[chunk]]
        self._kept.decode(self._blocks[chunk], values)
        return values


_HINT = "the peer that leaves must hold the same model and run the same version"

_SAFE = (1e-20, 1e30)
"""Sums of squares in fp32 between these have neither overflowed nor lost more than rounding to underflow."""


def square_norm(values: Tensor) -> float:
    """Sum of the squares of fp32[n], to about 1e-5 of it; NaN or infinite if and only if a value is."""
    square = float(torch.dot(values, values))
    if not _SAFE[0] < square < _SAFE[1]:
        square = float(torch.linalg.vector_norm(values, dtype=torch.float64)) ** 2
    return square
