"""`wantrain doctor` against real coordinators and peers: what is wrong is named at the step where it shows."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.process.harness import DEADLINE_S, Run
from tests.process.test_reachability import NOWHERE
from wantrain.config import store_path
from wantrain.lab import Lab, Shape, available
from wantrain.peers.store import Store
from wantrain.transport.auth import Invite

NewRun = Callable[..., Run]


def doctor(run: Run, invite: str = "", *words: str) -> tuple[int, list[dict[str, Any]]]:
    """Exit code and findings."""
    where = () if "--outbound-only" in words else ("--bind", "127.0.0.1:0")
    done = run.wantrain("doctor", invite or run.invite, "--json", *where, *words)
    document = json.loads(done.stdout)
    assert done.returncode == document["code"], done.stderr
    assert [found["number"] for found in document["findings"]] == list(range(1, len(document["findings"]) + 1))
    assert all(found["next"] for found in document["findings"] if found["level"] != "ok")
    return done.returncode, document["findings"]


def of(findings: list[dict[str, Any]], check: str) -> list[dict[str, Any]]:
    return [found for found in findings if found["check"] == check]


@pytest.mark.scenario(18)
def test_the_doctor_measures_every_peer_and_uses_nothing_up(new_run: NewRun) -> None:
    run = new_run()
    run.peer("anna")
    run.peer("ben", "--outbound-only")
    run.until_commits(3, "anna", "ben")
    before = len(run.events("coordinator", "joined"))
    code, findings = doctor(run)
    assert code == 0, findings
    assert [found["check"] for found in findings[:8]] == [
        "invite", "address", "port", "listen", "key", "clock", "invite", "version",
    ]  # fmt: skip
    anna, ben = sorted(of(findings, "peer"), key=lambda found: found["text"])
    assert anna["text"].startswith("anna: direct, either side can dial, round trip ")
    assert "bit/s towards it" in anna["text"]
    assert ben["text"].startswith("ben: direct, only it can dial")
    assert of(findings, "model")[0]["text"].endswith("as fp32")

    code, findings = doctor(run, "", "--outbound-only")
    anna, ben = sorted(of(findings, "peer"), key=lambda found: found["text"])
    assert anna["text"].startswith("anna: direct, only this machine can dial")
    assert (ben["level"], code) == ("warn", 0)
    assert ben["text"].startswith("ben: relayed through anna: it only dials out, this machine only dials out")

    with Store(store_path(run.run_file)) as store:
        (row,) = store.invites()
    assert row.used == 2, "the doctor has used none"
    assert len(run.events("coordinator", "joined")) == before, "nor joined"
    assert run.events("coordinator", "abort") == []
    run.until_commits(3, "anna", "ben")
    run.assert_parity("anna", "ben")
    run.stop("anna", "ben")


@pytest.mark.scenario(18)
@pytest.mark.skipif(bool(available()), reason=available())
def test_in_a_network_the_doctor_finds_out_who_cannot_be_dialled(tmp_path: Path) -> None:
    """Ben, and a peer beside the doctor, would say that they can be dialled; packets to there vanish."""
    with Lab(4, Shape.parse("rtt=20ms,rate=100mbit")) as lab, Run(tmp_path, lab=lab) as run:
        run.coordinator()
        run.peer("anna")
        run.peer("ben", "--advertise", NOWHERE)
        run.until_commits(2, "anna", "ben")
        command = [sys.executable, "-m", "wantrain", "doctor", run.invite, "--json", "--advertise", NOWHERE]
        environment = {**os.environ, **run.environment}
        child = lab.popen(3, command, stdout=subprocess.PIPE, text=True, env=environment)
        findings = json.loads(child.communicate(timeout=DEADLINE_S)[0])["findings"]
        assert child.returncode == 0, findings
        anna, ben = sorted(of(findings, "peer"), key=lambda found: found["text"])
        assert anna["text"].startswith(
            f"anna: direct, only this machine can dial, it cannot dial {NOWHERE}, round trip "
        )
        assert ben["text"].startswith(f"ben: relayed through anna: {NOWHERE} cannot be dialled from here")
        assert run.events("coordinator", "abort") == []


@pytest.mark.scenario(12)
def test_an_invite_that_is_used_up_expired_or_foreign_is_named(new_run: NewRun) -> None:
    run = new_run()
    used = run.wantrain("invite", "run.toml", "--uses", "1", "--address", run.address).stdout.strip()
    run.peer("anna", invite=used)
    run.until(lambda: run.events("coordinator", "enrolled"), "anna is in")
    code, findings = doctor(run, used)
    assert code == 1
    assert of(findings, "invite")[1]["text"] == "refused: it was for 1 peer, all used"
    assert of(findings, "peer") == [], "who is not invited hears nothing of the others"

    code, findings = doctor(run, used, "--home", str(run.folder / "anna"))
    assert code == 0, "the run knows that identity"
    assert "knows this machine's identity" in of(findings, "invite")[1]["text"]

    expired = run.wantrain("invite", "run.toml", "--expires", "1s", "--address", run.address).stdout.strip()
    run.until(lambda: time.time() > Invite.parse(expired).expires_unix, "the invite expires")
    code, findings = doctor(run, expired)
    assert code == 1
    assert "expired at " in of(findings, "invite")[1]["text"]
    assert of(findings, "clock")[0]["level"] == "ok"


def test_without_a_coordinator_it_says_so_and_checks_the_rest(new_run: NewRun) -> None:
    run = new_run()
    run.kill("coordinator")
    code, findings = doctor(run)
    assert code == 1
    assert of(findings, "port")[0]["level"] == "fail"
    assert {"memory", "shared memory", "disk", "files", "software"} <= {found["check"] for found in findings}
    assert of(findings, "peer") == []


def test_an_address_that_is_taken_or_foreign_and_a_garbled_invite_are_named(new_run: NewRun) -> None:
    run = new_run()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        code, findings = doctor(run, "", "--bind", f"127.0.0.1:{taken.getsockname()[1]}")
    assert (code, "is taken by another process" in of(findings, "listen")[0]["text"]) == (1, True)
    code, findings = doctor(run, run.invite[:-3])
    assert (code, of(findings, "invite")[0]["level"]) == (1, "fail")
    assert of(findings, "software")
