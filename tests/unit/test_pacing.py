"""A connection is let send little faster than its path carries, once that is known, and is seen to fall behind it."""

import pytest

from wantrain.transport.pacing import AT_SPEED, EVIDENCE_BYTES, FALLEN, FLAT_SAMPLES, GROWTH, HEADROOM, Pacing

PATH = 12_500_000
"""bytes/s"""


def settled(rate: int = PATH) -> Pacing:
    pacing = Pacing()
    for _ in range(FLAT_SAMPLES + 1):
        limit = pacing.sample(rate, EVIDENCE_BYTES)
    assert limit == int(HEADROOM * rate)
    return pacing


def test_nothing_is_limited_while_the_rate_grows() -> None:
    pacing = Pacing()
    assert [pacing.sample(int(1e5 * 1.3**k), EVIDENCE_BYTES) for k in range(20)] == [None] * 20


def test_a_rate_that_has_not_grown_for_some_samples_is_the_paths() -> None:
    pacing = Pacing()
    limits = [pacing.sample(rate, EVIDENCE_BYTES) for rate in (PATH, PATH - 5, int(1.1 * PATH), PATH // 2)]
    assert limits == [None] * FLAT_SAMPLES + [int(HEADROOM * int(1.1 * PATH))]


def test_a_faster_path_is_found_out_within_the_headroom_and_lifts_the_limit() -> None:
    assert HEADROOM > GROWTH
    assert settled().sample(int(HEADROOM * PATH), EVIDENCE_BYTES) is None


def test_a_slower_path_does_not_tighten_the_limit() -> None:
    pacing = settled()
    assert {pacing.sample(PATH // 10, EVIDENCE_BYTES) for _ in range(50)} == {int(HEADROOM * PATH)}


@pytest.mark.parametrize(("rate", "sent_bytes"), [(0, 10 * EVIDENCE_BYTES), (1000, EVIDENCE_BYTES // 20), (1000, 0)])
def test_what_says_nothing_of_the_path_does_not_count(rate: int, sent_bytes: int) -> None:
    pacing = Pacing()
    assert {pacing.sample(rate, sent_bytes) for _ in range(2 * FLAT_SAMPLES)} == {None}


def test_small_messages_add_up_to_evidence() -> None:
    pacing = Pacing()
    limits = [pacing.sample(PATH, EVIDENCE_BYTES // 4) for _ in range(4 * (FLAT_SAMPLES + 1))]
    assert limits[-2:] == [None, int(HEADROOM * PATH)]


@pytest.mark.parametrize("lanes", [1, 4])
def test_a_connection_falls_only_from_its_share_of_the_path_and_is_back_only_near_it(lanes: int) -> None:
    pacing, share = settled(), PATH / lanes
    rates = [0.1, AT_SPEED - 0.01, AT_SPEED, 1.0, FALLEN, FALLEN - 0.01, 0.03, AT_SPEED - 0.01, AT_SPEED + 0.01]
    said, was = [], False
    for part in rates:
        was = pacing.at_speed(int(part * share) + 1, lanes, was=was)
        said.append(was)
    assert said == [False, False, True, True, True, False, False, False, True]


def test_no_connection_is_at_speed_on_a_path_of_which_nothing_is_known() -> None:
    assert not Pacing().at_speed(PATH, 1, was=False)
    assert not Pacing().at_speed(PATH, 1, was=True)
