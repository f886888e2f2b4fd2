"""What a stream takes of one parameter, all of it or a mask's coordinates, and its place in the shared memory."""

from dataclasses import dataclass

from torch import Tensor, nn

from wantrain.optimizers.mask_indices import indices


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """One parameter's part of a stream."""

    parameter: nn.Parameter
    out: Tensor
    """fp32, a view of the stream's `out`: shaped like the parameter, or [n] for n coordinates of it."""
    given: Tensor
    """The same of `given`."""
    mask: tuple[int, int, int, int] | None
    """Part, parts, and first and last coordinate in the model; None for the whole parameter."""

    def of(self, value: Tensor) -> Tensor:
        """What the stream takes of a tensor like the parameter: itself, or a copy of some of its values."""
        return value if self.mask is None else value.take(self._where(value))

    def put(self, value: Tensor, taken: Tensor) -> None:
        """Put what `of` had given, changed, into a tensor like the parameter."""
        if self.mask is None:
            value.copy_(taken)
        else:
            value.put_(self._where(value), taken.to(value))

    def _where(self, value: Tensor) -> Tensor:
        assert self.mask is not None
        return indices(*self.mask).to(value.device)
