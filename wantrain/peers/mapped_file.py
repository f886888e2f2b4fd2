"""A mapped file through which two processes on one machine share memory, and fp32 views of it."""

import errno
import mmap
import os
from pathlib import Path

import torch
from torch import Tensor

from wantrain.errors import WantrainError

PAGE_BYTES = 4096


def create_mapped(path: Path, size_bytes: int) -> mmap.mmap:
    """Make a file that is not there yet, readable by its owner only, with all of its memory reserved, and map it.

    Raises:
        WantrainError: there is not enough room, or the file cannot be made.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise WantrainError(
            f"cannot create shared memory {path}: {error.strerror}", hint="remove the file, or make its folder"
        ) from error
    try:
        _reserve(descriptor, path, size_bytes)
        return mmap.mmap(descriptor, size_bytes)
    except BaseException:
        path.unlink()
        raise
    finally:
        os.close(descriptor)


def open_mapped(path: Path) -> mmap.mmap:
    """Map all of a file that `create_mapped` has made.

    Raises:
        WantrainError: there is no such file, or it is empty.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
    except OSError as error:
        raise WantrainError(
            f"cannot open shared memory {path}: {error.strerror}",
            hint="trainer and daemon must run on one machine and share /dev/shm and the folder for temporary files",
        ) from error
    try:
        size_bytes = os.fstat(descriptor).st_size
        if not size_bytes:
            raise damaged(path, "it has 0 bytes")
        return mmap.mmap(descriptor, size_bytes)
    finally:
        os.close(descriptor)


def region(memory: mmap.mmap, start: int, count: int) -> Tensor:
    """fp32[count] view of a mapped file from byte `start` on."""
    if not count:
        return torch.empty(0)
    return torch.frombuffer(memory, dtype=torch.float32, count=count, offset=start)


def region_bytes(count: int) -> int:
    """What fp32[count] takes in a file in which every vector begins on a page of its own."""
    return -(-4 * count // PAGE_BYTES) * PAGE_BYTES


def damaged(path: Path, reason: str) -> WantrainError:
    """The error that says why a file is not what it should be."""
    return WantrainError(f"{path} cannot be used as shared memory: {reason}", hint="start the peer again")


def _reserve(descriptor: int, path: Path, size_bytes: int) -> None:
    """Give the file its memory now: a full file system met later would end the process with SIGBUS."""
    try:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(descriptor, 0, size_bytes)
        else:
            block = bytes(1 << 20)
            for start in range(0, size_bytes, len(block)):
                os.pwrite(descriptor, block[: size_bytes - start], start)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.ENOMEM):
            raise
        room = os.statvfs(path.parent)
        raise WantrainError(
            f"{size_bytes / 2**20:,.1f} MiB of shared memory are needed in {path.parent}, "
            f"{room.f_bavail * room.f_frsize / 2**20:,.1f} MiB are free",
            hint="make room there, or give the container more (docker run --shm-size=…)",
        ) from error
