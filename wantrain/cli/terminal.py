"""What may reach a terminal: consoles, and text from the network without control characters."""

import errno
import io
import sys
from typing import Any

from rich.console import Console

PIPE_WIDTH = 160
"""Columns of tables where there is no terminal to ask; 80, rich's choice, cuts names off."""


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Rich would end the process; what a closed pipe means is for whoever prints to decide."""
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")


def console() -> Console:
    """A console on the present standard output; "?" is for letters that it lacks: names come from other hosts."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    return _Console(width=None if sys.stdout.isatty() else PIPE_WIDTH, highlight=False, markup=False)


def printable(value: object) -> str:
    """`value` as text in which every control character but a line break became a dot: names come from other hosts."""
    return "".join(c if c.isprintable() or c == "\n" else "·" for c in str(value))


def plain(value: object) -> Any:
    """What JSON lacks a type for, as text: bytes in hex; for `json.dumps(default=…)`."""
    return value.hex() if isinstance(value, bytes) else str(value)
