"""What is dropped is counted whole, and said once a second at most."""

from wantrain.peers import drops
from wantrain.peers.drops import Drops


def test_the_first_is_said_at_once_and_a_flood_once_a_second() -> None:
    counted = Drops()
    said = [counted.count("dropped", "liar", at / 100) for at in range(301)]
    assert [times for times in said if times] == [1, 100, 100, 100]
    assert counted.total == 301


def test_a_flood_of_one_silences_nobody_else() -> None:
    counted = Drops()
    for _ in range(1000):
        counted.count("dropped", "liar", 0.0)
    assert counted.count("dropped", "other", 0.0) == 1
    assert counted.count("rejected", "liar", 0.0) == 1


def test_of_more_sources_than_there_can_be_no_more_is_kept() -> None:
    counted = Drops()
    for k in range(drops.MAX_SOURCES + 10):
        counted.count("dropped", str(k), 0.0)
    assert len(counted._said) <= drops.MAX_SOURCES + 1
    assert counted.total == drops.MAX_SOURCES + 10
