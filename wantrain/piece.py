"""What a stream takes of a parameter's part here, all or a mask's coordinates, and how that is copied to its place.

All arithmetic of staging and adoption is here: single operations in fp32 on the parameter's own device, so that a GPU
gives the bits that a CPU gives. It is made box by box, so that a device needs memory for a few boxes only. On CUDA
nothing waits for the host if the shared memory is pinned.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor, nn

from wantrain.local_shard import local_part
from wantrain.optimizers.mask_indices import indices

BOX = 1 << 22
"""Values that are copied at a time: 16 MiB in fp32. Much smaller, and launching copies would cost more than they do."""

Box = tuple[slice | int, ...]
Change = Callable[[Tensor, Tensor, Tensor], Tensor]
"""New fp32 (or as they lie in memory) values of a box from its values, its `out` and its `given`."""


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """One parameter's part of a stream, as far as it is on this rank."""

    parameter: nn.Parameter
    out: Tensor
    """fp32, a view of the stream's `out`: shaped like the parameter's part, or [n] for n coordinates of it."""
    given: Tensor
    """The same of `given`."""
    mask: tuple[int, int, int, int] | None
    """Part, parts, and first and last coordinate in the model; None for the whole parameter."""
    writes: bool = True
    """Whether it is this rank's to write; of several that have the same values one does."""

    def stage(self, value: Tensor, *, again: bool) -> None:
        """Copy the piece's part of a tensor like the parameter into `out`, as fp32.

        `again`: it was copied from `given` before. Values of a narrower dtype began at that rounded, then. What was
        rounded off is added again: it is no movement of this trainer's, and phi would lose it.
        """
        value = self._of(value)
        narrow = value.dtype in (torch.bfloat16, torch.float16)
        for box in boxes(tuple(value.shape)):
            part, out = value[box], self.out[box]
            if again and narrow:
                given = self.given[box].to(part.device, non_blocking=True)
                # In this order what has not moved gives `given` exactly.
                part = part.to(torch.float32).sub_(given.to(value.dtype)).add_(given)
            # Where memory is not in one piece the host has to lay the values out, and so to wait.
            out.copy_(part, non_blocking=out.is_contiguous())

    def adopt(self, value: Tensor, change: Change) -> None:
        """Change the piece's part of a tensor like the parameter, in place."""
        current = self._of(value)
        for box in boxes(tuple(current.shape)):
            part = current[box]
            part.copy_(change(part, self.out[box], self.given[box]), non_blocking=True)
        if self.mask is not None:
            local_part(value).put_(self._where(value), current)

    def _of(self, value: Tensor) -> Tensor:
        """What the stream takes of a tensor like the parameter: its part here, or a copy of some of its values."""
        value = local_part(value)
        return value if self.mask is None else value.take(self._where(value))

    def _where(self, value: Tensor) -> Tensor:
        assert self.mask is not None
        found = indices(*self.mask)
        return found.pin_memory().to(value.device, non_blocking=True) if value.is_cuda else found


def take(_part: Tensor, _out: Tensor, given: Tensor) -> Tensor:
    """theta <- given."""
    return given


def mix(alpha: float) -> Change:
    """theta <- alpha * theta + (1 - alpha) * given."""

    def mixed(part: Tensor, _out: Tensor, given: Tensor) -> Tensor:
        other = given.to(part.device, non_blocking=True).mul(1.0 - alpha)
        return part.to(torch.float32, copy=True).mul_(alpha).add_(other)

    return mixed


def move(part: Tensor, out: Tensor, given: Tensor) -> Tensor:
    """theta <- (theta - out) + given."""
    moved = part.to(torch.float32, copy=True).sub_(out.to(part.device, non_blocking=True))
    return moved.add_(given.to(part.device, non_blocking=True))


def move_nonnegative(part: Tensor, out: Tensor, given: Tensor) -> Tensor:
    """The same, at least 0."""
    return move(part, out, given).clamp_(min=0.0)


def boxes(shape: tuple[int, ...], limit: int = BOX) -> Iterator[Box]:
    """Indices that cut a tensor of this shape into parts of at most `limit` values, each contiguous if the whole is."""
    if prod(shape) <= limit:
        yield ()
        return
    inner = prod(shape[1:])
    if inner > limit:
        for k in range(shape[0]):
            for box in boxes(shape[1:], limit):
                yield k, *box
        return
    for start in range(0, shape[0], limit // inner):
        yield (slice(start, start + limit // inner),)
