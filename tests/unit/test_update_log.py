"""The update log keeps the newest updates within its budget."""

from wantrain.peers.messages import CommitRecord, SyncId
from wantrain.peers.update_log import UpdateLog


def record(number: int) -> CommitRecord:
    return CommitRecord(number, SyncId("param", number, number), ("a",), (1.0,), b"d" * 32, b"c" * 32)


def held(log: UpdateLog, numbers: range) -> list[int]:
    return [number for number in numbers if log.get(number) is not None]


def test_the_oldest_go_when_the_bytes_are_too_many() -> None:
    log = UpdateLog(keep_bytes=250, keep_updates=100)
    for number in range(1, 6):
        log.append(record(number), ["x"], 100)
    assert held(log, range(10)) == [4, 5]


def test_the_oldest_go_when_the_updates_are_too_many() -> None:
    log = UpdateLog(keep_bytes=10**9, keep_updates=3)
    for number in range(1, 6):
        log.append(record(number), ["x"], 100)
    assert held(log, range(10)) == [3, 4, 5]


def test_the_newest_is_kept_whatever_its_size() -> None:
    log = UpdateLog(keep_bytes=10, keep_updates=3)
    log.append(record(1), ["x"], 100)
    log.append(record(2), ["y"], 100)
    assert held(log, range(10)) == [2]


def test_an_update_that_comes_again_is_counted_once() -> None:
    log = UpdateLog(keep_bytes=250, keep_updates=100)
    for _ in range(3):
        log.append(record(1), ["x"], 100)
    log.append(record(2), ["y"], 100)
    assert held(log, range(10)) == [1, 2]


def test_after_clear_nothing_is_held_and_the_budget_is_free() -> None:
    log = UpdateLog(keep_bytes=100, keep_updates=3)
    log.append(record(1), ["x"], 100)
    log.clear()
    assert held(log, range(10)) == []
    log.append(record(2), ["x"], 50)
    log.append(record(3), ["x"], 50)
    assert held(log, range(10)) == [2, 3]
