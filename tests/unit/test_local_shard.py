"""Local shards: the ranks' parts tile the tensor exactly, as PyTorch itself shards it; each value is written once."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import product

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard, distribute_tensor
from torch.testing._internal.distributed.fake_pg import FakeStore

from wantrain.errors import ConfigError
from wantrain.local_shard import Extent, cut, local_box, local_part, spots, whole, writers
from wantrain.optimizers.mask_indices import indices
from wantrain.ranks import portion

torch.set_num_threads(1)


@contextmanager
def as_rank(rank: int, size: int) -> Iterator[None]:
    """This process as one rank of several that are not there."""
    dist.init_process_group("fake", rank=rank, world_size=size, store=FakeStore())
    try:
        yield
    finally:
        dist.destroy_process_group()


def put_together(size: int, shard: Callable[[], Tensor], full: Tensor) -> None:
    """Every rank that is to writes its part: they are the tensor, and nothing is written twice."""
    boxes: list[Extent] = []
    parts: list[Tensor] = []
    for rank in range(size):
        with as_rank(rank, size):
            tensor = shard()
            boxes.append(local_box("w", tensor))
            parts.append(local_part(tensor).detach().clone())
    written, times = torch.zeros_like(full), torch.zeros_like(full)
    for rank in writers("w", full.shape, boxes):
        boxes[rank].of(written).copy_(parts[rank])
        boxes[rank].of(times).add_(1)
    assert torch.equal(written, full)
    assert bool((times == 1).all())
    for box, part in zip(boxes, parts, strict=True):  # and what every one reads is its own
        assert torch.equal(box.of(full), part)


PLACEMENTS = st.sampled_from([Replicate(), Shard(0), Shard(1)])


@settings(max_examples=60)
@given(
    shape=st.tuples(st.integers(1, 9), st.integers(1, 6), st.integers(1, 2)),
    mesh=st.lists(st.integers(1, 3), min_size=1, max_size=2),
    placements=st.tuples(PLACEMENTS, PLACEMENTS),
)
def test_the_boxes_of_all_ranks_are_the_tensor_that_was_distributed(
    shape: tuple[int, ...], mesh: list[int], placements: tuple[Placement, Placement]
) -> None:
    full = torch.arange(1.0, 1 + torch.Size(shape).numel()).view(shape)

    def shard() -> DTensor:
        return distribute_tensor(
            full, init_device_mesh("cpu", tuple(mesh)), placements[: len(mesh)], src_data_rank=None
        )

    put_together(torch.Size(mesh).numel(), shard, full)


@pytest.mark.parametrize(
    ("data", "tensor", "rows", "columns", "placement"),
    [
        (2, 1, 7, 3, None),
        (5, 1, 3, 2, None),
        (2, 2, 8, 8, Shard(0)),
        (2, 3, 12, 6, Shard(0)),
        (2, 2, 7, 3, Shard(0)),
        (3, 2, 7, 4, Shard(1)),
        (2, 2, 6, 4, Shard(1)),
    ],
)
def test_fully_shard_with_and_without_tensor_parallelism(
    data: int, tensor: int, rows: int, columns: int, placement: Placement | None
) -> None:
    full = nn.Linear(columns, rows)
    with torch.no_grad():
        full.weight.copy_(torch.arange(rows * columns).view(rows, columns))

    def shard() -> Tensor:
        # PyTorch takes equal meshes for one, with the coordinate of the rank that this process was before.
        names = (f"data of {dist.get_rank()}", f"tensor of {dist.get_rank()}")
        mesh = init_device_mesh("cpu", (data, tensor), mesh_dim_names=names)
        layer = nn.Linear(columns, rows)
        with torch.no_grad():
            layer.weight.copy_(full.weight)
        if placement is not None:
            kept = distribute(layer.weight, mesh[names[1]], placement)
            layer.weight = nn.Parameter(kept)
        fully_shard(layer, mesh=mesh[names[0]])
        return layer.weight

    put_together(data * tensor, shard, full.weight.detach())


def distribute(weight: Tensor, mesh: DeviceMesh, placement: Placement) -> DTensor:
    return distribute_tensor(weight.detach(), mesh, [placement], src_data_rank=None)


def test_plain_tensors_are_written_by_the_first_rank_and_read_by_all() -> None:
    full = torch.arange(6.0).view(2, 3)
    put_together(3, full.clone, full)
    assert writers("w", (2, 3), [whole((2, 3))] * 3) == {0}
    scalar = torch.tensor(2.0)
    put_together(2, scalar.clone, scalar)


@pytest.mark.parametrize(
    ("boxes", "reason"),
    [
        ([Extent((0,), (3,)), Extent((2,), (3,))], "overlap"),
        ([Extent((0,), (2,)), Extent((3,), (2,))], "not all of it"),
        ([Extent((0,), (0,))], "not all of it"),
    ],
)
def test_parts_that_are_not_the_tensor_are_refused(boxes: list[Extent], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        writers("w", (5,), boxes)


def test_sums_that_are_not_formed_are_refused() -> None:
    with as_rank(0, 2):
        mesh = init_device_mesh("cpu", (2,))
        with pytest.raises(ConfigError, match="Partial"):
            local_box("w", DTensor.from_local(torch.ones(3), mesh, [Partial()]))


@settings(max_examples=60)
@given(
    shape=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    cuts=st.lists(st.tuples(st.integers(0, 2), st.integers(1, 3), st.integers(0, 2)), max_size=2),
    begin=st.integers(0, 20),
    parts=st.integers(1, 5),
)
def test_the_coordinates_of_a_mask_in_a_box_are_those_that_the_whole_has_there(
    shape: list[int], cuts: list[tuple[int, int, int]], begin: int, parts: int
) -> None:
    box = cut(whole(shape), [(d % len(shape), n, k % n) for d, n, k in cuts])
    flat = torch.arange(torch.Size(shape).numel())
    inside = box.of(flat.view(shape)).flatten()
    run = box.run_in(shape)
    if run is None:
        assert len(inside) != int(inside[-1] - inside[0]) + 1
        return
    assert torch.equal(inside, flat[run[0] : run[1]])
    end = begin + len(flat)
    for part, (name, first) in product(range(parts), (("w", 0),)):
        (spot,) = spots([(name, tuple(shape))], {name: (begin, end)}, (part, parts))
        chosen = indices(part, parts, begin, end)  # of the whole, in the parameter
        region, mask = spot.part(chosen + first, box)
        assert mask is not None
        assert torch.equal(region, run[0] + indices(*mask))


@pytest.mark.parametrize(
    ("drawn", "count", "portions"),
    [
        (6, 2, [[0, 1, 2], [3, 4, 5]]),
        (5, 2, [[0, 1, 2], [3, 4]]),
        (2, 3, [[0], [1], [0]]),
        (1, 2, [[0], [0]]),
        (0, 2, [[], []]),
        (3, 1, [[0, 1, 2]]),
    ],
)
def test_every_rank_gets_samples_or_none_does(drawn: int, count: int, portions: list[list[int]]) -> None:
    assert [portion(range(drawn), index, count) for index in range(count)] == portions


def test_a_mask_on_a_shard_that_is_no_run_of_coordinates_is_refused() -> None:
    (spot,) = spots([("w", (4, 6))], {"w": (0, 24)}, (0, 3))
    with pytest.raises(ConfigError, match="not its first"):
        spot.part(torch.zeros(8), Extent((0, 3), (4, 3)))
