"""The daemon that a script starts for itself: its command, its errors and its end; a short program stands in for it."""

import json
import os
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from wantrain import errors
from wantrain.errors import ConfigError, InviteError, WantrainError
from wantrain.own_daemon import OwnDaemon
from wantrain.transport.auth import Invite, RunKeys

PROGRAM = """#!{python}
import json, os, signal, sys
said = {said}
print("a warning on the side")
print(json.dumps({{"event": "arguments", "words": sys.argv[1:], "environment": sorted(os.environ)}}))
for line in said:
    print(json.dumps(line), flush=True)
if "error" in said[-1]:
    sys.exit(said[-1]["code"])
signal.pause()
"""


@pytest.fixture
def invite() -> str:
    return str(Invite.issue(RunKeys.create(), bytes(8), "127.0.0.1", 7700, 2**32))


@pytest.fixture
def started(
    tmp_path: Path, invite: str, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[OwnDaemon, Callable[[], str]]]:
    """Makes a daemon whose program says these lines, and then waits, or ends with the error in the last."""

    def make(*said: dict[str, Any], **options: Any) -> tuple[OwnDaemon, Callable[[], str]]:
        program = tmp_path / "python"
        program.write_text(PROGRAM.format(python=sys.executable, said=said))
        program.chmod(stat.S_IRWXU)
        daemon = OwnDaemon(invite, {"home": str(tmp_path / "home"), **options})

        def start() -> str:
            with monkeypatch.context() as changed:
                changed.setattr(sys, "executable", str(program))
                return daemon.start()

        return daemon, start

    return make


def told(daemon: OwnDaemon) -> dict[str, Any]:
    line = next(line for line in daemon.log.read_text().splitlines() if '"arguments"' in line)
    found: dict[str, Any] = json.loads(line)
    return found


def test_it_is_a_peer_that_ends_with_this_process(
    started: Callable[..., Any], invite: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANTRAIN_DAEMON", "ipc:///another")
    options = {"outbound_only": True, "name": None, "max_upload": "50mbit", "track": ["wandb", "trackio"]}
    daemon, start = started({"event": "ready", "daemon": "ipc:///here"}, **options)
    assert start() == "ipc:///here"
    home = ["--home", str(daemon.log.parent)]
    options_said = ["--outbound-only", "--max-upload", "50mbit", "--track", "wandb", "--track", "trackio"]
    words = ["-m", "wantrain", "peer", invite, *home, *options_said, "--json", "--until-exit", str(os.getpid())]
    assert told(daemon)["words"] == words
    assert "WANTRAIN_DAEMON" not in told(daemon)["environment"]
    daemon.end()
    daemon.end()
    daemon.wait()
    assert start() == "ipc:///here"  # again, after the former one has ended
    daemon.end()
    daemon.wait()


@pytest.mark.parametrize("kind", ["InviteError", "RefusedError", "UnreachableError", "AddressInUseError"])
def test_its_error_is_the_scripts(started: Callable[..., Any], kind: str) -> None:
    code = getattr(errors, kind).exit_code
    _, start = started({"error": "no such run", "hint": "ask", "kind": kind, "code": code})
    with pytest.raises(getattr(errors, kind), match="no such run") as caught:
        start()
    assert (type(caught.value).__name__, caught.value.hint) == (kind, "ask")


@pytest.mark.parametrize("kind", ["object", "_hidden", "ProtocolBug", ""])
def test_an_end_that_says_nothing_names_the_log(started: Callable[..., Any], kind: str) -> None:
    daemon, start = started({"error": "?", "kind": kind, "code": 9})
    with pytest.raises(WantrainError, match="exit code 9") as caught:
        start()
    assert str(daemon.log) in caught.value.hint


def test_a_forked_process_lets_the_daemon_be(started: Callable[..., Any]) -> None:
    daemon, start = started({"event": "ready", "daemon": "ipc:///here"})
    start()
    daemon._parent += 1  # as it is in a process that was forked
    daemon.end()
    assert daemon._process.poll() is None
    daemon._parent -= 1
    daemon.end()
    daemon.wait()
    assert daemon._process.poll() is not None


def test_unknown_options_and_bad_invites_are_said_before_anything_starts(invite: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="allowed are name, home, bind"):
        OwnDaemon(invite, {"max_uplaod": "1mbit"})
    with pytest.raises(InviteError):
        OwnDaemon(invite[:-9], {})
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot start a peer daemon with its log at"):
        OwnDaemon(invite, {"home": str(tmp_path / "file")}).start()
