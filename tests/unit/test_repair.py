"""A state that is false somewhere: only what differs is fetched anew, and who has lied is named."""

from typing import Any

import pytest

from wantrain.optimizers.stream import Stream
from wantrain.peers.effects import Effect, Note, StoreState, Tell
from wantrain.peers.events import FromPeer
from wantrain.peers.messages import (
    CommitRecord,
    StateChunk,
    SyncId,
    TensorSpec,
    UpdateChunk,
    WantDigests,
    WantState,
    WantUpdate,
    Welcome,
)
from wantrain.peers.recovery import STUCK_S, Recovery
from wantrain.peers.repair import KEPT
from wantrain.transport.digest import first_link, next_link, state_digest, update_digest

MANIFEST = (TensorSpec("w", (2**14 * 4,), "float32"),)
CHUNKS = 4
CHAIN0 = first_link(b"run-id-8", b"s" * 32)


def digests(*false: int) -> tuple[bytes, ...]:
    """Digests of the state's chunks, some of which are false."""
    return tuple(bytes([100 + k if k in false else k]) * 32 for k in range(CHUNKS))


def update(number: int) -> list[bytes]:
    return [bytes([number, k]) * 16 for k in range(CHUNKS)]


def line(number: int) -> CommitRecord:
    chain = CHAIN0
    for k in range(1, number + 1):
        chain = next_link(chain, update_digest(update(k)))
    return CommitRecord(number, SyncId("param", number, number), ("b",), (1.0,), update_digest(update(number)), chain)


def chain(number: int) -> bytes:
    return line(number).chain if number else CHAIN0


def of(kind: type, effects: list[Effect]) -> list[Any]:
    return [effect for effect in effects if isinstance(effect, kind)]


def asked(kind: type, effects: list[Effect]) -> list[tuple[str, Any]]:
    return [(tell.to, tell.record) for tell in of(Tell, effects) if isinstance(tell.record, kind)]


def notes(name: str, effects: list[Effect]) -> list[dict[str, Any]]:
    return [note.details for note in of(Note, effects) if note.event == name]


def newcomer(sources: tuple[str, ...] = ("b", "c")) -> tuple[Recovery, dict[int, str]]:
    """A peer that has fetched the state at 2; and who has given which chunk."""
    one = Recovery((Stream("param", every=10),), "coordinator")
    one.open(MANIFEST)
    one.sources_changed(sources, 0.0)
    wants = asked(WantState, one.welcomed(Welcome("me", 1, "", 2, chain(2), CHAIN0, {"param": 2}, MANIFEST), 0.0))
    givers = {}
    while wants:
        source, want = wants.pop(0)
        for chunk in want.chunks:
            givers[chunk] = source
            wants += asked(WantState, one.state_came(source, StateChunk(chunk, 2, chain(2)), "state", 0.1))
    one.take_snapshot(0.1)
    assert one.complete
    return one, givers


def give(one: Recovery, source: str, chunk: int, number: int = 2) -> list[Effect]:
    return one.state_came(source, StateChunk(chunk, number, chain(number)), "state", 2.0)


def apply(one: Recovery, number: int) -> None:
    one.learn([line(number)], number)
    _, record = one.next_line(1.0)
    assert record is not None
    one.step(record, 1.0)


@pytest.mark.scenario(10)
@pytest.mark.scenario(15)
def test_only_the_chunks_that_differ_are_fetched_and_not_from_who_gave_them() -> None:
    one, givers = newcomer()
    one.digested(2, state_digest(digests(1)), digests(1))
    effects = one.repair(2, chain(2), state_digest(digests()), 1.0)
    assert effects is not None
    assert not one.complete
    ((source, want),) = asked(WantDigests, effects)
    assert want == WantDigests(2)
    effects = one.digests_came(source, 2, b"".join(digests()), 1.1)
    honest = "b" if givers[1] == "c" else "c"
    assert asked(WantState, effects) == [(honest, WantState((1,)))]
    assert notes("false-state", effects) == [{"number": 2, "chunks": 1, "of": CHUNKS, "sources": [givers[1]]}]
    assert of(StoreState, give(one, honest, 1)) == [StoreState(1, "state")]
    one.take_snapshot(2.0)
    assert (one.complete, one.applied, one.indices) == (True, 2, {"param": 2})


def test_the_repaired_chunk_is_replayed_from_where_it_was_taken_and_the_others_are_not_touched() -> None:
    one, givers = newcomer()
    one.digested(2, state_digest(digests(1)), digests(1))
    one.repair(2, chain(2), state_digest(digests()), 1.0)
    one.digests_came("b", 2, b"".join(digests()), 1.1)
    give(one, "c" if givers[1] == "b" else "b", 1, number=1)  # a source that is one line behind
    one.learn([line(2)], 2)
    one.take_snapshot(2.0)
    assert (one.applied, one.complete) == (1, False)
    _, record = one.next_line(2.0)
    assert record == line(2)
    assert one.step(record, 2.0) == frozenset({0, 2, 3})
    assert (one.applied, one.complete) == (2, True)


def test_a_welcome_that_comes_meanwhile_does_not_move_the_chunks_that_are_right() -> None:
    one, givers = newcomer()
    one.digested(2, state_digest(digests(1)), digests(1))
    one.repair(2, chain(2), state_digest(digests()), 1.0)
    assert one.welcomed(Welcome("me", 2, "", 4, chain(4), CHAIN0, {"param": 4}, MANIFEST), 1.0) == []
    one.digests_came("b", 2, b"".join(digests()), 1.1)
    give(one, "c" if givers[1] == "b" else "b", 1, number=4)
    one.learn([line(3), line(4)], 4)
    one.take_snapshot(2.0)
    assert (one.applied, one.indices, one.complete) == (2, {"param": 2}, False)


def test_a_difference_found_late_is_repaired_from_the_state_that_has_come_of_it() -> None:
    one, givers = newcomer()
    one.digested(2, state_digest(digests(3)), digests(3))
    apply(one, 3)
    assert one.repair(2, chain(2), state_digest(digests()), 1.0) is not None
    effects = one.digests_came("b", 2, b"".join(digests()), 1.1)
    assert [want.chunks for _, want in asked(WantState, effects)] == [(3,)]
    give(one, "c" if givers[3] == "b" else "b", 3, number=3)
    one.take_snapshot(2.0)
    assert (one.complete, one.applied, one.indices) == (True, 3, {"param": 3})


@pytest.mark.scenario(10)
def test_a_false_list_is_not_believed_and_another_peer_is_asked() -> None:
    one, _ = newcomer()
    one.digested(2, state_digest(digests(1)), digests(1))
    effects = one.repair(2, chain(2), state_digest(digests()), 1.0)
    assert effects is not None
    ((first, _),) = asked(WantDigests, effects)
    for false in (digests(0, 1), digests()[:3], (*digests(), b"x" * 32), (b"",)):
        other = asked(WantDigests, one.digests_came(first, 2, b"".join(false), 1.1))
        assert not one.fetching_state
        if false == digests(0, 1):
            assert [peer for peer, _ in other] == ["c" if first == "b" else "b"]


def test_if_nobody_has_the_list_any_more_the_whole_state_is_fetched() -> None:
    one, _ = newcomer()
    one.digested(2, state_digest(digests(1)), digests(1))
    one.repair(2, chain(2), state_digest(digests()), 1.0)
    one.digests_came("b", 2, b"", 1.1)
    effects = one.digests_came("c", 2, b"", 1.2)
    wanted = [chunk for _, want in asked(WantState, effects) for chunk in want.chunks]
    assert sorted(wanted) == list(range(CHUNKS))
    for chunk in range(CHUNKS):
        give(one, "b", chunk)
    one.take_snapshot(2.0)
    assert (one.complete, one.applied) == (True, 2)


def test_if_nobody_holds_the_state_any_more_the_false_one_is_kept() -> None:
    one, _ = newcomer()
    one.digested(2, state_digest(digests(1)), digests(1))
    one.repair(2, chain(2), state_digest(digests()), 1.0)
    one.tick(100.0)
    assert not one.complete  # there are peers to ask
    one.sources_changed((), 100.0)
    assert notes("false-state-kept", one.tick(99.9 + STUCK_S)) == []
    assert notes("false-state-kept", one.tick(100.0 + STUCK_S)) != []
    assert (one.complete, one.applied, one.chain, one.indices) == (True, 2, chain(2), {"param": 2})


def test_if_nobody_holds_what_is_right_any_more_the_false_one_is_kept() -> None:
    one, givers = newcomer()
    one.digested(2, state_digest(digests(0, 1)), digests(0, 1))
    one.repair(2, chain(2), state_digest(digests()), 1.0)
    one.digests_came("b", 2, b"".join(digests()), 1.1)
    give(one, "c" if givers[1] == "b" else "b", 1)
    one.sources_changed((), 100.0)
    assert notes("false-state-kept", one.tick(1.9 + STUCK_S)) == []
    assert notes("false-state-kept", one.tick(2.0 + STUCK_S)) != []
    assert (one.complete, one.applied, one.chain, one.indices) == (True, 2, chain(2), {"param": 2})


def test_without_digests_of_its_own_there_is_nothing_to_compare() -> None:
    one, _ = newcomer()
    assert one.repair(2, chain(2), state_digest(digests()), 1.0) is None
    one.digested(2, state_digest(digests(1)), digests(1))
    assert one.repair(2, b"x" * 32, state_digest(digests()), 1.0) is None
    assert one.repair(2, chain(2), b"", 1.0) is None
    assert one.complete


def test_lists_are_kept_for_the_last_log_numbers_and_not_over_a_snapshot() -> None:
    one, _ = newcomer()
    for number in range(2, KEPT + 3):
        if number > 2:
            apply(one, number)
        one.digested(number, state_digest(digests()), digests())
    assert one.digests_at(2) == b""
    assert one.digests_at(3) == b"".join(digests())
    assert one.digests_at(99) == b""
    one.snapshot_again(3.0)
    assert one.digests_at(3) == b""


@pytest.mark.scenario(10)
def test_what_was_fetched_before_a_source_was_lost_is_kept() -> None:
    one = Recovery((Stream("param", every=10),), "coordinator")
    one.open(MANIFEST)
    one.sources_changed(("b",), 0.0)
    one.welcomed(Welcome("me", 1, "", 2, chain(2), CHAIN0, {"param": 2}, MANIFEST), 0.0)
    give(one, "b", 0)
    effects = one.sources_changed(("c",), 3.0)
    wanted = [chunk for _, want in asked(WantState, effects) for chunk in want.chunks]
    for chunk in (1, 2, 3):
        wanted += [c for _, want in asked(WantState, give(one, "c", chunk)) for c in want.chunks]
    assert sorted(wanted) == [1, 2, 3]
    one.take_snapshot(3.0)
    assert one.complete


# ---- updates


class Network:
    """Answers every question about update 3 at once; some peers give a false chunk."""

    def __init__(self, one: Recovery, liars: dict[str, int]) -> None:
        self.one = one
        self.liars = liars
        self.effects: list[Effect] = []
        self.questions = 0

    def run(self, effects: list[Effect]) -> None:
        self.effects += effects
        queue = [(source, chunk) for source, want in asked(WantUpdate, effects) for chunk in want.chunks]
        while queue:
            source, chunk = queue.pop(0)
            self.questions += 1
            assert self.questions < 200, "it asks for ever"
            digest = b"x" * 32 if self.liars.get(source) == chunk else update(3)[chunk]
            event = FromPeer(source, UpdateChunk(3, chunk), f"{source}{chunk}", digest)
            more = self.one.update_came(event, 3, chunk, 2.0)
            self.effects += more
            queue += [(source, chunk) for source, want in asked(WantUpdate, more) for chunk in want.chunks]


def test_an_update_is_got_and_the_liar_named_however_its_chunks_were_spread() -> None:
    for liar in "bcd":
        for chunk in range(CHUNKS):
            one, _ = newcomer(("b", "c", "d"))
            one.learn([line(3)], 3)
            net = Network(one, {liar: chunk})
            net.run(one.fetch(line(3), 2.0))
            payloads = one.fetched(line(3))
            assert payloads is not None
            assert f"{liar}{chunk}" not in payloads
            named = notes("false-update", net.effects)
            assert all(note["sources"] == [liar] for note in named)


@pytest.mark.scenario(10)
def test_two_liars_do_not_keep_an_update_from_a_peer() -> None:
    one, _ = newcomer(("b", "c", "d"))
    one.learn([line(3)], 3)
    net = Network(one, {"b": 0, "c": 1})
    net.run(one.fetch(line(3), 2.0))
    assert one.fetched(line(3)) is not None
    assert {source for note in notes("false-update", net.effects) for source in note["sources"]} <= {"b", "c"}
    one.step(line(3), 2.0)
    assert {peer for peer, _ in asked(WantUpdate, one.fetch(line(4), 3.0))} == {"d"}


def test_a_lone_liar_is_named_and_asked_again_as_there_is_nobody_else() -> None:
    one, _ = newcomer(("b",))
    one.learn([line(3)], 3)
    wants = asked(WantUpdate, one.fetch(line(3), 2.0))
    effects: list[Effect] = []
    for chunk in range(CHUNKS):
        effects += one.update_came(FromPeer("b", UpdateChunk(3, chunk), "false", b"x" * 32), 3, chunk, 2.0)
    assert wants
    assert notes("false-update", effects) == [{"number": 3, "sources": ["b"]}]
    assert one.fetched(line(3)) is None
    assert asked(WantUpdate, effects)[-1][0] == "b"


def test_a_lone_liar_is_not_asked_as_fast_as_it_can_lie() -> None:
    one, _ = newcomer(("b",))
    one.learn([line(3)], 3)
    queue = asked(WantUpdate, one.fetch(line(3), 2.0))
    questions = 0
    for tenth in range(100):
        effects = one.tick(2.0 + tenth / 10)
        while queue or effects:
            queue += asked(WantUpdate, effects)
            effects = []
            if queue:
                _, want = queue.pop(0)
                questions += len(want.chunks)
                for chunk in want.chunks:
                    event = FromPeer("b", UpdateChunk(3, chunk), "false", b"x" * 32)
                    effects += one.update_came(event, 3, chunk, 2.0 + tenth / 10)
    assert 5 * CHUNKS <= questions <= 15 * CHUNKS


def test_lines_beyond_the_head_that_a_welcome_names_were_given_up() -> None:
    one, _ = newcomer()
    one.learn([line(3)], 3)
    one.welcomed(Welcome("me", 2, "", 2, chain(2), CHAIN0, {"param": 2}, MANIFEST), 1.0)
    assert one.head == 2
    assert one.next_line(1.0) == ([], None)


@pytest.mark.scenario(10)
def test_an_update_that_is_to_be_had_false_only_is_done_without_by_fetching_the_state() -> None:
    one, _ = newcomer(("b",))
    one.learn([line(3)], 3)
    queue, now = asked(WantUpdate, one.fetch(line(3), 2.0)), 2.0
    effects: list[Effect] = []
    while now < 30.0 and not asked(WantState, effects):
        now += 0.1
        effects = one.tick(now)
        queue += asked(WantUpdate, effects)
        while queue:
            for chunk in queue.pop(0)[1].chunks:
                came = one.update_came(FromPeer("b", UpdateChunk(3, chunk), "false", b"x" * 32), 3, chunk, now)
                queue += asked(WantUpdate, came)
    assert asked(WantState, effects)
    assert now > 5.0  # it was asked for again and again before
