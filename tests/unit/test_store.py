"""The coordinator's database: what a method wrote survives, what it refused left no trace, every failure has words."""

import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from wantrain.errors import ConfigError, RefusedError, StoreError
from wantrain.peers.store import GenesisRow, InviteRow, PeerRow, Store

ROOT = Path(__file__).parents[2]
GENESIS = (b"manifest", b"s" * 32, b"c" * 32)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.db"


def filled(path: Path | str, commits: int, busy_timeout_s: float = 2.0) -> Store:
    store = Store(path, busy_timeout_s=busy_timeout_s)
    store.put_genesis(*GENESIS)
    for number in range(1, commits + 1):
        store.append_commit(number, b"record %d" % number)
    return store


def test_file_is_wal_and_every_commit_is_synced(path: Path) -> None:
    with Store(path) as store:
        assert store._one("PRAGMA journal_mode") == "wal"
        assert store._one("PRAGMA synchronous") == 2, "FULL"


def test_epochs_count_starts_over_restarts(path: Path) -> None:
    for expected in (1, 2, 3):
        with Store(path) as store:
            assert store.begin_epoch() == expected


def test_bound_run_refuses_another_spec_and_says_what_changed(path: Path) -> None:
    with Store(path) as store:
        store.bind_run(b"1" * 32, "[method]\nevery = 100\n")
    with Store(path) as store:
        store.bind_run(b"1" * 32, "[method]\nevery = 100\n\n[sync]\nquorum = 1\n")
        with pytest.raises(ConfigError, match=r"changed since the run began: -every = 100; \+every = 50"):
            store.bind_run(b"2" * 32, "[method]\nevery = 50\n")
        with pytest.raises(ConfigError, match="other defaults"):
            store.bind_run(b"2" * 32, "[method]\nevery = 100\n")
        store.bind_run(b"1" * 32, "[method]\nevery = 100\n")


def test_peers_are_found_by_key_and_replaced_by_id(path: Path) -> None:
    first, other = PeerRow("p1", "one", b"i" * 32, b"k" * 32, "inv"), PeerRow("p2", "two", b"j" * 32, b"l" * 32, "inv")
    with Store(path) as store:
        store.put_peer(other)
        store.put_peer(first)
    with Store(path) as store:
        assert store.peers() == [first, other]
        assert store.peer_by_curve_key(b"l" * 32) == other
        assert store.peer_by_curve_key(b"?" * 32) is None
        renamed = PeerRow("p1", "uno", b"i" * 32, b"n" * 32, "inv2")
        store.put_peer(renamed)
        assert store.peers() == [renamed, other]
        assert store.peer_by_curve_key(b"k" * 32) is None


def test_key_of_another_peer_is_refused_and_disturbs_nobody() -> None:
    owner = PeerRow("p1", "one", b"i" * 32, b"k" * 32, "inv")
    store = Store(":memory:")
    store.put_peer(owner)
    with pytest.raises(RefusedError, match="p1"):
        store.put_peer(PeerRow("p2", "two", b"j" * 32, b"k" * 32, "inv"))
    assert store.peers() == [owner]


def test_invite_is_used_once_per_peer_up_to_its_uses(path: Path) -> None:
    with Store(path) as store:
        store.put_invite(InviteRow("a", b"a" * 32, 2000, 2))
        store.put_invite(InviteRow("b", b"b" * 32, 1000, 1))
        assert [store.use_invite("a", peer) for peer in ("p1", "p1", "p2", "p3", "p2")] == [
            True,
            True,
            True,
            False,
            True,
        ]
        assert not store.use_invite("unknown", "p1")
    with Store(path) as store:
        assert store.invites() == [InviteRow("b", b"b" * 32, 1000, 1, 0), InviteRow("a", b"a" * 32, 2000, 2, 2)]
        assert store.invite_by_curve_key(b"a" * 32) == InviteRow("a", b"a" * 32, 2000, 2, 2)
        assert store.invite_by_curve_key(b"?" * 32) is None
        assert not store.use_invite("a", "p3")


def test_last_use_of_an_invite_goes_to_one_of_many_processes(path: Path) -> None:
    Store(path).put_invite(InviteRow("a", b"a" * 32, 2000, 1))

    def use(peer: str) -> bool:
        with Store(path, busy_timeout_s=30) as store:
            return store.use_invite("a", peer)

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(use, [f"p{i}" for i in range(8)])) == 1


def test_genesis_is_written_once(path: Path) -> None:
    with Store(path) as store:
        assert (store.genesis(), store.head()) == (None, -1)
        store.put_genesis(*GENESIS)
        store.put_genesis(*GENESIS)
        with pytest.raises(StoreError, match="initial model already"):
            store.put_genesis(b"other", *GENESIS[1:])
    with Store(path) as store:
        assert (store.genesis(), store.head()) == (GenesisRow(*GENESIS), 0)
        store.drop_genesis()
        assert (store.genesis(), store.head()) == (None, -1)


def test_genesis_stays_while_there_are_commits() -> None:
    store = filled(":memory:", 1)
    with pytest.raises(StoreError, match="1 commits rest on it"):
        store.drop_genesis()
    store.truncate_commits(0, "lost")
    store.drop_genesis()
    assert store.head() == -1


def test_log_is_appended_in_order_without_gaps(path: Path) -> None:
    with filled(path, 3) as store:
        for number in (-1, 0, 2, 3, 5):
            with pytest.raises(StoreError, match=f"commit {number} cannot follow log number 3"):
                store.append_commit(number, b"no")
        assert store.head() == 3
    with Store(path) as store:
        assert store.commits(0, 100) == [(n, b"record %d" % n) for n in (1, 2, 3)]
        assert store.commits(2, 1) == [(2, b"record 2")]
        assert store.commits(4, 100) == store.commits(1, 0) == []


@pytest.mark.parametrize("number", [0, 1])
def test_no_commit_without_an_initial_model(number: int) -> None:
    store = Store(":memory:")
    with pytest.raises(StoreError, match="cannot follow"):
        store.append_commit(number, b"")
    assert store.head() == -1


@pytest.mark.scenario(6)
def test_two_coordinators_cannot_both_write_one_log_number(path: Path) -> None:
    with filled(path, 1) as one, Store(path) as two:
        assert (one.head(), two.head()) == (1, 1)
        one.append_commit(2, b"one")
        with pytest.raises(StoreError, match="cannot follow log number 2"):
            two.append_commit(2, b"two")
        assert two.commits(2, 9) == [(2, b"one")]


def test_truncated_lines_are_kept_as_abandoned(path: Path) -> None:
    with filled(path, 4) as store:
        assert store.truncate_commits(2, "no peer holds them") == 2
        assert store.truncate_commits(2, "again") == 0
        store.append_commit(3, b"new 3")
    with Store(path) as store:
        assert [record for _, record in store.commits(1, 9)] == [b"record 1", b"record 2", b"new 3"]
        store.truncate_commits(2, "second time")
        assert store.abandoned() == [
            (3, b"record 3", "no peer holds them"),
            (4, b"record 4", "no peer holds them"),
            (3, b"new 3", "second time"),
        ]


def test_last_view_is_remembered(path: Path) -> None:
    with Store(path) as store:
        assert store.last_view() == (0, [])
        store.put_view(7, ("b", "a"))
        store.put_view(8, ["a"])
    with Store(path) as store:
        assert store.last_view() == (8, ["a"])


@pytest.mark.scenario(6)
def test_kill_between_commits_loses_nothing_that_returned(path: Path) -> None:
    writer = (
        "import sys; from wantrain.peers.store import Store; store = Store(sys.argv[1])\n"
        "store.put_genesis(b'm', b's', b'c')\n"
        "for number in range(1, 10**6):\n"
        "    store.append_commit(number, b'record %d' % number); print(number, flush=True)"
    )
    process = subprocess.Popen([sys.executable, "-c", writer, str(path)], stdout=subprocess.PIPE, cwd=ROOT)
    with process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(25)]
        process.kill()
        lines += process.stdout.readlines()
    returned = int([line for line in lines if line.endswith(b"\n")][-1])
    assert returned >= 25
    with Store(path) as store:
        assert store.head() in (returned, returned + 1), "at most the one that was under way"
        assert store.commits(1, 10**6) == [(n, b"record %d" % n) for n in range(1, store.head() + 1)]
        store.append_commit(store.head() + 1, b"goes on")


@pytest.mark.scenario(7)
def test_full_disk_is_said_and_leaves_nothing_half_written(path: Path) -> None:
    with filled(path, 1) as store:
        store._one(f"PRAGMA max_page_count = {store._one('PRAGMA page_count')}")
        with pytest.raises(StoreError, match="the disk is full"):
            store.append_commit(2, bytes(1 << 20))
        assert store.head() == 1
        store._one("PRAGMA max_page_count = 1000000")
        store.append_commit(2, bytes(1 << 20))
        assert store.head() == 2


NO_ROOM = """
import resource, sys
from wantrain.errors import StoreError
from wantrain.peers.store import Store
store = Store(sys.argv[1])
store.put_genesis(b"manifest", b"s" * 32, b"c" * 32)
_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
written, said = 0, []
while not said:
    try:
        store.append_commit(written + 1, bytes(10_000))
        written += 1
    except StoreError as error:
        said.append(error.message)
assert store.head() == written, (store.head(), written)
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
store.append_commit(written + 1, bytes(10_000))
assert store.head() == written + 1
assert [number for number, _ in store.commits(1, 1000)] == list(range(1, written + 2))
print(written, said[0])
"""


@pytest.mark.scenario(7)
def test_a_file_that_the_system_lets_grow_no_further_is_said_and_gone_on_with_when_there_is_room(path: Path) -> None:
    ended = subprocess.run([sys.executable, "-c", NO_ROOM, path], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    written, said = ended.stdout.split(maxsplit=1)
    assert int(written) > 0
    assert str(path) in said


@pytest.mark.scenario(7)
def test_full_disk_between_two_statements_undoes_the_first(path: Path) -> None:
    store = Store(path)
    store.put_genesis(*GENESIS)
    store.append_commit(1, bytes(1 << 20))
    store._one(f"PRAGMA max_page_count = {store._one('PRAGMA page_count')}")
    with pytest.raises(StoreError, match="the disk is full"):
        store.truncate_commits(0, "copying needs room")
    assert (store.head(), store.abandoned()) == (1, [])
    store.close()


@pytest.mark.scenario(7)
def test_lock_of_another_process_is_said_and_waited_out(path: Path) -> None:
    with filled(path, 1, busy_timeout_s=0.01) as store:
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match="locked by another process"):
            store.append_commit(2, b"")
        assert store.head() == 1, "reading goes on"
        other.execute("ROLLBACK")
        other.close()
        store.append_commit(2, b"")


def test_many_processes_may_open_a_new_file_at_once(path: Path) -> None:
    def begin(_: int) -> int:
        with Store(path, busy_timeout_s=30) as store:
            return store.begin_epoch()

    with ThreadPoolExecutor(8) as pool:
        assert sorted(pool.map(begin, range(16))) == list(range(1, 17))


def test_read_only_file_is_said(path: Path) -> None:
    with filled(path, 1) as store:
        store._one("PRAGMA query_only = 1")
        with pytest.raises(StoreError, match="read-only") as caught:
            store.append_commit(2, b"")
        assert "writable" in caught.value.hint


def test_directory_that_does_not_exist_is_said(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="cannot be opened") as caught:
        Store(tmp_path / "no" / "run.db")
    assert "directory" in caught.value.hint


@pytest.mark.scenario(7)
@pytest.mark.parametrize("keep", [1, 99, 100, 4096, 9000])
def test_truncated_file_is_recognised(path: Path, keep: int) -> None:
    with filled(path, 1) as store:
        store.append_commit(2, bytes(1 << 16))
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(StoreError, match="damaged|not a database"):
        Store(path)
    assert path.stat().st_size == keep


@pytest.mark.scenario(7)
def test_damaged_page_is_recognised(path: Path) -> None:
    with filled(path, 50):
        pass
    content = bytearray(path.read_bytes())
    content[4096:8192] = b"\xa5" * 4096
    path.write_bytes(content)
    with pytest.raises(StoreError, match="damaged"):
        Store(path)


def test_garbage_is_not_taken_for_a_database(path: Path) -> None:
    path.write_bytes(b"definitely not SQLite" * 500)
    with pytest.raises(StoreError, match="not a database") as caught:
        Store(path)
    assert "wantrain init" in caught.value.hint
    assert path.read_bytes() == b"definitely not SQLite" * 500


def test_database_of_another_program_is_left_alone(path: Path) -> None:
    foreign = sqlite3.connect(path)
    foreign.execute("CREATE TABLE photos (id)")
    foreign.close()
    before = path.read_bytes()
    with pytest.raises(StoreError, match="another program"):
        Store(path)
    assert path.read_bytes() == before


def test_other_schema_version_is_refused_with_both_versions_named(path: Path) -> None:
    with Store(path) as store:
        store._set("schema", 99)
    with pytest.raises(StoreError, match="schema version 99.*needs 2") as caught:
        Store(path)
    assert "version of wantrain" in caught.value.hint


def test_closed_store_says_so() -> None:
    store = Store(":memory:")
    store.close()
    with pytest.raises(StoreError, match="closed"):
        store.head()


# ---- data leases


def test_rows_of_leases_are_written_alone_or_with_the_beginning_a_commit_or_a_rewind_and_taken_away(path: Path) -> None:
    with Store(path) as store:
        store.put_genesis(b"manifest", b"s" * 32, b"c" * 32, {"a": "0"})
        with pytest.raises(StoreError):
            store.put_genesis(b"another", b"s" * 32, b"c" * 32, {"a": "9"})
        assert store.leases() == {"a": "0"}
        store.put_leases({"a": "1", "b": "2"})
        store.append_commit(1, b"one", {"a": "3", "b": None})
        assert store.leases() == {"a": "3"}
        with pytest.raises(StoreError):
            store.append_commit(1, b"again", {"a": "4"})  # all or nothing
        store.append_commit(2, b"two", {"c": "5"})
    with Store(path) as store:
        assert store.leases() == {"a": "3", "c": "5"}
        store.truncate_commits(1, "nobody holds it", {"c": None, "d": "6"})
        assert store.leases() == {"a": "3", "d": "6"}
