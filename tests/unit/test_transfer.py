"""Credit keeps to its window and believes no more than was sent; limits on upload hold; rates are what was seen."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wantrain.errors import WireError
from wantrain.transport.transfer import (
    BURST_S,
    FIRST_WINDOW_BYTES,
    MAX_BULK_BYTES,
    MAX_WINDOW_BYTES,
    MIN_BULK_BYTES,
    MIN_WINDOW_BYTES,
    Credit,
    Meter,
    Receipts,
    TokenBucket,
    UploadLimits,
)

MB = 1_000_000


def test_credit_has_room_until_the_window_is_full_and_again_after_an_acknowledgement() -> None:
    credit = Credit()
    credit.open(0)
    assert credit.room(10 * MB, MB), "a message of any size goes when nothing is under way"
    credit.sent(0, 600)
    assert credit.room(400, 1000)
    assert not credit.room(401, 1000)
    assert credit.acked(0, 250) == 250
    assert credit.in_flight_bytes == credit.on_lane(0) == 350
    assert credit.acked(0, 250) == credit.acked(0, 100) == 0, "repeated and late ones change nothing"
    assert credit.acked(0, 600) == 350
    assert credit.in_flight_bytes == 0


def test_more_than_was_sent_is_not_believed_and_changes_nothing() -> None:
    credit = Credit()
    credit.open(0)
    credit.sent(0, 100)
    with pytest.raises(WireError, match="100 were sent"):
        credit.acked(0, 101)
    assert credit.in_flight_bytes == 100
    assert credit.acked(7, 50) == 0, "a lane that is not there"


def test_a_lost_lane_takes_what_was_under_way_with_it_and_no_more() -> None:
    credit = Credit()
    for lane in (0, 1):
        credit.open(lane)
        credit.sent(lane, 100 * (lane + 1))
    credit.acked(1, 50)
    credit.close(1)
    credit.close(1)
    assert credit.in_flight_bytes == 100
    assert credit.acked(1, 200) == 0
    assert credit.acked(0, 100) == 100


@given(st.lists(st.tuples(st.sampled_from(["open", "close", "send", "take", "tell"]), st.integers(0, 3)), max_size=60))
def test_whatever_is_lost_both_sides_agree_once_a_receipt_arrives(steps: list[tuple[str, int]]) -> None:
    credit, receipts = Credit(), Receipts()
    on_wire: dict[int, list[int]] = {}
    for step, lane in steps:
        match step:
            case "open" if lane not in on_wire:
                credit.open(lane)
                receipts.open(lane)
                on_wire[lane] = []
            case "close" if lane in on_wire:
                credit.close(lane)
                receipts.close(lane)
                del on_wire[lane]
            case "send" if lane in on_wire and credit.room(10, 100):
                credit.sent(lane, 10)
                on_wire[lane].append(10)
            case "take" if on_wire.get(lane):
                receipts.taken(lane, on_wire[lane].pop())
            case "tell":
                receipts.told()  # and the receipt is lost
        assert 0 <= credit.in_flight_bytes <= 100
    for lane, total in receipts.totals(untold_only=False):
        credit.acked(lane, total)
    assert credit.in_flight_bytes == sum(map(sum, on_wire.values()))


def test_receipts_name_only_what_the_sender_has_not_been_told() -> None:
    receipts = Receipts()
    receipts.open(0)
    receipts.open(1)
    receipts.taken(0, 5)
    receipts.taken(9, 5)
    assert receipts.untold_bytes == 5
    assert receipts.totals(untold_only=True) == [[0, 5]]
    receipts.told()
    assert receipts.untold_bytes == 0
    assert receipts.totals(untold_only=True) == []
    assert receipts.totals(untold_only=False) == [[0, 5], [1, 0]]
    receipts.taken(0, 7)
    receipts.close(0)
    assert receipts.untold_bytes == 0


def busy(meter: Meter, rate_bytes_per_s: float, seconds: float, *, held_back: bool, start: float = 0.0) -> float:
    """A path that acknowledges 10 ms worth every 10 ms."""
    now = start
    while now < start + seconds:
        meter.sent(now)
        meter.held_back = held_back
        now += 0.01
        meter.acked(int(rate_bytes_per_s * 0.01), now, idle=False)
    return now


def test_rate_follows_a_path_that_is_used_to_the_full_up_and_down() -> None:
    meter = Meter()
    now = busy(meter, 10 * MB, 1.0, held_back=True)
    assert meter.rate_bytes_per_s == pytest.approx(10 * MB, rel=0.02)
    now = busy(meter, 40 * MB, 2.0, held_back=True, start=now)
    assert meter.rate_bytes_per_s == pytest.approx(40 * MB, rel=0.02)
    busy(meter, 5 * MB, 2.0, held_back=True, start=now)
    assert meter.rate_bytes_per_s == pytest.approx(5 * MB, rel=0.02)


def test_a_sender_that_has_little_to_send_says_nothing_bad_about_the_path() -> None:
    meter = Meter()
    now = busy(meter, 10 * MB, 1.0, held_back=True)
    meter.interrupted()
    meter.held_back = False
    for _ in range(50):
        meter.sent(now)
        meter.acked(1000, now + 0.1, idle=True)
        now += 1.0
    assert meter.rate_bytes_per_s == pytest.approx(10 * MB, rel=0.02)


@pytest.mark.scenario(17)
def test_a_path_that_becomes_slow_and_fast_again_is_followed_by_messages_that_fill_no_window_too() -> None:
    meter = Meter()
    now = busy(meter, 10 * MB, 1.0, held_back=True)
    meter.interrupted()
    meter.held_back = False
    for seconds, least, most in ((0.5, 0.1 * MB, 1 * MB), (0.006, 5 * MB, 11 * MB)):
        for _ in range(10):
            meter.sent(now)
            meter.acked(60_000, now + seconds, idle=True)
            now += 1.0
        assert least <= meter.rate_bytes_per_s <= most


def test_one_short_message_gives_a_lower_bound() -> None:
    meter = Meter()
    meter.sent(5.0)
    meter.acked(MB, 5.5, idle=True)
    assert meter.rate_bytes_per_s == pytest.approx(2 * MB)
    meter.acked(MB, 6.0, idle=True)
    assert meter.rate_bytes_per_s == pytest.approx(2 * MB), "nothing was under way"


def test_a_trickle_says_nothing_about_a_rate() -> None:
    meter = Meter()
    for second in range(100):
        meter.sent(second)
        meter.acked(1000, second + 0.1, idle=False)
        meter.acked(1000, second + 0.2, idle=True)
    assert meter.rate_bytes_per_s == 0


def test_what_waits_only_for_a_limit_on_upload_still_gives_a_lower_bound() -> None:
    meter = Meter()
    meter.sent(0.0)
    meter.held_back = True
    meter.acked(64 << 10, 0.1, idle=True)
    assert meter.rate_bytes_per_s == pytest.approx(655_360)


def test_loss_is_the_share_of_segments_lately_and_unknown_of_few() -> None:
    meter = Meter()
    meter.segments(100, 50, 0.0)
    assert meter.loss == 0
    meter.segments(900, 50, 1.0)
    assert meter.loss == pytest.approx(0.1)
    meter.segments(10_000, 0, 100.0)
    assert meter.loss == 0


@given(st.floats(0, 1e11), st.floats(0, 10), st.integers(0, 16), st.none() | st.floats(1, 1e10))
def test_windows_and_message_sizes_stay_within_their_bounds(
    rate: float, rtt_s: float, lanes: int, limit: float | None
) -> None:
    meter = Meter()
    meter.rate_bytes_per_s, meter.rtt_s = rate, rtt_s
    assert MIN_WINDOW_BYTES <= meter.window_bytes <= MAX_WINDOW_BYTES
    assert MIN_BULK_BYTES <= meter.bulk_bytes(lanes, limit) <= MAX_BULK_BYTES


@pytest.mark.parametrize(
    ("rate", "rtt_s", "lanes", "window", "size"),
    [
        (0, 0, 1, FIRST_WINDOW_BYTES, 1 << 20),  # nothing known
        (0, 0.1, 1, FIRST_WINDOW_BYTES, 256 << 10),
        (1e9, 0.0001, 1, 5_200_000, 1 << 20),  # one machine
        (125e3, 0.1, 1, MIN_WINDOW_BYTES, MIN_BULK_BYTES),  # 1 Mbit/s: seconds of queue, not half a minute
        (12.5e6, 0.1, 1, 13_125_000, 375_000),  # 100 Mbit/s
        (125e6, 0.1, 8, MAX_WINDOW_BYTES, 3_750_000),  # 1 Gbit/s on 8 lanes
    ],
)
def test_windows_and_sizes_of_known_paths(rate: float, rtt_s: float, lanes: int, window: int, size: int) -> None:
    meter = Meter()
    meter.rate_bytes_per_s, meter.rtt_s = rate, rtt_s
    assert meter.window_bytes == pytest.approx(window, rel=0.001)
    assert meter.bulk_bytes(lanes, None) == pytest.approx(size, rel=0.001)


@pytest.mark.parametrize("size", [1000, 64 << 10, 300_000])
def test_limit_is_kept_within_a_few_per_cent_over_a_second(size: int) -> None:
    rate = 50e6 / 8
    bucket, sent, now = TokenBucket(rate, 0.0), 0, 0.0
    while now < 1.0:
        while bucket.ready(now):
            bucket.spend(size)
            sent += size
        now += 0.002  # as a user with a backlog polls
    assert rate * 0.98 - size <= sent <= rate * (1.0 + BURST_S) + size
    ten = sent
    while now < 11.0:
        while bucket.ready(now):
            bucket.spend(size)
            sent += size
        now += 0.002
    assert sent - ten == pytest.approx(10 * rate, rel=0.005, abs=size)


def test_a_pause_saves_up_no_more_than_a_short_burst() -> None:
    bucket = TokenBucket(MB, 0.0)
    while bucket.ready(0.0):
        bucket.spend(1000)
    sent = 0
    while bucket.ready(3600.0):
        bucket.spend(1000)
        sent += 1000
    assert sent <= MB * BURST_S + 1000


def test_limits_of_link_and_peer_both_hold_and_what_is_spent_elsewhere_counts() -> None:
    limits = UploadLimits(2 * MB, MB)
    assert limits.least_bytes_per_s == MB
    assert limits.ready("a", 0.0)
    limits.spend("a", MB, 0.0)
    assert not limits.ready("a", 0.4)
    assert not limits.ready("b", 0.4), "the link's own limit"
    assert limits.ready("b", 0.6)
    assert not limits.ready("a", 0.6)
    assert limits.ready("a", 1.1)
    assert UploadLimits(None, None).ready("a", 0.0)
    assert UploadLimits(None, None).least_bytes_per_s is None
