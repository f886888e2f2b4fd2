"""The worker processes of a benchmark as their parent sees them: started, told, heard with a deadline, ended."""

import contextlib
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import IO, Any

from wantrain.bench.worker import Json, Setup
from wantrain.errors import WantrainError

Popen = Callable[..., subprocess.Popen[bytes]]
"""(number of the host, argv, **options) to a process on that host."""

STOP_TIMEOUT_S = 5.0
STDERR_LINES = 5


def popen_here(host: int, argv: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
    """Start a process on this machine, whatever the host."""
    return subprocess.Popen(argv, **options)


class Workers:
    """The processes of one contestant, in order of the peers; use it as a context manager.

    Args:
        name: of the contestant, for errors.
        setups: one for each process.
        popen: starts them.
    """

    def __init__(self, name: str, setups: Sequence[Setup], popen: Popen) -> None:
        self.name = name
        self._setups = setups
        self._popen = popen
        self._running: list[subprocess.Popen[bytes]] = []
        self._files = contextlib.ExitStack()
        self._answers: list[queue.SimpleQueue[bytes]] = []
        self._stderr: list[IO[bytes]] = []

    def __enter__(self) -> "Workers":
        try:
            for k, setup in enumerate(self._setups):
                self._start(k, setup)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._running:
            assert process.stdin is not None
            with contextlib.suppress(OSError):
                process.stdin.close()  # a worker ends with its input
        deadline = time.monotonic() + STOP_TIMEOUT_S
        for process in self._running:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._files.close()
        self._running = []

    def ask(self, timeout_s: float, **command: Any) -> list[Json]:
        """Tell all the same, and wait for the answer of each.

        Raises:
            WantrainError: one of them failed, ended or did not answer in time.
        """
        line = json.dumps(command).encode() + b"\n"
        for process in self._running:
            assert process.stdin is not None
            with contextlib.suppress(OSError):  # it has ended; its last words tell why
                process.stdin.write(line)
                process.stdin.flush()
        return self.hear(timeout_s)

    def hear(self, timeout_s: float) -> list[Json]:
        """The next answer of each process; see `ask`."""
        deadline = time.monotonic() + timeout_s
        return [self._hear_one(k, deadline, timeout_s) for k in range(len(self._running))]

    def _start(self, k: int, setup: Setup) -> None:
        stderr: IO[bytes] = self._files.enter_context(tempfile.TemporaryFile())  # noqa: SIM115
        self._stderr.append(stderr)
        # Several peers share this machine: one thread each, or they fight over its cores.
        process = self._popen(
            k,
            [sys.executable, "-m", "wantrain.bench.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        self._running.append(process)
        answers: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._answers.append(answers)
        assert process.stdin is not None
        assert process.stdout is not None
        threading.Thread(target=_read, args=(process.stdout, answers), daemon=True).start()
        process.stdin.write(json.dumps(asdict(setup)).encode() + b"\n")
        process.stdin.flush()

    def _hear_one(self, k: int, deadline: float, timeout_s: float) -> Json:
        try:
            line = self._answers[k].get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            raise WantrainError(
                f"peer {k} of {self.name} did not answer in {timeout_s:g} s",
                hint="allow more with --timeout, or use a smaller vector",
            ) from None
        if not line:
            code = self._running[k].wait(STOP_TIMEOUT_S)
            self._stderr[k].seek(0)
            said = self._stderr[k].read().decode(errors="replace").splitlines()[-STDERR_LINES:]
            raise WantrainError(f"peer {k} of {self.name} ended with code {code}: " + " | ".join(said))
        answer: Json = json.loads(line)
        if "failed" in answer:
            raise WantrainError(f"peer {k} of {self.name}: {answer['failed']}", hint=answer["hint"])
        return answer


def _read(stdout: IO[bytes], answers: "queue.SimpleQueue[bytes]") -> None:
    with stdout:
        for line in stdout:
            answers.put(line)
    answers.put(b"")
