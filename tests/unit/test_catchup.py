"""Fetching in chunks from several peers: each as fast as it is, and none is waited for or asked in vain for ever."""

from wantrain.peers.catchup import (
    AHEAD_S,
    FIRST_WINDOW_CHUNKS,
    MAX_WINDOW_CHUNKS,
    SILENCE_CEILING_S,
    SILENCE_FLOOR_S,
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


class Download:
    """A fetch whose sources give a chunk every so many seconds, in the order in which they are asked."""

    def __init__(self, chunks: int, paces: dict[str, float]) -> None:
        self.fetch = Fetch(range(chunks))
        self.paces = paces
        self.now = 0.0
        self.queues: dict[str, list[int]] = {source: [] for source in paces}
        self.free_at = dict.fromkeys(paces, 0.0)
        self.gave: list[tuple[str, int]] = []
        self._take(self.fetch.handle(Sources(tuple(paces)), 0.0))

    def run(self, *, until: int = 0, limit_s: float = 1e4) -> float:
        """Until so many chunks are missing; the time it took."""
        while len(self.fetch.missing) > until and self.now < limit_s:
            self.now += 0.05
            for source, queue in self.queues.items():
                if queue and self.now >= self.free_at[source]:
                    chunk = queue.pop(0)
                    self.free_at[source] = self.now + self.paces[source]
                    self.gave.append((source, chunk))
                    self._take(self.fetch.handle(Came(source, chunk), self.now))
            self._take(self.fetch.handle(Tick(), self.now))
        return self.now

    def _take(self, effects: list[FetchEffect]) -> None:
        for source, chunks in asked(effects).items():
            if not self.queues[source]:
                self.free_at[source] = self.now + self.paces[source]
            self.queues[source] += [chunk for chunk in chunks if chunk not in self.queues[source]]
            assert len(self.queues[source]) <= MAX_WINDOW_CHUNKS


def test_every_chunk_is_asked_for_once_spread_over_the_sources_within_their_windows() -> None:
    fetch = Fetch(range(100))
    wants = asked(fetch.handle(Sources(("a", "b")), 0.0))
    assert {s: len(chunks) for s, chunks in wants.items()} == {"a": FIRST_WINDOW_CHUNKS, "b": FIRST_WINDOW_CHUNKS}
    assert len({chunk for chunks in wants.values() for chunk in chunks}) == 2 * FIRST_WINDOW_CHUNKS


def test_a_chunk_that_comes_makes_room_for_the_next() -> None:
    fetch = Fetch(range(6))
    (first, *_) = asked(fetch.handle(Sources(("a",)), 0.0))["a"]
    assert asked(fetch.handle(Came("a", first), AHEAD_S)) == {"a": (2,)}
    for chunk in range(6):
        fetch.handle(Came("a", chunk), AHEAD_S)
    assert not fetch.missing
    assert fetch.handle(Tick(), 9.0) == []


def test_the_window_follows_the_pace_of_each_source_and_is_bounded() -> None:
    one = Download(1000, {"fast": 0.05, "usual": 0.3, "slow": 3.0})
    one.run(until=500)
    owed = {source: len(queue) for source, queue in one.queues.items()}
    assert owed["fast"] == MAX_WINDOW_CHUNKS
    assert 3 <= owed["usual"] <= 5
    assert owed["slow"] == 1


def test_a_slow_source_holds_up_neither_the_middle_nor_the_end() -> None:
    """Sources of 10 and 0.1 chunks a second: alone the fast one needs 10 s for all."""
    one = Download(100, {"fast": 0.1, "slow": 10.0})
    assert one.run() <= 1.2 * 100 * 0.1
    assert len(one.gave) - 100 <= FIRST_WINDOW_CHUNKS  # little was sent twice


def test_two_sources_are_faster_than_one() -> None:
    alone = Download(200, {"a": 0.2}).run()
    assert Download(200, {"a": 0.2, "b": 0.2}).run() <= 0.6 * alone


def test_what_a_silent_source_owes_is_asked_of_another() -> None:
    fetch = Fetch(range(2))
    fetch.handle(Sources(("a", "b")), 0.0)
    fetch.handle(Came("b", 1), 3.0)
    assert fetch.handle(Tick(), SILENCE_FLOOR_S - 0.1) == []
    assert asked(fetch.handle(Tick(), SILENCE_FLOOR_S)) == {"b": (0,)}


def test_a_silent_source_is_asked_for_nothing_new_until_it_gives_something_or_time_has_passed() -> None:
    fetch = Fetch(range(100))
    fetch.handle(Sources(("a", "b")), 0.0)
    fetch.handle(Came("b", 1), SILENCE_FLOOR_S - 0.1)
    assert set(asked(fetch.handle(Tick(), SILENCE_FLOOR_S))) <= {"b"}
    assert "a" not in asked(fetch.handle(Came("b", 0), SILENCE_FLOOR_S + 0.1))
    assert "a" in asked(fetch.handle(Came("a", 2), SILENCE_FLOOR_S + 0.2))


def test_a_lone_source_on_a_slow_way_is_reminded_less_and_less_often() -> None:
    fetch = Fetch(range(1))
    fetch.handle(Sources(("a",)), 0.0)
    reminded = [tenth / 10 for tenth in range(1, 1200) if asked(fetch.handle(Tick(), tenth / 10))]
    gaps = [b - a for a, b in zip([0.0, *reminded], reminded, strict=False)]
    assert [round(gap) for gap in gaps] == [4, 8, 16, 30, 30, 30]
    assert gaps[-1] <= SILENCE_CEILING_S + 0.2


def test_a_reminder_does_not_ask_for_what_is_here_by_now() -> None:
    fetch = Fetch(range(3))
    fetch.handle(Sources(("a", "b")), 0.0)  # a owes 0 and 2
    assert asked(fetch.handle(Came("b", 1), 2.5)) == {}
    assert asked(fetch.handle(Tick(), SILENCE_FLOOR_S)) == {"b": (0,)}
    fetch.handle(Came("b", 0), SILENCE_FLOOR_S + 1)
    reminders = [asked(fetch.handle(Tick(), SILENCE_FLOOR_S + second)) for second in range(1, 40)]
    assert [wants["a"] for wants in reminders if "a" in wants] == [(2,)] * sum("a" in wants for wants in reminders)
    assert any("a" in wants for wants in reminders)


def test_a_source_that_becomes_reachable_is_asked_again_at_once() -> None:
    fetch = Fetch(range(2))
    fetch.handle(Sources(("a",)), 0.0)
    assert asked(fetch.handle(Reachable("a"), 0.1)) == {"a": (0, 1)}
    assert asked(fetch.handle(Reachable("b"), 0.2)) == {}


def test_what_a_lost_source_owes_is_asked_of_another_and_what_it_gave_is_kept() -> None:
    fetch = Fetch(range(3))
    fetch.handle(Sources(("a",)), 0.0)
    fetch.handle(Came("a", 0), 0.1)
    assert asked(fetch.handle(Sources(("b",)), 0.2)) == {"b": (1, 2)}


def test_who_denies_is_not_asked_again_before_all_others_were() -> None:
    fetch = Fetch(range(1))
    assert asked(fetch.handle(Sources(("a", "b")), 0.0)) == {"a": (0,)}
    assert asked(fetch.handle(Denied("a"), 0.1)) == {"b": (0,)}
    assert fetch.handle(Denied("b"), 0.2) == [Exhausted()]
    assert asked(fetch.handle(Tick(), 0.3)) == {"a": (0,)}


def test_who_has_lied_is_asked_only_if_there_is_nobody_else() -> None:
    fetch = Fetch(range(9))
    assert set(asked(fetch.handle(Sources(("a", "b"), frozenset("a")), 0.0))) == {"b"}
    assert set(asked(fetch.handle(Tick(), SILENCE_FLOOR_S))) == {"b"}
    assert set(asked(fetch.handle(Denied("b"), 5.0))) == {"a"}


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


def test_who_has_denied_is_asked_again_while_the_others_are_silent_and_they_are_too() -> None:
    fetch = Fetch([0])
    assert asked(fetch.handle(Sources(("a", "b")), 0.0)) == {"a": (0,)}
    assert asked(fetch.handle(Denied("a"), 0.1)) == {"b": (0,)}
    times: dict[str, int] = {"a": 0, "b": 0}
    vain = 0
    for tenth in range(2, 6000):
        effects = fetch.handle(Tick(), tenth / 10)
        vain += Exhausted() in effects
        for peer in asked(effects):
            times[peer] += 1
        if "a" in asked(effects):
            assert fetch.handle(Denied("a"), tenth / 10) == []
    assert min(times.values()) >= 5
    assert vain == times["a"] < 600  # not with every tick
