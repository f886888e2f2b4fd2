"""Which daemon a process joins through, and that it does so once: arguments, the environment, and who has joined."""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol
from weakref import WeakValueDictionary

from wantrain.errors import ConfigError, UnreachableError
from wantrain.own_daemon import OwnDaemon


class Joined(Protocol):
    """A trainer that takes part."""

    peer: str

    @property
    def closed(self) -> bool:
        """Whether it has left for good."""


_joined: WeakValueDictionary[str, Joined] = WeakValueDictionary()
"""By the daemon's address, or the run's id if the daemon is this process's own."""
_under_way: set[str] = set()


def find_daemon(invite: str | None, daemon: str | None, peer_options: Mapping[str, Any] | None) -> str | OwnDaemon:
    """The address of the daemon to join through, or one that has yet to be started; see `wantrain.join`.

    Raises:
        ConfigError: none is named, or two are, or there are options for none.
        InviteError: the invite is malformed.
        UnreachableError: nobody is at the address.
    """
    if invite is not None and daemon is not None:
        raise ConfigError("join: both invite and daemon are given", hint="give one of them")
    if invite is None and daemon is None:
        daemon = os.environ.get("WANTRAIN_DAEMON") or None
        invite = None if daemon else os.environ.get("WANTRAIN_INVITE") or None
    if invite is not None:
        return OwnDaemon(invite, peer_options or {})
    if daemon is None:
        raise ConfigError(
            "no peer daemon beside this process: no invite is given, nor set as WANTRAIN_INVITE, nor WANTRAIN_DAEMON",
            hint="wantrain.join(…, invite='wantrain://…'), or start it as: wantrain peer '<invite>' -- python train.py",
        )
    if peer_options:
        raise ConfigError(
            f"join(peer_options={dict(peer_options)}): the daemon at {daemon} runs already",
            hint="give these options to `wantrain peer`, or join by invite",
        )
    if daemon.startswith("ipc://") and not Path(daemon.removeprefix("ipc://")).exists():
        raise UnreachableError(
            f"no peer daemon at {daemon}: it has ended, or runs on another machine",
            hint="start one: wantrain peer '<invite>', and set WANTRAIN_DAEMON as it says",
        )
    return daemon


@contextmanager
def joining(daemon: str | OwnDaemon | None) -> Iterator[Callable[[Joined], None]]:
    """Around a join through this daemon (None: another rank's): gives what to call once it is done.

    Raises:
        ConfigError: this process takes part there already.
    """
    key = daemon.run if isinstance(daemon, OwnDaemon) else daemon or ""
    former = _joined.get(key)
    if key in _under_way or (former is not None and not former.closed):
        who = f" as {former.peer}" if former is not None else ""
        raise ConfigError(
            f"this process takes part in the run already{who}",
            hint="first end that: swarm.leave(); in a notebook, before the cell with wantrain.join is run again",
        )
    _under_way.add(key)
    try:
        yield lambda swarm: _joined.__setitem__(key, swarm)
    finally:
        _under_way.discard(key)
