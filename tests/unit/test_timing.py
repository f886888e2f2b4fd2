"""Deadlines from what was seen: neither usual silence of a peer nor slow bytes are a reason for suspicion."""

import random

import pytest

from wantrain.peers.timing import PHI_HINTED, PHI_LOST, REDIAL_S, Arrivals, Duration, Policy
from wantrain.transport.zmq_sockets import REDIAL_LAST_S

POLICY = Policy(
    heartbeat_s=1.0, suspect_floor_s=5.0, suspect_ceiling_s=30.0, deadline_floor_s=10.0, deadline_ceiling_s=600.0
)


def arrivals(*intervals_s: float) -> Arrivals:
    seen = Arrivals(POLICY.heartbeat_s)
    for interval_s in intervals_s:
        seen.add(interval_s)
    return seen


@pytest.mark.scenario(3)
def test_a_regular_peer_is_lost_after_the_floor_and_any_after_the_ceiling() -> None:
    assert POLICY.lost_after_s(arrivals()) == 5.0
    assert POLICY.lost_after_s(arrivals(*[1.0] * 50)) == 5.0
    assert POLICY.lost_after_s(arrivals(*[20.0] * 50)) == 30.0


def test_after_a_restart_of_the_coordinator_there_is_time_to_dial_again() -> None:
    assert REDIAL_S >= REDIAL_LAST_S
    assert POLICY.back_within_s >= REDIAL_LAST_S + POLICY.heard_within_s


def test_suspicion_grows_with_silence_and_with_how_regular_the_peer_was() -> None:
    regular, irregular = arrivals(*[1.0, 1.1] * 20), arrivals(*[0.6, 4.0] * 20)
    assert regular.silence_s(PHI_HINTED) < regular.silence_s(PHI_LOST) < irregular.silence_s(PHI_LOST)


def test_a_silence_that_was_harmless_is_no_reason_when_it_comes_again() -> None:
    seen = arrivals(*[1.0] * 99, 12.0)
    assert POLICY.lost_after_s(seen) >= 18.0
    for _ in range(100):
        seen.add(1.0)
    assert POLICY.lost_after_s(seen) == 5.0  # forgotten in time


def test_reports_of_changes_do_not_shorten_the_patience() -> None:
    heartbeats = arrivals(*[1.0, 3.0] * 10)
    with_changes = arrivals(*[1.0, 0.01, 0.02, 3.0, 0.01] * 10)
    assert with_changes.silence_s(PHI_LOST) == heartbeats.silence_s(PHI_LOST)


@pytest.mark.scenario(17)
@pytest.mark.parametrize(("delay_s", "stall_s"), [(0.005, 0.0), (0.3, 1.0), (0.6, 3.0)])
def test_a_peer_on_a_bad_path_is_not_suspected_while_it_lives(delay_s: float, stall_s: float) -> None:
    """Heartbeats over a path with jitter, and with a stall now and then as when TCP has to send again."""
    rng = random.Random(7)
    seen, last_s, false = arrivals(), 0.0, 0
    for second in range(5000):
        late_s = rng.expovariate(1 / delay_s) + (stall_s * rng.random() if rng.random() < 0.02 else 0.0)
        at_s = max(last_s, second + late_s)  # TCP keeps the order
        false += at_s - last_s >= POLICY.lost_after_s(seen)
        seen.add(at_s - last_s)
        last_s = at_s
    assert false == 0


@pytest.mark.scenario(17)
def test_moving_bytes_get_the_time_that_the_cost_model_says_or_attempts_usually_take() -> None:
    usual = Duration()
    assert POLICY.stalled_after_s(usual, 0.0, 0.0) == 10.0
    assert POLICY.stalled_after_s(usual, 20.0, 5.0) == 75.0
    assert POLICY.stalled_after_s(usual, 1e4, 0.0) == 600.0
    for _ in range(50):
        usual.add(30.0)
    assert 60.0 <= POLICY.stalled_after_s(usual, 1.0, 0.1) <= 70.0
