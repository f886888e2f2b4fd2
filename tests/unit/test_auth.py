"""Keys, invites and proofs: what is forged, altered, expired or meant for another run is refused, with a reason."""

import stat
from dataclasses import replace
from pathlib import Path

import msgpack
import pytest

from wantrain.errors import ConfigError, InviteError
from wantrain.transport.auth import (
    Identity,
    Invite,
    RunKeys,
    check_proof,
    enroll_proof,
    peer_id,
    verify,
)

RUN = b"run-id-8"
KEYS = RunKeys.create()
INVITE = Invite.issue(KEYS, RUN, "host.example", 4000, expires_unix=1_000_000, uses=3)


def test_signatures_verify_only_with_the_right_key_and_data() -> None:
    identity, other = Identity.create(), Identity.create()
    signature = identity.sign(b"data")
    assert len(signature) == 64
    assert verify(identity.public_key, signature, b"data")
    assert not verify(other.public_key, signature, b"data")
    assert not verify(identity.public_key, signature, b"other")
    assert not verify(identity.public_key, signature[:-1], b"data")
    assert not verify(b"short", signature, b"data")


def test_peer_name_is_a_digest_of_the_public_key() -> None:
    identity = Identity.create()
    assert identity.peer == peer_id(identity.public_key)
    assert len(identity.peer) == 16
    assert int(identity.peer, 16) >= 0


@pytest.mark.parametrize("kind", [Identity, RunKeys])
def test_keys_survive_the_file_which_only_the_owner_can_read(
    kind: type[Identity] | type[RunKeys], tmp_path: Path
) -> None:
    keys, path = kind.create(), tmp_path / "keys"
    keys.save(path)
    keys.save(path)  # again over it
    assert kind.load(path) == keys
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_key_files_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    with pytest.raises(ConfigError, match="cannot read"):
        Identity.load(path)
    with pytest.raises(ConfigError, match="cannot write"):
        Identity.create().save(tmp_path / "missing" / "keys")
    RunKeys.create().save(path)
    with pytest.raises(ConfigError, match="holds a wantrain run key, not a wantrain identity"):
        Identity.load(path)
    text = path.read_text()
    for damaged in ("", "{}", "[]", text[:-5], text.replace('"curve_secret": "', '"curve_secret": "ab'), "\u00e4"):
        path.write_text(damaged, encoding="utf-8")
        with pytest.raises(ConfigError, match="damaged"):
            RunKeys.load(path)


def test_secrets_do_not_show_in_repr() -> None:
    for shown in (repr(KEYS), repr(INVITE)):
        assert KEYS.signing_secret.hex() not in shown
        assert INVITE.secret.hex() not in shown
        assert repr(INVITE.secret) not in shown


def test_all_derived_keys_differ() -> None:
    keys = {KEYS.owner_public, KEYS.curve_public, KEYS.status_curve_public, INVITE.curve_key_pair()[0]}
    assert len(keys) == 4
    assert INVITE.curve_key_pair() == Invite.parse(str(INVITE)).curve_key_pair()


@pytest.mark.parametrize("host", ["host.example", "10.0.0.1", "::1", "fe80::1%eth0", "größe.example"])
def test_invites_survive_text_and_bytes(host: str) -> None:
    invite = Invite.issue(KEYS, RUN, host, 4000, expires_unix=1_000_000, uses=3)
    text = str(invite)
    assert text.startswith(f"wantrain://{f'[{host}]' if ':' in host else host}:4000/")
    assert Invite.parse(text) == invite == Invite.from_bytes(invite.to_bytes())
    assert Invite.parse(f"  '{text}'\n") == invite
    invite.check(RUN, KEYS.owner_public, now_unix=999_999.9)


def test_each_invite_has_a_secret_of_its_own() -> None:
    other = Invite.issue(KEYS, RUN, "host.example", 4000, expires_unix=1_000_000)
    assert other.ident != INVITE.ident
    assert other.uses == 1


@pytest.mark.parametrize("text", ["", "hello", "http://host/x", "wantrain:/host:1/abc", "x" * 10_000])
def test_text_that_is_no_invite_is_refused(text: str) -> None:
    with pytest.raises(InviteError, match="is not an invite") as caught:
        Invite.parse(text)
    assert "wantrain://" in caught.value.hint


@pytest.mark.scenario(12)
def test_every_truncation_of_an_invite_is_refused() -> None:
    text = str(INVITE)
    for size in range(len(text)):
        with pytest.raises(InviteError):
            Invite.parse(text[:size])


@pytest.mark.scenario(12)
def test_every_altered_character_of_an_invite_is_refused() -> None:
    text = str(INVITE)
    for at in range(len(text) - 1):  # the last one has bits that carry nothing
        changed = text[:at] + ("A" if text[at] != "A" else "B") + text[at + 1 :]
        with pytest.raises(InviteError):
            Invite.parse(changed)


def test_altered_address_is_named() -> None:
    with pytest.raises(InviteError, match=r"says evil\.example:4000 but was signed for host\.example:4000"):
        Invite.parse(str(INVITE).replace("host.example", "evil.example"))


def test_newer_invites_name_both_versions() -> None:
    with pytest.raises(InviteError, match="version 2, this wantrain knows version 1"):
        Invite.from_bytes(msgpack.packb([2, "something", "else"]))


@pytest.mark.parametrize(
    "data", [b"", b"\xc1", b"\x91" * 100, msgpack.packb([]), msgpack.packb([1]), msgpack.packb({}), bytes(5000)]
)
def test_arbitrary_bytes_are_no_invite(data: bytes) -> None:
    with pytest.raises(InviteError, match="cut off or garbled"):
        Invite.from_bytes(data)


@pytest.mark.scenario(12)
def test_an_invite_is_good_for_one_run_one_owner_and_until_it_expires() -> None:
    with pytest.raises(InviteError, match="is for run"):
        INVITE.check(b"otherrun", KEYS.owner_public, 0)
    with pytest.raises(InviteError, match="forged"):
        INVITE.check(RUN, RunKeys.create().owner_public, 0)
    with pytest.raises(InviteError, match="forged"):
        replace(INVITE, uses=1000).check(RUN, KEYS.owner_public, 0)
    with pytest.raises(InviteError, match="expired at 1970-01-12 13:46:40 UTC") as caught:
        INVITE.check(RUN, KEYS.owner_public, 1_000_000)
    assert "new invite" in caught.value.hint


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"host": ""}, "host"),
        ({"host": "a b"}, "host"),
        ({"host": "a/b"}, "host"),
        ({"port": 0}, "port"),
        ({"port": 65536}, "port"),
        ({"uses": 0}, "uses"),
        ({"expires_unix": -1}, "expires_unix"),
        ({"expires_unix": 2**60}, "expires_unix"),
        ({"run": b"short"}, "run"),
        ({"secret": b"short"}, "secret"),
    ],
)
def test_invites_out_of_range_are_not_made(changes: dict[str, object], name: str) -> None:
    with pytest.raises(InviteError, match=name):
        replace(INVITE, **changes)  # type: ignore[arg-type]


@pytest.mark.scenario(12)
def test_a_proof_binds_identity_curve_key_run_and_invite() -> None:
    identity, other = Identity.create(), Identity.create()
    proof = enroll_proof(identity, RUN, INVITE.secret)
    good = (identity.public_key, identity.curve_public, RUN, INVITE.secret, proof)
    assert check_proof(*good)
    wrong = (other.public_key, other.curve_public, b"otherrun", bytes(16), bytes(64))
    for at, value in enumerate(wrong):
        assert not check_proof(*(*good[:at], value, *good[at + 1 :]))


def test_a_signature_for_one_purpose_is_none_for_another() -> None:
    identity = Identity.create()
    packed = msgpack.packb((identity.curve_public, RUN, INVITE.secret))
    assert not check_proof(identity.public_key, identity.curve_public, RUN, INVITE.secret, identity.sign(packed))
