"""Wantrain's commands in processes forked from one that has imported PyTorch: each would need seconds to import it."""

import os
import runpy
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import IO

ROOT = Path(__file__).parents[2]
AVAILABLE = sys.platform == "linux"
"""Elsewhere libraries do not bear to be forked."""
_IMPORTED = (
    "wantrain.cli.checkpoint", "wantrain.cli.coordinator", "wantrain.cli.doctor", "wantrain.cli.events",
    "wantrain.cli.invite", "wantrain.cli.main", "wantrain.cli.peer", "wantrain.cli.status",
    "wantrain.peers.coordinator_daemon", "wantrain.peers.daemon", "wantrain.peers.doctor",
)  # fmt: skip
_POLL_S = 0.002
_server = get_context("forkserver")


class Forked:
    """A command in a process and a process group of its own, with what is used of the interface of `subprocess.Popen`.

    Args:
        command: this Python, "-m" and "wantrain" or "-c" and some code, and arguments.
        stdout: an open file; the process opens it again by its name.
        stderr: the same, or subprocess.STDOUT.
        env: all of its environment.
        cwd: where it works; None: where this process does.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        stdout: IO[bytes],
        stderr: IO[bytes] | int,
        env: Mapping[str, str],
        cwd: Path | None = None,
        stdin: int = subprocess.DEVNULL,
        start_new_session: bool = True,
    ) -> None:
        assert (command[0], stdin, start_new_session) == (sys.executable, subprocess.DEVNULL, True)
        files = (stdout.name, stdout.name if isinstance(stderr, int) else stderr.name)
        self._process = _start(command[1:], files, dict(env), cwd)
        self.pid = self._process.pid or 0
        with suppress(ProcessLookupError):  # it has ended already
            while os.getpgid(self.pid) != self.pid:  # a signal to its group is to reach it
                time.sleep(_POLL_S)

    @property
    def returncode(self) -> int | None:
        """Exit code, negative for a signal; None while it runs."""
        return self._process.exitcode

    def poll(self) -> int | None:
        """The same."""
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """How it ends.

        Raises:
            subprocess.TimeoutExpired: it does not within `timeout` seconds.
        """
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired("wantrain", timeout or 0.0)
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send it a signal, if it runs."""
        if self.poll() is None:
            os.kill(self.pid, number)


def run(
    command: Sequence[str], *, env: Mapping[str, str], cwd: Path, timeout: float
) -> "subprocess.CompletedProcess[str]":
    """Run a command to its end, as subprocess.run does with captured output as text.

    Raises:
        subprocess.TimeoutExpired: it does not end within `timeout` seconds; it is killed then.
    """
    with tempfile.NamedTemporaryFile() as out, tempfile.NamedTemporaryFile() as err:
        process = Forked(command, stdout=out, stderr=err, env=env, cwd=cwd)
        try:
            code = process.wait(timeout)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise
        return subprocess.CompletedProcess(command, code, out.read().decode(), err.read().decode())


def _start(words: Sequence[str], files: tuple[str, str], environment: dict[str, str], cwd: Path | None) -> BaseProcess:
    _server.set_forkserver_preload(list(_IMPORTED))
    process = _server.Process(target=_command, args=(list(words), files, environment, cwd), daemon=True)
    before = dict(os.environ)
    # The first call starts the process from which all are forked; it reads this when it imports.
    os.environ.update({"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"})
    try:
        process.start()
    finally:
        os.environ.clear()
        os.environ.update(before)
    return process


def _command(words: list[str], files: tuple[str, str], environment: dict[str, str], cwd: Path | None) -> None:
    """What the new process does."""
    os.setsid()
    for descriptor, file in zip((1, 2), files, strict=True):
        opened = os.open(file, os.O_WRONLY | os.O_APPEND)
        os.dup2(opened, descriptor)
        os.close(opened)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True)
    os.environ.clear()
    os.environ.update(environment)
    if cwd is not None:
        os.chdir(cwd)
    kind, what, *sys.argv[1:] = words
    if kind == "-c":
        exec(what, {"__name__": "__main__"})
    else:
        runpy.run_module(what, run_name="__main__", alter_sys=True)
