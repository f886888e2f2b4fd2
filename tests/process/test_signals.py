"""Ctrl-C, SIGTERM and a second signal: peers, trainers and coordinators end within a bound and leave nothing behind."""

import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Measured
from tests.process.harness import TRAINER, Run
from tests.process.test_reattach import left_behind, left_of, trainer_of
from wantrain.peers.orphan import started_at
from wantrain.peers.status import address_path


@pytest.mark.scenario(24)
def test_who_is_told_to_go_leaves_in_order_and_nothing_behind(new_run: Callable[..., Run], measured: Measured) -> None:
    run = new_run()
    run.peer("anna")
    told = {"bert": (signal.SIGINT, True), "carl": (signal.SIGTERM, False)}
    for name in told:
        run.peer(name)
    run.until_commits(3, "anna", *told)
    for name, (number, group) in told.items():
        trainer = trainer_of(run, name)
        since = time.time()
        run.signal(name, number, group=group)  # a terminal sends its SIGINT to daemon and trainer
        assert run.exit_code(name) == 0
        word = signal.Signals(number).name
        measured(24, f"until a peer has left, daemon and trainer, after {word}", time.time() - since, "s")
        measured(24, f"longest time without a commit of those who stay, {word}", run.longest_pause_s(since), "s")
        assert [event["name"] for event in run.events("coordinator", "left")][-1] == name
        assert not started_at(trainer)
        assert left_behind(run, name) == []
        run.until_commits(3, "anna")
        run.signal("coordinator", number)
        assert run.exit_code("coordinator") == 0
        assert not address_path(run.run_file).exists()
        run.coordinator()
        run.until_commits(2, "anna")
    assert len(run.events("coordinator", "left")) == len(told)
    run.assert_parity("anna")
    run.stop("anna")


@pytest.mark.scenario(24)
def test_a_second_signal_ends_a_peer_and_its_trainer_at_once(new_run: Callable[..., Run]) -> None:
    run = new_run()
    told = {"anna": signal.SIGTERM, "bert": signal.SIGINT}
    for name in told:
        run.peer(name)
    run.until_commits(2, *told)
    run.signal("coordinator", signal.SIGSTOP)
    run.until(lambda: all("waiting" in run.log(name) for name in told), "something is in flight that nobody decides")
    for name, number in told.items():
        trainer = trainer_of(run, name)
        run.signal(name, number)
        run.until(lambda name=name: run.events(name, "leaving"), "it takes its leave")
        run.signal(name, number)
        assert run.exit_code(name) == 128 + number
        run.until(lambda trainer=trainer: not started_at(trainer), "its trainer is gone")
        assert left_behind(run, name) == []
    run.signal("coordinator", signal.SIGCONT)
    run.assert_one_history(*told)


LEFT = """
import sys, time, pathlib, torch, wantrain
model = torch.nn.Linear(4, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
swarm = wantrain.join(model, optimizer)
for _ in range(8):
    optimizer.zero_grad()
    model(torch.randn(2, 4)).sum().backward()
    optimizer.step()
swarm.leave()
try:
    wantrain.join(model, optimizer)
except wantrain.errors.RefusedError as error:
    pathlib.Path(sys.argv[1]).write_text(str(error))
time.sleep(600)
"""
"""A script that goes on after it has left, and first tries to come back."""


@pytest.mark.scenario(24)
def test_a_peer_whose_script_goes_on_after_it_has_left_ends_when_told_and_says_that_it_has_left(
    new_run: Callable[..., Run], tmp_path: Path
) -> None:
    run = new_run()
    refused = tmp_path / "refused"
    run.peer("anna", script=("-c", LEFT, refused))
    run.until(lambda: refused.exists() and refused.read_text(), "the script was told that its peer has left")
    assert "this peer has left the run" in refused.read_text()
    trainer = trainer_of(run, "anna")
    assert started_at(trainer)
    run.signal("anna", signal.SIGTERM)
    assert run.exit_code("anna") == 0
    assert not started_at(trainer)
    assert left_behind(run, "anna") == []


@pytest.mark.scenario(24)
def test_a_trainer_behind_a_shell_script_ends_with_its_peer(new_run: Callable[..., Run]) -> None:
    run = new_run()
    wrapper = "import subprocess, sys; sys.exit(subprocess.run([sys.executable, *sys.argv[1:]]).returncode)"
    run.peer("anna", script=("-c", wrapper, TRAINER, run.folder, "anna"))
    run.until_commits(2, "anna")
    trainer = trainer_of(run, "anna")
    run.signal("anna", signal.SIGTERM)
    assert run.exit_code("anna") == 0
    assert not started_at(trainer)
    assert left_behind(run, "anna") == []


@pytest.mark.scenario(24)
def test_a_peer_that_has_not_joined_yet_ends_at_once(new_run: Callable[..., Run]) -> None:
    run = new_run()
    run.signal("coordinator", signal.SIGSTOP)
    for name, number in (("anna", signal.SIGTERM), ("bert", signal.SIGINT)):
        run.peer(name)
        run.until(lambda name=name: run.events(name, "listening"), f"{name} is on its way")
        run.signal(name, number)
        assert run.exit_code(name) == 128 + number
        assert left_behind(run, name) == []


@pytest.mark.scenario(24)
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="only Linux shows whose child a process was")
@pytest.mark.parametrize("signals", [1, 3])
def test_a_demo_that_is_told_to_go_leaves_no_process_and_no_memory_behind(tmp_path: Path, signals: int) -> None:
    with Run(tmp_path) as run:
        out = tmp_path / "out"
        run.start(
            "demo", sys.executable, "-m", "wantrain", "demo", "--peers", "2", "--no-churn", "--out", out, "--json"
        )
        homes = [out / "peer-1", out / "peer-2"]
        # Once in the middle of training, once while it is still starting.
        reached = attached if signals == 1 else starting
        run.until(lambda: all(map(reached, homes)), "both peers are there")
        scratches = [Path((home / "scratch").read_text()) for home in homes]
        run.until(lambda: len(family(tmp_path)) >= 6, "the demo, the coordinator, two daemons and their trainers")
        for _ in range(signals):
            run.signal("demo", signal.SIGINT)
        assert run.exit_code("demo") == 128 + signal.SIGINT
        run.until(lambda: not family(tmp_path), "all that it had started is gone")
        assert left_of(scratches) == []


def starting(home: Path) -> bool:
    """Whether a peer of the demo has a place for its trainer."""
    return (home / "scratch").exists() and bool((home / "scratch").read_text())


def attached(home: Path) -> bool:
    """Whether a peer of the demo has its trainer."""
    events = home.with_name(f"{home.name}.events.jsonl")
    return events.exists() and '"attached"' in events.read_text()


def family(folder: Path) -> list[int]:
    """Live processes with the environment of a run in this folder."""
    mark = f"XDG_STATE_HOME={folder / 'state'}\0".encode()
    return [
        int(path.name) for path in Path("/proc").glob("[0-9]*") if mark in environ(path) and started_at(int(path.name))
    ]


def environ(process: Path) -> bytes:
    """A process's environment; nothing of one that is gone or another user's."""
    try:
        return (process / "environ").read_bytes()
    except OSError:
        return b""
