"""Joining by invite from a notebook's cells, and scripts that come and go at a peer without a command of its own."""

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.process.forked import ROOT
from tests.process.harness import Run
from wantrain.demo.processes import json_lines
from wantrain.peers.orphan import started_at
from wantrain.transport.auth import Invite

PATIENCE_S = 60.0
NOTEBOOK = Path(__file__).parent / "notebook.py"


class Notebook:
    """One interpreter that is given cells."""

    def __init__(self, run: Run) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **run.environment, "PYTHONPATH": str(ROOT)}
        self._errors = (run.folder / "notebook.log").open("w")
        self.process = subprocess.Popen(
            [sys.executable, str(NOTEBOOK), str(run.folder), run.invite],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=environment,
            text=True,
            start_new_session=True,
        )

    def cell(self, code: str) -> dict[str, Any]:
        """Run a cell to its end."""
        self.begin(code)
        return self.end()

    def begin(self, code: str) -> None:
        """Start a cell."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(code) + "\n")
        self.process.stdin.flush()

    def end(self) -> dict[str, Any]:
        """The answer of the cell that runs: the only thing on its output."""
        assert self.process.stdout is not None
        assert select.select([self.process.stdout], [], [], PATIENCE_S)[0], "the cell does not end"
        answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        return answer

    def close(self) -> None:
        """Kill it, if it runs."""
        self.process.kill()
        self.process.communicate()
        self._errors.close()


@contextmanager
def opened(run: Run) -> Iterator[Notebook]:
    notebook = Notebook(run)
    try:
        yield notebook
    finally:
        notebook.close()


def said(run: Run, log: str, event: str) -> list[dict[str, Any]]:
    """What a daemon that a notebook has started has told of."""
    return [line for line in json_lines(Path(log).read_bytes()) if line.get("event") == event]


def pid_of(home: Path) -> int:
    """The process that holds a peer's home: the only one with its lock open."""
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if os.readlink(link) == str(home / "lock"):
                return int(link.parts[2])
        except OSError:
            continue
    return 0


LOOK = """
own = [parameter.detach().clone() for parameter in model.parameters()]
with swarm.evaluating() as phi:
    within = [parameter.detach().clone() for parameter in model.parameters()]
common = swarm.common_state_dict()
said = {
    "restored": all(torch.equal(a, b) for a, b in zip(own, model.parameters())),
    "phi": phi.round,
    "differs": any(not torch.equal(a, b) for a, b in zip(own, within)),
    "named": list(common) == [name for name, _ in model.named_parameters()],
    "log": str(swarm.daemon_log),
    "handlers": all(signal.getsignal(number) is handler for number, handler in before.items()),
}
"""


def test_cells_of_a_notebook_join_by_invite(new_run: Callable[..., Run]) -> None:
    run = new_run(options={"method": {"every": 7}})
    home = run.folder / "notebook"
    with opened(run) as notebook:
        assert notebook.cell("join(initial='/nowhere')")["error"] == "CheckpointError"  # as the daemon has said
        assert notebook.cell("model, optimizer, swarm = join(); said = swarm.peer") == {"said": "notebook"}
        # A cell that is run again says what to do first, and harms nobody.
        again = notebook.cell("model, optimizer, swarm = join()")
        assert (again["error"], "swarm.leave()" in again["message"]) == ("ConfigError", True)
        assert notebook.cell("train(lambda: swarm.round >= 2 and swarm.own_steps % 7 == 3)") == {"said": None}
        look = notebook.cell(LOOK)["said"]
        assert look == {"restored": True, "phi": look["phi"], "differs": True, "named": True, "log": look["log"],
                        "handlers": True}  # fmt: skip
        assert look["phi"] >= 2
        # Ctrl-C reaches the cell, and not the daemon, which goes on with the next cell.
        notebook.begin("train(lambda: False)")
        run.until(lambda: len(run.commits()) > look["phi"] + 2, "training goes on")
        os.killpg(notebook.process.pid, signal.SIGINT)
        assert notebook.end()["error"] == "KeyboardInterrupt"
        assert notebook.cell("r = swarm.round; train(lambda: swarm.round > r); said = swarm.alone") == {"said": False}
        assert notebook.cell("said = swarm.state_dict(); swarm.leave()")["said"]["run"] == run.status()["run"]["id"]
        assert pid_of(home) == 0  # leave has waited for the daemon's end
        (left,) = said(run, look["log"], "left")
        assert left["reason"] == "training finished"
        # The same home again: nobody's invite is used up. Then the kernel is killed.
        assert notebook.cell("model, optimizer, swarm = join(); train(lambda: swarm.own_steps > 3)") == {"said": None}
        daemon = pid_of(home)
        assert daemon
        notebook.process.kill()
        run.until(lambda: not started_at(daemon), "the daemon of the killed kernel ends")
    assert said(run, look["log"], "trainer-exit")[-1]["reason"].endswith("has ended")
    assert {peer["state"] for peer in run.status()["peers"]} == {"left"}


@pytest.mark.scenario(12)
def test_an_invite_that_cannot_be_used_is_an_error_of_join(new_run: Callable[..., Run]) -> None:
    run = new_run()

    def invited(*words: str) -> str:
        return run.wantrain("invite", "run.toml", *words, "--address", run.address).stdout.strip()

    expired, spent = invited("--expires", "1s"), invited()
    with opened(run) as notebook:
        assert notebook.cell(f"invite = {spent!r}; *_, swarm = join(); swarm.leave()") == {"said": None}
        run.until(lambda: time.time() > Invite.parse(expired).expires_unix, "the invite expires")
        for invite, words in (
            (expired, "the invite expired at "),
            (spent, "this invite was for 1 peer, all used"),
            (spent[:-9], "cut off"),
        ):
            said = notebook.cell(f"invite = {invite!r}; join(home=f'{{folder}}/other')")
            assert said["error"] == "InviteError", said
            assert words in said["message"]
            assert "next: " in said["message"]
    assert pid_of(run.folder / "other") == 0


def test_scripts_come_and_go_at_a_peer_without_a_command(new_run: Callable[..., Run]) -> None:
    run = new_run(options={"method": {"every": 7}})
    command = [sys.executable, "-m", "wantrain", "peer", run.invite, "--name", "kept", "--home", run.folder / "kept"]
    run.start("kept", *command, "--bind", "127.0.0.1:0", fork=True)
    with opened(run) as notebook:
        run.until(lambda: "export WANTRAIN_DAEMON=" in run.log("kept"), "the peer says how to join through it")
        address = run.log("kept").split("export WANTRAIN_DAEMON=")[1].split()[0]
        join = f"model, optimizer, swarm = join({address!r}); r = swarm.round; "
        train = "train(lambda: swarm.round >= r + 2); "
        assert notebook.cell(join + train + "swarm.leave()") == {"said": None}
        # Who closes without a word is as gone as after a crash, and the next one starts from the run's weights.
        assert notebook.cell(join + "said = r; " + train + "swarm.close()")["said"] >= 2
        assert notebook.cell(join + train) == {"said": None}
        notebook.process.kill()
        run.until(lambda: "has ended" in run.log("kept"), "the peer has seen that the last one was killed")
    assert run.log("kept").count("attached") == 3
    run.signal("kept", signal.SIGINT)
    assert run.exit_code("kept") == 0, run.log("kept")
    assert {peer["state"] for peer in run.status()["peers"]} == {"left"}
