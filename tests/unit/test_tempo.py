"""How far the run is: by its own schedule where that is even, else by what the log says."""

from wantrain.optimizers.stream import Stream
from wantrain.peers.commit_log import CommitLog, History
from wantrain.peers.messages import CommitRecord, SyncId, Welcome
from wantrain.peers.tempo import MOST_STEPS, Tempo, pace_of, steps_of

QSR = Stream("param", every=4, schedule="qsr")


def line(number: int, steps: int, pace_s: float = 0.0, stream: str = "param") -> CommitRecord:
    return CommitRecord(
        number, SyncId(stream, number, number), ("a",), (1.0,), b"d" * 32, b"c" * 32, steps=steps, pace_s=pace_s
    )


def test_even_rounds_are_counted_by_their_number() -> None:
    tempo = Tempo((Stream("a", every=10), Stream("b", every=4)))
    tempo.committed(line(1, 77, stream="a"))
    assert tempo.global_step({"a": 1, "b": 3}) == 12
    assert tempo.global_step({"a": 2, "b": 3}) == 20


def test_uneven_rounds_are_counted_by_the_log() -> None:
    tempo = Tempo((QSR,))
    assert (tempo.global_step({"param": 0}), tempo.pace_s("param")) == (0, 0.0)
    tempo.committed(line(1, 19, 0.5))
    assert (tempo.global_step({"param": 1}), tempo.pace_s("param")) == (19, 0.5)


def test_a_newcomer_takes_both_from_its_welcome() -> None:
    tempo = Tempo((QSR,))
    tempo.welcomed(Welcome("me", 1, "", 7, b"", b"", {"param": 7}, (), {"param": 123}, {"param": 0.25}))
    assert (tempo.global_step({"param": 7}), tempo.pace_s("param")) == (123, 0.25)


def test_a_sync_counts_as_far_as_its_longest_contribution() -> None:
    assert steps_of([3, 19, 0]) == 19
    assert steps_of([]) == 0
    assert steps_of([2**62]) == MOST_STEPS


def test_the_pace_is_that_of_the_fastest_who_knows_it() -> None:
    assert pace_of([0.0, 0.3, 0.2]) == 0.2
    assert pace_of([0.0]) == 0.0


def test_the_log_adds_up_steps_by_stream_also_after_it_went_back() -> None:
    log = CommitLog(History(1, chain0=b"c" * 32))
    for number, (stream, steps) in enumerate([("a", 10), ("b", 3), ("a", 7)], start=1):
        log.append(log.next_record(SyncId(stream, number, number), ("x",), (1.0,), b"d" * 32, steps, 0.1))
    assert [record.steps for record in log.records] == [10, 3, 17]
    log.rewind(2)
    assert log.next_record(SyncId("a", 2, 4), ("x",), (1.0,), b"d" * 32, 5, 0.1).steps == 15
