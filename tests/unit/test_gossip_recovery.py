"""Where every peer has a state of its own: which lines of the log are a peer's, and how a newcomer copies others'."""

from wantrain.optimizers.noloco import NolocoOptions, noloco
from wantrain.optimizers.stream import Wire
from wantrain.peers.effects import Note, Tell
from wantrain.peers.events import FromPeer
from wantrain.peers.messages import CommitRecord, StateChunk, SyncId, TensorSpec, UpdateChunk, WantUpdate, Welcome
from wantrain.peers.recovery import STUCK_S, Recovery
from wantrain.transport.digest import next_link, update_digest

MANIFEST = (TensorSpec("weight", (16384, 2), "float32"), TensorSpec("bias", (100,), "float32"))
CHUNKS = 3
STREAMS = noloco(NolocoOptions(every=1), Wire("fp32"))
DIGESTS = (b"0" * 32, b"1" * 32, b"2" * 32)
PAIRS = ("ab", "ac", "bc", "ad", "cd")
"""Who is in lines 1, 2, …, each with its number as index."""


def log(pairs: tuple[str, ...] = PAIRS) -> list[CommitRecord]:
    chain, records = b"g" * 32, []
    for number, pair in enumerate(pairs, start=1):
        chain = next_link(chain, digest := update_digest(DIGESTS))
        sync = SyncId("param", number, number)
        records.append(CommitRecord(number, sync, tuple(pair), (1.0,) * len(pair), digest, chain))
    return records


def welcome(records: list[CommitRecord], head: int) -> Welcome:
    chain = records[head - 1].chain if head else b"g" * 32
    return Welcome("me", 1, "", head, chain, b"g" * 32, {"param": head}, MANIFEST)


def recovery_of(me: str, records: list[CommitRecord], head: int) -> Recovery:
    recovery = Recovery(STREAMS, "coordinator", me)
    recovery.open(MANIFEST)
    recovery.sources_changed(("a", "b"), 0.0)
    recovery.welcomed(welcome(records, head), 0.0)
    return recovery


def newcomer(me: str, records: list[CommitRecord], numbers: tuple[int, int, int], givers: str) -> Recovery:
    """With chunk k of `givers[k]`, taken at line `numbers[k]`, and all lines known."""
    recovery = recovery_of(me, records, 1)
    for chunk, (number, giver) in enumerate(zip(numbers, givers, strict=True)):
        recovery.state_came(giver, StateChunk(chunk, number, records[number - 1].chain), b"x", 1.0)
    recovery.learn(records, len(records))
    recovery.take_snapshot(1.0)
    return recovery


def test_chunks_follow_their_givers_until_they_are_of_one_time() -> None:
    records = log()
    recovery = newcomer("e", records, (1, 1, 4), "aba")
    assert (recovery.applied, recovery.complete, recovery.indices) == (1, False, {"param": 1})
    found = []
    while not recovery.complete:
        (line,) = recovery.next_line(1.0)[1:]
        assert line is not None
        if recovery.passes(line):
            recovery.pass_by(line, 1.0)
        else:
            found.append((line.number, recovery.step(line, 1.0)))
    # Line 2 is of a, line 3 of b, line 4 of a again, and already in what a gave last.
    assert found == [(2, frozenset({1, 2})), (3, frozenset({0, 2})), (4, frozenset({1, 2}))]
    assert recovery.indices == {"param": 1}
    (line,) = recovery.next_line(1.0)[1:]
    assert line is not None
    assert recovery.passes(line)


def test_lines_that_name_a_former_process_of_a_newcomer_are_not_its_own() -> None:
    records = log((*PAIRS[:3], "ae", "be"))
    recovery = newcomer("e", records[:4], (4, 4, 4), "aaa")
    assert recovery.indices == {"param": 4}
    recovery.learn(records, 5)
    (line,) = recovery.next_line(1.0)[1:]
    assert line is not None
    assert not recovery.passes(line)
    recovery.step(line, 1.0)
    assert recovery.indices == {"param": 5}


def test_an_update_is_asked_only_of_those_who_were_in_it() -> None:
    records = log(("ab", "cb", "be"))
    recovery = newcomer("e", records[:2], (2, 2, 2), "aaa")
    recovery.learn(records, 3)
    recovery.sources_changed(("a", "b", "c"), 1.0)
    asked = [e.to for e in recovery.fetch(records[2], 1.0) if isinstance(e, Tell) and isinstance(e.record, WantUpdate)]
    assert asked == ["b"]
    for chunk, digest in enumerate(DIGESTS):
        recovery.update_came(FromPeer("b", UpdateChunk(3, chunk), b"x", digest), 3, chunk, 1.0)
    assert recovery.fetched(records[2]) is not None


def test_who_cannot_get_what_it_was_in_enters_anew_if_there_is_another_state() -> None:
    records = log(("ab", "cb", "be"))
    recovery = newcomer("e", records[:2], (2, 2, 2), "aaa")
    recovery.learn(records, 3)
    recovery.fetch(records[2], 1.0)
    recovery.sources_changed((), 1.0)
    assert not any(isinstance(effect, Note) for effect in recovery.tick(1.0 + 2 * STUCK_S))
    assert recovery.applied == 2
    recovery.sources_changed(("a",), 2.0)
    notes = [effect.event for effect in recovery.tick(2.0 + 2 * STUCK_S) if isinstance(effect, Note)]
    assert "enters-anew" in notes
    assert recovery.applied == -1


def test_what_it_took_in_alone_and_has_lost_nobody_else_has() -> None:
    records = log(("ab", "e"))
    recovery = newcomer("e", records[:1], (1, 1, 1), "aaa")
    recovery.learn(records, 2)
    recovery.fetch(records[1], 1.0)
    assert any(isinstance(effect, Note) and effect.event == "enters-anew" for effect in recovery.tick(1.1))
