"""Streams: after which steps one is due."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wantrain.optimizers.stream import Stream


@pytest.mark.parametrize(
    ("every", "offset", "due"),
    [
        (1, 0, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]),
        (4, 0, [4, 8]),
        (4, 1, [1, 5, 9]),
        (4, 3, [3, 7]),
        (4, 6, [2, 6, 10]),
        (20, 0, []),
    ],
)
def test_a_stream_is_due_at_its_offset_and_every_period_after(every: int, offset: int, due: list[int]) -> None:
    stream = Stream(name="param", every=every, offset=offset)
    assert [step for step in range(11) if stream.due(step)] == due


@given(every=st.integers(1, 1000), offset=st.integers(0, 1000), step=st.integers(1, 10**9))
def test_a_stream_is_due_exactly_once_in_any_period(every: int, offset: int, step: int) -> None:
    stream = Stream(name="param", every=every, offset=offset)
    assert sum(stream.due(later) for later in range(step, step + every)) == 1


@pytest.mark.parametrize("offset", [0, 1, 5])
def test_no_stream_is_due_before_the_first_step(offset: int) -> None:
    assert not any(Stream(name="param", every=1, offset=offset).due(step) for step in (0, -1, -5))
