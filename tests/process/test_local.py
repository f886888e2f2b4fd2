"""`wantrain local`: a user's own script with real daemons on this machine, its summary, exit codes and Ctrl-C."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
DEADLINE_S = 90.0
SCRIPT = """
import sys, time
import torch
import wantrain

torch.set_num_threads(1)
number, rounds = int(sys.argv[1]), int(sys.argv[2])
torch.manual_seed(number)
model = torch.nn.Linear(8, 2)
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
swarm = wantrain.join(model, optimizer)
while swarm.round < rounds:
    time.sleep(0.002)
    if number == 1 and swarm.round == 2 and "fail" in sys.argv:
        sys.exit(9)
    loss = model(torch.randn(4, 8)).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    swarm.log(loss=loss.item())
swarm.leave()
"""


def started(folder: Path, *words: str, environment: dict[str, str] | None = None) -> "subprocess.Popen[str]":
    """`wantrain local` with the script and two peers, whose summary goes to stdout."""
    (folder / "train.py").write_text(SCRIPT)
    command = [sys.executable, "-m", "wantrain", "local", str(folder / "train.py"), "--peers", "2", "--json"]
    command += ["--option", "every=10", "--out", str(folder / "run"), "--", "{i}", *words]
    return subprocess.Popen(
        command,
        env={**os.environ, "PYTHONPATH": str(ROOT), **(environment or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process: "subprocess.Popen[str]") -> tuple[int, dict[str, Any]]:
    """Exit code and summary."""
    out, err = process.communicate(timeout=DEADLINE_S)
    assert out, err
    summary: dict[str, Any] = json.loads(out)
    return process.returncode, summary


def until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def test_a_script_trains_with_several_peers_and_the_summary_says_how(tmp_path: Path) -> None:
    code, summary = ended(started(tmp_path, "5"))
    assert code == 0, summary
    assert summary["ok"]
    assert summary["commits"] >= 5
    assert [(peer["name"], peer["exit_code"]) for peer in summary["peers"]] == [("peer-0", 0), ("peer-1", 0)]
    folder = tmp_path / "run"
    assert json.loads((folder / "summary.json").read_text()) == summary
    assert "every = 10" in (folder / "run.toml").read_text()
    assert {path.name for path in folder.glob("*.log")} == {"coordinator.log", "peer-0.log", "peer-1.log"}


def test_a_script_that_fails_gives_its_peers_exit_code(tmp_path: Path) -> None:
    code, summary = ended(started(tmp_path, "4", "fail"))
    assert code == 7  # the training command failed
    assert not summary["ok"]
    well, failed = summary["peers"]
    assert (well["exit_code"], failed["exit_code"]) == (0, 7)
    assert "error" not in well
    assert failed["error"]
    assert failed["hint"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_lets_all_peers_leave_and_nothing_stays(tmp_path: Path, number: signal.Signals) -> None:
    process = started(tmp_path, "1000000")
    events = tmp_path / "run" / "coordinator.events.jsonl"
    until(lambda: events.exists() and '"commit"' in events.read_text(), "a commit")
    process.send_signal(number)
    code, summary = ended(process)
    assert code == 130
    assert [peer["exit_code"] for peer in summary["peers"]] == [0, 0]
    assert '"stopped"' in events.read_text()
    marker = str(tmp_path).encode()
    until(lambda: not [pid for pid in _processes() if marker in _command(pid)], "no process of the run is left")


def _processes() -> list[int]:
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit() and int(path.name) != os.getpid()]


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""
