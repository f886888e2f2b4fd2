"""The training process: started again with back-off, not too often, ended for certain, and described in words."""

import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from wantrain.peers.orphan import Orphan, started_at
from wantrain.peers.supervisor import BACK_OFF_FIRST_S, FORGIVE_AFTER_S, Supervisor

FAIL = (sys.executable, "-c", "import os, sys; sys.exit(int(os.environ['CODE']))")
STAY = "import pathlib, sys, time; pathlib.Path(sys.argv[1]).touch(); time.sleep(600)"
STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); " + STAY


@contextmanager
def supervisor(command: Sequence[str], max_restarts: int = 2) -> Iterator[Supervisor]:
    made = Supervisor(command, {"CODE": "3"}, max_restarts)
    try:
        yield made
    finally:
        made.kill()
        made.end()


def until_ended(made: Supervisor, now: float) -> None:
    deadline = time.monotonic() + 30
    while not made.ended(now):
        assert time.monotonic() < deadline


@pytest.mark.scenario(16)
def test_a_failing_command_is_started_again_with_back_off_and_not_too_often() -> None:
    with supervisor(FAIL) as made:
        now = 100.0
        for pause_s in (BACK_OFF_FIRST_S, 2 * BACK_OFF_FIRST_S):
            assert made.start_if_due(now)
            assert not made.start_if_due(now)
            until_ended(made, now)
            assert made.describe_exit() == "ended with exit code 3"
            assert made.restart_later(now)
            assert not made.start_if_due(now + 0.9 * pause_s)
            now += pause_s
        assert made.start_if_due(now)
        until_ended(made, now)
        assert not made.restart_later(now)
        assert not made.start_if_due(now + 1e6)


def test_a_command_that_ran_long_starts_with_a_clean_record() -> None:
    with supervisor(FAIL, max_restarts=1) as made:
        made.start_if_due(0.0)
        until_ended(made, 1.0)
        assert made.restart_later(1.0)
        made.start_if_due(10.0)
        until_ended(made, 10.0 + FORGIVE_AFTER_S)
        assert made.restart_later(10.0 + FORGIVE_AFTER_S)


@pytest.mark.scenario(24)
@pytest.mark.parametrize(("script", "end"), [(STAY, "SIGTERM"), (STUBBORN, "SIGKILL")])
def test_end_asks_then_kills(script: str, end: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wantrain.peers.supervisor.END_PATIENCE_S", 5.0 if end == "SIGTERM" else 0.1)
    ready = tmp_path / "ready"
    with supervisor((sys.executable, "-c", script, str(ready))) as made:
        made.start_if_due(0.0)
        assert made.describe_exit() == "still runs"
        deadline = time.monotonic() + 30
        while not ready.exists():
            assert time.monotonic() < deadline
        made.end()
        assert made.describe_exit() == f"was killed by {end}"
        assert not made.running
        assert not made.start_if_due(1e6)


@pytest.mark.scenario(24)
@pytest.mark.parametrize("way", ["end", "kill", "restart"])
def test_the_trainer_behind_a_shell_script_ends_with_it(way: str, tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    told = "pathlib.Path(sys.argv[1]).write_text(f'{os.getpid()} {os.getppid()}.')"
    code = f"import os, pathlib, sys, time; {told}; time.sleep(600)"
    with supervisor(("sh", "-c", f'"{sys.executable}" -c "{code}" "{ready}"; exit 1')) as made:
        made.start_if_due(0.0)
        deadline = time.monotonic() + 30
        while not ready.exists() or not ready.read_text().endswith("."):
            assert time.monotonic() < deadline
        trainer, shell = map(int, ready.read_text().strip(".").split())
        made.attached(os.getpid())  # of another namespace, maybe: no process of the command's, and never ended
        made.attached(trainer)
        if way == "end":
            made.end()
            assert (made.describe_exit(), made.running) == ("was killed by SIGTERM", False)
        elif way == "kill":
            made.kill()
        else:
            os.kill(shell, signal.SIGKILL)
            until_ended(made, 1.0)
        Orphan(trainer, started_at(trainer)).wait(30.0)


def test_a_command_that_ends_by_a_signal_without_a_name_is_described(tmp_path: Path) -> None:
    with supervisor(("sh", "-c", f"kill -{signal.SIGRTMIN + 6} $$")) as made:
        made.start_if_due(0.0)
        until_ended(made, 1.0)
        assert made.describe_exit() == f"was killed by signal {signal.SIGRTMIN + 6}"


def test_a_command_that_cannot_be_started_is_not_tried_for_ever() -> None:
    with supervisor(("no-such-program",)) as made:
        with pytest.raises(OSError, match="no-such-program"):
            made.start_if_due(0.0)
        assert not made.start_if_due(1.0)
