"""Fetching in chunks from several peers: a window for each, and no source is waited for or asked in vain for ever."""

from wantrain.peers.catchup import (
    SILENCE_FLOOR_S,
    WINDOW_CHUNKS,
    Came,
    Denied,
    Exhausted,
    Fetch,
    FetchEffect,
    Reachable,
    Sources,
    Tick,
    Want,
)


def asked(effects: list[FetchEffect]) -> dict[str, tuple[int, ...]]:
    return {effect.source: effect.chunks for effect in effects if isinstance(effect, Want)}


def test_every_chunk_is_asked_for_once_spread_over_the_sources_within_their_windows() -> None:
    fetch = Fetch(range(100))
    wants = asked(fetch.handle(Sources(("a", "b")), 0.0))
    assert {source: len(chunks) for source, chunks in wants.items()} == {"a": WINDOW_CHUNKS, "b": WINDOW_CHUNKS}
    assert len({chunk for chunks in wants.values() for chunk in chunks}) == 2 * WINDOW_CHUNKS


def test_a_chunk_that_comes_makes_room_for_the_next() -> None:
    fetch = Fetch(range(6))
    (first, *_) = asked(fetch.handle(Sources(("a",)), 0.0))["a"]
    assert asked(fetch.handle(Came("a", first), 0.1)) == {"a": (4,)}
    for chunk in range(6):
        fetch.handle(Came("a", chunk), 0.2)
    assert not fetch.missing
    assert fetch.handle(Tick(), 9.0) == []


def test_what_a_silent_source_owes_is_asked_of_another() -> None:
    fetch = Fetch(range(2))
    fetch.handle(Sources(("a", "b")), 0.0)
    fetch.handle(Came("b", 1), 0.1)
    assert fetch.handle(Tick(), SILENCE_FLOOR_S - 0.1) == []
    assert asked(fetch.handle(Tick(), SILENCE_FLOOR_S)) == {"b": (0,)}


def test_a_source_that_becomes_reachable_is_asked_again_at_once() -> None:
    fetch = Fetch(range(2))
    fetch.handle(Sources(("a",)), 0.0)
    assert asked(fetch.handle(Reachable("a"), 0.1)) == {"a": (0, 1)}
    assert asked(fetch.handle(Reachable("b"), 0.2)) == {}


def test_what_a_lost_source_owes_is_asked_of_another() -> None:
    fetch = Fetch(range(2))
    fetch.handle(Sources(("a", "b")), 0.0)
    assert asked(fetch.handle(Sources(("b",)), 0.1)) == {"b": (0,)}


def test_who_denies_is_not_asked_again_before_all_others_were() -> None:
    fetch = Fetch(range(1))
    assert asked(fetch.handle(Sources(("a", "b")), 0.0)) == {"a": (0,)}
    assert asked(fetch.handle(Denied("a"), 0.1)) == {"b": (0,)}
    assert fetch.handle(Denied("b"), 0.2) == [Exhausted()]
    assert asked(fetch.handle(Tick(), 0.3)) == {"a": (0,)}


def test_without_sources_it_waits_for_some() -> None:
    fetch = Fetch(range(1))
    assert fetch.handle(Tick(), 0.0) == []
    assert asked(fetch.handle(Sources(("a",)), 5.0)) == {"a": (0,)}


def test_a_chunk_from_another_source_than_the_asked_is_taken() -> None:
    fetch = Fetch(range(1))
    fetch.handle(Sources(("a", "b")), 0.0)
    fetch.handle(Came("b", 0), 0.1)
    assert not fetch.missing


def test_nothing_to_fetch_asks_nobody() -> None:
    assert Fetch(range(0)).handle(Sources(("a",)), 0.0) == []
