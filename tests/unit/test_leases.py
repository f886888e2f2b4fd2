"""Data leases: whatever dies or comes back, every sample is in one commit; repeats only where one fell silent."""

import json
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wantrain.errors import ConfigError, StoreError
from wantrain.peers.leases import KEPT_COMMITS, Leases, merged
from wantrain.peers.messages import MAX_DATA, Drawn, Leased, Span, WantLease
from wantrain.peers.supply import ASK_AGAIN_S, LATER_S, LEASE_S, Supply

PATIENCE_S = 30.0
READER = b"reader-1"


def want(**changes: Any) -> WantLease:
    fields = {"data": "d", "length": 100, "seed": 0, "epochs": 0, "reader": READER, "serial": 1, "taken": 0, "left": 0}
    return WantLease(**{**fields, "samples": 10, "least": 1, "unused": 0, "dry": False, **changes})


def ask(leases: Leases, peer: str, now: float = 0.0, **changes: Any) -> Leased:
    answer, _ = leases.wanted(peer, want(**changes), (), now)
    assert answer is not None
    return answer


class Disk:
    """What is durable of a `Leases`, and the next one made from it."""

    def __init__(self) -> None:
        self.rows: dict[str, str] = {}

    def write(self, leases: Leases) -> None:
        for key, value in leases.rows().items():
            self.rows.pop(key, None)
            if value is not None:
                self.rows[key] = value

    def start(self) -> Leases:
        return Leases(self.rows, PATIENCE_S)


# ---- random schedules


@dataclass
class Trainer:
    """One trainer beside one peer, as it lives on its own machine."""

    supply: Supply
    reader: bytes
    drawn: list[tuple[int, int]] = field(default_factory=list)
    committed: int = 0
    suspect: bool = False


class Swarm:
    """Peers that draw, fail and return; what is in which commit."""

    def __init__(self, length: int, epochs: int, peers: int) -> None:
        self.length, self.epochs = length, epochs
        self.now, self.number, self.readers = 0.0, 0, 0
        self.disk = Disk()
        self.leases = self.disk.start()
        self.trainers = {f"p{k}": self.trainer() for k in range(peers)}
        self.commits: dict[int, list[tuple[Trainer, list[tuple[int, int]]]]] = {}

    def trainer(self) -> Trainer:
        self.readers += 1
        reader = f"{self.readers:08}".encode()
        return Trainer(Supply("d", self.length, 7, self.epochs, reader), reader)

    def report(self, peer: str, *, lost: bool = False) -> None:
        """A report of this peer, with what its trainer wants; the answer may get lost."""
        self.now += ASK_AGAIN_S + LATER_S
        trainer = self.trainers[peer]
        self.leases.reported(peer, trainer.reader, [], busy=False, now=self.now)
        question = trainer.supply.ask(self.now)
        if question is not None:
            answer, _ = self.leases.wanted(peer, question, (), self.now)
            if answer is not None and not lost:
                trainer.supply.leased(answer, self.now)
        self.disk.write(self.leases)

    def draw(self, peer: str, samples: int) -> None:
        trainer = self.trainers[peer]
        for _ in range(samples):
            if (place := trainer.supply.draw(self.now)) is not None:
                trainer.drawn.append(place)
        trainer.supply.stepped()

    def commit(self, *peers: str) -> None:
        self.number += 1
        self.commits[self.number] = []
        for peer in peers:
            trainer = self.trainers[peer]
            self.commits[self.number].append((trainer, trainer.drawn[trainer.committed :]))
            trainer.committed = len(trainer.drawn)
        drawn = {p: Drawn(self.trainers[p].reader, {"d": self.trainers[p].supply.settled}) for p in peers}
        self.leases.committed(self.number, drawn)
        self.disk.write(self.leases)

    def silence(self, peer: str) -> None:
        """Nothing is heard of a peer for longer than anybody has patience."""
        self.trainers[peer].suspect = True
        others = [other for other in self.trainers if other != peer]
        for _ in range(4):
            self.now += PATIENCE_S / 2
            for other in others:
                self.report(other)

    def do(self, what: str, peer: str, number: int) -> None:
        match what:
            case "report" | "lost answer":
                self.report(peer, lost=what == "lost answer")
            case "draw":
                self.draw(peer, number)
            case "commit":
                self.commit(peer, *[p for k, p in enumerate(self.trainers) if p != peer and number >> k & 1])
            case "trainer dies":
                self.trainers[peer] = self.trainer()
            case "leaves":
                self.leases.left(peer)
                self.trainers[peer] = self.trainer()
                self.disk.write(self.leases)
            case "silence":
                self.silence(peer)
            case "coordinator":
                self.leases = self.disk.start()
            case "rewind" | "rewind unseen":
                after = max(0, self.number - number % 3)
                self.leases.rewound(after)
                given_up = [one for lost in range(after + 1, self.number + 1) for one in self.commits.pop(lost)]
                self.number = after
                unaware = self.trainers[peer] if what == "rewind unseen" else None
                self.trainers = {name: self.trainer() for name in self.trainers}
                if unaware is not None:  # it has outlived its daemon, and never heard of those commits
                    unaware.committed -= sum(len(places) for trainer, places in given_up if trainer is unaware)
                    self.trainers[peer] = unaware
                self.disk.write(self.leases)

    def finish(self) -> None:
        """No more faults: everybody draws and contributes until the data is used up."""
        for _ in range(100):
            for peer in self.trainers:
                self.report(peer)
                self.draw(peer, 5)
                self.commit(peer)
            if all(trainer.supply.ended for trainer in self.trainers.values()):
                return
        raise AssertionError({p: (t.supply.left, t.supply.reason) for p, t in self.trainers.items()})


WHAT = ["report", "draw", "commit"] * 3 + [
    "lost answer", "trainer dies", "leaves", "silence", "coordinator", "rewind", "rewind unseen",
]  # fmt: skip
STEPS = st.lists(st.tuples(st.sampled_from(WHAT), st.integers(0, 2), st.integers(0, 9)), max_size=60)


@given(st.integers(1, 60), st.integers(1, 3), st.integers(1, 3), STEPS)
@settings(max_examples=150)
def test_every_sample_is_in_one_commit_whatever_happens(
    length: int, epochs: int, peers: int, steps: list[tuple[str, int, int]]
) -> None:
    swarm = Swarm(length, epochs, peers)
    for what, peer, number in steps:
        swarm.do(what, f"p{peer % peers}", number)
    swarm.finish()
    times: Counter[tuple[int, int]] = Counter()
    excused: Counter[tuple[int, int]] = Counter()
    for contributions in swarm.commits.values():
        for trainer, places in contributions:
            times.update(places)
            excused.update(places if trainer.suspect else ())
    assert set(times) == {(epoch, position) for epoch in range(epochs) for position in range(length)}
    assert {place for place, count in times.items() if count - excused[place] > 1} == set()
    if not any(trainer.suspect for trainers in swarm.commits.values() for trainer, _ in trainers):
        assert set(times.values()) == {1}


# ---- single rules


def test_what_a_given_up_commit_held_is_its_readers_again_as_it_may_contribute_it_once_more() -> None:
    leases = Leases({}, PATIENCE_S)
    ask(leases, "a")
    for number, count in (1, 3), (2, 5):
        leases.committed(number, {"a": Drawn(READER, {"d": count})})
    assert leases.rewound(0) == []
    lease = leases.data["d"].of("a", READER)
    assert lease is not None
    assert (lease.confirmed, merged(lease.spans)) == (0, [(0, 0, 10)])
    leases.committed(1, {"a": Drawn(READER, {"d": 5})})
    leases.left("a")
    assert leases.data["d"].pool == [(0, 5, 5)]
    assert [(back.samples, back.why) for back in leases.rewound(0)] == [(5, "commit 1 was given up")]
    assert leases.data["d"].pool == [(0, 0, 10)]


def test_the_same_question_gets_the_same_answer_and_an_old_one_none() -> None:
    leases = Leases({}, PATIENCE_S)
    first = ask(leases, "a")
    assert ask(leases, "a") == first == Leased("d", READER, 1, "granted", (Span(0, 0, 10),))
    assert ask(leases, "a", taken=10, serial=2).spans == (Span(0, 10, 10),)
    assert leases.wanted("a", want(), (), 0.0) == (None, [])
    assert ask(leases, "b").spans == (Span(0, 20, 7),)  # a fair share for one of two, and one part in eight of that


def test_a_lease_is_a_fair_share_of_a_small_data_set_but_never_too_small_to_work_with() -> None:
    leases = Leases({}, PATIENCE_S)
    assert sum(s.count for s in ask(leases, "a", samples=10**6, length=800).spans) == 100
    assert sum(s.count for s in ask(leases, "b", samples=10**6, length=800).spans) == 50
    assert sum(s.count for s in ask(leases, "c", samples=10**6, length=800, least=3000).spans) == 3000


def test_towards_the_end_of_the_last_epoch_leases_get_smaller() -> None:
    leases = Leases({}, PATIENCE_S)
    sizes, taken = [], 0
    while (answer := ask(leases, "a", epochs=1, samples=60, least=60, taken=taken)).answer == "granted":
        sizes.append(sum(span.count for span in answer.spans))
        taken += sizes[-1]
    assert (sum(sizes), sizes[0], sizes[-1]) == (100, 50, 1)
    assert sizes == sorted(sizes, reverse=True)


def test_what_a_dead_trainer_had_drawn_since_its_last_commit_comes_next() -> None:
    leases = Leases({}, PATIENCE_S)
    ask(leases, "a")
    leases.committed(1, {"a": Drawn(READER, {"d": 4})})
    (back,) = leases.reported("a", b"reader-2", [], busy=False, now=1.0)
    assert (back.samples, back.data, back.peer) == (6, "d", "a")
    assert ask(leases, "b").spans == (Span(0, 4, 6), Span(0, 10, 4))


def test_what_is_staged_or_in_a_running_sync_stays_leased() -> None:
    leases = Leases({}, PATIENCE_S)
    ask(leases, "a")
    assert leases.reported("a", b"reader-2", [READER], busy=False, now=1.0) == []
    assert leases.reported("a", b"reader-2", [], busy=True, now=1.0) == []
    assert leases.reported("a", b"", [], busy=False, now=1.0) == []  # its trainer may only not have come back yet
    assert len(leases.reported("a", b"reader-2", [], busy=False, now=1.0)) == 1


def test_a_silent_readers_leases_are_given_to_others_only_when_the_epoch_has_no_others() -> None:
    leases = Leases({}, PATIENCE_S)
    ask(leases, "a")
    late = 10 * PATIENCE_S
    leases.reported("a", READER, [], busy=False, now=late)
    taken = 0
    for now in (late + 1, late + 2 * PATIENCE_S):
        while (answer := ask(leases, "b", now, taken=taken, samples=100, least=100)).spans[-1].epoch == 0:
            taken += sum(span.count for span in answer.spans)
        taken += sum(span.count for span in answer.spans)
    # At its first turn of the epoch the reader was not silent for long enough; afterwards its lease came next.
    assert leases.data["d"].of("a", READER).void  # type: ignore[union-attr]
    answer = ask(leases, "a", late + 3 * PATIENCE_S, taken=10, left=3, serial=5)
    assert (answer.answer, answer.serial) == ("void", 5)
    assert ask(leases, "a", late + 3 * PATIENCE_S, taken=7, serial=6).answer == "granted"
    assert leases.data["d"].of("a", READER).confirmed == 7  # type: ignore[union-attr]


@pytest.mark.parametrize("restarted", [False, True])
def test_a_question_is_not_answered_with_two_grants_though_the_first_was_given_to_others(restarted: bool) -> None:
    disk = Disk()
    leases = disk.start()
    supply = Supply("d", 10, 0, 1, READER)
    first = supply.ask(0.0)
    assert first is not None
    granted, _ = leases.wanted(
        "a", first, (), 0.0
    )  # it is frozen: the answer reaches it late, its question comes again
    late, taken = 2 * PATIENCE_S, 0
    for _ in range(20):
        taken += sum(s.count for s in ask(leases, "b", late, length=10, epochs=1, taken=taken, serial=2).spans)
    assert taken == 10
    disk.write(leases)
    leases = disk.start() if restarted else leases
    again, _ = leases.wanted("a", first, (), late)
    assert (granted.answer, again.answer) == ("granted", "void")  # type: ignore[union-attr]
    supply.leased(granted, late)  # type: ignore[arg-type]
    supply.leased(again, late)  # type: ignore[arg-type]
    supply.draw(late)
    supply.stepped()
    leases.committed(1, {"a": Drawn(READER, {"d": supply.settled})})
    assert leases.snapshot(0) == leases.snapshot(1)  # what it has drawn is others' by now, and counts as theirs
    question = supply.ask(late + ASK_AGAIN_S)
    assert question is not None
    answer, _ = leases.wanted("a", question, (), late)
    assert answer is not None
    assert answer.answer == ("void" if supply.left else "later")
    supply.leased(answer, late)
    assert supply.left == 0


def test_nobody_takes_from_a_silent_peer_that_is_in_a_sync() -> None:
    leases = Leases({}, PATIENCE_S)
    ask(leases, "a", epochs=1, samples=100, least=100)
    late, taken = 2 * PATIENCE_S, 0
    while True:
        answer, back = leases.wanted("b", want(epochs=1, taken=taken, samples=100, least=100), ("a",), late)
        assert answer is not None
        assert back == []
        if answer.answer != "granted":
            break
        taken += sum(span.count for span in answer.spans)
    assert (taken, answer.answer) == (50, "later")
    assert "a (50)" in answer.reason
    answer, (back,) = leases.wanted("b", want(epochs=1, taken=taken, samples=100, least=100), (), late)
    assert answer is not None
    assert (answer.answer, back.peer, back.samples) == ("granted", "a", 50)


def test_the_end_is_told_only_when_all_is_confirmed() -> None:
    leases = Leases({}, PATIENCE_S)
    taken = 0
    while (answer := ask(leases, "a", epochs=1, taken=taken, samples=50, least=50)).answer == "granted":
        taken += sum(span.count for span in answer.spans)
    assert (taken, answer.answer) == (100, "later")
    leases.committed(1, {"a": Drawn(READER, {"d": 99})})
    assert ask(leases, "b", epochs=1, reader=b"reader-2").answer == "later"
    leases.committed(2, {"a": Drawn(READER, {"d": 100})})
    assert ask(leases, "b", epochs=1, reader=b"reader-2").answer == "end"


def test_another_data_set_of_the_same_name_is_refused_and_both_are_named() -> None:
    leases = Leases({}, PATIENCE_S)
    ask(leases, "a", seed=3)
    answer = ask(leases, "b", length=200, seed=4)
    assert answer.answer == "refused"
    assert "100 samples, seed 3" in answer.reason
    assert "200 samples, seed 4" in answer.reason
    supply = Supply("d", 200, 4, 0, READER)
    supply.leased(replace(answer, serial=1), 0.0)
    with pytest.raises(ConfigError, match=r"200 samples(.|\n)*another name: shard\(…, name='d-2'\)"):
        supply.ask(1.0)


def test_data_sets_and_memory_are_bounded() -> None:
    leases = Leases({}, PATIENCE_S)
    for k in range(MAX_DATA):
        assert ask(leases, "a", data=f"d{k}").answer == "granted"
    assert "data sets already" in ask(leases, "a", data="one more").reason
    assert ask(leases, "a", data="empty", length=0).answer == "refused"
    for k in range(100):  # a peer that calls itself another trainer each time
        leases.reported("a", f"{k:08}".encode(), [], busy=False, now=0.0)
        ask(leases, "a", data="d0", reader=f"{k:08}".encode())
    assert len(leases.data["d0"].leases["a"]) == 1
    for number in range(1, KEPT_COMMITS + 10):
        leases.committed(number, {"a": Drawn(b"00000099", {"d0": number})})
    assert len(leases._done) <= KEPT_COMMITS


def test_everything_is_found_again_after_a_restart() -> None:
    disk = Disk()
    leases = disk.start()
    ask(leases, "a", data='a "name"')
    ask(leases, "b", data='a "name"')
    leases.committed(3, {"a": Drawn(READER, {'a "name"': 4})})
    leases.left("b")
    disk.write(leases)
    again = disk.start()
    assert again.data == leases.data
    assert again.snapshot(3) == leases.snapshot(3)
    assert again.rows() == {}
    assert (
        again.rewound(2) == []
    )  # a trainer that is still there has it again, in case that it contributes it once more
    assert again.data['a "name"'].of("a", READER).held == leases.data['a "name"'].of("a", READER).held + 4
    leases.left("a")
    disk.write(leases)
    assert disk.start().rewound(2)[0].samples == 4


@pytest.mark.parametrize(
    "rows", [{"x": "[]"}, {'["data", "d"]': "[1]"}, {'["lease", "d", "p", "00"]': "[0, 0, [], []]"}]
)
def test_rows_of_something_else_are_refused(rows: dict[str, str]) -> None:
    with pytest.raises(StoreError, match="leases cannot be read"):
        Leases(rows, PATIENCE_S)


def test_a_snapshot_lists_what_its_commits_do_not_hold_and_a_new_run_goes_on_from_it() -> None:
    leases = Leases({}, PATIENCE_S)
    ask(leases, "a")
    leases.committed(1, {"a": Drawn(READER, {"d": 4})})
    leases.committed(2, {"a": Drawn(READER, {"d": 6})})
    snapshot = json.loads(json.dumps(leases.snapshot(1)))
    assert snapshot == {"d": {"length": 100, "seed": 0, "epochs": 0, "epoch": 0, "next": 10, "open": [[0, 4, 6]]}}
    new = Leases({}, PATIENCE_S)
    new.restore(snapshot)
    assert ask(new, "z").spans == (Span(0, 4, 6), Span(0, 10, 4))
    with pytest.raises(ValueError, match="known"):
        new.restore(snapshot)


@pytest.mark.parametrize(
    "change",
    [
        {"next": 101},
        {"next": -1},
        {"length": 0},
        {"open": [[0, 4, 90]]},
        {"open": [[1, 0, 1]]},
        {"open": 3},
        {"seed": "x"},
    ],
)
def test_a_false_snapshot_is_refused(change: dict[str, Any]) -> None:
    good = {"length": 100, "seed": 0, "epochs": 0, "epoch": 0, "next": 10, "open": [[0, 4, 6]]}
    leases = Leases({}, PATIENCE_S)
    with pytest.raises(ValueError, match="'d'"):
        leases.restore({"d": {**good, **change}})
    assert leases.data == {}


def test_neighbouring_pieces_are_one() -> None:
    assert merged([(1, 0, 2), (0, 5, 5), (0, 0, 5), (0, 12, 0), (1, 3, 1)]) == [(0, 0, 10), (1, 0, 2), (1, 3, 1)]


# ---- the trainer's side


def granted(serial: int, *spans: Span) -> Leased:
    return Leased("d", READER, serial, "granted", spans)


def test_a_supply_asks_for_the_next_lease_while_it_uses_one() -> None:
    supply = Supply("d", 10**6, 0, 0, READER)
    first = supply.ask(0.0)
    assert first is not None
    assert supply.ask(0.1) is None
    assert supply.ask(ASK_AGAIN_S) == first  # it may have got lost
    supply.leased(granted(1, Span(0, 0, 3)), 0.0)
    second = supply.ask(0.0)
    assert second is not None
    assert (second.serial, second.taken, second.left) == (2, 3, 3)
    supply.leased(granted(2, Span(0, 3, 2), Span(0, 9, 1)), 0.0)
    supply.leased(granted(2, Span(0, 50, 2)), 0.0)  # a copy, or a late answer
    assert supply.ask(10.0) is None
    assert [supply.draw(10.0) for _ in range(3)] == [(0, 0), (0, 1), (0, 2)]
    assert supply.ask(10.0) is not None
    assert [supply.draw(10.0) for _ in range(4)] == [(0, 3), (0, 4), (0, 9), None]


def test_a_lease_is_a_minute_of_samples_at_the_pace_that_was_seen() -> None:
    supply = Supply("d", 10**6, 0, 0, READER)
    supply.ask(0.0)
    supply.leased(granted(1, Span(0, 0, 1000)), 0.0)
    supply.ask(0.0)
    supply.leased(granted(2, Span(0, 1000, 1)), 0.0)
    for k in range(1001):
        supply.draw(k / 20)
    question = supply.ask(50.0)
    assert question is not None
    assert question.samples == pytest.approx(20 * LEASE_S, rel=0.1)
    assert question.least == pytest.approx(20, rel=0.1)


def test_only_what_was_drawn_before_the_last_inner_step_counts() -> None:
    supply = Supply("d", 100, 0, 0, READER)
    supply.ask(0.0)
    supply.leased(granted(1, Span(0, 0, 5)), 0.0)
    supply.draw(0.0)
    supply.stepped()
    supply.draw(0.0)
    assert (supply.drawn, supply.settled) == (2, 1)


def test_a_supply_that_starts_over_is_another_reader_and_drops_what_it_had() -> None:
    supply = Supply("d", 100, 0, 0, READER)
    supply.ask(0.0)
    supply.leased(granted(1, Span(0, 0, 5)), 0.0)
    supply.draw(0.0)
    supply.restart(b"reader-2")
    supply.leased(granted(2, Span(0, 5, 5)), 0.0)  # to the former one
    assert supply.draw(0.0) is None
    question = supply.ask(0.0)
    assert question is not None
    assert (question.reader, question.taken, question.left) == (b"reader-2", 0, 0)


def test_a_dry_supply_says_so_and_asks_again() -> None:
    supply = Supply("d", 100, 0, 1, READER)
    supply.ask(0.0)
    assert not supply.dry  # the first answer is on its way
    supply.leased(Leased("d", READER, 1, "later", (), "with anna"), 0.0)
    assert supply.dry
    assert supply.reason == "with anna"
    assert supply.ask(LATER_S / 2) is None
    question = supply.ask(LATER_S)
    assert question is not None
    assert question.dry
    supply.leased(Leased("d", READER, 2, "end", (), "all"), LATER_S)
    assert supply.ended
    assert supply.ask(100.0) is None
