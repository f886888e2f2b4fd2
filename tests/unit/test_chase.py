"""A peer that catches up says whether it gains on the run."""

from wantrain.peers.chase import GAIN_S, VAIN_SNAPSHOTS, Chase, Chasers


def run(per_s: float, commits_per_s: float, *, behind: int = 100, for_s: float = 300.0) -> tuple[bool, bool]:
    """Replay so many commits a second while so many are made: whether it ever loses, and whether it does at the end."""
    chase, ever = Chase(), False
    for tenth in range(int(10 * for_s)):
        head = behind + int(commits_per_s * tenth / 10)
        applied = min(head, int(per_s * tenth / 10))
        chase.look(applied, head, complete=applied == head, now=tenth / 10)
        ever = ever or chase.losing
    return ever, chase.losing


def test_a_replay_that_is_faster_than_the_run_gains() -> None:
    assert run(2.0, 1.0) == (False, False)
    assert run(1.2, 1.0) == (False, False)


def test_a_replay_that_is_slower_than_the_run_does_not() -> None:
    assert run(0.5, 1.0) == (True, True)
    assert run(1.0, 1.0) == (True, True)


def test_it_is_told_until_the_head_is_reached() -> None:
    chase = Chase()
    chase.look(0, 50, complete=True, now=0.0)
    chase.look(10, 60, complete=True, now=GAIN_S)
    assert chase.losing
    chase.look(58, 60, complete=True, now=GAIN_S + 5)
    assert chase.losing
    chase.look(59, 60, complete=True, now=GAIN_S + 6)
    assert not chase.losing


def test_fetching_the_state_is_not_losing_but_snapshots_that_come_to_nothing_are() -> None:
    chase = Chase()
    for second in range(300):
        chase.look(-1, 1000 + second, complete=False, now=float(second))
    assert not chase.losing
    for _ in range(VAIN_SNAPSHOTS):
        assert not chase.losing
        chase.vain()
    assert chase.losing


def test_at_the_head_earlier_bad_luck_is_forgotten() -> None:
    chase = Chase()
    chase.vain()
    chase.look(10, 10, complete=True, now=0.0)
    chase.vain()
    assert not chase.losing


def test_who_is_waited_for_fetches_the_state_again_if_that_is_shorter_than_the_updates_and_only_once() -> None:
    chase = Chase()
    chase.snapshot.add(4.0)
    chase.update.add(0.5)
    chase.look(0, 50, complete=True, now=0.0)
    assert not chase.leap(50)  # it may gain by itself
    chase.look(10, 60, complete=True, now=GAIN_S)
    assert not chase.leap(8)  # 4 s of updates
    assert chase.leap(50)
    chase.look(20, 70, complete=True, now=GAIN_S + 1)
    assert not chase.leap(50)
    chase.look(70, 70, complete=True, now=GAIN_S + 2)
    chase.look(70, 120, complete=True, now=GAIN_S + 3)
    chase.look(70, 121, complete=True, now=2 * GAIN_S + 3)
    assert chase.leap(51)  # another chase


def test_the_coordinator_waits_for_a_chaser_until_it_gains_leaves_or_has_had_its_time() -> None:
    chasers = Chasers(most_s=60.0)
    assert chasers.reported("n", 12, 0.0)
    assert not chasers.reported("n", 15, 1.0)
    assert chasers.waited_for(59.0) == {"n": 15}
    assert chasers.waited_for(60.0) == {}
    assert not chasers.reported("n", 15, 61.0)
    assert chasers.waited_for(61.0) == {}
    assert chasers.reported("n", 0, 62.0)
    assert chasers.reported("n", 3, 63.0)
    chasers.gone("n")
    assert chasers.waited_for(64.0) == {}
