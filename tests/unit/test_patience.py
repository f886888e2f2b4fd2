"""When it is told that something lasts."""

from wantrain.peers.patience import FIRST_S, Patience


def test_it_is_told_after_some_seconds_and_then_each_time_after_twice_as_long() -> None:
    patience = Patience()
    told = [now for now in range(100) if patience.runs_out(True, float(now))]
    assert told == [5, 10, 20, 40, 80]


def test_what_was_over_begins_anew() -> None:
    patience = Patience()
    assert not patience.runs_out(True, 0.0)
    assert not patience.runs_out(False, FIRST_S)
    assert not patience.runs_out(True, FIRST_S)
    assert patience.runs_out(True, 2 * FIRST_S)
