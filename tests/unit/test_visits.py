"""Visits: the coordinator says what an invite is worth; members let the doctor measure and hear nothing else."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.test_reachability_cores import behind_nat
from wantrain.config import RunSpec, key_path, store_path
from wantrain.errors import StoreError
from wantrain.new_run import create_run
from wantrain.peers.coordinator_daemon import issue_invite
from wantrain.peers.messages import Examine, Hello, Visitor, pack
from wantrain.peers.store import Store
from wantrain.peers.visitors import MOST, Visitors
from wantrain.peers.visits import EVERY_S, PAIRS_TOLD, VISIT_S, Visits, visitor
from wantrain.transport.auth import Identity, Invite, RunKeys
from wantrain.transport.link import Connected, Received
from wantrain.transport.memory_link import MemoryHub, MemoryLink
from wantrain.transport.wire import encode

KEY = b"v" * 32


class Office:
    """The coordinator's desk, and a run of one reachable peer and two that are not."""

    def __init__(self, spec: RunSpec, keys: RunKeys, store: Store) -> None:
        self.spec, self.keys, self.store = spec, keys, store
        self.visits = Visits(spec, store)
        self.core = behind_nat("b", "c", dialled="a").core

    def invite(self, *, uses: int = 1, expires_s: float = 60.0) -> Invite:
        return issue_invite(self.store, self.keys, self.spec.run, "h", 1, uses=uses, expires_s=expires_s)

    def ask(self, invite: Invite, *, ident: str | None = None, now: float = 0.0, codecs: tuple[str, ...] = ()) -> str:
        record = Examine("0.1", invite.to_bytes(), codecs, KEY, "me:1")
        opened_with = invite.ident if ident is None else ident
        self.answer = self.visits.examine(opened_with, record, self.core, now, int(time.time()))
        return "too soon" if self.answer is None else self.answer.invite


@pytest.fixture
def office(tmp_path: Path) -> Iterator[Office]:
    spec = create_run(tmp_path / "run.toml")
    with Store(store_path(tmp_path / "run.toml")) as store:
        yield Office(spec, RunKeys.load(key_path(tmp_path / "run.toml")), store)


def test_a_good_invite_hears_who_is_there_and_who_is_apart(office: Office) -> None:
    assert office.ask(office.invite(uses=3), codecs=("int8",)) == ""
    assert office.answer is not None
    assert (office.answer.uses_left, office.answer.missing_codecs, office.answer.model_bytes) == (3, (), 40)
    assert [member.peer for member in office.answer.members] == ["a", "b", "c"]
    assert office.answer.apart == {"b": ("c",)}


@pytest.mark.scenario(12)
def test_an_invite_that_is_none_hears_why_and_nothing_of_others(office: Office) -> None:
    used = office.invite()
    assert office.store.use_invite(used.ident, "somebody")
    expired = office.invite(expires_s=-10.0)
    foreign = Invite.issue(RunKeys.create(), office.spec.run, "h", 1, 2**32)
    for k, (invite, words) in enumerate([(used, "all used"), (expired, "expired at"), (foreign, "forged")]):
        assert words in office.ask(invite, now=2.0 * k)
        assert office.answer is not None
        assert (office.answer.members, office.answer.apart) == ((), {})
    assert "another invite" in office.ask(office.invite(), ident=used.ident, now=10.0)


def test_a_store_that_cannot_be_read_is_told_to_who_asks(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(key: bytes) -> None:
        raise StoreError("the disk reports an error")

    invite = office.invite()
    monkeypatch.setattr(office.store, "invite_by_curve_key", broken)
    assert office.ask(invite) == "the disk reports an error"


def test_the_answer_fits_a_message_however_many_can_only_dial_out(office: Office) -> None:
    many = [f"{k:016x}" for k in range(400)]
    office.core = behind_nat(*many, dialled="a").core
    assert office.ask(office.invite()) == ""
    assert office.answer is not None
    assert len(office.answer.members) == 401
    assert sum(map(len, office.answer.apart.values())) == PAIRS_TOLD
    assert encode(pack(office.answer), office.spec.run)


def test_examinations_are_held_back(office: Office) -> None:
    invite = office.invite()
    assert [office.ask(invite, now=now) for now in (0.0, EVERY_S / 2, EVERY_S)] == ["", "too soon", ""]


def test_a_visitor_is_admitted_and_dialled_for_a_while_and_heard_in_nothing() -> None:
    link, members = MemoryLink(MemoryHub(), "me"), {b"k" * 32: "anna"}
    desk = Visitors(link, members)
    desk.announced(visitor(Examine("0", b"", (), KEY, "me:1")), 0.0)
    assert members[KEY] == "visitor-0"
    assert list(link._dialled) == ["visitor-0"]
    hello = Hello(3, "0", b"", "x", b"bootboot", "", ())
    assert desk.concerns(Received("visitor-0", b"", pack(hello)))
    assert desk.concerns(Connected("visitor-0"))
    assert not desk.concerns(Connected("anna"))
    desk.tick(VISIT_S - 1.0)
    assert KEY in members
    desk.tick(float(VISIT_S))
    assert (members, list(link._dialled)) == ({b"k" * 32: "anna"}, [])


def test_many_visitors_take_the_place_of_the_oldest_and_members_stay_members() -> None:
    link, anna = MemoryLink(MemoryHub(), "me"), Identity.create().curve_public
    members = {anna: "anna"}
    desk = Visitors(link, members)
    desk.announced(Visitor(anna, "x:1", 20), 0.0)
    assert members == {anna: "anna"}, "a member is no visitor"
    for k in range(10):
        desk.announced(Visitor(bytes([k]) * 32, "", 20), 0.0)
        desk.announced(Visitor(bytes([k]) * 32, "", 20), 1.0)
        assert len(set(members.values())) == len(members) <= MOST + 1
    assert list(link._dialled) == [], "without an address nobody is dialled"
