"""Which part of a tensor a rank holds: where its local shard is in the whole, and who of several ranks writes it."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor, nn

from wantrain.errors import ConfigError
from wantrain.optimizers.mask import between

Cut = tuple[int, int, int]
"""A cut of a box along a dimension into so many parts, and which of them is taken."""


@dataclass(frozen=True, slots=True)
class Extent:
    """A part of a tensor: in each dimension `sizes[d]` values from `starts[d]` on."""

    starts: tuple[int, ...]
    sizes: tuple[int, ...]

    @property
    def elements(self) -> int:
        """Values in it."""
        return math.prod(self.sizes)

    def of(self, tensor: Tensor) -> Tensor:
        """The box's part of a tensor of the whole shape; a view."""
        for dim, (start, size) in enumerate(zip(self.starts, self.sizes, strict=True)):
            tensor = tensor.narrow(dim, start, size)
        return tensor

    def run_in(self, shape: Sequence[int]) -> tuple[int, int] | None:
        """First and last coordinate (row by row) of the box in a tensor of this shape; None if it is not one run."""
        if not self.elements:
            return 0, 0
        partial = [dim for dim, size in enumerate(shape) if self.sizes[dim] != size]
        if partial and any(self.sizes[dim] != 1 for dim in range(partial[-1])):
            return None
        first = 0
        for start, size in zip(self.starts, shape, strict=True):
            first = first * size + start
        return first, first + self.elements


def whole(shape: Iterable[int]) -> Extent:
    """All of a tensor."""
    sizes = tuple(shape)
    return Extent((0,) * len(sizes), sizes)


def cut(box: Extent, cuts: Iterable[Cut]) -> Extent:
    """What is left of a box after cuts as `torch.chunk` makes them: parts of ceil(size / parts), the last ones less."""
    starts, sizes = list(box.starts), list(box.sizes)
    for dim, parts, place in cuts:
        part = -(-sizes[dim] // parts)
        before = min(place * part, sizes[dim])
        starts[dim] += before
        sizes[dim] = min(part, sizes[dim] - before)
    return Extent(tuple(starts), tuple(sizes))


def is_sharded(tensor: object) -> bool:
    """Whether it is a DTensor; told by what it has, as importing the class takes long."""
    return hasattr(tensor, "placements") and hasattr(tensor, "device_mesh")


def local_part(tensor: Tensor) -> Tensor:
    """What this rank holds of a tensor: a DTensor's local shard, sharing its memory, or the tensor itself."""
    if not is_sharded(tensor):
        return tensor
    sharded: Any = tensor.detach()
    part: Tensor = sharded.to_local()
    return part


def whole_gradient(parameter: nn.Parameter) -> Tensor | None:
    """A parameter's gradient, placed as the parameter is: tensor parallelism may leave it as sums to be formed yet.

    To be called on all ranks that hold the parameter, as they form the sums together.
    """
    gradient: Any = parameter.grad
    if is_sharded(gradient) and gradient.placements != (sharded := cast(Any, parameter)).placements:
        gradient = parameter.grad = gradient.redistribute(placements=sharded.placements)
    found: Tensor | None = gradient
    return found


def local_box(name: str, tensor: Tensor) -> Extent:
    """Where in the whole tensor this rank's part of it is.

    Args:
        name: of the tensor, for the error.
        tensor: plain (all of it is here) or a DTensor.

    Raises:
        ConfigError: it is a sum that is not formed yet, or placed in a way that is not known here.
    """
    box = whole(tensor.shape)
    if not is_sharded(tensor):
        return box
    sharded: Any = tensor
    mesh, placements = sharded.device_mesh, sharded.placements
    coordinate = mesh.get_coordinate()
    local = tuple(local_part(tensor).shape)
    if coordinate is None:
        return Extent(box.starts, (0,) * len(box.sizes))
    if not any(placement.is_partial() for placement in placements):
        found = cut(box, _cuts(placements, mesh.shape, coordinate))
        if found.sizes == local:
            return found
    raise ConfigError(
        f"{name} is placed as {list(placements)} on a mesh of {list(mesh.shape)}, with {list(local)} of "
        f"{list(tensor.shape)} here; allowed are Replicate and even or uneven Shard",
        hint="shard it with fully_shard or parallelize_module",
    )


def _cuts(placements: Sequence[Any], parts: Sequence[int], places: Sequence[int]) -> list[Cut]:
    """Cuts in the order in which they were made: mesh dimensions from the first to the last, strided ones after those.

    A strided shard is what FSDP2 makes of a shard that tensor parallelism has made before on a later mesh dimension.
    """
    plain, strided = list[Cut](), list[Cut]()
    for placement, count, place in zip(placements, parts, places, strict=True):
        if not placement.is_replicate():
            (strided if hasattr(placement, "split_factor") else plain).append((placement.dim, count, place))
    return plain + strided[::-1]


def writers(name: str, shape: Sequence[int], boxes: Sequence[Extent]) -> frozenset[int]:
    """Which of the ranks that hold these boxes write theirs: of equal ones the first, so each value is written once.

    Raises:
        ConfigError: the boxes overlap in part, or leave something out.
    """
    first: dict[Extent, int] = {}
    for rank, box in enumerate(boxes):
        if box.elements:
            first.setdefault(box, rank)
    several = sorted(first, key=lambda box: box.starts)
    overlap = any(_overlap(a, b) for k, a in enumerate(several) for b in several[k + 1 :])
    if overlap or sum(box.elements for box in several) != math.prod(shape):
        raise ConfigError(
            f"the ranks' parts of {name} {list(shape)} {'overlap' if overlap else 'are not all of it'}",
            hint="every rank of a site has all parameters of the model, whole or as shards of one DTensor; "
            "parts of a model on different ranks (pipelines) cannot be joined",
        )
    return frozenset(first.values())


def _overlap(a: Extent, b: Extent) -> bool:
    return all(s < t + m and t < s + n for s, n, t, m in zip(a.starts, a.sizes, b.starts, b.sizes, strict=True))


@dataclass(frozen=True, slots=True)
class Spot:
    """Where a parameter is in a stream's vector."""

    name: str
    shape: tuple[int, ...]
    first: int
    last: int
    """Elements of the vector."""
    begin: int
    """The parameter's first coordinate in the model."""
    mask: tuple[int, int] | None

    def part(self, region: Tensor, box: Extent) -> tuple[Tensor, tuple[int, int, int, int] | None]:
        """The values of a box of the parameter in a stream's vector, a view; and, of a mask, its fields as in `Piece`.

        Raises:
            ConfigError: the mask's coordinates in the box are not one run.
        """
        region = region[self.first : self.last]
        if self.mask is None:
            return box.of(region.view(self.shape)), None
        run = box.run_in(self.shape)
        if run is None:
            raise ConfigError(
                f"the method takes single values, and {self.name} {list(self.shape)} is sharded along a dimension that "
                f"is not its first: {list(box.sizes)} are here",
                hint="shard along dimension 0 (fully_shard does), or take another method",
            )
        begin, end = self.begin + run[0], self.begin + run[1]
        before = between(*self.mask, self.begin, begin)
        return region[before : before + between(*self.mask, begin, end)], (*self.mask, begin, end)


def held(view: Tensor) -> Tensor:
    """The view itself or, where the memory is another host's (on device meta), memory of this process instead."""
    return view.new_zeros(view.shape, device="cpu") if view.is_meta else view


def spots(
    tensors: Sequence[tuple[str, tuple[int, ...]]], places: dict[str, tuple[int, int]], mask: tuple[int, int] | None
) -> list[Spot]:
    """Where each of a stream's tensors is in its vector; `places`: first and last coordinate in the model."""
    found, first = list[Spot](), 0
    for name, shape in tensors:
        begin, end = places[name]
        last = first + (end - begin if mask is None else between(*mask, begin, end))
        found.append(Spot(name, shape, first, last, begin, mask))
        first = last
    return found
