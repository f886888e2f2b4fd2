"""Peers that cannot reach each other, at coordinator and participant: nobody asks in vain or is waited for."""

import pytest

from tests.unit.test_coordinator_core import POLICY, Run, done, hello, of, ready, run
from tests.unit.test_participant import HELLO, PARAM, RUN, One, chain, told
from wantrain.peers.coordinator import Tick
from wantrain.peers.events import CoordinatorLink, FromPeer, Progress
from wantrain.peers.messages import Commit, Member, Report, Start, StateChunk, View, WantState
from wantrain.peers.participant import Participant, PeerFacts

# ---- the coordinator


def behind_nat(*outbound: str, dialled: str = "") -> Run:
    """A run of these peers, of which some can only dial out."""
    made = run(*dialled, *outbound)
    for peer in outbound:
        made.tell(peer, hello(peer, address=""))
    made.handle(Tick(), 0.2)
    return made


@pytest.mark.scenario(18)
def test_who_can_only_dial_out_owns_nothing_from_the_first_attempt_on() -> None:
    one = behind_nat("b", "c", dialled="a")
    one.report("a", 3, syncs=ready(4))
    one.report("b", 3, syncs=ready(4))
    start = of(Start, one.report("c", 3, syncs=ready(4)))[0]
    assert (start.contributors, start.shards) == (("a", "b", "c"), (1, 0, 0))


@pytest.mark.scenario(18)
def test_a_pair_without_a_connection_is_planned_around_from_the_next_report_on() -> None:
    one = run("a", "b", "c")
    one.report("b", 3, syncs=ready(4), unreached=("a",))
    one.report("a", 3, syncs=ready(4))
    start = of(Start, one.report("c", 3, syncs=ready(4)))[0]
    assert start.shards == (0, 0, 1)


@pytest.mark.scenario(18)
def test_whom_nobody_reaches_is_not_waited_for_and_is_told_why() -> None:
    one = behind_nat("b", "c")
    one.report("b", 3, syncs=ready(4))
    start = of(Start, [send.record for send in one.sent if send.to == "b"])[-1]
    assert start.contributors == ("b",), "nobody waits for c"
    assert one.core.cut_off().keys() == {"c"}
    assert "c is cut off: it can only dial out, and so can b; start a peer that both sides reach" in one.core.reason()
    one.handle(Tick(), 2.0)
    words = [getattr(send.record, "reason", "") for send in one.sent if send.to == "c"]
    assert any("c is cut off" in said for said in words)


@pytest.mark.scenario(4, 18)
def test_the_many_go_on_without_one_whom_none_of_them_reaches_and_it_does_not_go_ahead_of_them() -> None:
    one = run("a", "b", "c")
    one.report("a", 3, syncs=ready(4), unreached=("b", "c"))
    assert one.core.cut_off().keys() == {"a"}
    for second in range(1, 20):
        one.handle(Tick(), float(second))
        one.report("a", 3, now=float(second), syncs=ready(4), unreached=("b", "c"))
        for peer in "bc":
            one.report(peer, 3, now=float(second))
    one.report("b", 3, now=20.0, syncs=ready(4))
    start = of(Start, one.report("c", 3, now=20.1, syncs=ready(4)))[0]
    assert (start.contributors, start.receivers) == (("b", "c"), ())


@pytest.mark.scenario(4, 18)
def test_who_says_that_it_reaches_nobody_does_not_go_ahead_of_the_many_by_that_very_report() -> None:
    one, late = run("a", "b", "c"), POLICY.grace_ceiling_s + 1.0
    one.report("a", 3, syncs=ready(4))
    assert not of(Start, one.report("a", 3, now=late, syncs=ready(4), unreached=("b", "c")))
    assert one.core.cut_off().keys() == {"a"}
    assert of(Start, one.report("a", 3, now=late + 0.1, syncs=ready(4))), "it reaches them again, and they are late"


@pytest.mark.scenario(18)
def test_who_is_cut_off_and_far_behind_is_no_source_of_the_state_until_it_is_not() -> None:
    one = behind_nat("b", "c")
    for index in range(4, 8):
        one.report("b", index - 1, syncs=ready(index), now=1.0)
        start = of(Start, [send.record for send in one.sent if send.to == "b"])[-1]
        assert of(Commit, one.report("b", index - 1, syncs=done(start), now=1.0))
    one.report("b", 7, now=1.0)
    assert one.core.membership.members == ("b", "c")
    one.handle(Tick(), 1.1)
    assert one.core.membership.members == ("b",)
    one.tell("a", hello("a"), 1.2)
    assert one.core.cut_off() == {}, "a passes on to c what b has"
    one.report("c", 7, now=1.3)
    assert one.core.membership.members == ("b", "c")


# ---- the participant


def peer(address: str) -> One:
    """A newcomer that wants the state, known under this address."""
    one = One()
    hello = HELLO.__class__(1, "0", b"", "me", b"bootboot", address, ("int8",))
    one.core = Participant(PeerFacts("me", RUN, hello, (PARAM,)))
    one.do(CoordinatorLink(True))
    one.welcome(3)
    return one


def seen(one: One, **addresses: str) -> list[WantState]:
    """A view of these members; whom the peer asks for the state because of it."""
    members = tuple(Member(name, name, address, b"k" * 32, True) for name, address in addresses.items())
    effects = one.hear(View(1, members))
    return [effect.to for effect in effects if isinstance(getattr(effect, "record", None), WantState)]


@pytest.mark.scenario(18)
def test_a_newcomer_that_can_only_dial_out_asks_those_whom_it_reaches() -> None:
    assert seen(peer(""), b="", c="h:1") == ["c"]
    assert seen(peer("h:1"), b="", c="h:1") in (["b"], ["c"])
    lonely = peer("")
    assert seen(lonely, b="") == []
    assert "no way to b: only a peer that both sides reach can pass it on" in lonely.core.waiting(0.0)


@pytest.mark.scenario(18)
def test_sources_are_those_to_whom_a_connection_is_up_and_the_others_are_reported() -> None:
    one = peer("h:1")
    one.do(Progress(-1.0, {}, {}, frozenset()))
    assert seen(one, b="h:1", c="h:1") == []
    one.now = 2.0
    effects = one.do(Progress(-1.0, {}, {}, frozenset("c")))
    assert [effect.to for effect in effects if isinstance(getattr(effect, "record", None), WantState)] == ["c"]
    assert told(Report, effects)[-1].unreached == ("b",)
    assert one.do(FromPeer("b", StateChunk(0, 3, chain(3)), "state")) == [], "it was not asked"


def test_a_connection_that_comes_up_is_reported_at_once_and_one_that_breaks_with_the_next_heartbeat() -> None:
    one = peer("h:1")
    one.do(Progress(-1.0, {}, {}, frozenset("b")))
    seen(one, b="h:1", c="h:1")
    one.now = 2.0
    assert told(Report, one.do(Progress(-1.0, {}, {}, frozenset("b"))))[-1].unreached == ("c",)
    one.now = 2.1
    assert told(Report, one.do(Progress(-1.0, {}, {}, frozenset("bc"))))[-1].unreached == ()
    one.now = 2.2
    assert told(Report, one.do(Progress(-1.0, {}, {}, frozenset("c")))) == []


def test_pairs_that_can_both_only_dial_out_need_no_report() -> None:
    one = peer("")
    one.do(Progress(-1.0, {}, {}, frozenset()))
    seen(one, b="")
    one.now = 2.0
    assert told(Report, one.do(Progress(-1.0, {}, {}, frozenset())))[-1].unreached == ()
