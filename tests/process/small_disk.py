"""A disk of a few megabytes to fill up: a tmpfs in a mount namespace of this process, which ends with it."""

import ctypes
import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_NEW_MOUNTS = 0x00020000  # CLONE_NEWNS
_PRIVATE_ALL = 0x4000 | 0x40000  # MS_REC | MS_PRIVATE: nothing that is mounted from here on is seen outside
_DETACH = 2  # MNT_DETACH


@contextmanager
def small_disk(path: Path, size_bytes: int) -> Iterator[None]:
    """A file system of this size in an empty directory, for this thread and the processes that it starts meanwhile.

    Raises:
        PermissionError: only root may do that.
    """
    libc = ctypes.CDLL(None, use_errno=True)

    def check(code: int) -> None:
        if code != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), str(path))

    check(libc.unshare(_NEW_MOUNTS))
    check(libc.mount(None, b"/", None, _PRIVATE_ALL, None))
    check(libc.mount(b"tmpfs", bytes(path), b"tmpfs", 0, b"size=%d" % size_bytes))
    try:
        yield
    finally:
        check(libc.umount2(bytes(path), _DETACH))


@contextmanager
def filled(path: Path) -> Iterator[None]:
    """Not one more byte fits on the disk that this directory is on."""
    ballast = path / "ballast"
    with ballast.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
    yield
    ballast.unlink()
