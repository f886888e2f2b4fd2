"""Every error that a newcomer can meet: its exit code, and words that a stranger understands; nobody is disturbed."""

import base64
import json
import re
import shutil
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.process.harness import TRAINER, Run
from wantrain.config import RunSpec, key_path
from wantrain.new_run import create_run
from wantrain.transport.auth import Invite, RunKeys
from wantrain.transport.wire import PROTOCOL_VERSION

NOTHING = ("--", "true")
"""A training command for those who never get to it."""
OTHER_DEFAULTS = """
from dataclasses import replace
import wantrain.config as config
build = config.build
config.build = lambda *method: tuple(replace(stream, every=stream.every + 1) for stream in build(*method))
"""
"""A version of the program in which an option means something else."""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """A run in which anna trains on, whoever else is refused; at its end her log is whole and she leaves in order."""
    with Run(tmp_path_factory.mktemp("errors")) as made:
        made.coordinator("--uses", "64")
        made.peer("anna")
        made.until_commits(1, "anna")
        yield made
        assert "anna" not in {event["name"] for event in made.events("coordinator", "lost")}
        made.until_commits(2, "anna")
        made.assert_parity("anna")
        made.stop("anna")


def refused(
    run: Run, code: int, invite: str, *words: str, prepare: str = "", training: tuple[str, ...] = NOTHING
) -> str:
    """What `wantrain peer` says; it must end with this code, within a line for the error and one for the next step."""
    options = ["--bind", "127.0.0.1:0", *([] if "--home" in words else ["--home", str(run.folder / "stranger")])]
    ended = run.wantrain("peer", invite, *options, *words, *training, prepare=prepare)
    assert ended.returncode == code, ended
    assert "error: " in ended.stderr
    assert "\nnext: " in ended.stderr
    assert training != NOTHING or "Traceback" not in ended.stderr
    return ended.stderr


def invited(run: Run, *words: str) -> str:
    """A fresh invite from `wantrain invite`, of the run in this folder unless told otherwise."""
    return run.wantrain("invite", *words, "--address", run.address).stdout.strip()


# ---- the coordinator and its files


def test_no_coordinator(run: Run, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen: nobody else can, either
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        nobody = run.wantrain("invite", "run.toml", "--address", address).stdout.strip()
        events = tmp_path / "events"
        said = refused(run, 4, nobody, "--give-up", "5s", "--events", str(events))
    assert f"no coordinator at {address} for 5 s: " in said
    assert "is `wantrain coordinator` running there" in said
    waiting = [event for event in map(json.loads, events.read_text().splitlines()) if event["event"] == "waiting"]
    assert [event["reason"].endswith("trying again") for event in waiting] == [True]
    assert waiting[0]["waited_s"] >= 2.0


def test_port_in_use(run: Run, tmp_path: Path) -> None:
    create_run(tmp_path / "other.toml", bind=run.address)
    ended = run.wantrain("coordinator", tmp_path / "other.toml")
    assert ended.returncode == 5
    assert f"{run.address} is taken by another process" in ended.stderr


def test_second_coordinator_of_a_run(run: Run) -> None:
    ended = run.wantrain("coordinator", "run.toml", "--bind", "127.0.0.1:0", "--json")
    assert ended.returncode == 5
    assert json.loads(ended.stdout)["error"] == "another process is the coordinator of run.toml"


def test_unknown_option_in_run_toml(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    create_run(path)
    path.write_text(path.read_text().replace("heartbeat_s", "hartbeat_s"))
    for command in (("coordinator", path), ("invite", path), ("status", path)):
        ended = run.wantrain(*command)
        assert ended.returncode == 2
        assert "[liveness] unknown option 'hartbeat_s'" in ended.stderr
        assert "did you mean 'heartbeat_s'?" in ended.stderr


def test_no_run_toml(run: Run, tmp_path: Path) -> None:
    ended = run.wantrain("coordinator", tmp_path / "run.toml")
    assert ended.returncode == 2
    assert "not found" in ended.stderr
    assert "wantrain init" in ended.stderr


# ---- invites


@pytest.mark.parametrize(
    ("text", "words"),
    [("hello", "'hello' is not an invite"), ("wantrain://127.0.0.1:7700/garbage", "the invite is cut off or garbled")],
)
def test_garbage_instead_of_an_invite(run: Run, text: str, words: str) -> None:
    assert words in refused(run, 3, text)


@pytest.mark.scenario(12)
def test_invite_with_a_changed_signature(run: Run) -> None:
    address, _, payload = run.invite.removeprefix("wantrain://").partition("/")
    data = bytearray(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    data[-1] ^= 1
    changed = f"wantrain://{address}/{base64.urlsafe_b64encode(data).decode().rstrip('=')}"
    assert "the invite was altered: its signature does not fit" in refused(run, 3, changed)


@pytest.mark.scenario(12)
def test_invite_signed_by_somebody_else(run: Run) -> None:
    keys = RunKeys.load(key_path(run.run_file))
    forger = RunKeys(RunKeys.create().signing_secret, keys.curve_secret)
    host, _, port = run.address.rpartition(":")
    forged = Invite.issue(forger, RunSpec.load(run.run_file).run, host, int(port), int(time.time()) + 600)
    assert "does not know this invite" in refused(run, 3, str(forged))


@pytest.mark.scenario(12)
def test_invite_of_another_run(run: Run, tmp_path: Path) -> None:
    create_run(tmp_path / "other.toml")
    said = refused(run, 3, invited(run, str(tmp_path / "other.toml")))
    assert f"the coordinator at {run.address} is not the one that this invite is for" in said
    assert "ask the run's owner for a new invite" in said


@pytest.mark.scenario(12)
def test_expired_invite(run: Run) -> None:
    invite = invited(run, "run.toml", "--expires", "1s")
    run.until(lambda: time.time() > Invite.parse(invite).expires_unix, "the invite expires")
    assert "the invite expired at " in refused(run, 3, invite)


@pytest.mark.scenario(12)
def test_used_up_invite(run: Run) -> None:
    invite = invited(run, "run.toml", "--uses", "1")
    first = run.wantrain("peer", invite, "--home", run.folder / "first", "--bind", "127.0.0.1:0", *NOTHING)
    assert first.returncode == 0, first
    said = refused(run, 3, invite, "--home", str(run.folder / "second"))
    assert "this invite was for 1 peer, all used" in said
    assert "wantrain invite run.toml" in said


# ---- identities and versions


@pytest.mark.scenario(12)
def test_second_process_with_the_same_home(run: Run) -> None:
    said = refused(run, 5, run.invite, "--home", str(run.folder / "anna"))
    assert f"another process uses {run.folder / 'anna'}" in said
    assert "--home" in said


@pytest.mark.scenario(12)
def test_copied_identity(run: Run) -> None:
    shutil.copytree(run.folder / "anna", run.folder / "copy")
    said = refused(run, 3, run.invite, "--home", str(run.folder / "copy"), "--give-up", "4s")
    assert "another live process uses the identity of anna" in said
    assert "--home" in said
    times = [event["time_unix"] for event in run.events("coordinator", "refused") if "identity" in event["reason"]]
    meanwhile = [event for event in run.commits() if times[0] < event["time_unix"] < times[-1]]
    assert len(meanwhile) > 3  # anna got hers, not the copy


@pytest.mark.scenario(21)
def test_another_protocol_on_the_wire(run: Run) -> None:
    said = refused(run, 3, run.invite, prepare="import wantrain.transport.wire as w; w.PROTOCOL_VERSION = 99")
    assert "another protocol" in said
    assert f"protocol {PROTOCOL_VERSION}, here 99" in said
    run.until(lambda: "protocol 99, here" in str(run.events("coordinator", "dropped")), "the coordinator names it too")
    assert "install the same version" in said


@pytest.mark.scenario(21)
def test_another_protocol_in_the_hello(run: Run) -> None:
    said = refused(run, 3, run.invite, prepare="import wantrain.peers.admission as a; a.PROTOCOL_VERSION = 99")
    assert f"the run speaks protocol {PROTOCOL_VERSION}" in said
    assert "this peer 99" in said


@pytest.mark.scenario(21)
def test_options_that_come_to_something_else(run: Run) -> None:
    said = refused(run, 3, run.invite, prepare=OTHER_DEFAULTS, training=("--", "sleep", "600"))
    named = re.search(r"the run's options come to (\w+) .* on this peer to (\w+) ", said)
    assert named is not None, said
    assert named[1] == RunSpec.load(run.run_file).digest.hex()[:16] != named[2]
    run.until(lambda: f"on this peer to {named[2]}" in str(run.events("coordinator", "refused")), "both name both")


# ---- training commands


@pytest.mark.scenario(21)
def test_model_that_is_not_the_runs(run: Run) -> None:
    wide = ("--", sys.executable, str(TRAINER), str(run.folder), "wide", "--hidden", "33")
    said = refused(run, 3, run.invite, training=wide)
    told_by_trainer, _, told_by_daemon = said.partition("error: the model differs")
    assert "ModelMismatchError: the model differs from the run's" in told_by_trainer
    for words in (told_by_trainer, told_by_daemon):
        assert "0.weight" in words
        assert "33" in words
        assert "32" in words


@pytest.mark.scenario(14)
def test_nan_is_refused_by_name_and_the_run_goes_on(run: Run) -> None:
    run.peer("nan", "--max-restarts", "0")
    run.until_commits(1, "anna", "nan")
    (run.folder / "nan.nan").touch()
    assert run.exit_code("nan") == 7
    error = run.error("nan")["error"]
    assert "the contribution to stream param at step " in error
    assert "NaN or Inf" in error
    run.until_commits(3, "anna")


def test_command_that_does_not_exist(run: Run) -> None:
    said = refused(run, 2, run.invite, training=("--", "no-such-program"))
    assert "the training command cannot be started" in said
    assert "no-such-program" in said


def test_training_script_without_a_peer(run: Run) -> None:
    run.start("orphan", sys.executable, TRAINER, run.folder, "orphan")
    assert run.exit_code("orphan") == 1
    assert "no peer daemon beside this process" in run.log("orphan")
    assert "wantrain peer '<invite>' -- python train.py" in run.log("orphan")


def test_unknown_command(run: Run) -> None:
    ended = run.wantrain("pear", run.invite)
    assert ended.returncode == 2
    assert "No such command 'pear'" in ended.stderr
