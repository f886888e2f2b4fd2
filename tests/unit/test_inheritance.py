"""What becomes of a trainer's contributions when its daemon was killed: the log decides, and each counts once."""

from collections.abc import Mapping
from dataclasses import replace

import pytest

from wantrain.peers.inheritance import GRANTED, MERGING, MOVING, STAGING, STARTING, Held, Inheritance, Mark
from wantrain.peers.messages import CommitRecord, SyncId
from wantrain.transport.digest import first_link, next_link

GENESIS = first_link(b"run-id-8", b"s" * 32)
STAGED = Mark(STAGING, serial=3, used=3, floor=10)


def log(*contributors: str, attempt: int = 11) -> list[CommitRecord]:
    """Syncs 1, 2, … of stream `param`; each argument names who is in one, a letter for each."""
    records: list[CommitRecord] = []
    chain = GENESIS
    for number, names in enumerate(contributors, start=1):
        digest = bytes([number]) * 32
        chain = next_link(chain, digest)
        sync = SyncId("param", number, attempt)
        records.append(CommitRecord(number, sync, tuple(names), (1.0,) * len(names), digest, chain))
    return records


def inherited(
    mark: Mark, records: list[CommitRecord], at: int = 1, received: Mapping[str, int] | None = None
) -> Inheritance:
    """Of peer `b`, whose trainer had adopted sync `at` when the marks were true at line `at`."""
    chain = records[at - 1].chain if at else GENESIS
    held = Held(at, chain, {"param": mark})
    return Inheritance("b", held, received or {"param": 2}, {"param": at})


def known(inheritance: Inheritance, records: list[CommitRecord], applied: int, head: int) -> bool:
    """Whether all is known to a peer that stands at a line of this log, of which `head` is the last one."""
    chain = records[min(applied, len(records)) - 1].chain if applied else GENESIS
    return inheritance.known(applied, chain, head, GENESIS)


def test_a_grant_whose_line_was_given_up_is_nothing_to_go_on_from() -> None:
    records = log("ab", "ab", "ab")
    digest = b"x" * 32
    other = replace(records[2], contributors=("a",), digest=digest, chain=next_link(records[1].chain, digest))
    mark = Mark(GRANTED, count=2, index=3)

    def with_reach(line: CommitRecord) -> Inheritance:
        """Killed after it had granted what follows from a line, before it noted that down as its place."""
        held = Held(2, records[1].chain, {"param": mark}, line.number, line.chain)
        return Inheritance("b", held, {"param": 2}, {"param": 3})

    for log_now, applied, head, foreign in (
        (records, 3, 3, False),
        (records, 2, 3, None),  # whether anybody has the line's update is open
        (records, 2, 2, True),
        ([*records[:2], other], 3, 3, True),  # another line with the same number
    ):
        inheritance = with_reach(records[2])
        inheritance.learn(log_now[1:])
        found = known(inheritance, log_now, applied, head)
        assert (bool(inheritance.foreign) if found else None) == foreign, (applied, head)


@pytest.mark.parametrize(
    ("contributors", "mark", "taken"),
    [
        ("ab", STAGED, True),
        ("ac", STAGED, False),
        ("ab", Mark(STAGING, serial=3, used=2, floor=10), False),  # it had never been offered
        ("ab", Mark(STAGING, serial=3, used=3, floor=11), False),  # an earlier contribution was in that attempt
    ],
)
def test_the_first_sync_behind_the_trainers_own_decides(contributors: str, mark: Mark, taken: bool) -> None:
    records = log("ab", contributors, "ab", "a")
    inheritance = inherited(mark, records)
    inheritance.learn(records[:2])
    assert not known(inheritance, records, 4, 4)
    inheritance.learn(records)
    assert known(inheritance, records, 4, 4)
    assert not inheritance.foreign
    pending = inheritance.pending["param"]
    assert (pending.decided, pending.taken) == (True, taken)


def test_without_a_later_sync_it_stays_undecided() -> None:
    records = log("ab")
    inheritance = inherited(STAGED, records)
    inheritance.learn(records)
    assert known(inheritance, records, 1, 1)
    assert not inheritance.pending["param"].decided
    assert inheritance.granted == {"param": 1}


def test_lines_may_come_twice_and_in_any_order() -> None:
    records = log("a", "b", "ab")
    inheritance = inherited(STAGED, records, at=0)
    for record in (records[2], records[1], records[0], records[0], records[2], records[1], records[2]):
        inheritance.learn([record])
    assert known(inheritance, records, 3, 3)
    assert (inheritance.pending["param"].decided, inheritance.pending["param"].taken) == (True, False)


def test_a_grant_that_was_not_received_is_repeated_and_moves_the_trainer() -> None:
    mark = Mark(GRANTED, count=3, serial=3, kind="merge", index=7)
    records = log("ab")
    assert inherited(mark, records).again == ["param"]
    assert inherited(mark, records).granted == {"param": 7}
    assert inherited(mark, records, received={"param": 3}).again == []


@pytest.mark.parametrize(
    ("phase", "contributors", "agrees"), [(MERGING, "ab", 1), (MOVING, "ac", 1), (MERGING, "ac", 0)]
)
def test_a_grant_that_was_begun_must_be_what_the_log_says(phase: int, contributors: str, agrees: bool) -> None:
    records = log("ab", contributors)
    inheritance = inherited(Mark(phase, serial=3, used=3), records)
    inheritance.learn(records)
    assert known(inheritance, records, 2, 2)
    assert (not inheritance.foreign) == agrees


def test_a_history_that_was_given_up_is_recognised() -> None:
    records, others = log("ab", "ab"), log("ab", "ac", "ab", attempt=12)
    same_length = inherited(STAGED, records, at=2)
    same_length.learn([*others[:1], CommitRecord(2, SyncId("param", 2, 12), ("a",), (1.0,), b"x" * 32, b"y" * 32)])
    assert known(same_length, records, 2, 2)
    assert same_length.foreign
    shorter = inherited(STAGED, records, at=2)
    assert known(shorter, records, 1, 1)
    assert shorter.foreign
    another = inherited(STAGED, records, at=0)
    assert another.known(0, b"another chain", 0, b"another genesis")
    assert another.foreign


def test_a_trainer_that_was_being_started_is_started_again() -> None:
    assert inherited(Mark(STARTING), log("ab")).foreign


def test_nothing_is_known_before_the_peer_is_as_far_as_its_trainer() -> None:
    records = log("ab", "ab", "ab")
    inheritance = inherited(STAGED, records, at=2)
    inheritance.learn(records)
    assert not known(inheritance, records, 1, 3)
    assert not known(inheritance, records, 2, 3)  # the line that decides may yet be given up
    assert known(inheritance, records, 3, 3)


def test_what_a_line_has_decided_that_was_given_up_before_it_was_applied_is_read_anew() -> None:
    records = log("ab", "ab")
    others = [records[0], *log("ac", "ac", attempt=12)[1:]]
    digest = b"o" * 32
    others[1] = replace(others[1], digest=digest, chain=next_link(records[0].chain, digest))
    for head in (1, 2):  # the news that the log went back came, or got lost
        inheritance = inherited(Mark(MERGING, serial=3, used=3), records)
        inheritance.learn(records)
        assert not known(inheritance, records, 1, 2)
        assert not known(inheritance, others, head, head)
        inheritance.learn(others[:head])
        assert known(inheritance, others, head, head)
        assert inheritance.foreign  # half of a merge was handed to it that never was


def test_in_a_gossip_run_all_lines_are_read_before_the_trainer_goes_on() -> None:
    """What its former daemon was in its peer passes by: a line that comes later would decide nothing."""
    records = log("ac", "bc")
    held = Held(0, GENESIS, {"param": STAGED})
    inheritance = Inheritance("b", held, {"param": 2}, {"param": 0}, frozenset({"param"}))
    inheritance.learn(records[:1])
    assert not known(inheritance, records, 1, 2)
    inheritance.learn(records)
    assert known(inheritance, records, 2, 2)
    assert inheritance.pending["param"].taken
