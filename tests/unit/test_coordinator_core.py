"""The coordinator: durable before visible, one line per sync, and an answer for all that got lost or is foreign."""

import json
from dataclasses import replace
from typing import Any

import pytest

from wantrain.optimizers.noloco import NolocoOptions, noloco
from wantrain.optimizers.stream import Stream, Wire
from wantrain.peers.commit_log import ATTEMPTS_PER_EPOCH, STORE_RETRY_S
from wantrain.peers.coordinator import (
    Announce,
    Coordinator,
    CoordinatorEffect,
    CoordinatorEvent,
    FromPeer,
    History,
    PersistCommit,
    PersistDropGenesis,
    PersistGenesis,
    PersistLeases,
    PersistRewind,
    PersistView,
    RunFacts,
    Send,
    Stored,
    StoreFailed,
    Tick,
)
from wantrain.peers.messages import (
    Commit,
    CommitRecord,
    Drawn,
    Genesis,
    Hello,
    Leased,
    Leave,
    LinkReport,
    MayLeave,
    Record,
    Refetch,
    Refused,
    Report,
    Start,
    StartOver,
    SyncId,
    SyncReport,
    TensorSpec,
    View,
    Waiting,
    WantGenesis,
    WantHello,
    WantLease,
    WantRecords,
    Welcome,
    pack,
)
from wantrain.peers.timing import Policy
from wantrain.transport.codec.names import AUTO_CODECS
from wantrain.transport.digest import first_link, next_link
from wantrain.transport.wire import PROTOCOL_VERSION, encode

RUN = b"run-id-8"
MANIFEST = (TensorSpec("w", (10,), "float32"),)
CHAIN0 = first_link(RUN, b"s" * 32)
POLICY = Policy(quorum=0.5, grace_ceiling_s=10.0, deadline_ceiling_s=30.0, suspect_floor_s=5.0)
FACTS = RunFacts(RUN, "spec", b"spec", (Stream("param"),), "0.1", POLICY)


def line(number: int, digest: bytes = b"d" * 32) -> CommitRecord:
    chain = CHAIN0
    for _ in range(number):
        chain = next_link(chain, digest)
    return CommitRecord(number, SyncId("param", number, number), ("a",), (1.0,), digest, chain)


def history(lines: int) -> History:
    return History(2, 5, MANIFEST, CHAIN0, tuple(line(k) for k in range(1, lines + 1)))


def hello(peer: str, **changes: Any) -> Hello:
    fields = {"protocol": PROTOCOL_VERSION, "version": "0.1", "spec_digest": b"", "name": peer, "boot": b"bootboot"}
    return Hello(**(fields | {"address": "h:1", "codecs": ("int8",)} | changes))


class Run:
    """A coordinator whose disk always works, unless told otherwise."""

    def __init__(self, core: Coordinator) -> None:
        self.core = core
        self.disk_works = True
        self.written: list[object] = []
        self.sent: list[Send] = []
        self.said: list[Announce] = []
        self._sequence = 0

    def handle(self, event: CoordinatorEvent, now: float = 0.0) -> list[CoordinatorEffect]:
        events, all_effects = [event], []
        while events:
            effects = self.core.handle(events.pop(0), now)
            all_effects += effects
            for effect in effects:
                if isinstance(effect, Send):
                    self.sent.append(effect)
                elif isinstance(effect, Announce):
                    self.said.append(effect)
                elif self.disk_works:
                    self.written.append(effect)
                    events.append(Stored())
                else:
                    events.append(StoreFailed("disk full"))
        return all_effects

    def tell(self, peer: str, record: Record, now: float = 0.0) -> list[Record]:
        """What is sent because of a record of a peer."""
        before = len(self.sent)
        self.handle(FromPeer(peer, record, b"k" * 32), now)
        return [send.record for send in self.sent[before:]]

    def report(self, peer: str, log_number: int, now: float = 0.0, **changes: Any) -> list[Record]:
        self._sequence += 1
        fields: dict[str, Any] = {"boot": b"bootboot", "sequence": self._sequence, "log_number": log_number}
        fields |= {"chain": self.core.chain(min(log_number, self.core.head)), "state_number": -1, "state_digest": b""}
        fields |= {"trainer": "training", "syncs": (), "suspects": {}, "eta_s": -1.0, "waiting": "", "stats": {}}
        fields |= {"view": self.core.membership.view, "revision": self.core.epoch * ATTEMPTS_PER_EPOCH + 1}
        return self.tell(peer, Report(**(fields | changes)), now)


def run(*peers: str, lines: int = 3) -> Run:
    """A run with these members at the head of its log."""
    made = Run(Coordinator(FACTS, history(lines)))
    for peer in peers:
        made.tell(peer, hello(peer))
        made.report(peer, lines)
    made.handle(Tick(), 0.1)  # shows the view of all of them
    assert made.core.membership.members == peers
    return made


def of(kind: type, records: list[Record]) -> list[Any]:
    return [record for record in records if isinstance(record, kind)]


def ready(index: int) -> tuple[SyncReport, ...]:
    return (SyncReport("param", index, "ready"),)


def done(start: Start) -> tuple[SyncReport, ...]:
    return (SyncReport("param", start.sync.index, "done", attempt=start.sync.attempt, digest=b"e" * 32),)


# ---- commits


def test_a_sync_is_written_before_it_is_announced_and_to_all() -> None:
    one = run("a", "b")
    one.report("a", 3, syncs=ready(4))
    start = of(Start, one.report("b", 3, syncs=ready(4)))[0]
    one.report("a", 3, syncs=done(start))
    one.disk_works = False
    assert of(Commit, one.report("b", 3, syncs=done(start))) == []
    assert one.core.head == 3
    assert one.core.reason() == "the commit log cannot be written: disk full"
    one.disk_works = True
    before = len(one.sent)
    effects = one.handle(Tick(), STORE_RETRY_S)
    commits = [send for send in one.sent[before:] if isinstance(send.record, Commit)]
    assert {send.to for send in commits} == {"a", "b"}
    record = commits[0].record.records[0]  # type: ignore[union-attr]
    assert (record.number, record.contributors, record.chain) == (4, ("a", "b"), next_link(line(3).chain, b"e" * 32))
    assert effects.index(PersistCommit(record)) < effects.index(commits[0])
    assert one.core.head == 4


@pytest.mark.parametrize(("rate", "codec"), [(1e9, "int8"), (1.0, "rms0.75+huffman")])
def test_the_codec_comes_from_links_and_pace_is_in_the_start_and_said_with_the_commit(rate: float, codec: str) -> None:
    """Ten values, a step of half a second, and a tenth of a hundred steps to be over in: 5 s."""
    facts = replace(FACTS, streams=(Stream("param", codec="auto", down="int8"),))
    one = Run(Coordinator(facts, history(3)))
    every = tuple(AUTO_CODECS)
    for peer, other in ("ab", "ba"):
        one.tell(peer, hello(peer, codecs=every))
        one.report(peer, 3, step_s=0.5, paths={other: LinkReport(rate, 0.01, 0.0, 1, "")})
    one.handle(Tick(), 0.1)
    one.report("a", 3, syncs=ready(4), step_s=0.5)
    start = of(Start, one.report("b", 3, syncs=ready(4), step_s=0.5))[0]
    assert start.codec == codec
    for peer in "ab":
        one.report(peer, 3, syncs=done(start), step_s=0.5)
    (said,) = [announced.details for announced in one.said if announced.event == "commit"]
    assert said["codec"] == codec
    assert f"{codec} " in said["plan"]
    assert "slack of 5 s" in said["plan"] or "slack is 5 s" in said["plan"]
    assert one.core.timing(4)["codec"] == codec


@pytest.mark.scenario(7)
def test_a_full_disk_is_told_once_and_tried_again_without_piling_up_views() -> None:
    one = run("a")
    one.disk_works = False
    for k in range(50):
        one.tell("b", hello("b", boot=bytes([k]) * 8), 10.0 * k)
    assert len([said for said in one.said if said.event == "store-failed"]) == 1
    assert len(one.core.log._pending) <= 2
    one.disk_works = True
    one.handle(Tick(), 1000.0)
    assert isinstance(one.written[-1], PersistView)
    assert not one.core.trouble


@pytest.mark.scenario(6)
def test_after_a_restart_no_line_is_forgotten_and_attempts_go_on_above_all_former_ones() -> None:
    one = run("a", lines=7)
    assert one.core.head == 7
    (start,) = of(Start, one.report("a", 7, syncs=ready(8)))
    assert start.sync.index == 8
    assert start.sync.attempt > 2 * 10**9
    assert of(Start, one.report("a", 7, syncs=ready(7), now=9.0)) == []


def test_a_view_is_shown_only_once_it_is_durable() -> None:
    one = run("a")
    shown = one.core.membership.view
    one.disk_works = False
    views = of(View, one.tell("b", hello("b"), 1.0))
    assert {view.number for view in views} <= {shown}


def test_of_peers_that_come_together_one_view_is_shown() -> None:
    one = run("a")
    views = [view for k in range(20) for view in of(View, one.tell(f"p{k}", hello(f"p{k}"), 1.0 + k / 1000))]
    assert len({view.number for view in views}) == 2  # the one before, for those who come, and the first change
    shown = one.handle(Tick(), 2.0)
    last = [effect.record for effect in shown if isinstance(effect, Send) and isinstance(effect.record, View)]
    assert {view.number for view in last} == {one.core.membership.view}
    assert len(last) == len(last[0].members) == 21


# ---- peers that missed something


def test_a_lost_view_is_sent_again() -> None:
    one = run("a", "b")
    number = one.core.membership.view
    assert of(View, one.report("a", 3, 1.0, view=number - 1)) == []  # it may be on its way
    (view,) = of(View, one.report("a", 3, 1.5, view=number - 1) + one.report("a", 3, 2.1, view=number - 1))
    assert view.number == number
    assert of(View, one.report("a", 3, 4.0, view=number)) == []


def test_a_peer_that_stays_behind_gets_the_missing_lines() -> None:
    one = run("a", "b")
    assert of(Commit, one.report("b", 1, 1.0)) == []
    (commit,) = of(Commit, one.report("b", 1, 2.1))
    assert [record.number for record in commit.records] == [2, 3]
    assert of(Commit, one.tell("b", WantRecords(3)))[0].records == (line(3),)
    assert one.tell("b", WantRecords(0)) == one.tell("b", WantRecords(4)) == []


@pytest.mark.parametrize("contributors", [1, 32, 1000])
def test_who_lacks_many_lines_gets_as_many_at_once_as_a_message_holds(contributors: int) -> None:
    names = tuple(f"{k:016x}" for k in range(contributors))
    lines = [replace(line(0), number=k, contributors=names, weights=(1.0,) * contributors) for k in range(1, 1101)]
    one = Run(Coordinator(FACTS, replace(history(0), records=tuple(lines))))
    one.tell("a", hello("a"))
    had = 0
    while had < len(lines):
        (commit,) = of(Commit, one.tell("a", WantRecords(had + 1)))
        assert encode(pack(commit), RUN)
        assert [record.number for record in commit.records] == list(range(had + 1, had + 1 + len(commit.records)))
        had += len(commit.records)
    assert had == len(lines)


def test_a_peer_without_state_that_stays_without_is_welcomed_again() -> None:
    one = run("a")
    one.tell("b", hello("b"))
    assert of(Welcome, one.report("b", -1, 1.0)) == []
    (welcome,) = of(Welcome, one.report("b", -1, 2.1))
    assert (welcome.head, welcome.chain, welcome.indices) == (3, line(3).chain, {"param": 3})


def test_who_is_a_few_lines_behind_is_in_the_view_and_who_is_far_behind_is_not_yet() -> None:
    one = run("a", lines=10)
    for peer in "bc":
        one.tell(peer, hello(peer))
    one.report("b", 9)
    one.report("c", 2)
    assert one.core.membership.members == ("a", "b")


def test_an_unknown_peer_is_asked_to_introduce_itself() -> None:
    one = run("a")
    assert of(WantHello, one.report("x", 3)) == [WantHello()]
    assert of(WantHello, one.report("a", 3, boot=b"another1")) == [WantHello()]


def test_an_old_report_changes_nothing() -> None:
    one = run("a", "b")
    one.report("a", 3, sequence=100, syncs=ready(4))
    one.report("a", 3, sequence=99)
    assert one.core.rounds["param"].ready == ("a",)


def test_who_says_that_it_does_not_reach_itself_goes_on_like_any_other() -> None:
    one = run("a")
    (start,) = of(Start, one.report("a", 3, unreached=("a", "b"), syncs=ready(4)))
    assert start.contributors == ("a",)


def test_paths_to_peers_that_do_not_exist_are_not_kept() -> None:
    one = run("a", "b")
    path = LinkReport(1e6, 0.1, 0.0, 1, "")
    one.report("a", 3, paths={"b": path, "nobody": path})
    assert one.core.links.paths["a"] == {"b": path}
    assert list(one.core.links.paces) == [("a", "b")]


def test_what_one_who_left_still_says_changes_nothing() -> None:
    one = run("a", "b")
    one.tell("a", Leave(b"bootboot", "done"))
    assert one.report("a", 3, syncs=ready(4)) == []
    assert one.core.membership.members == ("b",)


# ---- refused and foreign


@pytest.mark.scenario(21)
@pytest.mark.parametrize(
    ("changes", "code", "both"),
    [
        ({"protocol": PROTOCOL_VERSION + 1}, "protocol", (str(PROTOCOL_VERSION), str(PROTOCOL_VERSION + 1))),
        ({"spec_digest": b"other"}, "spec", (b"spec".hex(), b"other".hex())),
        ({"codecs": ("fp32",)}, "codec", ("int8", "fp32")),
    ],
)
def test_a_peer_that_does_not_fit_is_refused_with_both_sides_named_and_a_next_step(
    changes: dict[str, Any], code: str, both: tuple[str, str]
) -> None:
    one = run("a")
    (refused,) = of(Refused, one.tell("b", hello("b", **changes)))
    assert refused.code == code
    assert all(side in refused.reason for side in both)
    assert refused.hint
    assert "b" not in one.core.membership.peers


@pytest.mark.scenario(21)
def test_a_peer_needs_every_codec_that_a_sync_may_choose() -> None:
    auto = replace(FACTS, streams=(Stream("param", codec="auto", down="int8"),))
    one = Run(Coordinator(auto, history(3)))
    (refused,) = of(Refused, one.tell("a", hello("a")))
    assert refused.code == "codec"
    assert "rms0.35+zstd, rms0.75+huffman are not among" in refused.reason
    assert of(Welcome, one.tell("b", hello("b", codecs=("int8", "rms0.35+zstd", "rms0.75+huffman"))))


@pytest.mark.scenario(12)
def test_a_second_process_with_a_live_identity_is_refused() -> None:
    one = run("a")
    (refused,) = of(Refused, one.tell("a", hello("a", boot=b"another1"), 0.5))
    assert refused.code == "identity-in-use"
    assert one.core.membership.members == ("a",)


@pytest.mark.scenario(11)
@pytest.mark.parametrize(("number", "chain"), [(9, b"x" * 32), (2, b"x" * 32)])
def test_a_state_of_another_history_is_to_be_fetched_anew(number: int, chain: bytes) -> None:
    one = run("a", "b")
    told = one.report("b", number, chain=chain, syncs=ready(4))
    assert of(Refetch, told)[0].log_number == number
    assert one.core.membership.members == ("a",)
    assert one.core.rounds["param"].ready == ()


@pytest.mark.scenario(15)
def test_the_state_of_the_minority_is_to_be_fetched_anew() -> None:
    one = run("a", "b", "c")
    assert one.report("a", 3, state_number=3, state_digest=b"x" * 32) == []
    assert one.report("b", 3, state_number=3, state_digest=b"y" * 32) == []
    one.report("c", 3, state_number=3, state_digest=b"y" * 32)
    assert [send.to for send in one.sent if isinstance(send.record, Refetch)] == ["a"]


def test_of_many_who_hold_another_state_a_few_are_named_so_that_the_word_arrives() -> None:
    peers = [f"p{k:02}" for k in range(12)]
    one = run(*peers)
    for peer in peers[1:]:
        one.report(peer, 3, state_number=3, state_digest=b"y" * 32)
    (refetch,) = of(Refetch, one.report("p00", 3, state_number=3, state_digest=b"x" * 32))
    assert refetch.reason.endswith("p07, p08 and 3 more")


def test_the_late_goodbye_of_an_earlier_process_says_nothing_of_the_present_one() -> None:
    one = run("a", "b")
    one.tell("b", Leave(b"old-boot", "done"), 1.0)
    assert one.core.membership.members == ("a", "b")


@pytest.mark.scenario(15)
def test_who_is_outvoted_by_peers_that_are_gone_keeps_the_only_state_there_is() -> None:
    one = run("a", "b", "c")
    for peer in "bc":
        one.report(peer, 3, state_number=3, state_digest=b"y" * 32)
        one.tell(peer, Leave(b"bootboot", "done"), 0.5)
    assert of(Refetch, one.report("a", 3, 30.0, state_number=3, state_digest=b"x" * 32)) == []
    assert one.core.membership.members == ("a",)


@pytest.mark.scenario(15)
def test_between_two_states_the_first_stands_but_only_after_a_while() -> None:
    one = run("a", "b")
    one.report("a", 3, state_number=3, state_digest=b"x" * 32)
    assert of(Refetch, one.report("b", 3, 1.0, state_number=3, state_digest=b"y" * 32)) == []
    assert of(Refetch, one.report("b", 3, 11.1, state_number=3, state_digest=b"y" * 32))


@pytest.mark.scenario(15)
def test_states_that_differ_for_long_wait_for_the_vote_that_may_tell_who_is_right() -> None:
    one = run("a", "b", "c")
    for number, now in ((2, 0.0), (3, 11.1)):  # commits come faster than all three can report on one
        one.report("a", number, now, state_number=number, state_digest=b"x" * 32)
        assert of(Refetch, one.report("b", number, now, state_number=number, state_digest=b"y" * 32)) == []
    one.report("c", 3, 11.2, state_number=3, state_digest=b"y" * 32)
    assert [send.to for send in one.sent if isinstance(send.record, Refetch)] == ["a"]


@pytest.mark.scenario(15)
def test_a_vote_that_could_outvote_nobody_is_not_waited_for_without_end() -> None:
    one = run("a", "b", "c", "d")
    for peer, digest in (("a", b"x"), ("b", b"y"), ("c", b"y")):
        assert of(Refetch, one.report(peer, 3, state_number=3, state_digest=digest * 32)) == []
    one.report("c", 3, 11.1, state_number=3, state_digest=b"y" * 32)
    assert [send.to for send in one.sent if isinstance(send.record, Refetch)] == ["a"]


# ---- newcomers


def test_the_first_contribution_of_a_newcomer_is_not_waited_for_but_not_for_ever() -> None:
    one = run("a")
    one.tell("b", hello("b"))
    one.report("b", -1, 1.0, trainer="starting")
    one.report("b", 3, 1.1)
    assert of(Start, one.report("a", 3, 2.0, syncs=ready(4)))[0].receivers == ("b",)
    late = run("a")
    late.tell("b", hello("b"))
    late.report("b", -1, 1.0, trainer="starting")
    late.report("b", 3, 1.1)
    late.report("a", 3, 11.1)
    late.report("b", 3, 11.1)
    late.handle(Tick(), 11.15)
    assert of(Start, late.report("a", 3, 11.2, syncs=ready(4))) == []
    assert "waiting for 1 of 2 to be ready: b" in late.core.reason()


# ---- the initial state


def test_one_peer_gives_the_initial_state_and_only_when_it_was_asked() -> None:
    one = Run(Coordinator(FACTS, History(1)))
    genesis = Genesis(MANIFEST, b"s" * 32)
    for peer in "ab":
        one.tell(peer, hello(peer))
    one.report("b", -1, trainer="none")
    one.report("a", -1, trainer="starting")
    one.tell("a", genesis)
    assert one.core.head == -1
    one.handle(Tick(), 1.0)
    assert [send.to for send in one.sent if isinstance(send.record, WantGenesis)] == ["a"]
    one.tell("b", genesis, 1.1)
    assert one.core.head == -1
    welcomes = of(Welcome, one.tell("a", genesis, 1.2))
    assert len(welcomes) == 2
    assert PersistGenesis(MANIFEST, b"s" * 32, CHAIN0) in one.written
    assert (one.core.head, one.core.chain(0)) == (0, CHAIN0)


def test_a_model_that_the_method_cannot_cut_does_not_become_the_runs() -> None:
    facts = replace(FACTS, streams=(Stream("param", fragment="strided:0/2"), Stream("rest", fragment="rest")))
    one = Run(Coordinator(facts, History(1)))
    one.tell("a", hello("a"))
    one.report("a", -1, trainer="starting")
    one.handle(Tick(), 1.0)
    (refusal,) = of(Refused, one.tell("a", Genesis(MANIFEST, b"s" * 32), 1.1))
    assert (refusal.code, "no blocks" in refusal.reason) == ("model", True)
    assert one.core.head == -1


def test_a_model_that_fits_what_its_peer_sends_but_not_a_welcome_does_not_become_the_runs() -> None:
    one = Run(Coordinator(replace(FACTS, spec_toml="x" * 60_000), History(1)))
    one.tell("a", hello("a"))
    one.report("a", -1, trainer="starting")
    one.handle(Tick(), 1.0)
    genesis = Genesis(tuple(TensorSpec(f"{k:0500}", (4,), "float32") for k in range(1900)), b"s" * 32)
    assert encode(pack(genesis), RUN)
    (refusal,) = of(Refused, one.tell("a", genesis, 1.1))
    assert (refusal.code, "1,900 tensors do not fit a message" in refusal.reason) == ("model", True)
    assert one.core.head == -1


def test_another_is_asked_when_the_first_has_no_trainer_any_more() -> None:
    one = Run(Coordinator(FACTS, History(1)))
    for peer in "ab":
        one.tell(peer, hello(peer))
        one.report(peer, -1, trainer="starting")
    one.handle(Tick(), 1.0)
    one.report("a", -1, 2.0, trainer="none")
    one.report("b", -1, 6.5, trainer="starting")
    one.handle(Tick(), 6.6)
    assert [send.to for send in one.sent if isinstance(send.record, WantGenesis)] == ["a", "b"]


# ---- when the state is lost


def test_lines_that_nobody_holds_are_given_up_only_after_a_long_wait() -> None:
    one = run("a", lines=3)
    one.tell("b", hello("b"))
    for second in range(1, 40):
        one.report("b", 2, float(second))
        one.handle(Tick(), float(second))
        if second < 35:
            assert one.core.head == 3
    assert [w.after for w in one.written if isinstance(w, PersistRewind)] == [2]
    assert (one.core.head, one.core.rounds["param"].index) == (2, 3)


def test_who_is_awaited_after_a_restart_is_named_although_it_has_not_come_back() -> None:
    known = replace(history(3), names={"a": "anna", "b": "bert"})
    one = Run(Coordinator(FACTS, known))
    one.tell("b", hello("b"))
    one.report("b", 2, 1.0)
    one.handle(Tick(), 1.0)
    assert "unless anna comes back" in one.core.reason()


def test_a_member_of_the_last_view_is_awaited_after_a_restart_although_it_has_only_received_the_newest_line() -> None:
    known = replace(history(3), names={"a": "anna", "h": "hana"}, members=("a", "h"))
    one = Run(Coordinator(FACTS, known))
    one.tell("a", hello("a"))
    for second in range(1, 25):  # it was started again, from its disk
        one.report("a", 2, float(second))
        one.handle(Tick(), float(second))
    assert "unless hana comes back" in one.core.reason()
    one.tell("h", hello("h"), 25.0)
    one.report("h", 3, 25.1)
    one.handle(Tick(), 25.2)
    assert (one.core.head, one.core.reason()) == (3, "")


def test_a_member_of_the_last_view_that_does_not_come_back_is_not_awaited_for_ever() -> None:
    one = Run(Coordinator(FACTS, replace(history(3), members=("a", "h"))))
    one.tell("a", hello("a"))
    for second in range(1, 40):
        one.report("a", 2, float(second))
        one.handle(Tick(), float(second))
    assert one.core.head == 2


@pytest.mark.parametrize("comes_to", [2, 3])
def test_lines_are_not_given_up_as_soon_as_the_last_who_was_awaited_is_back(comes_to: int) -> None:
    """What its first report says is old already: it, or another peer, may stand at the head meanwhile."""
    one = Run(Coordinator(FACTS, history(3)))
    one.tell("b", hello("b"))
    for second in range(1, 11):
        one.report("b", 2, float(second))
        one.handle(Tick(), float(second))
    one.tell("a", hello("a"), 10.9)
    one.report("a", 2, 10.9)
    one.handle(Tick(), 11.0)  # writes the view
    one.handle(Tick(), 11.1)
    assert (one.core.head, one.core.reason()) == (3, "nobody here holds log number 3; the run goes back to 2")
    for second in range(11, 20):
        for peer in "ab":
            one.report(peer, comes_to if peer == "a" else 2, second + 0.5)
        one.handle(Tick(), second + 0.5)
    assert one.core.head == comes_to


def test_a_peer_that_still_holds_the_head_keeps_the_lines() -> None:
    one = run("a", "b", lines=3)
    for second in range(1, 60):
        one.report("b", 2, float(second))
        one.report("a", 3, float(second))
        one.handle(Tick(), float(second))
    assert one.core.head == 3


def test_an_initial_state_that_nobody_holds_is_given_up_and_asked_for_again() -> None:
    one = Run(Coordinator(FACTS, history(0)))
    one.tell("a", hello("a"))
    for second in range(1, 40):
        one.report("a", -1, float(second), trainer="starting")
        one.handle(Tick(), float(second))
    assert PersistDropGenesis() in one.written
    assert any(isinstance(send.record, WantGenesis) for send in one.sent)


def test_what_the_run_lacks_is_told_with_for_how_long() -> None:
    one = run("a")
    one.handle(Tick(), 40.0)  # a has been silent for too long
    assert one.core.reason() == "no peer is connected"
    one.handle(Tick(), 41.0)
    assert one.core.reason(42.5) == "no peer is connected (2.5 s)"


# ---- contributions out of line


def test_who_stays_out_of_line_is_named_each_time_and_starts_over() -> None:
    made = run("a", "b", "c")
    for index in (4, 5):
        for peer, norm in (("a", 1.0), ("b", 1.0), ("c", 1e6)):
            answers = made.report(peer, index - 1, 1.0, syncs=(SyncReport("param", index, "ready", norm=norm),))
        starts_over = [send for send in made.sent if isinstance(send.record, StartOver)]
        assert [(send.to, send.record) for send in starts_over] == (
            [("c", StartOver("param", 5, made.said[-1].details["reason"]))] if index == 5 else []
        )
        start = of(Start, answers)[0]
        assert start.contributors == ("a", "b")
        for peer in start.contributors:
            made.report(peer, index - 1, 1.0, syncs=done(start))
        assert made.core.head == index
    rejected = [said.details for said in made.said if said.event == "rejected"]
    assert [details["name"] for details in rejected] == ["c", "c"]
    assert "1000 times the median" in rejected[0]["reason"]


def test_status_shows_who_is_said_to_contribute_what_cannot_be_used() -> None:
    made = run("a", "b", "c")
    for peer in "abc":
        answers = made.report(peer, 3, 1.0, syncs=ready(4))
    (attempt, *_) = [start.sync.attempt for start in of(Start, answers)]
    line = SyncReport("param", 4, "failed", attempt=attempt, waiting_for=("c",), why="Part: NaN")
    made.report("a", 3, 1.1, syncs=(line,))
    said = next(said for said in made.said if said.event == "rejected")
    expected = {"sync": f"param#4.{attempt}", "peer": "c", "name": "c", "reason": "Part: NaN", "by": "a", "times": 1}
    assert said.details == expected
    made.report("b", 3, 1.1, syncs=(replace(line, waiting_for=("x" * 64, "c")),))
    assert made.core.offences.guilty["c"].times == 1, "a report of an attempt that is over changes nothing more"


# ---- data leases


def want(reader: bytes = b"reader-1", **changes: Any) -> WantLease:
    fields = {"data": "d", "length": 100, "seed": 0, "epochs": 0, "reader": reader, "serial": 1, "taken": 0, "left": 0}
    return WantLease(**{**fields, "samples": 10, "least": 1, "unused": 0, "dry": False, **changes})


def test_a_lease_is_durable_before_it_is_told() -> None:
    one = run("a")
    one.disk_works = False
    question = {"reader": b"reader-1", "wants": (want(),)}
    assert of(Leased, one.report("a", 3, **question)) == []
    assert of(Leased, one.report("a", 3, **question)) == []  # nor is a repeated one
    one.disk_works = True
    before = len(one.sent)
    one.handle(Tick(), STORE_RETRY_S)
    assert [type(send.record) for send in one.sent[before:]].count(Leased) == 1
    assert any(isinstance(effect, PersistLeases) for effect in one.written)
    (again,) = of(Leased, one.report("a", 3, **question))
    assert (again.answer, [span.count for span in again.spans]) == ("granted", [10])


def test_what_contributors_had_drawn_is_confirmed_in_the_write_of_the_commit() -> None:
    one = run("a", "b")
    for peer in ("a", "b"):
        reader = peer.encode() * 8
        one.report(peer, 3, reader=reader, wants=(want(reader),))

    def line_of(peer: str, samples: int, **changes: Any) -> dict[str, Any]:
        drawn = Drawn(peer.encode() * 8, {"d": samples})
        return {"reader": drawn.reader, "syncs": (SyncReport("param", 4, drawn=drawn, **changes),)}

    one.report("a", 3, **line_of("a", 4, phase="ready"))
    start = of(Start, one.report("b", 3, **line_of("b", 6, phase="ready")))[0]
    end = {"phase": "done", "attempt": start.sync.attempt, "digest": b"e" * 32}
    one.report("a", 3, **line_of("a", 4, **end))
    assert of(Commit, one.report("b", 3, **line_of("b", 6, **end)))
    (written,) = [effect for effect in one.written if isinstance(effect, PersistCommit)]
    assert [(len(key) > 0, value is not None) for key, value in written.leases.items()] == [(True, True)] * 3
    assert [lease.confirmed for _, _, lease in one.core.leases.data["d"].all()] == [4, 6]
    again = Coordinator(FACTS, History(3, 6, MANIFEST, CHAIN0, (), written.leases | _rows(one)))  # type: ignore[arg-type]
    assert again.leases.data == one.core.leases.data


def _rows(one: Run) -> dict[str, str]:
    rows: dict[str, Any] = {}
    for effect in one.written:
        rows |= effect.rows if isinstance(effect, PersistLeases) else getattr(effect, "leases", {})
    return {key: value for key, value in rows.items() if value is not None}


def test_who_leaves_gives_its_samples_back() -> None:
    one = run("a", "b")
    one.report("a", 3, reader=b"reader-1", wants=(want(),))
    one.tell("a", Leave(b"bootboot", "done"))
    (said,) = [said for said in one.said if said.event == "samples-back"]
    assert (said.details["name"], said.details["samples"], said.details["why"]) == ("a", 10, "it left")
    (answer,) = of(Leased, one.report("b", 3, reader=b"reader-2", wants=(want(b"reader-2"),)))
    assert [span.first for span in answer.spans] == [0]


def test_a_question_in_the_name_of_another_reader_is_ignored() -> None:
    one = run("a")
    assert of(Leased, one.report("a", 3, reader=b"reader-1", wants=(want(b"reader-2"),))) == []
    assert one.core.leases.data == {}


def test_a_peer_without_data_is_not_waited_for() -> None:
    one = run("a", "b")
    one.report("b", 3, trainer="dry")
    assert of(Start, one.report("a", 3, syncs=ready(4)))


@pytest.mark.scenario(22)
def test_a_run_that_begins_with_a_saved_state_goes_on_with_its_data() -> None:
    before = run("a")
    before.report("a", 3, reader=b"reader-1", wants=(want(),))
    leases = json.dumps(before.core.leases.snapshot(3))
    one = Run(Coordinator(FACTS, History(1)))
    one.tell("a", hello("a"))
    one.report("a", -1, trainer="starting")
    one.handle(Tick(), 1.0)
    one.tell("a", Genesis(MANIFEST, b"s" * 32, leases))
    (begun,) = [effect for effect in one.written if isinstance(effect, PersistGenesis)]
    assert list(begun.leases) == ['["data", "d"]']
    assert not any(isinstance(effect, PersistLeases) for effect in one.written), "another beginning could inherit them"
    (answer,) = of(Leased, one.report("a", 0, 1.0, reader=b"reader-2", wants=(want(b"reader-2"),)))
    assert [span.first for span in answer.spans] == [0]  # nobody had used them
    assert one.core.leases.data["d"].next == 10


@pytest.mark.parametrize("leases", ["[]", "{", "[" * 60_000, '{"d": {}}', '{"d": 3}'])
def test_false_leases_of_a_saved_state_are_told_and_not_used(leases: str) -> None:
    one = Run(Coordinator(FACTS, History(1)))
    one.tell("a", hello("a"))
    one.report("a", -1, trainer="starting")
    one.handle(Tick(), 1.0)
    one.tell("a", Genesis(MANIFEST, b"s" * 32, leases))
    assert one.core.head == 0
    assert one.core.leases.data == {}
    assert [said.event for said in one.said if "leases" in said.event] == ["begun-without-leases"]


def test_who_is_past_a_sync_is_not_waited_for_there() -> None:
    """c waits at a's second sync, a and b at b's first, which is due before that: they must not wait for each other."""
    streams = (Stream("a", fragment="mask:0/2", every=6, offset=3), Stream("b", fragment="mask:1/2", every=6))
    made = Run(Coordinator(replace(FACTS, streams=streams), replace(history(0), records=(of_stream("a"),))))
    for peer in "abc":
        made.tell(peer, hello(peer))
        made.report(peer, 1)
    made.handle(Tick(), 0.1)
    at_a, at_b = (SyncReport("a", 2, "ready"),), (SyncReport("b", 1, "ready"),)
    assert of(Start, made.report("c", 1, 1.0, trainer="waiting", syncs=at_a)) == []
    assert of(Start, made.report("a", 1, 1.1, trainer="waiting", syncs=at_b)) == []
    (start, *_) = of(Start, made.report("b", 1, 1.2, trainer="waiting", syncs=at_b))
    assert (start.sync.stream, start.contributors, start.receivers) == ("b", ("a", "b"), ("c",))


def of_stream(stream: str) -> CommitRecord:
    return replace(line(1), sync=SyncId(stream, 1, 1))


# ---- those who leave, and reports of another time


def let_go(made: Run) -> list[tuple[str, int]]:
    """Who was told so far, and up to which log number, that somebody else has the state."""
    return [(send.to, send.record.number) for send in made.sent if isinstance(send.record, MayLeave)]


def test_of_two_who_leave_at_once_and_alone_have_the_newest_state_one_waits_for_a_third() -> None:
    made = run("a", "b")
    made.tell("c", hello("c"))
    made.report("c", 2, 10.0)
    made.report("a", 3, 10.0, leaving=True)
    assert let_go(made) == [("a", 3)]  # b has not said that it leaves
    made.report("b", 3, 10.0, leaving=True)
    assert let_go(made)[1:] == [("a", 2), ("b", 2)]
    reasons = {
        r.reason for send in made.handle(Tick(), 20.0) if isinstance(r := getattr(send, "record", None), Waiting)
    }
    assert "for another peer to hold the state at log number 3" in reasons
    made.report("c", 3, 20.5)
    assert let_go(made)[3:] == [("a", 3), ("b", 3)]
    made.report("b", 3, 21.0, leaving=True)  # the answer may have been lost
    assert let_go(made)[5:] == [("b", 3)]


def test_when_all_leave_nobody_waits_but_a_new_coordinator_gives_others_the_time_to_come_back() -> None:
    made = run("a", "b")
    for peer in "ab":
        made.report(peer, 3, 0.1, leaving=True)
    assert ("b", 3) not in let_go(made)
    for peer in "ab":
        made.report(peer, 3, 10.0, leaving=True)
    assert let_go(made)[-1] == ("b", 3)


def test_after_a_restart_the_first_that_is_back_does_not_sync_alone_and_says_for_whom_it_waits() -> None:
    known = replace(history(3), names={"b": "bert", "c": "carla", "d": "dora"}, members=("a", "b", "c", "d"))
    made = Run(Coordinator(FACTS, known))
    made.tell("a", hello("a"))
    made.report("a", 3, 0.1, syncs=ready(4))
    made.handle(Tick(), 0.2)
    assert "waiting for 3 of 4 to be ready: bert, carla, dora" in made.core.reason()
    for k, peer in enumerate("bcd"):
        made.tell(peer, hello(peer), 1.0 + k)
        assert not of(Start, made.report(peer, 3, 1.5 + k, syncs=ready(4))) or peer == "d"
    (start, *_) = [send.record for send in made.sent if isinstance(send.record, Start)]
    assert start.contributors == ("a", "b", "c", "d")


def test_after_a_restart_members_of_the_last_view_that_do_not_come_back_are_not_waited_for_any_longer() -> None:
    made = Run(Coordinator(FACTS, replace(history(3), members=("a", "b"))))
    made.tell("a", hello("a"))
    made.report("a", 3, POLICY.back_within_s - 0.2, syncs=ready(4))
    made.handle(Tick(), POLICY.back_within_s - 0.1)
    assert not any(isinstance(send.record, Start) for send in made.sent)
    made.handle(Tick(), POLICY.back_within_s)
    assert [s.record.contributors for s in made.sent if isinstance(s.record, Start)] == [("a",)]


def test_after_a_restart_who_leaves_waits_for_members_of_the_last_view_as_long_as_they_may_take_to_dial_again() -> None:
    made = Run(Coordinator(FACTS, replace(history(3), members=("a", "b", "c"))))
    made.tell("a", hello("a"))
    made.report("a", 3, POLICY.back_within_s - 0.1, leaving=True)
    assert let_go(made) == []
    made.tell("b", hello("b"), POLICY.back_within_s - 0.05)
    assert let_go(made) == [("a", -1)]  # it can have the state now
    alone = Run(Coordinator(FACTS, replace(history(3), members=("a", "b"))))
    alone.tell("a", hello("a"))
    alone.report("a", 3, POLICY.back_within_s, leaving=True)
    assert let_go(alone) == [("a", 3)]


def test_who_was_let_go_as_nobody_else_was_there_is_told_at_once_of_a_newcomer() -> None:
    made = run("a")
    made.report("a", 3, 10.0, leaving=True)
    made.tell("b", hello("b"), 10.1)  # and has not reported yet
    assert let_go(made) == [("a", 3), ("a", -1)]
    made.tell("b", hello("b"), 10.2)
    assert let_go(made)[2:] == []  # no news


def test_who_leaves_does_not_count_on_a_state_that_is_not_the_runs_until_it_was_fetched_anew() -> None:
    made = run("a", "b")
    made.report("a", 3, 10.0, leaving=True, state_number=3, state_digest=b"x" * 32)
    assert let_go(made) == [("a", 3)]
    made.report("b", 3, 11.0, state_number=3, state_digest=b"y" * 32)
    made.report("b", 3, 21.1, state_number=3, state_digest=b"y" * 32)
    assert [send.to for send in made.sent if isinstance(send.record, Refetch)] == ["b"]
    welcome = [send.record for send in made.sent if send.to == "b" and isinstance(send.record, Welcome)][-1]
    assert let_go(made)[1:] == [("a", -1)]
    made.report("b", 3, 21.2, revision=welcome.revision - 1)  # before it has heard
    assert let_go(made)[2:] == []
    made.report("b", 3, 25.0, revision=welcome.revision)
    assert let_go(made)[2:] == [("a", 3)]


def test_a_report_from_before_the_start_of_this_process_is_answered_by_welcome_and_changes_nothing() -> None:
    made = run("a", "b")
    before = made.core.membership.reports["a"]
    (answer,) = made.report("a", 1, 1.0, revision=made.core.epoch * ATTEMPTS_PER_EPOCH)
    assert isinstance(answer, Welcome)
    assert answer.revision > made.core.epoch * ATTEMPTS_PER_EPOCH
    assert made.core.membership.reports["a"] == before


def test_who_has_been_in_fewer_exchanges_is_told_to_start_over_by_its_own_index() -> None:
    """Of a gossip run: what is said of the index of the group would be of none that this peer knows."""
    streams = tuple(replace(stream, last=4) for stream in noloco(NolocoOptions(every=1), Wire("fp32")))
    made = Run(Coordinator(replace(FACTS, streams=streams), history(3)))
    for peer in ("a", "b", "c"):
        made.tell(peer, hello(peer, codecs=("fp32",)))
        made.report(peer, 3)
    made.handle(Tick(), 0.1)
    made.core.offences.diverged("c")  # once before
    for peer, own, norm in (("a", 4, 1.0), ("b", 4, 1.0), ("c", 1, 1e6)):
        made.report(peer, 3, 1.0, syncs=(SyncReport("param", own, "ready", norm=norm),))
    start = of(Start, [send.record for send in made.sent])[-1]
    assert (start.sync.index, start.contributors) == (4, ("a", "b"))
    starts_over = [(send.to, send.record) for send in made.sent if isinstance(send.record, StartOver)]
    assert starts_over == [("c", StartOver("param", 1, made.said[-1].details["reason"]))]


@pytest.mark.parametrize("gossip", [False, True])
def test_who_passes_by_what_a_former_process_was_in_is_welcome_once_that_is_durable(gossip: bool) -> None:
    """Its trainer may have outlived that process: it learns from the line that its contribution is in it."""
    streams = noloco(NolocoOptions(every=1), Wire("fp32")) if gossip else FACTS.streams
    made = Run(Coordinator(replace(FACTS, streams=streams), history(3)))
    for peer in ("a", "b"):
        made.tell(peer, hello(peer, codecs=("fp32", "int8")))
        made.report(peer, 3)
    made.handle(Tick(), 0.1)
    for peer in ("a", "b"):
        made.report(peer, 3, 0.2, syncs=ready(4))
    start = of(Start, [send.record for send in made.sent])[-1]
    assert sorted(start.contributors) == ["a", "b"]
    made.disk_works = False
    for peer in ("a", "b"):
        made.report(peer, 3, 0.3, syncs=done(start))
    again = hello("a", boot=b"another!", codecs=("fp32", "int8"))
    told = made.tell("a", again, 3.0)
    assert bool(of(Welcome, told)) != gossip
    assert of(Waiting, told) == ([Waiting("the commit log cannot be written: disk full")] if gossip else [])
    assert of(Welcome, made.tell("c", hello("c", codecs=("fp32", "int8")), 3.0))
    made.disk_works = True
    made.handle(Tick(), 3.1)
    (welcome,) = of(Welcome, made.tell("a", again, 5.0))
    assert (welcome.head, welcome.indices) == (4, {"param": 4})
