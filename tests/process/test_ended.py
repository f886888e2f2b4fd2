"""Tests that are told to end take what they have started with them."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.process.forked import ROOT
from tests.process.harness import DEADLINE_S, POLL_S
from wantrain.peers.orphan import started_at

NAMES = ("forked", "started")
TEST = """
import signal, sys
from pathlib import Path
from tests.process.harness import Run

def test_that_never_ends(tmp_path):
    with Run(tmp_path) as run:
        run.start("forked", sys.executable, "-c", "import signal; signal.pause()", fork=True)
        run.start("started", sys.executable, "-c", "import signal; signal.pause()")
        for name in ("forked", "started"):
            Path(__file__).with_name(name).write_text(f"{run.pid(name)}.")
        signal.pause()
"""


def test_what_the_tests_have_started_ends_with_them(tmp_path: Path) -> None:
    file = tmp_path / "test_inner.py"
    file.write_text(TEST)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.process.conftest", "-p", "no:cacheprovider", file]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with (tmp_path / "log").open("wb") as log:
        tests = subprocess.Popen(
            [*command, f"--basetemp={tmp_path / 'inner'}"], env=environment, cwd=tmp_path, stdout=log, stderr=log
        )
    try:
        notes = [tmp_path / name for name in NAMES]
        deadline = time.monotonic() + DEADLINE_S
        while not all(note.exists() and note.read_text().endswith(".") for note in notes):
            assert tests.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < deadline, "the inner test has not started its processes"
            time.sleep(POLL_S)
        pids = [int(note.read_text().strip(".")) for note in notes]
        assert all(map(started_at, pids))
        tests.send_signal(signal.SIGTERM)
        assert tests.wait(DEADLINE_S) == pytest.ExitCode.INTERRUPTED
    finally:
        tests.kill()
        tests.wait()
    while any(map(started_at, pids)):
        assert time.monotonic() < deadline + DEADLINE_S, f"still there: {pids}"
        time.sleep(POLL_S)
