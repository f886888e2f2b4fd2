"""Who asks to be let in: what is forged, replayed or used up is refused and logged, and disturbs nobody."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from wantrain.config import RunSpec, key_path, store_path
from wantrain.new_run import create_run
from wantrain.peers.coordinator_daemon import INVITED, CoordinatorDaemon, issue_invite
from wantrain.peers.messages import Enroll, Enrolled, Genesis, Refused, TensorSpec, WantHello
from wantrain.peers.store import Store
from wantrain.transport.auth import Identity, Invite, RunKeys, enroll_proof
from wantrain.transport.wire import Message

NEVER_S = 3600.0


class Door:
    """A coordinator that is not running, and what comes to its door."""

    def __init__(self, folder: Path, store: Store) -> None:
        path = folder / "run.toml"
        self.spec = RunSpec.load(path)
        self.keys = RunKeys.load(key_path(path))
        self.store = store
        self.said: list[dict[str, Any]] = []
        store.bind_run(self.spec.digest, self.spec.to_toml())
        self.daemon = CoordinatorDaemon(self.spec, self.keys, store, "127.0.0.1:0", self.said.append)

    def invite(self, *, uses: int = 8, expires_s: float = NEVER_S) -> Invite:
        return issue_invite(self.store, self.keys, self.spec.run, "127.0.0.1", 7700, uses=uses, expires_s=expires_s)

    def ask(self, invite: Invite, record: Enroll) -> Enrolled | Refused:
        """What a newcomer hears that has opened its connection with this invite."""
        return self.daemon._enroll(INVITED + invite.ident, record)

    def refused(self, invite: Invite, record: Enroll) -> str:
        known = len(self.store.peers())
        answer = self.ask(invite, record)
        assert isinstance(answer, Refused)
        assert self.said[-1]["event"] == "refused"
        assert self.said[-1]["reason"] == answer.reason
        assert len(self.store.peers()) == known
        return answer.reason


def enroll(with_: Invite, who: Identity, **changes: Any) -> Enroll:
    proof = enroll_proof(who, with_.run, with_.secret)
    fields = {"invite": with_.to_bytes(), "identity_key": who.public_key, "curve_key": who.curve_public}
    return Enroll(**({**fields, "name": "somebody", "proof": proof} | changes))


@pytest.fixture
def door(tmp_path: Path) -> Iterator[Door]:
    create_run(tmp_path / "run.toml", bind="127.0.0.1:0")
    with Store(store_path(tmp_path / "run.toml")) as store:
        made = Door(tmp_path, store)
        yield made
        made.daemon.link.close()


pytestmark = pytest.mark.scenario(12)


def test_an_invited_newcomer_is_admitted_by_its_own_key_from_then_on(door: Door) -> None:
    invite, anna = door.invite(), Identity.create()
    assert door.daemon._admit(anna.curve_public) is None
    assert door.daemon._admit(invite.curve_key_pair()[0]) == INVITED + invite.ident
    assert door.ask(invite, enroll(invite, anna)) == Enrolled(anna.peer)
    assert door.daemon._admit(anna.curve_public) == anna.peer


def test_a_record_over_a_limit_is_told_and_ends_nothing(door: Door) -> None:
    long = tuple(TensorSpec(f"{k:0512}", (), "float32") for k in range(3000))
    for to, connection in (("anna", b""), ("bert", b"r\x01xbert")):
        door.daemon._send(to, Genesis(long, b"s" * 32), connection)
        assert (door.said[-1]["event"], door.said[-1]["peer"]) == ("unsendable", to)
        assert "Genesis: header of" in door.said[-1]["reason"]


def test_a_replayed_enrollment_changes_nothing_and_uses_nothing_up(door: Door) -> None:
    invite, anna, bert = door.invite(uses=2), Identity.create(), Identity.create()
    record = enroll(invite, anna)
    for _ in range(5):
        assert door.ask(invite, record) == Enrolled(anna.peer)
    assert door.ask(invite, enroll(invite, bert)) == Enrolled(bert.peer)
    assert "all used" in door.refused(invite, enroll(invite, Identity.create()))


Forge = Callable[[Door, Invite, Identity, Identity], Enroll]
FORGED: dict[str, tuple[Forge, str]] = {
    "somebody else's identity": (
        lambda door, invite, anna, eve: enroll(invite, eve, identity_key=anna.public_key), "does not prove"
    ),
    "its own identity with somebody else's key": (
        lambda door, invite, anna, eve: enroll(invite, eve, curve_key=anna.curve_public), "does not prove"
    ),
    "a proof for another invite": (
        lambda door, invite, anna, eve: enroll(
            invite, eve, proof=enroll_proof(eve, invite.run, door.invite().secret)
        ), "does not prove"
    ),
    "a proof for another run": (
        lambda door, invite, anna, eve: enroll(invite, eve, proof=enroll_proof(eve, b"otherrun", invite.secret)),
        "does not prove",
    ),
    "an invite that its connection was not opened with": (
        lambda door, invite, anna, eve: enroll(door.invite(), eve), "opened with another invite"
    ),
    "an altered invite": (
        lambda door, invite, anna, eve: enroll(
            invite, eve, invite=invite.to_bytes().replace(invite.secret, bytes(len(invite.secret)))
        ), "altered"
    ),
    "garbage for an invite": (
        lambda door, invite, anna, eve: enroll(invite, eve, invite=b"\xc1" * 100), "cut off or garbled"
    ),
    "an invite that a stranger has signed": (
        lambda door, invite, anna, eve: enroll(
            Invite.issue(RunKeys.create(), invite.run, "127.0.0.1", 7700, 2**32), eve
        ), "forged"
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", FORGED)
def test_who_enrolls_with_what_is_not_its_own_is_refused_and_logged(door: Door, what: str) -> None:
    invite, anna, eve = door.invite(), Identity.create(), Identity.create()
    assert door.ask(invite, enroll(invite, anna)) == Enrolled(anna.peer)
    forge, words = FORGED[what]
    assert words in door.refused(invite, forge(door, invite, anna, eve))
    assert door.daemon._admit(eve.curve_public) is None
    assert door.daemon._admit(anna.curve_public) == anna.peer


def test_an_expired_invite_enrolls_nobody_and_its_holder_is_told_why(door: Door) -> None:
    invite = door.invite(expires_s=-1.0)
    assert door.daemon._admit(invite.curve_key_pair()[0]) == f"invite:{invite.ident}"
    assert "expired" in door.refused(invite, enroll(invite, Identity.create()))


def test_keys_that_nobody_knows_are_not_admitted(door: Door) -> None:
    for key in (Identity.create().curve_public, bytes(32), door.keys.curve_public):
        assert door.daemon._admit(key) is None


def test_what_is_for_a_peer_goes_over_its_live_connection_though_a_late_hello_of_a_broken_one_was_welcomed_last(
    door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[tuple[bytes, str]] = []

    def send(peer: str, message: Message) -> bool:
        sent.append((b"live", message.kind))
        return True

    def reply(connection: bytes, message: Message) -> bool:
        if connection == b"broken":
            return False
        sent.append((connection, message.kind))
        return True

    monkeypatch.setattr(door.daemon.link, "send", send)
    monkeypatch.setattr(door.daemon.link, "reply", reply)
    welcome = door.daemon.core._welcome("anna")
    for connection in (b"live", b"broken"):
        door.daemon._send("anna", welcome, connection)
    assert sent == [(b"live", "Welcome")], "who asked on a broken connection asks again"
    door.daemon._send("anna", WantHello(), b"")
    assert sent[1:] == [(b"live", "WantHello")]
