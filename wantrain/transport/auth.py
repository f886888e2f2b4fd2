"""Who is who: identities, the owner's keys of a run, invites and proofs; pure cryptography, no sockets.

Two kinds of key: Ed25519 signs, CURVE (X25519) encrypts a connection. A signature by the first binds the second to it.
All keys are 32 raw bytes, signatures 64; libzmq takes raw X25519 keys as CURVE keys.
"""

import base64
import binascii
import hashlib
import json
import os
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Self

import msgpack
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from wantrain.errors import ConfigError, InviteError

KEY_BYTES = 32
SIGNATURE_BYTES = 64
RUN_BYTES = 8
INVITE_SECRET_BYTES = 16
INVITE_VERSION = 1
INVITE_SCHEME = "wantrain://"
MAX_INVITE_BYTES = 2048
MAX_INVITE_USES = 1_000_000
MAX_EXPIRY_UNIX_S = 253_402_300_799
"""The last second of the year 9999, so that an expiry can always be printed."""

# Each use of a key or hash starts with its own label, so that what was made for one purpose never passes for another.
_LABEL_INVITE = b"wantrain invite 1\0"
_LABEL_PROOF = b"wantrain enroll 1\0"
_LABEL_INVITE_CURVE = b"wantrain invite curve 1\0"
_LABEL_STATUS_CURVE = b"wantrain status curve 1\0"

_ASK_AGAIN = "ask the owner of the run for a new invite"
_COPY_AGAIN = "copy the whole invite again: one line, from wantrain:// to its last character"


def verify(public_key: bytes, signature: bytes, data: bytes) -> bool:
    """Whether `signature` over `data` was made with the Ed25519 key of `public_key`."""
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, data)
    except (InvalidSignature, ValueError):
        return False
    return True


def peer_id(public_key: bytes) -> str:
    """What the holder of an Ed25519 public key is called everywhere: the first 16 hex digits of its SHA-256."""
    return hashlib.sha256(public_key).hexdigest()[:16]


def _curve_public(secret: bytes) -> bytes:
    return X25519PrivateKey.from_private_bytes(secret).public_key().public_bytes_raw()


@dataclass(frozen=True, repr=False)
class _KeyFile:
    """An Ed25519 key and a CURVE key, kept in a file that only its owner can read."""

    kind: ClassVar[str]
    signing_secret: bytes
    curve_secret: bytes

    def __repr__(self) -> str:  # secrets stay out of logs and tracebacks
        return f"{type(self).__name__}({self._signing_public.hex()})"

    @classmethod
    def create(cls) -> Self:
        """New keys from the system's random numbers."""
        return cls(Ed25519PrivateKey.generate().private_bytes_raw(), X25519PrivateKey.generate().private_bytes_raw())

    @classmethod
    def load(cls, path: Path) -> Self:
        """The keys in a file that `save` wrote.

        Raises:
            ConfigError: there is no such file, or it is not one of this kind.
        """
        try:
            document = json.loads(path.read_text(encoding="ascii"))
            if document["kind"] != cls.kind:
                raise ConfigError(f"{path} holds a {str(document['kind'])[:40]}, not a {cls.kind}")
            keys = bytes.fromhex(document["signing_secret"]), bytes.fromhex(document["curve_secret"])
            if {len(key) for key in keys} != {KEY_BYTES}:
                raise ValueError(f"keys of {len(keys[0])} and {len(keys[1])} bytes, not {KEY_BYTES}")
        except OSError as error:
            raise ConfigError(f"cannot read the {cls.kind} {path}: {error.strerror}", hint="check the path") from error
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{path} is damaged or no {cls.kind}: {error}", hint="restore it from a backup") from None
        return cls(*keys)

    def save(self, path: Path) -> None:
        """Write the keys, readable by the owner only; the file is there whole or not at all.

        Raises:
            ConfigError: the file cannot be written.
        """
        document = {
            "kind": self.kind,
            "signing_secret": self.signing_secret.hex(),
            "curve_secret": self.curve_secret.hex(),
        }
        draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        try:
            with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as file:
                json.dump(document, file)
                file.flush()
                os.fsync(file.fileno())
            draft.replace(path)
        except OSError as error:
            draft.unlink(missing_ok=True)
            raise ConfigError(
                f"cannot write the {self.kind} {path}: {error.strerror}", hint="check the folder"
            ) from error

    @cached_property
    def _signing_public(self) -> bytes:
        return Ed25519PrivateKey.from_private_bytes(self.signing_secret).public_key().public_bytes_raw()

    @cached_property
    def curve_public(self) -> bytes:
        """CURVE public key."""
        return _curve_public(self.curve_secret)

    def sign(self, data: bytes) -> bytes:
        """Ed25519 signature over data."""
        return Ed25519PrivateKey.from_private_bytes(self.signing_secret).sign(data)


class Identity(_KeyFile):
    """A peer's own keys."""

    kind = "wantrain identity"

    @property
    def public_key(self) -> bytes:
        """Ed25519 public key."""
        return self._signing_public

    @cached_property
    def peer(self) -> str:
        """See `peer_id`."""
        return peer_id(self.public_key)


class RunKeys(_KeyFile):
    """The owner's secrets for one run: the key that signs invites, and the coordinator's CURVE key pair."""

    kind = "wantrain run key"

    @property
    def owner_public(self) -> bytes:
        """Ed25519 public key that every invite of the run is signed with."""
        return self._signing_public

    @cached_property
    def status_curve_secret(self) -> bytes:
        """CURVE secret key by which the owner's `wantrain status` is admitted."""
        return hashlib.sha256(_LABEL_STATUS_CURVE + self.signing_secret).digest()

    @cached_property
    def status_curve_public(self) -> bytes:
        """CURVE public key by which the owner's `wantrain status` is admitted."""
        return _curve_public(self.status_curve_secret)


@dataclass(frozen=True, slots=True)
class Invite:
    """A signed ticket into a run: where its coordinator is, by which key to know it, and a secret that admits."""

    host: str
    port: int
    server_key: bytes
    """The coordinator's CURVE public key."""
    run: bytes
    """Id of the run, 8 bytes."""
    owner_key: bytes
    """Ed25519 public key of the run's owner."""
    expires_unix: int
    """Seconds since 1970 (UTC) after which the invite is void."""
    uses: int
    """How many peers may enroll with it."""
    secret: bytes
    """16 random bytes that only the invited know."""
    signature: bytes

    def __post_init__(self) -> None:
        if not (0 < len(self.host) <= 253) or not self.host.isprintable() or set(self.host) & set(" /[]@"):
            raise InviteError(f"{self.host[:60]!r} is not a host", hint="use a host name or an IP address")
        for name, value, low, high in (
            ("port", self.port, 1, 65535),
            ("expires_unix", self.expires_unix, 0, MAX_EXPIRY_UNIX_S),
            ("uses", self.uses, 1, MAX_INVITE_USES),
        ):
            if not low <= value <= high:
                raise InviteError(f"invite: {name} is {value}", hint=f"allowed are {low} to {high}")
        for name, data, size in (
            ("server_key", self.server_key, KEY_BYTES),
            ("run", self.run, RUN_BYTES),
            ("owner_key", self.owner_key, KEY_BYTES),
            ("secret", self.secret, INVITE_SECRET_BYTES),
            ("signature", self.signature, SIGNATURE_BYTES),
        ):
            if len(data) != size:
                raise InviteError(f"invite: {name} has {len(data)} bytes, not {size}", hint=_COPY_AGAIN)

    @classmethod
    def issue(
        cls,
        keys: RunKeys,
        run: bytes,
        host: str,
        port: int,
        expires_unix: int,
        uses: int = 1,
        secret: bytes | None = None,
    ) -> Self:
        """A new invite, signed by the owner.

        Raises:
            InviteError: a value is out of range.
        """
        secret = secrets.token_bytes(INVITE_SECRET_BYTES) if secret is None else secret
        unsigned = (host, port, keys.curve_public, run, keys.owner_public, expires_unix, uses, secret)
        return cls(*unsigned, signature=keys.sign(_LABEL_INVITE + _pack(unsigned)))

    @classmethod
    def parse(cls, text: str) -> Self:
        """The invite in a text that `str(invite)` made.

        Raises:
            InviteError: not an invite, cut off, altered, or of a newer version.
        """
        text = text.strip().strip("'\"")
        if not text.startswith(INVITE_SCHEME):
            raise InviteError(f"{text[:40]!r} is not an invite", hint=f"an invite starts with {INVITE_SCHEME}")
        address, _, payload = text.removeprefix(INVITE_SCHEME).partition("/")
        try:
            data = base64.b64decode(payload + "=" * (-len(payload) % 4), altchars=b"-_", validate=True)
        except (binascii.Error, ValueError):
            raise InviteError("the invite is cut off or garbled", hint=_COPY_AGAIN) from None
        invite = cls.from_bytes(data)
        if address != invite.address:
            raise InviteError(
                f"the invite was altered: it says {address[:300]} but was signed for {invite.address}",
                hint=_COPY_AGAIN,
            )
        return invite

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """The invite in bytes that `to_bytes` made, its signature checked against the owner key that it names.

        Raises:
            InviteError: cut off, altered, or of a newer version.
        """
        garbled = InviteError("the invite is cut off or garbled", hint=_COPY_AGAIN)
        if len(data) > MAX_INVITE_BYTES:
            raise garbled
        try:
            values: Any = msgpack.unpackb(data, use_list=False, max_array_len=16, max_map_len=0)
        except (ValueError, TypeError, msgpack.UnpackException):
            raise garbled from None
        if not isinstance(values, tuple) or not values or type(values[0]) is not int:
            raise garbled
        version, *fields = values
        if version != INVITE_VERSION:
            raise InviteError(
                f"the invite has version {version}, this wantrain knows version {INVITE_VERSION}",
                hint="use the same version of wantrain as the owner of the run",
            )
        if [type(value) for value in fields] != [str, int, bytes, bytes, bytes, int, int, bytes, bytes]:
            raise garbled
        invite = cls(*fields)
        if not invite._signed_by(invite.owner_key):
            raise InviteError("the invite was altered: its signature does not fit", hint=_COPY_AGAIN)
        return invite

    def to_bytes(self) -> bytes:
        """The invite as msgpack, for `Enroll.invite`."""
        return _pack((INVITE_VERSION, *self._unsigned, self.signature))

    def __str__(self) -> str:
        payload = base64.urlsafe_b64encode(self.to_bytes()).decode().rstrip("=")
        return f"{INVITE_SCHEME}{self.address}/{payload}"

    def __repr__(self) -> str:  # the secret stays out of logs and tracebacks
        return f"Invite({self.ident} to {self.address})"

    @property
    def address(self) -> str:
        """Where the coordinator is: "host:port", an IPv6 host in brackets."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def ident(self) -> str:
        """Name of the invite in logs and in the coordinator's store; tells nothing about the secret."""
        return hashlib.sha256(self.secret).hexdigest()[:16]

    @property
    def _unsigned(self) -> tuple[Any, ...]:
        return (
            self.host, self.port, self.server_key, self.run, self.owner_key, self.expires_unix, self.uses, self.secret,
        )  # fmt: skip

    def _signed_by(self, owner_key: bytes) -> bool:
        return verify(owner_key, self.signature, _LABEL_INVITE + _pack(self._unsigned))

    def check(self, run: bytes, owner_key: bytes, now_unix: float) -> None:
        """Whether it is good for this run now. How often it was used only the coordinator's store knows.

        Args:
            run: id of our run, 8 bytes.
            owner_key: Ed25519 public key of our run's owner.
            now_unix: seconds since 1970 (UTC).

        Raises:
            InviteError: for another run, not signed by that owner, or expired.
        """
        if self.run != run:
            raise InviteError(f"the invite is for run {self.run.hex()}, this is run {run.hex()}", hint=_ASK_AGAIN)
        if self.owner_key != owner_key or not self._signed_by(owner_key):
            raise InviteError("the invite is forged: it was not signed by the owner of this run", hint=_ASK_AGAIN)
        if now_unix >= self.expires_unix:
            when = datetime.fromtimestamp(self.expires_unix, UTC)
            raise InviteError(f"the invite expired at {when:%Y-%m-%d %H:%M:%S} UTC", hint=_ASK_AGAIN)

    def curve_key_pair(self) -> tuple[bytes, bytes]:
        """CURVE (public, secret) key pair that opens a newcomer's first connection, derived from the secret."""
        secret = hashlib.sha256(_LABEL_INVITE_CURVE + self.secret).digest()
        return _curve_public(secret), secret


def enroll_proof(identity: Identity, run: bytes, invite_secret: bytes) -> bytes:
    """Ed25519 signature (64 bytes) that binds the identity's CURVE key to it, for this run and invite only."""
    return identity.sign(_proof_data(identity.curve_public, run, invite_secret))


def check_proof(identity_key: bytes, curve_key: bytes, run: bytes, invite_secret: bytes, proof: bytes) -> bool:
    """Whether proof is an `enroll_proof` by the holder of identity_key that claims curve_key for the run and invite."""
    return verify(identity_key, proof, _proof_data(curve_key, run, invite_secret))


def _proof_data(curve_key: bytes, run: bytes, invite_secret: bytes) -> bytes:
    return _LABEL_PROOF + _pack((curve_key, run, invite_secret))


def _pack(values: tuple[Any, ...]) -> bytes:
    packed: bytes = msgpack.packb(values)
    return packed
