"""The peer daemon that a script starts for itself from an invite: its process, its log, and how it ends.

It is a process in a session of its own, which a Ctrl-C on the terminal does not reach. It leaves the run when it is
told to, and when the script's process has ended in whatever way: it watches for that itself.
"""

import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import wantrain
from wantrain.errors import ConfigError, WantrainError, kind_named
from wantrain.peers.place import state_directory
from wantrain.transport.auth import Invite

OPTIONS = (
    "name", "home", "bind", "advertise", "interface", "outbound_only", "give_up", "max_upload", "max_upload_per_peer",
    "checkpoints", "resume", "initial", "device", "track", "metrics",
)  # fmt: skip
"""Options of `wantrain peer` that `join(peer_options=…)` knows, with underscores."""
POLL_S = 0.05
SAY_EVERY_S = 5.0
LEAVE_PATIENCE_S = 60.0
"""How long a daemon that leaves may take to end; what it waits for itself has bounds below this."""
KEPT_BYTES = 1 << 20
"""How much of its log is looked through for what it has said last."""

logger = logging.getLogger("wantrain")
_ending: list["OwnDaemon"] = []
"""Those that were told to leave and have not been seen to end."""


class OwnDaemon:
    """One daemon; `start` starts it.

    Args:
        invite: "wantrain://…".
        options: of `wantrain peer`; see `OPTIONS`.

    Raises:
        InviteError: the invite is malformed.
        ConfigError: an unknown option.
    """

    def __init__(self, invite: str, options: Mapping[str, Any]) -> None:
        self.run = Invite.parse(invite).run.hex()
        unknown = sorted(set(options) - set(OPTIONS))
        if unknown:
            raise ConfigError(f"join(peer_options={unknown}): unknown, allowed are {', '.join(OPTIONS)}")
        self._words = [invite]
        for name, value in options.items():
            option = "--" + name.replace("_", "-")
            if isinstance(value, bool):
                self._words += [option] if value else []
            elif value is not None:
                values = value if isinstance(value, list | tuple) else [value]
                self._words += [word for one in values for word in (option, str(one))]
        folder = Path(options.get("home") or state_directory() / self.run)
        self.log = folder / f"daemon-{os.getpid()}.jsonl"
        """Its events as JSON lines, and whatever else it prints."""
        self._process: subprocess.Popen[bytes] | None = None
        self._parent = os.getpid()
        self._begun_at = 0

    def start(self) -> str:
        """Start it and wait until it takes part in the run; the address where it waits for this process.

        Raises:
            WantrainError: what it has ended with: InviteError, RefusedError, UnreachableError, …
            ConfigError: its log cannot be written.
        """
        for former in [one for one in _ending if one.run == self.run]:  # it may have the home that this one wants
            former.wait()
        try:
            self.log.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with self.log.open("ab") as log:
                self._begun_at = log.tell()
                self._process = subprocess.Popen(
                    [
                        sys.executable,
                        "-m",
                        "wantrain",
                        "peer",
                        *self._words,
                        "--json",
                        "--until-exit",
                        str(os.getpid()),
                    ],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=_environment(),
                    start_new_session=True,
                )
        except OSError as error:
            hint = "give another home: join(…, peer_options={'home': …})"
            raise ConfigError(f"cannot start a peer daemon with its log at {self.log}: {error}", hint=hint) from error
        try:
            return self._address(self._process)
        except BaseException:
            self.end()
            raise

    def _address(self, process: "subprocess.Popen[bytes]") -> str:
        """What it says once it is there."""
        began = told = time.monotonic()
        while True:
            ended = process.poll()
            said = self._said()
            for line in said:
                if line.get("event") == "ready":
                    return str(line["daemon"])
            if ended is not None:
                raise self._failure(ended, said)
            now = time.monotonic()
            if now - told >= SAY_EVERY_S:
                told = now
                logger.warning(
                    "waiting %.0f s for the peer daemon to reach the run; its log: %s", now - began, self.log
                )
            time.sleep(POLL_S)

    def _said(self) -> list[dict[str, Any]]:
        """The events in its log, of this start."""
        with self.log.open("rb") as log:
            log.seek(max(self._begun_at, log.seek(0, os.SEEK_END) - KEPT_BYTES))
            lines = log.read().splitlines()
        found = []
        for line in lines:
            try:
                value = json.loads(line)
            except ValueError:
                continue  # a warning, or a line half written
            if isinstance(value, dict):
                found.append(value)
        return found

    def _failure(self, code: int, said: list[dict[str, Any]]) -> WantrainError:
        last = next((line for line in reversed(said) if "error" in line and "kind" in line), None)
        kind = kind_named(str(last["kind"])) if last is not None else None
        if last is None or kind is None:
            return WantrainError(f"the peer daemon ended with exit code {code}", hint=f"see its log: {self.log}")
        return kind(str(last["error"]), hint=str(last.get("hint", "")))

    # ---- its end

    def end(self) -> None:
        """Tell it to leave the run, which it does within a minute, and do not wait for it. Again is fine."""
        # A forked process has a copy of this object, and the daemon is not its child.
        if self._process is None or os.getpid() != self._parent or self in _ending:
            return
        if self._process.poll() is None:
            self._process.terminate()
            _ending.append(self)

    def wait(self) -> None:
        """Wait until it has ended; if it does not within a minute it is killed, loudly."""
        process = self._process
        if process is None or os.getpid() != self._parent:
            return
        try:
            process.wait(LEAVE_PATIENCE_S)
        except subprocess.TimeoutExpired:
            logger.warning("the peer daemon has not ended within %.0f s and is killed: %s", LEAVE_PATIENCE_S, self.log)
            process.kill()
            process.wait()
        if self in _ending:
            _ending.remove(self)


def _environment() -> dict[str, str]:
    """This process's, without what speaks of other peers, and with the place of this very package."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("WANTRAIN_")}
    package = str(Path(wantrain.__file__).parents[1])
    paths = [path for path in kept.get("PYTHONPATH", "").split(os.pathsep) if path]
    return kept | {"PYTHONPATH": os.pathsep.join([*paths, package]), "PYTHONUNBUFFERED": "1"}
