"""Saving: whose turn it is, what is held back meanwhile, what a peer begins with, and when the log goes back."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from tests.unit.test_coordinator_core import FACTS, Run, hello, history
from tests.unit.test_coordinator_core import line as log_line
from tests.unit.test_participant import (
    CHAIN0,
    HELLO,
    MANIFEST,
    PARAM,
    RUN,
    One,
    chain,
    chunk_digest,
    line,
    with_an_update,
)
from wantrain.errors import CheckpointError
from wantrain.optimizers.stream import Stream
from wantrain.peers.coordinator import Coordinator, PersistRewind, SaveWanted, Send, Tick
from wantrain.peers.effects import (
    Apply,
    BeginSave,
    DropSave,
    Effect,
    Exit,
    Grant,
    LoadInitial,
    LoadSaved,
    Note,
    RefuseTrainer,
    Tell,
)
from wantrain.peers.events import (
    GenesisReady,
    LeaveRequested,
    SavedLoaded,
    SavedUnusable,
    SaveFailed,
    StateCaptured,
    StateSaved,
    TrainerAttached,
)
from wantrain.peers.events import (
    Tick as Later,
)
from wantrain.peers.messages import (
    Genesis,
    Leave,
    MayLeave,
    NotSaved,
    Refetch,
    Report,
    SaveState,
    SyncReport,
    TensorSpec,
    UpdateChunk,
    Waiting,
    WantGenesis,
    WantRecords,
    WantState,
    Welcome,
)
from wantrain.peers.participant import COORDINATOR, Participant, PeerFacts
from wantrain.peers.save_duty import ASK_AGAIN_S, PATIENCE_S, PAUSE_S, Ask, SaveDuty
from wantrain.peers.saved_state import STATE_FILE, SavedFile, SavedState, SavedStream
from wantrain.peers.saver import Saver
from wantrain.peers.saving import Saving
from wantrain.transport.digest import first_link, state_digest

DIGESTS = (b"c" * 32,)


def saved(number: int, **changes: Any) -> SavedState:
    made = SavedState(
        format=2,
        version="0",
        run=RUN,
        spec_digest=bytes(32),
        number=number,
        chain=chain(number),
        genesis=CHAIN0,
        indices={"param": number},
        streams=(SavedStream(name="param", state="param", slots=("phi",), tensors=("w",)),),
        model=MANIFEST,
        state_digest=bytes(32),
        files={STATE_FILE: SavedFile(size_bytes=0, blake3=bytes(32))},
        saved_unix=0.0,
        extra={},
    )
    return made.model_copy(update=changes)


def peer(*found: SavedState, **options: Any) -> One:
    one = One()
    one.core = Participant(PeerFacts("me", RUN, HELLO, (PARAM,), saved=found, **options))
    return one


def reports(effects: list[Effect]) -> list[Report]:
    return [e.record for e in effects if isinstance(e, Tell) and isinstance(e.record, Report)]


def of(kind: type, effects: list[Effect]) -> list[Any]:
    return [effect for effect in effects if isinstance(effect, kind)]


# ---- a peer that comes back


@pytest.mark.scenario(11)
def test_a_returning_peer_takes_the_newest_state_that_fits_and_replays_the_rest() -> None:
    one = peer(saved(9), saved(5, genesis=b"x" * 32), saved(4, model=()), saved(3), saved(2))
    effects = one.welcome(8)
    assert of(LoadSaved, effects) == [LoadSaved(3)]
    assert len(of(Note, effects)) == 3
    assert not [e for e in effects if isinstance(e, Tell) and isinstance(e.record, WantState)]
    effects = one.do(SavedLoaded(3, DIGESTS))
    (report,) = reports(effects)
    assert (report.log_number, report.chain, report.saved) == (3, chain(3), 3)
    assert (report.state_number, report.state_digest) == (3, state_digest(DIGESTS))
    assert [e.record for e in effects if isinstance(e, Tell) and isinstance(e.record, WantRecords)] == []
    one.now = 5.0
    asked = [e.record for e in one.do(Later()) if isinstance(e, Tell) and isinstance(e.record, WantRecords)]
    assert asked == [WantRecords(4)]


def test_a_state_that_cannot_be_read_is_followed_by_the_next_and_at_last_by_a_fetch() -> None:
    one = peer(saved(4), saved(3))
    assert of(LoadSaved, one.welcome(8)) == [LoadSaved(4)]
    effects = one.do(SavedUnusable(4, "torn"))
    assert of(LoadSaved, effects) == [LoadSaved(3)]
    effects = one.do(SavedUnusable(3, "torn"))
    assert of(LoadSaved, effects) == []
    asked = [e.record for e in one.view("b") if isinstance(e, Tell) and isinstance(e.record, WantState)]
    assert asked == [WantState((0,))]
    assert one.core.applied == -1


@pytest.mark.scenario(11)
def test_a_history_that_the_run_refuses_gives_way_to_the_next_older_state() -> None:
    one = peer(saved(4), saved(3))
    one.welcome(8)
    one.do(SavedLoaded(4, DIGESTS))
    one.hear(Refetch(4, chain(4), "another history up to log number 4", b""))
    assert of(LoadSaved, one.welcome(8)) == [LoadSaved(3)]
    one.do(SavedLoaded(3, DIGESTS))
    assert one.core.applied == 3


def test_a_trainer_waits_until_a_resumed_state_has_caught_up() -> None:
    one = peer(saved(1))
    one.welcome(2)
    one.do(SavedLoaded(1, DIGESTS))
    one.view("b")
    assert of(Grant, one.do(TrainerAttached(b"trainer1", MANIFEST))) == []
    one.commit(line(2))
    update = one.hear(UpdateChunk(2, 0), "b", "bytes", chunk_digest(2))
    assert of(Apply, update)
    assert [grant.kind for grant in of(Grant, update)] == ["start"]


# ---- saving


def running(**options: Any) -> One:
    """A peer at log number 1, alone."""
    one = peer(saved(1), **options)
    one.welcome(1)
    one.do(SavedLoaded(1, DIGESTS))
    one.view("b")
    return one


def test_updates_wait_while_a_state_is_written_and_not_while_it_becomes_durable() -> None:
    one = running()
    effects = one.hear(SaveState(1, ""))
    assert of(BeginSave, effects) == []  # it is on disk already
    assert reports(effects)[0].saved == 1
    effects = one.hear(SaveState(2, '{"a":1}'))
    assert of(BeginSave, effects) == []  # not there yet
    one.commit(line(2))
    effects = one.hear(UpdateChunk(2, 0), "b", "bytes", chunk_digest(2))
    assert of(BeginSave, effects) == [BeginSave(2, chain(2), CHAIN0, {"param": 2}, '{"a":1}')]
    assert one.core.saving
    assert not one.core.held_back
    assert of(Apply, one.commit(line(3))) == []
    assert one.core.held_back
    assert "to be written to disk" in one.core.waiting(0.0)
    one.do(StateCaptured(2, DIGESTS))
    assert of(Apply, one.hear(UpdateChunk(3, 0), "b", "bytes", chunk_digest(3)))
    assert one.core.applied == 3
    assert reports(one.do(StateSaved(2)))[-1].saved == 2


def test_gradients_are_not_held_back() -> None:
    one = peer(saved(1, indices={"param": 1, "grad": 0}))
    one.core = Participant(
        replace(one.core.facts, streams=(PARAM, Stream("grad", state="grad")), saved=one.core.facts.saved)
    )
    one.welcome(1)
    one.do(SavedLoaded(1, DIGESTS))
    one.hear(SaveState(1, ""))
    one.core._saving.asked(2, "")
    assert of(BeginSave, one.do(Later())) == []
    one.core._saving._wanted = 1
    assert of(BeginSave, one.do(Later()))
    one.commit(replace(line(2, stream="grad"), sync=replace(line(2, stream="grad").sync, index=1)))
    assert one.core.applied == 2
    assert one.core.saving


def test_a_save_that_fails_lets_updates_go_on_and_the_coordinator_know() -> None:
    one = running()
    one.core._saving.asked(2, "")
    one.core._saving._wanted = 1
    one.do(Later())
    one.commit(line(2))
    effects = one.do(SaveFailed(1, "disk full"))
    assert [e.record for e in effects if isinstance(e, Tell) and isinstance(e.record, NotSaved)] == [
        NotSaved(1, "disk full")
    ]
    assert not one.core.saving
    assert one.do(SaveFailed(1, "once more")) == []


def test_a_state_that_is_not_the_runs_is_not_saved_to_the_end() -> None:
    one = running()
    one.core._saving._wanted = 1
    one.do(Later())
    effects = one.hear(Refetch(1, chain(1), "another history", b""))
    assert of(DropSave, effects) == [DropSave()]
    assert one.core._saving.saved == -1


def test_a_leaving_peer_waits_for_its_state_to_be_on_disk_but_not_for_ever() -> None:
    for ending in (StateSaved(2), SaveFailed(2, "disk full"), None):
        one = running(saves_at_end=True)
        one.commit(line(2))
        one.hear(UpdateChunk(2, 0), "b", "bytes", chunk_digest(2))
        one.core._recovery.state_digest = (2, b"d" * 32)
        effects = one.do(LeaveRequested("done"))
        effects += one.hear(MayLeave(2, 2, heard=99)) + one.do(Later())
        assert of(BeginSave, effects)
        assert not one.core.left
        assert "on disk" in one.core.waiting(0.0)
        one.do(StateCaptured(2, DIGESTS))
        if ending is None:
            one.now = 1000.0
            effects = one.do(Later())
        else:
            effects = one.do(ending)
        one.now += 100.0
        one.do(Later())
        assert one.core.left


def test_who_leaves_alone_offers_nothing_while_it_saves_as_it_would_be_in_no_saved_state() -> None:
    one = with_an_update()
    one.stage(1)  # it comes too late for the sync of that update
    one.core._departure._saves = True
    one.view()
    effects = one.do(LeaveRequested("done")) + one.hear(MayLeave(1, 7, heard=99)) + one.do(Later())
    assert of(BeginSave, effects)
    one.stage(2)
    assert [report.syncs for report in reports(one.heartbeat())] == [()]
    one.view("b")  # who is not alone goes on: others hold what it does with them
    assert [len(report.syncs) for report in reports(one.heartbeat())] == [1]
    one.view()
    one.do(StateCaptured(1, DIGESTS))
    assert of(Exit, one.do(StateSaved(1)))


def test_who_leaves_alone_saves_what_it_has_done_last_and_others_save_once() -> None:
    saving = Saving([], ["param"])

    def save(number: int) -> None:
        assert saving.begin(number, b"", b"", {"param": number})
        assert saving.last_wish_open
        saving.done(number)

    assert saving.last_wish(2, alone=False)
    save(2)
    assert not saving.last_wish(4, alone=False)
    assert saving.last_wish(4, alone=True)
    save(4)
    assert not saving.last_wish(4, alone=True)
    assert saving.last_wish(5, alone=True)
    saving.begin(5, b"", b"", {"param": 5})
    saving.failed(5)
    assert not saving.last_wish(5, alone=True)  # it cannot be written: who leaves does not wait for ever


@pytest.mark.scenario(8)
def test_a_state_is_not_given_up_for_a_newer_one_while_nobody_has_that() -> None:
    one = running()
    chase = one.core._recovery._chase
    chase.snapshot.add(0.1)
    chase.update.add(60.0)
    one.view()
    one.commit(*map(line, range(2, 6)))
    for _ in range(10):
        one.now += 1.0
        one.do(Later())
    assert chase.losing
    assert one.core.applied == 1
    one.view("b")
    one.now += 1.0
    one.do(Later())
    assert one.core.applied == -1


@pytest.mark.scenario(11)
def test_a_saved_state_is_not_given_up_by_a_welcome_that_came_late() -> None:
    one = peer(saved(3))
    assert [note.details["number"] for note in of(Note, one.welcome(0))] == [3]
    assert of(Note, one.welcome(0)) == []
    assert of(LoadSaved, one.welcome(8)) == [LoadSaved(3)]
    one.do(SavedLoaded(3, DIGESTS))
    assert one.core.applied == 3
    assert of(LoadSaved, one.welcome(8)) == []


# ---- the beginning of a run


def test_an_initial_state_becomes_the_runs_if_the_trainers_model_is_its() -> None:
    one = peer(initial=saved(7))
    one.welcome(-1)
    one.hear(WantGenesis())
    effects = one.do(TrainerAttached(b"trainer1", (TensorSpec("w", (10,), "bfloat16"),)))
    assert of(LoadInitial, effects) == [LoadInitial()]
    effects = one.do(GenesisReady(b"s" * 32))
    assert [e.record for e in effects if isinstance(e, Tell) and isinstance(e.record, Genesis)]
    assert first_link(RUN, b"s" * 32) == CHAIN0
    one.revision += 1
    manifest = (TensorSpec("w", (10,), "bfloat16"),)
    effects = one.hear(Welcome("me", one.revision, "", 0, CHAIN0, CHAIN0, {"param": 0}, manifest))
    assert one.core.applied == 0
    assert [grant.kind for grant in of(Grant, effects)] == ["start"]


def test_an_initial_state_of_another_model_turns_the_trainer_away() -> None:
    one = peer(initial=saved(7))
    one.welcome(-1)
    one.hear(WantGenesis())
    (refused,) = of(RefuseTrainer, one.do(TrainerAttached(b"trainer1", (TensorSpec("v", (3,), "float32"),))))
    assert "not in the model: w [10]" in refused.reason


def test_a_run_that_has_begun_with_something_else_is_an_error_for_who_brings_its_beginning() -> None:
    one = peer(initial=saved(7))
    one.welcome(-1)
    (ended,) = of(Exit, one.welcome(0))
    assert ended.code == 3
    assert "has begun already" in ended.reason


def test_who_brings_the_initial_state_is_asked_for_it_before_all_others() -> None:
    run = Run(Coordinator(FACTS, replace(history(0), manifest=(), chain0=b"")))
    run.tell("a", hello("a"))
    run.report("a", -1, trainer="starting")
    run.tell("b", hello("b", initial=True))
    run.report("b", -1, trainer="none")
    asked = [e.to for e in run.handle(Tick(), 1.0) if isinstance(e, Send) and isinstance(e.record, WantGenesis)]
    assert asked == ["b"]


# ---- whose turn it is


def asked(asks: list[Ask]) -> list[tuple[str, int]]:
    return [(ask.peer, ask.number) for ask in asks]


def test_members_take_turns_and_a_lost_request_is_repeated() -> None:
    duty = SaveDuty(10)
    assert duty.tick(9, ("b", "a"), 0.0) == []
    assert asked(duty.tick(12, ("b", "a"), 0.0)) == [("b", 10)]
    assert duty.tick(12, ("b", "a"), 1.0) == []
    assert asked(duty.tick(12, ("b", "a"), ASK_AGAIN_S)) == [("b", 10)]
    duty.reported("b", 12)
    assert duty.tick(19, ("b", "a"), 9.0) == []
    assert duty.newest(19) == (12, "b")
    assert asked(duty.tick(20, ("b", "a"), 10.0)) == [("a", 20)]


def test_the_state_as_it_is_now_is_asked_for_as_leases_of_the_line_that_was_due_would_lack_what_came_since() -> None:
    assert asked(SaveDuty(10).ask(12, ("a",), (), 0.0)) == [("a", 12)]


def test_a_writer_that_is_overtaken_by_the_log_is_asked_again() -> None:
    duty = SaveDuty(1)
    assert asked(duty.tick(5, ("a",), 0.0)) == [("a", 5)]
    duty.reported("a", 5)
    assert asked(duty.tick(9, ("a",), 0.1)) == [("a", 9)]


def test_who_was_not_asked_cannot_keep_others_from_saving_nor_can_one_for_longer_than_its_turn() -> None:
    duty = SaveDuty(10)
    duty.reported("liar", 2**60)
    assert asked(duty.tick(10, ("a", "liar"), 0.0)) == [("liar", 10)]
    duty.reported("liar", 2**60)
    assert asked(duty.tick(20, ("a", "liar"), 1.0)) == [("a", 20)]


def test_after_the_log_went_back_what_is_due_is_asked_for_again() -> None:
    duty = SaveDuty(10)
    duty.tick(30, ("a",), 0.0)
    duty.reported("a", 30)
    assert duty.tick(31, ("a",), 1.0) == []
    assert asked(duty.tick(20, ("a",), 2.0)) == [("a", 20)]


def test_what_was_saved_on_demand_is_asked_for_once_more_after_the_log_went_back_and_not_at_every_line() -> None:
    duty = SaveDuty(0)
    duty.demand(100)
    asks = []
    for head in (100, 90, 91, 92):
        asks += asked(duty.tick(head, ("a",), float(head)))
        duty.reported("a", head)
    assert asks == [("a", 100), ("a", 90)]


@pytest.mark.parametrize("how", ["gone", "failed", "silent"])
def test_who_does_not_save_is_replaced(how: str) -> None:
    duty = SaveDuty(10)
    duty.tick(10, ("a", "b"), 0.0)
    first = duty.writer
    members, now = ("a", "b"), 1.0
    if how == "gone":
        members = tuple({"a", "b"} - {first})
    elif how == "failed":
        duty.failed(first, "disk full")
    else:
        now = PATIENCE_S
    (other,) = asked(duty.tick(10, members, now))
    assert other[0] != first
    assert first in duty.trouble


def test_who_takes_longer_than_the_patience_has_saved_what_it_was_asked_for_all_the_same() -> None:
    duty = SaveDuty(10)
    duty.tick(10, ("a", "b"), 0.0)
    slow = duty.writer
    (other,) = asked(duty.tick(20, ("a", "b"), PATIENCE_S))
    assert other[0] != slow
    duty.reported(slow, 9)
    assert duty.pending(10)
    duty.reported(slow, 10)
    assert (duty.pending(10), duty.pending(20), duty.writer) == (False, True, other[0])
    assert duty.trouble == ""


def test_when_all_have_failed_it_is_tried_again_after_a_pause_or_on_demand() -> None:
    duty = SaveDuty(10)
    duty.tick(10, ("a",), 0.0)
    duty.failed("a", "disk full")
    assert duty.tick(10, ("a",), 1.0) == []
    assert duty.tick(10, ("a",), PAUSE_S) == []
    duty.demand(10)
    assert asked(duty.tick(10, ("a",), PAUSE_S)) == [("a", 10)]


def test_on_demand_the_state_as_it_is_now_is_due_and_what_is_beyond_the_log_does_not_count() -> None:
    duty = SaveDuty(0)
    assert duty.due(100) == -1
    duty.demand(7)
    duty.reported("a", 9)
    assert asked(duty.tick(7, ("a",), 0.0)) == [("a", 7)]
    assert duty.newest(7) == (-1, "")
    assert duty.newest(9) == (9, "a")


def test_the_coordinator_asks_announces_and_replaces() -> None:
    run = Run(Coordinator(replace(FACTS, save_every=2), history(4)))
    for name in "ab":
        run.tell(name, hello(name))
        run.report(name, 4, chain=log_line(4).chain)
    sent = [e for e in run.handle(Tick(), 1.0) if isinstance(e, Send) and isinstance(e.record, SaveState)]
    assert [send.record for send in sent] == [SaveState(4, "")]
    first = sent[0].to
    run.tell(first, NotSaved(4, "disk full"))
    assert [(said.event, said.details["reason"]) for said in run.said if said.event == "save-failed"] == [
        ("save-failed", "disk full")
    ]
    sent = [e for e in run.handle(Tick(), 2.0) if isinstance(e, Send) and isinstance(e.record, SaveState)]
    other = sent[0].to
    assert other != first
    run.report(other, 4, chain=log_line(4).chain, saved=4)
    assert run.core.saves.newest(4) == (4, other)
    assert any(said.event == "saved" for said in run.said)
    assert run.handle(SaveWanted(), 3.0) == []


# ---- when all were gone


def stranded(number: int, *names: str, **changes: Any) -> Run:
    """A coordinator with four lines, and peers that have come back with the state of an earlier one."""
    run = Run(Coordinator(FACTS, history(4)))
    for name in names:
        run.tell(name, hello(name))
        run.report(name, number, chain=log_line(number).chain, **changes)
    return run


def rewinds(run: Run, now: float) -> list[int]:
    """To where the log goes back now; whoever was there is still there."""
    for peer, known in run.core.membership.peers.items():
        assert known.report is not None
        run._sequence += 1
        run.tell(peer, replace(known.report, sequence=run._sequence), now)
    return [effect.after for effect in run.handle(Tick(), now) if isinstance(effect, PersistRewind)]


@pytest.mark.scenario(11)
def test_who_waits_for_a_state_that_nobody_has_hears_who_has_saved_one() -> None:
    run = stranded(4, "a", "b", saved=2)
    run.tell("a", Leave(b"bootboot", "done"))
    run.tell("b", Leave(b"bootboot", "done"))
    run.tell("c", hello("c"))
    run.report("c", -1)
    told = [e.record for e in run.handle(Tick(), 1.0) if isinstance(e, Send) and isinstance(e.record, Waiting)]
    assert [reason.reason for reason in told] == [run.core.reason()]
    assert "log number 4 is gone: bring one of them back (b has saved it at 2)" in run.core.reason()


@pytest.mark.scenario(22)
def test_the_log_goes_back_soon_if_everybody_who_could_have_more_is_back_without_it() -> None:
    run = stranded(2, "a")
    soon_s = FACTS.policy.grace_floor_s + 2 * FACTS.policy.heartbeat_s
    assert rewinds(run, 0.0) == []
    assert "goes back to 2" in run.core.reason()
    assert [to for second in range(1, int(soon_s)) for to in rewinds(run, float(second))] == []
    assert rewinds(run, soon_s - 0.1) == []
    assert rewinds(run, soon_s) == [2]
    welcomes = [send for send in run.sent if isinstance(send.record, Welcome)]
    assert (welcomes[-1].to, welcomes[-1].record.head) == ("a", 2)


@pytest.mark.scenario(22)
def test_the_log_stays_as_it_is_for_long_while_somebody_is_away_who_may_have_more() -> None:
    run = stranded(2, "b")  # "a" made the lines
    ceiling_s = FACTS.policy.deadline_ceiling_s
    assert rewinds(run, 0.0) == []
    assert "unless a comes back" in run.core.reason()
    assert rewinds(run, ceiling_s - 1.0) == []


@pytest.mark.scenario(22)
def test_the_log_stays_as_it_is_for_long_while_a_contributor_that_was_started_again_may_have_more_on_its_disk() -> None:
    run = stranded(2, "b")
    run.tell("a", hello("a", boot=b"nextboot"))
    run.report("a", -1, boot=b"nextboot")  # it made the lines, and is still reading its saved state
    long_s = int(FACTS.policy.deadline_ceiling_s)
    assert [to for second in range(long_s) for to in rewinds(run, float(second))] == []
    assert "unless a comes back" in run.core.reason()
    run.report("a", 3, long_s - 0.5, boot=b"nextboot", chain=log_line(3).chain)
    assert rewinds(run, float(long_s)) == []  # it may be further by now
    assert [to for second in range(1, 6) for to in rewinds(run, float(long_s + second))] == [3]


def test_nobody_is_asked_to_save_while_the_log_is_about_to_go_back() -> None:
    run = stranded(4, "a")
    run.core._syncs.close()
    assert run.handle(SaveWanted(), 1.0) == []
    run.core._syncs.open()
    assert Send("a", SaveState(4)) in run.handle(Tick(), 2.0)


@pytest.mark.scenario(20)
def test_after_a_time_in_which_the_coordinator_stood_still_it_waits_anew_before_the_log_goes_back() -> None:
    run = stranded(2, "b")
    ceiling_s = FACTS.policy.deadline_ceiling_s
    assert rewinds(run, 0.0) == rewinds(run, 1.0) == rewinds(run, 2 * ceiling_s) == []
    went = [(second, to) for second in range(int(ceiling_s) + 2) for to in rewinds(run, 2 * ceiling_s + second)]
    assert went == [(int(ceiling_s), 2)]


@pytest.mark.scenario(22)
def test_the_log_stays_as_it_is_while_somebody_has_the_next_update_in_hand() -> None:
    done = SyncReport("param", 3, "done", attempt=3, digest=b"d" * 32)
    run = stranded(2, "a", syncs=(done,))
    rewinds(run, 0.0)
    assert rewinds(run, FACTS.policy.deadline_ceiling_s - 1.0) == []


# ---- the shell


class Half:
    """A disk that fails where it is told to."""

    def __init__(self, fails: str) -> None:
        self.fails = fails
        self.abandoned = 0

    def _fail(self, where: str) -> None:
        if where == self.fails:
            raise CheckpointError("disk full")

    def begin(self, mark: BeginSave, model: object, described: object) -> "Half":
        self._fail("begin")
        return self

    def write(self, data: object) -> None:
        self._fail("write")

    def finish(self, digest: bytes) -> None:
        self._fail("finish")

    def poll(self) -> bool:
        self._fail("poll")
        return True

    def abandon(self) -> None:
        self.abandoned += 1

    def load(self, number: int, tensors: object) -> tuple[bytes, ...]:
        self._fail("load")
        return DIGESTS

    def load_initial(self, tensors: object, model: object) -> bytes:
        return b"i" * 32

    def save_steps(self, write: Callable[[Any], None]) -> Iterator[tuple[bytes, ...] | None]:
        write("chunk")
        yield None
        yield DIGESTS


MARK = BeginSave(3, b"c" * 32, b"g" * 32, {"param": 3}, "")


def test_a_saver_writes_step_by_step_and_says_when_the_state_may_change_and_when_it_is_durable() -> None:
    disk = Half("")
    saver = Saver(disk)
    assert saver.begin(MARK, disk, ()) == []
    assert saver.capturing
    assert saver.poll() == []
    assert [saver.step(), saver.step()] == [[], [StateCaptured(3, DIGESTS)]]
    assert not saver.capturing
    assert saver.state_changes() == []
    assert [saver.poll(), saver.poll()] == [[StateSaved(3)], []]
    assert saver.load(LoadSaved(3), disk) == [SavedLoaded(3, DIGESTS)]
    assert saver.load_initial(disk, ()) == [GenesisReady(b"i" * 32)]


@pytest.mark.parametrize("where", ["begin", "write", "finish", "poll", "changed"])
def test_a_saver_that_cannot_go_on_says_so_and_leaves_nothing_half_written(where: str) -> None:
    disk = Half(where)
    saver = Saver(disk)
    events = saver.begin(MARK, disk, ())
    events += saver.state_changes() if where == "changed" else saver.step() + saver.step() + saver.poll()
    assert [event.number for event in events if isinstance(event, SaveFailed)] == [3]
    assert not saver.capturing
    assert disk.abandoned == (where in ("write", "finish", "changed"))


@pytest.mark.parametrize("steps", [1, 2])
def test_a_state_that_is_dropped_is_given_up_also_on_its_way_to_the_disk(steps: int) -> None:
    disk = Half("")
    saver = Saver(disk)
    saver.drop()
    assert disk.abandoned == 0
    saver.begin(MARK, disk, ())
    for _ in range(steps):
        saver.step()
    saver.drop()
    assert disk.abandoned == 1
    assert (saver.capturing, saver.poll()) == (False, [])


def test_a_peer_without_a_disk_says_so() -> None:
    assert isinstance(Saver(None).begin(MARK, Half(""), ())[0], SaveFailed)
    assert COORDINATOR == "coordinator"


def test_the_data_leases_of_a_saved_state_come_with_the_initial_weights() -> None:
    leases = {"d": {"length": 9}}
    one = peer(initial=saved(7).model_copy(update={"extra": {"leases": leases}}))
    one.welcome(-1)
    one.hear(WantGenesis())
    one.do(TrainerAttached(b"trainer1", (TensorSpec("w", (10,), "bfloat16"),)))
    effects = one.do(GenesisReady(b"s" * 32))
    (genesis,) = [e.record for e in effects if isinstance(e, Tell) and isinstance(e.record, Genesis)]
    assert json.loads(genesis.leases) == leases
