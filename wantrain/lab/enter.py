"""Runs a command on a host of the lab: `enter.py DESCRIPTOR COMMAND...` moves into a network namespace, then execs.

It is run as a file and imports nothing of the package, so that it starts fast whatever the directory and environment.
"""

import ctypes
import os
import sys

CLONE_NEWNET = 0x40000000
"""From linux/sched.h: the kind of namespace."""


def enter(descriptor: int) -> None:
    """Move this thread into the network namespace that is open as `descriptor` (setns, missing in Python 3.11).

    Raises:
        OSError: not allowed, or not a network namespace.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(descriptor, CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def main() -> None:
    """Exit code 126 or 127 if the command cannot be run, as shells have it."""
    descriptor, command = int(sys.argv[1]), sys.argv[2:]
    enter(descriptor)
    os.close(descriptor)
    try:
        os.execvp(command[0], command)
    except OSError as error:
        print(f"error: cannot run {command[0]!r}: {error.strerror}", file=sys.stderr)
        sys.exit(127 if isinstance(error, FileNotFoundError) else 126)


if __name__ == "__main__":
    main()
