"""How vectors are cut and shared: every element once, the same grid everywhere, shards by speed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wantrain.transport.partition import (
    CHUNK_ALIGN_ELEMENTS,
    MAX_CHUNK_ELEMENTS,
    MIN_CHUNK_ELEMENTS,
    chunk_bounds,
    chunk_elements,
    split_chunks,
)


@given(st.integers(0, 10**9))
def test_chunks_cover_every_element_once_and_stay_within_their_limits(elements: int) -> None:
    bounds = chunk_bounds(elements)
    assert [start for start, _ in bounds] == [0, *(stop for _, stop in bounds)][: len(bounds)]
    assert sum(stop - start for start, stop in bounds) == elements
    assert all(0 < stop - start <= MAX_CHUNK_ELEMENTS for start, stop in bounds)
    assert chunk_elements(elements) % CHUNK_ALIGN_ELEMENTS == 0
    assert all(stop - start >= MIN_CHUNK_ELEMENTS for start, stop in bounds[:-1])


def test_small_vectors_are_one_chunk_and_an_empty_one_has_none() -> None:
    assert chunk_bounds(0) == []
    assert chunk_bounds(1) == [(0, 1)]
    assert chunk_bounds(MIN_CHUNK_ELEMENTS) == [(0, MIN_CHUNK_ELEMENTS)]


@given(st.integers(0, 10_000), st.lists(st.floats(1e-3, 1e6), min_size=1, max_size=50))
def test_shards_use_every_chunk_and_follow_speed_to_within_one(chunks: int, speeds: list[float]) -> None:
    shards = split_chunks(chunks, speeds)
    assert sum(shards) == chunks
    for shard, speed in zip(shards, speeds, strict=True):
        assert abs(shard - chunks * speed / sum(speeds)) < 1 + 1e-6


def test_fewer_chunks_than_owners_go_to_the_first_of_equals() -> None:
    assert split_chunks(2, [1.0] * 4) == (1, 1, 0, 0)
    assert split_chunks(0, [1.0] * 3) == (0, 0, 0)
    assert split_chunks(10, [1.0, 9.0]) == (1, 9)
    assert split_chunks(3, [0.0, 1.0, 1.0]) == (0, 2, 1)


@pytest.mark.parametrize("speeds", [[], [0.0, 0.0], [2.0, -1.0]])
def test_shards_need_owners_with_positive_speeds(speeds: list[float]) -> None:
    with pytest.raises(ValueError, match="positive speeds"):
        split_chunks(3, speeds)
