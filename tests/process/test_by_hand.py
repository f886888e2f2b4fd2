"""A run by hand as README tells it, with every method and codec: all peers end alike, everything exits with 0."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.process.harness import TRAINER, Run, invite_in

ROUNDS = 25


def test_a_run_by_hand(tmp_path: Path) -> None:
    with Run(tmp_path) as run:
        (tmp_path / "run.toml").unlink()
        (tmp_path / "run.key").unlink()
        made = run.wantrain("init", "run.toml", "--port", 0)
        assert made.returncode == 0
        assert "next: wantrain coordinator run.toml" in made.stdout
        spec = (
            run.run_file.read_text()
            .replace("every = 100", "every = 15")
            .replace("heartbeat_s = 1.0", "heartbeat_s = 0.3")
        )
        run.run_file.write_text(spec)
        wantrain = [sys.executable, "-m", "wantrain"]
        run.start("coordinator", *wantrain, "coordinator", run.run_file, "--bind", "127.0.0.1:0")
        run.until(lambda: "on each machine" in run.log("coordinator"), "the coordinator prints an invite")
        invite = invite_in(run.log("coordinator"))
        names = ["anna", "bert", "carl"]
        for name in names:
            script = [sys.executable, TRAINER, run.folder, name, "--rounds", ROUNDS]
            run.start(name, *wantrain, "peer", invite, "--name", name, "--bind", "127.0.0.1:0", "--", *script)
        run.until(lambda: run.status()["log"]["head"] > 0, "the first commit")

        shown = run.wantrain("status", "run.toml")
        assert shown.returncode == 0
        assert all(word in shown.stdout for word in ("diloco, int8", "last commits", "anna", *names)), shown.stdout
        assert json.loads(run.wantrain("status", "run.toml", "--json").stdout)["run"]["method"] == "diloco"

        assert [run.exit_code(name) for name in names] == [0, 0, 0]
        document = run.status()
        assert document["log"]["head"] >= ROUNDS
        assert {peer["state"] for peer in document["peers"]} == {"left"}
        assert {(peer["log_number"], peer["chain"]) for peer in document["peers"]} == {
            (document["log"]["head"], document["log"]["chain"])
        }
        digests = {(p["state_number"], p["state_digest"]) for p in document["peers"]}
        assert len({number for number, _ in digests}) == len(digests)
        run.assert_one_history()
        run.stop()
        offline = run.wantrain("status", "run.toml")
        assert offline.returncode == 4
        assert f"last commit on record: {document['log']['head']}" in offline.stdout


@pytest.mark.parametrize(("method", "codec"), [("ddp", "fp32"), ("local-sgd", "bf16")])
def test_every_method_keeps_all_peers_alike(new_run: Callable[..., Run], method: str, codec: str) -> None:
    run = new_run(method=method, codec=codec)
    run.peer("anna")
    run.peer("bert")
    run.until_commits(20, "anna", "bert")
    run.assert_parity("anna", "bert")
    run.stop("anna", "bert")
