"""The coordinator's memory: one SQLite file, durable before anything is visible; only here is sqlite3 imported."""

import difflib
import json
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from wantrain.errors import ConfigError, RefusedError, StoreError

SCHEMA = 2
"""Version of the tables below; a file with another one is refused, never converted on the way."""

BUSY_TIMEOUT_S = 2.0
"""How long a write waits for another process (`wantrain invite`) to finish its own, which takes milliseconds."""

_TABLES = (
    "CREATE TABLE meta (key TEXT PRIMARY KEY, value) WITHOUT ROWID",
    """CREATE TABLE peer (
        peer TEXT PRIMARY KEY, name TEXT NOT NULL, identity_key BLOB NOT NULL, curve_key BLOB NOT NULL UNIQUE,
        invite TEXT NOT NULL)""",
    """CREATE TABLE invite (
        ident TEXT PRIMARY KEY, curve_key BLOB NOT NULL UNIQUE, expires_unix INTEGER NOT NULL,
        uses INTEGER NOT NULL)""",
    "CREATE TABLE invite_use (ident TEXT NOT NULL, peer TEXT NOT NULL, PRIMARY KEY (ident, peer)) WITHOUT ROWID",
    """CREATE TABLE genesis (
        one INTEGER PRIMARY KEY CHECK (one = 1), manifest BLOB NOT NULL, state_digest BLOB NOT NULL,
        chain BLOB NOT NULL)""",
    "CREATE TABLE commit_log (number INTEGER PRIMARY KEY, record BLOB NOT NULL)",
    """CREATE TABLE abandoned (
        id INTEGER PRIMARY KEY AUTOINCREMENT, number INTEGER NOT NULL, record BLOB NOT NULL, reason TEXT NOT NULL)""",
    "CREATE TABLE view (one INTEGER PRIMARY KEY CHECK (one = 1), number INTEGER NOT NULL, members TEXT NOT NULL)",
    "CREATE TABLE lease (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID",
)

_INVITES = (
    "SELECT ident, curve_key, expires_unix, uses,"
    " (SELECT count(*) FROM invite_use WHERE invite_use.ident = invite.ident) FROM invite"
)

_REASONS = {
    sqlite3.SQLITE_FULL: ("the disk is full", "free some space; nothing was half-written"),
    sqlite3.SQLITE_BUSY: ("it is locked by another process", "stop the other coordinator of this run, if there is one"),
    sqlite3.SQLITE_LOCKED: ("it is locked", "stop the other coordinator of this run, if there is one"),
    sqlite3.SQLITE_READONLY: ("it is read-only", "make the file and its directory writable for this user"),
    sqlite3.SQLITE_PERM: ("access is denied", "make the file and its directory writable for this user"),
    sqlite3.SQLITE_CANTOPEN: ("it cannot be opened", "check that the directory exists and is writable for this user"),
    sqlite3.SQLITE_CORRUPT: ("it is damaged", "restore it from a copy, or start a new run with `wantrain init`"),
    sqlite3.SQLITE_NOTADB: ("it is not a database", "restore it from a copy, or start a new run with `wantrain init`"),
    sqlite3.SQLITE_IOERR: ("the disk reports an error", "check the disk and the system's log"),
}


@dataclass(frozen=True, slots=True)
class PeerRow:
    """An admitted peer. Keys are 32 bytes each; `invite` is the ident of the invite it came with."""

    peer: str
    name: str
    identity_key: bytes
    curve_key: bytes
    invite: str


@dataclass(frozen=True, slots=True)
class InviteRow:
    """An issued invite: the CURVE key it opens the door with (32 bytes), its expiry in Unix seconds, and its uses."""

    ident: str
    curve_key: bytes
    expires_unix: int
    uses: int
    used: int = 0
    """How many different peers have used it; counted by the store, ignored by `put_invite`."""


@dataclass(frozen=True, slots=True)
class GenesisRow:
    """The run's initial model: its encoded manifest, the digest of its state and the first link of the chain."""

    manifest: bytes
    state_digest: bytes
    chain: bytes


class Store:
    """The database of one run. What a method has written when it returns survives a crash of process or machine.

    Several processes may use one file at a time; one thread uses a Store. Every method raises StoreError if the file
    cannot be read or written, and has then changed nothing.

    Args:
        path: the file, made if it does not exist; ":memory:" for one that ends with the object.
        busy_timeout_s: how long to wait for another process's write, in seconds.

    Raises:
        StoreError: not a database of this program and version, damaged, or not accessible.
    """

    def __init__(self, path: Path | str, *, busy_timeout_s: float = BUSY_TIMEOUT_S) -> None:
        self._path = str(path)
        with self._explained():
            self._db = sqlite3.connect(self._path, isolation_level=None, timeout=busy_timeout_s)
        try:
            with self._explained():
                self._open(busy_timeout_s)
        except BaseException:
            self._db.close()
            raise

    def _open(self, busy_timeout_s: float) -> None:
        self._db.execute("PRAGMA synchronous = FULL")
        with self._transaction():
            tables = {name for (name,) in self._db.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")}
            if not tables and self._size_bytes() in range(1, 512):  # less than any page: SQLite takes it for empty
                raise StoreError(f"{self._path} is damaged: it was cut off", hint=_REASONS[sqlite3.SQLITE_CORRUPT][1])
            if not tables:
                for statement in _TABLES:
                    self._db.execute(statement)
                self._set("schema", SCHEMA)
            elif "meta" not in tables or self._get("schema") is None:
                raise StoreError(f"{self._path} is a database of another program", hint="give the run another file")
            elif self._get("schema") != SCHEMA:
                raise StoreError(
                    f"{self._path} has schema version {self._get('schema')}, this version of wantrain needs {SCHEMA}",
                    hint="use the version of wantrain that began the run",
                )
        if self._path != ":memory:" and self._write_ahead(busy_timeout_s) != "wal":
            raise StoreError(
                f"{self._path} is on a file system that cannot hold it safely", hint="keep the run on a local disk"
            )
        damage = self._one("PRAGMA quick_check(1)")
        if damage != "ok":
            raise StoreError(f"{self._path} is damaged: {damage}", hint=_REASONS[sqlite3.SQLITE_CORRUPT][1])

    def _write_ahead(self, busy_timeout_s: float) -> str:
        """Switch a new file to a write-ahead log; the journal mode it has then.

        SQLite does not apply its busy timeout to the switch, and others may open the new file at the same time.
        """
        deadline = time.monotonic() + busy_timeout_s
        while True:
            try:
                return str(self._db.execute("PRAGMA journal_mode = WAL").fetchone()[0])
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                    raise
                time.sleep(0.01)

    def _size_bytes(self) -> int:
        return 0 if self._path == ":memory:" else Path(self._path).stat().st_size

    def close(self) -> None:
        """Close the file; the Store is of no use afterwards."""
        with self._explained():
            self._db.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # ---- the run

    def begin_epoch(self) -> int:
        """Count one more start of the coordinator, durably; the count, from 1."""
        with self._transaction():
            epoch = int(self._get("epoch") or 0) + 1
            self._set("epoch", epoch)
        return epoch

    def bind_run(self, spec_digest: bytes, spec_toml: str) -> None:
        """Tie this file to a run spec: the first call stores it, later ones compare.

        Raises:
            ConfigError: the file belongs to a run spec with another digest.
        """
        with self._transaction():
            digest, toml = self._get("spec_digest"), self._get("spec_toml")
            if digest is None:
                self._set("spec_digest", spec_digest)
                self._set("spec_toml", spec_toml)
                return
        if digest == spec_digest:
            return
        changed = [
            line
            for line in difflib.unified_diff(toml.splitlines(), spec_toml.splitlines(), n=0, lineterm="")
            if line[:1] in "+-" and line[:3] not in {"+++", "---"}
        ]
        raise ConfigError(
            f"run.toml changed since the run began: {'; '.join(changed)}"
            if changed
            else "this version of wantrain has other defaults for the method than the one that began the run",
            hint="change it back, or start a new run with `wantrain init` in another directory",
        )

    # ---- peers and invites

    def put_peer(self, row: PeerRow) -> None:
        """Admit a peer, or replace what is known of it.

        Raises:
            RefusedError: the CURVE key is that of another peer.
        """
        with self._transaction():
            other = self._one("SELECT peer FROM peer WHERE curve_key = ? AND peer <> ?", row.curve_key, row.peer)
            if other is not None:
                raise RefusedError(
                    f"peer {row.peer} uses the key of peer {other}", hint="give each peer a home directory of its own"
                )
            self._db.execute(
                "INSERT OR REPLACE INTO peer (peer, name, identity_key, curve_key, invite) VALUES (?, ?, ?, ?, ?)",
                (row.peer, row.name, row.identity_key, row.curve_key, row.invite),
            )

    def peers(self) -> list[PeerRow]:
        """All admitted peers, by id."""
        rows = self._all("SELECT peer, name, identity_key, curve_key, invite FROM peer ORDER BY peer")
        return [PeerRow(*row) for row in rows]

    def peer_by_curve_key(self, key: bytes) -> PeerRow | None:
        """The peer that owns a CURVE public key (32 bytes)."""
        rows = self._all("SELECT peer, name, identity_key, curve_key, invite FROM peer WHERE curve_key = ?", key)
        return PeerRow(*rows[0]) if rows else None

    def put_invite(self, row: InviteRow) -> None:
        """Record an issued invite, before anyone is given it."""
        with self._transaction():
            self._db.execute(
                "INSERT OR REPLACE INTO invite (ident, curve_key, expires_unix, uses) VALUES (?, ?, ?, ?)",
                (row.ident, row.curve_key, row.expires_unix, row.uses),
            )

    def invites(self) -> list[InviteRow]:
        """All issued invites with the number of peers that used each, soonest to expire first."""
        return [InviteRow(*row) for row in self._all(f"{_INVITES} ORDER BY expires_unix, ident")]

    def invite_by_curve_key(self, key: bytes) -> InviteRow | None:
        """The invite whose derived CURVE public key (32 bytes) this is, expired and used up ones too."""
        rows = self._all(f"{_INVITES} WHERE curve_key = ?", key)
        return InviteRow(*rows[0]) if rows else None

    def use_invite(self, ident: str, peer: str) -> bool:
        """Use an invite for a peer, once. The caller checks the expiry.

        Returns:
            True if a use was left or this peer had used it already; False if it is used up or unknown.
        """
        with self._transaction():
            if self._one("SELECT 1 FROM invite_use WHERE ident = ? AND peer = ?", ident, peer):
                return True
            if not self._one(
                "SELECT uses > (SELECT count(*) FROM invite_use WHERE invite_use.ident = invite.ident)"
                " FROM invite WHERE ident = ?",
                ident,
            ):
                return False
            self._db.execute("INSERT INTO invite_use (ident, peer) VALUES (?, ?)", (ident, peer))
        return True

    # ---- the commit log

    def put_genesis(
        self, manifest: bytes, state_digest: bytes, chain: bytes, leases: Mapping[str, str | None] | None = None
    ) -> None:
        """Record the run's initial model, log number 0, and with it rows of the data leases; once.

        Raises:
            StoreError: there is another one already.
        """
        row = GenesisRow(manifest, state_digest, chain)
        with self._transaction():
            known = self.genesis()
            if known is None:
                self._db.execute("INSERT INTO genesis VALUES (1, ?, ?, ?)", (manifest, state_digest, chain))
                self._put_leases(leases or {})
        if known not in (None, row):
            raise StoreError(
                "the run has an initial model already", hint="start a new run with `wantrain init` for another model"
            )

    def genesis(self) -> GenesisRow | None:
        """The run's initial model, if there is one."""
        rows = self._all("SELECT manifest, state_digest, chain FROM genesis")
        return GenesisRow(*rows[0]) if rows else None

    def drop_genesis(self) -> None:
        """Forget the initial model that nobody holds any more.

        Raises:
            StoreError: there are commits on top of it.
        """
        with self._transaction():
            if self.head() > 0:
                raise StoreError(
                    f"the initial model stays: {self.head()} commits rest on it",
                    hint="let a peer with the state rejoin",
                )
            self._db.execute("DELETE FROM genesis")

    def head(self) -> int:
        """Number of the last commit; 0 if there is only the initial model, -1 if not even that."""
        last = self._one("SELECT coalesce((SELECT max(number) FROM commit_log), (SELECT 0 FROM genesis), -1)")
        return int(last)

    def append_commit(self, number: int, record: bytes, leases: Mapping[str, str | None] | None = None) -> None:
        """Write a line of the commit log, and with it rows of the data leases; durable on return.

        Raises:
            StoreError: `number` is not head() + 1, or there is no initial model yet.
        """
        with self._transaction():
            head = self.head()
            if head < 0 or number != head + 1:
                raise StoreError(
                    f"commit {number} cannot follow log number {head}",
                    hint="another coordinator writes to this file; stop one of them",
                )
            self._db.execute("INSERT INTO commit_log (number, record) VALUES (?, ?)", (number, record))
            self._put_leases(leases or {})

    def commits(self, first: int, limit: int) -> list[tuple[int, bytes]]:
        """Up to `limit` lines of the log from number `first` on, in order."""
        return self._all(
            "SELECT number, record FROM commit_log WHERE number >= ? ORDER BY number LIMIT ?", first, max(limit, 0)
        )

    def truncate_commits(self, after: int, reason: str, leases: Mapping[str, str | None] | None = None) -> int:
        """Take the lines after number `after` (at least 0) out of the log; they are kept as abandoned, with the reason.

        Rows of the data leases change with it.

        Returns:
            How many lines were taken out.
        """
        assert after >= 0, after
        with self._transaction():
            self._db.execute(
                "INSERT INTO abandoned (number, record, reason)"
                " SELECT number, record, ? FROM commit_log WHERE number > ? ORDER BY number",
                (reason, after),
            )
            self._put_leases(leases or {})
            return self._db.execute("DELETE FROM commit_log WHERE number > ?", (after,)).rowcount

    def abandoned(self) -> list[tuple[int, bytes, str]]:
        """The lines that were taken out of the log, as (number, record, reason), in the order they were taken out."""
        return self._all("SELECT number, record, reason FROM abandoned ORDER BY id")

    # ---- data leases

    def put_leases(self, rows: Mapping[str, str | None]) -> None:
        """Write rows of the data leases by key, and take away those that are None; all or none."""
        with self._transaction():
            self._put_leases(rows)

    def _put_leases(self, rows: Mapping[str, str | None]) -> None:
        for key, value in rows.items():
            if value is None:
                self._db.execute("DELETE FROM lease WHERE key = ?", (key,))
            else:
                self._db.execute("INSERT OR REPLACE INTO lease VALUES (?, ?)", (key, value))

    def leases(self) -> dict[str, str]:
        """All rows of the data leases."""
        return dict(self._all("SELECT key, value FROM lease"))

    # ---- membership

    def put_view(self, number: int, members: Sequence[str]) -> None:
        """Record the current view: its number and its members' ids in order."""
        with self._transaction():
            self._db.execute("INSERT OR REPLACE INTO view VALUES (1, ?, ?)", (number, json.dumps(list(members))))

    def last_view(self) -> tuple[int, list[str]]:
        """The last recorded view; (0, []) if there was none."""
        rows = self._all("SELECT number, members FROM view")
        return (rows[0][0], json.loads(rows[0][1])) if rows else (0, [])

    # ---- statements

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """All statements of the block or none, with the write lock from the start, so that reads in it stay true."""
        with self._explained():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            finally:
                if self._db.in_transaction:
                    with suppress(sqlite3.Error):  # the first error is the one to report
                        self._db.execute("ROLLBACK")

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Every sqlite3.Error of the block as a StoreError in words."""
        try:
            yield
        except sqlite3.Error as error:
            code = getattr(error, "sqlite_errorcode", -1)
            reason, hint = _REASONS.get(code & 0xFF, ("the database refuses", "report this with the message"))
            raise StoreError(f"{self._path}: {reason} ({error})", hint=hint) from error

    def _all(self, statement: str, *values: Any) -> list[Any]:
        with self._explained():
            return self._db.execute(statement, values).fetchall()

    def _one(self, statement: str, *values: Any) -> Any:
        rows = self._all(statement, *values)
        return rows[0][0] if rows else None

    def _get(self, key: str) -> Any:
        return self._one("SELECT value FROM meta WHERE key = ?", key)

    def _set(self, key: str, value: Any) -> None:
        self._db.execute("INSERT OR REPLACE INTO meta (key, value) VALUES (?, ?)", (key, value))
