"""Who is alive and in the view: silence by what was seen, hints, restarts, and two processes with one identity."""

from wantrain.peers.membership import (
    Gone,
    Greeted,
    Heard,
    IdentityInUse,
    Joined,
    Left,
    Membership,
    MembershipEffect,
    Outdated,
    Tick,
    ViewChanged,
)
from wantrain.peers.messages import Hello, Report
from wantrain.peers.timing import Policy

POLICY = Policy(heartbeat_s=1.0, suspect_floor_s=5.0, suspect_ceiling_s=30.0)


def hello(peer: str, boot: int = 1, address: str = "host:1") -> Hello:
    return Hello(1, "0", b"", peer, bytes([boot]) * 8, address, ())


def report(boot: int = 1, sequence: int = 1, *, log_number: int = 3, suspects: tuple[str, ...] = ()) -> Report:
    blamed = dict.fromkeys(suspects, "connection closed")
    return Report(bytes([boot]) * 8, sequence, log_number, b"", -1, b"", "training", (), blamed, -1.0, "", {})


def greet(who: Membership, peer: str, now: float, boot: int = 1) -> list[MembershipEffect]:
    return who.handle(Greeted(peer, hello(peer, boot), b"k" * 32), now)


def hear(who: Membership, peer: str, now: float, *, current: bool = True, **fields: object) -> list[MembershipEffect]:
    return who.handle(Heard(peer, report(**fields), current), now)  # type: ignore[arg-type]


def members(*peers: str) -> Membership:
    who = Membership(POLICY, 0)
    for peer in peers:
        greet(who, peer, 0.0)
        hear(who, peer, 0.0)
    return who


def test_a_peer_is_a_member_once_it_holds_the_runs_state() -> None:
    who = Membership(POLICY, 7)
    assert greet(who, "a", 0.0) == [Joined("a"), ViewChanged(8)]
    assert hear(who, "a", 0.1, current=False) == []
    assert who.members == ()
    assert hear(who, "a", 0.2) == [ViewChanged(9)]
    assert who.members == ("a",)


def test_the_order_of_the_view_is_that_of_becoming_a_member_and_joiners_come_last_in_the_roster() -> None:
    who = Membership(POLICY, 0)
    for peer in "abc":
        greet(who, peer, 0.0)
    hear(who, "c", 0.0)
    hear(who, "a", 0.0)
    assert who.members == ("c", "a")
    assert [(m.peer, m.current) for m in who.roster()] == [("c", True), ("a", True), ("b", False)]


def test_a_silent_peer_is_lost_after_the_floor_and_comes_back_with_its_next_report() -> None:
    who = members("a", "b")
    for second in range(1, 6):
        hear(who, "b", float(second), sequence=second + 1)
    assert who.handle(Tick(), 4.9) == []
    (gone, changed) = who.handle(Tick(), 5.0)
    assert gone == Gone("a", "not seen for 5.0 s")
    assert isinstance(changed, ViewChanged)
    effects = hear(who, "a", 6.0, sequence=2)
    assert Joined("a") in effects or who.members == ("b", "a")


def test_a_peer_with_long_pauses_is_given_longer_and_never_more_than_the_ceiling() -> None:
    who = members("a")
    for k in range(1, 20):
        hear(who, "a", 4.0 * k, sequence=k + 1)
    assert 11.0 <= who.silence_s("a") <= 30.0
    for k in range(1, 20):
        hear(who, "a", 80.0 + 40.0 * k, sequence=k + 30)
    assert who.silence_s("a") == 30.0


def test_a_hint_shortens_the_patience_and_a_report_clears_it() -> None:
    who = members("a", "b")
    hear(who, "b", 1.0, sequence=2, suspects=("a",))
    assert who.handle(Tick(), 2.4) == []
    assert Gone("a", "connection broken and not seen for 2.5 s") in who.handle(Tick(), 2.5)
    who = members("a", "b")
    hear(who, "b", 1.0, sequence=2, suspects=("a",))
    hear(who, "a", 2.0, sequence=2)
    assert who.handle(Tick(), 4.6) == []


def test_nobody_can_hint_at_itself() -> None:
    who = members("a")
    hear(who, "a", 1.0, sequence=2, suspects=("a",))
    assert who.handle(Tick(), 4.0) == []


def test_a_second_process_with_a_live_identity_is_refused_and_disturbs_nobody() -> None:
    who = members("a", "b")
    assert greet(who, "a", 1.0, boot=2) == [IdentityInUse("a")]
    assert who.members == ("a", "b")


def test_the_late_hello_of_a_process_that_was_replaced_replaces_nobody() -> None:
    who = members("a", "b")
    assert Joined("a") in greet(who, "a", 3.0, boot=2)
    assert greet(who, "a", 60.0, boot=1) == [IdentityInUse("a")]
    assert who.peers["a"].hello.boot == bytes([2]) * 8


def test_a_restarted_peer_replaces_its_former_process_once_that_is_silent() -> None:
    who = members("a", "b")
    effects = greet(who, "a", 2.0, boot=2)
    assert Gone("a", "restarted") in effects
    assert Joined("a") in effects
    assert who.members == ("b",)


def test_a_restarted_peer_need_not_wait_when_others_saw_its_connection_break() -> None:
    who = members("a", "b")
    hear(who, "b", 0.5, sequence=2, suspects=("a",))
    assert Joined("a") in greet(who, "a", 0.6, boot=2)


def test_the_same_process_may_greet_again_and_its_old_reports_stay_old() -> None:
    who = members("a")
    assert greet(who, "a", 1.0) == []
    hear(who, "a", 1.5, sequence=9)
    who.handle(Tick(), 30.0)
    assert Joined("a") in greet(who, "a", 31.0)
    known = who.peers["a"].report
    assert known is not None
    assert known.sequence == 9


def test_a_new_address_is_made_known() -> None:
    who = members("a")
    assert who.handle(Greeted("a", hello("a", address="elsewhere:2"), b"k" * 32), 1.0) == [ViewChanged(who.view)]
    assert who.roster()[0].address == "elsewhere:2"


def test_who_left_is_gone_and_a_late_hello_does_not_bring_it_back() -> None:
    who = members("a", "b")
    assert who.handle(Left("a"), 1.0)[0] == Gone("a", "left")
    assert who.handle(Left("a"), 1.1) == []
    assert greet(who, "a", 1.2) == []
    assert who.members == ("b",)
    assert Joined("a") in greet(who, "a", 9.0, boot=2)


def test_who_has_another_state_or_none_any_more_has_to_join_again() -> None:
    who = members("a", "b")
    assert who.handle(Outdated("a"), 1.0) == [ViewChanged(who.view)]
    assert who.handle(Outdated("a"), 1.0) == []
    assert hear(who, "b", 1.0, sequence=2, log_number=-1, current=False) == [ViewChanged(who.view)]
    assert who.members == ()
    assert [member.current for member in who.roster()] == [False, False]
