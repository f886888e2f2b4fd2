"""A peer's directory on its machine: its identity for one run, held by one process at a time."""

import fcntl
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from wantrain.errors import AddressInUseError, ConfigError
from wantrain.peers.messages import MAX_NAME
from wantrain.peers.orphan import find_orphan
from wantrain.transport.auth import Identity

MAX_SLOTS = 64
"""Most peers of one run on one machine without directories of their own."""
SCRATCH_PREFIX = "wantrain-"
SOCKET = "trainer.sock"
"""The trainer's socket in the scratch directory."""
MAX_SOCKET_BYTES = 100
"""Longest path of a socket; Linux allows 107 bytes, others 103."""


@dataclass(frozen=True, slots=True)
class Place:
    """A locked directory and what is in it."""

    path: Path
    name: str
    identity: Identity

    @property
    def enrolled(self) -> bool:
        """Whether the run's coordinator has admitted this identity before."""
        return (self.path / "enrolled").exists()

    def mark_enrolled(self) -> None:
        """Remember that this identity was admitted."""
        (self.path / "enrolled").touch()


def segment_directory() -> Path:
    """Where a segment belongs: /dev/shm if it is writable, else the directory for temporary files."""
    shared = Path("/dev/shm")
    return shared if os.access(shared, os.W_OK) else Path(tempfile.gettempdir())


def state_directory() -> Path:
    """Where peers keep their directories: $XDG_STATE_HOME/wantrain, or ~/.local/state/wantrain."""
    base = os.environ.get("XDG_STATE_HOME")
    return (Path(base) if base else Path.home() / ".local" / "state") / "wantrain"


@contextmanager
def open_place(run: bytes, home: Path | None, name: str | None) -> Iterator[Place]:
    """Lock a directory for this process and load or make the identity in it.

    Args:
        run: id of the run.
        home: the directory; None takes the first of this run that no other process holds.
        name: the peer's name for people; None: the host's, numbered from the second peer on.

    Raises:
        AddressInUseError: another process holds `home`.
        ConfigError: the directory cannot be written.
    """
    base = state_directory() / run.hex()
    candidates = [home] if home is not None else [base / f"peer-{k}" for k in range(1, MAX_SLOTS + 1)]
    for number, path in enumerate(candidates, start=1):
        try:
            path.mkdir(parents=True, exist_ok=True, mode=0o700)
            lock = (path / "lock").open("w")
        except OSError as error:
            raise ConfigError(f"{path} cannot be used: {error}", hint="give a writable directory by --home") from None
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                continue
            ending = f"-{number}" if number > 1 else ""
            known_as = name or socket.gethostname()[: MAX_NAME - len(ending)] + ending
            yield Place(path, known_as, _identity(path / "identity"))
            return
    raise AddressInUseError(
        f"another process uses {candidates[-1]}", hint="give this peer a directory of its own by --home"
    )


@contextmanager
def scratch_directory(place: Place, segments: Path) -> Iterator[Path]:
    """A directory for the life of this process, for the trainer's socket.

    Its name also begins the names of this process's files of shared memory, in `segments`. A process that was killed
    leaves all of that behind, gigabytes with a large model; so the next one at the same place removes it first. But if
    the trainer has outlived it, the next one goes on with the directory: the trainer knows no other socket.

    Raises:
        ConfigError: the place cannot be written.
    """
    note = place.path / "scratch"
    path: Path | None = None
    with suppress(OSError):
        path = _former(Path(note.read_text(encoding="utf-8")), segments)
    if path is None:
        path = _new_scratch()
    with (path / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _write(note, str(path))
            yield path
        finally:
            if find_orphan(path) is None:
                remove_scratch(path, segments)


def _write(note: Path, text: str) -> None:
    try:
        note.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"{note} cannot be written: {error.strerror}",
            hint="make room there, or give a writable directory by --home",
        ) from None


def _new_scratch() -> Path:
    """A new directory where temporary files go, or in /tmp if a socket in it would have too long a name."""
    path = Path(tempfile.mkdtemp(prefix=SCRATCH_PREFIX))
    if len(os.fsencode(path / SOCKET)) <= MAX_SOCKET_BYTES:
        return path
    path.rmdir()
    return Path(tempfile.mkdtemp(prefix=SCRATCH_PREFIX, dir="/tmp"))


def remove_leftovers(home: Path, segments: Path) -> None:
    """Remove what a killed process at this home has left, and end its trainer if that lives; for who starts no other.

    Nothing is touched that a live process holds.
    """
    with suppress(OSError):
        former = _former(Path((home / "scratch").read_text(encoding="utf-8")), segments)
        if former is not None:
            if (orphan := find_orphan(former)) is not None:
                orphan.kill()
                orphan.wait()
            remove_scratch(former, segments)


def _former(former: Path, segments: Path) -> Path | None:
    """The directory of the process before, if its trainer lives; otherwise what it left behind is removed.

    Nothing is touched that a live process holds: a copied place names the scratch of the original.
    """
    if not former.name.startswith(SCRATCH_PREFIX):
        return None
    with (former / "lock").open("r+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if find_orphan(former) is not None:
            return former
        remove_scratch(former, segments)
    return None


def remove_scratch(directory: Path, segments: Path) -> None:
    """Remove a scratch directory and the files of shared memory that are named after it."""
    for segment in segments.glob(f"{directory.name}-*"):
        segment.unlink(missing_ok=True)
    shutil.rmtree(directory, ignore_errors=True)


def _identity(path: Path) -> Identity:
    if path.exists():
        return Identity.load(path)
    identity = Identity.create()
    identity.save(path)
    return identity
