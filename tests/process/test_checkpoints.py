"""Saved states on real processes: killed while one is written, all gone and back, damaged ones, a new run."""

import json
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.conftest import Measured
from tests.process.harness import Event, Run
from wantrain.config import store_path
from wantrain.peers.checkpoint import Entry, entries, newest, read, scan
from wantrain.peers.saved_state import STATE_FILE
from wantrain.peers.store import Store

OFTEN = {"checkpoint": {"every": 5}, "sync": {"deadline_ceiling_s": 8.0}}


def saved_by(run: Run, name: str) -> list[int]:
    return [event["number"] for event in run.events(name, "saved")]


def shelf(run: Run, name: str) -> Path:
    return run.folder / name / "checkpoints"


def kill_all(run: Run, *names: str) -> int:
    """The power fails; the log number that the coordinator had written last."""
    for name in (*names, "coordinator"):
        run.kill(name)
    for name in names:
        run.exit_code(name)
    with Store(store_path(run.run_file)) as store:
        return store.head()


def on_disk(run: Run, *names: str) -> dict[str, int]:
    """The newest whole state on each peer's disk."""
    found = {name: newest(shelf(run, name)) for name in names}
    return {name: entry.saved.number for name, entry in found.items() if entry is not None}


def last(run: Run, name: str, kind: str) -> Event:
    return run.events(name, kind)[-1]


@pytest.mark.scenario(22)
def test_when_all_were_gone_the_run_goes_on_from_its_last_saved_state_with_fewer_and_with_more(
    new_run: Callable[..., Run], measured: Measured
) -> None:
    run = new_run(options=OFTEN)
    names = ("anna", "bert", "carl")
    for name in names:
        run.peer(name)
    run.until(lambda: all(saved_by(run, name) for name in names), "they save in turns")
    head = kill_all(run, *names)
    kept = on_disk(run, *names)
    best = max(kept, key=lambda name: kept[name])

    before = len(run.commits())
    run.coordinator()
    for name in names:
        run.peer(name)
    run.until(lambda: [c for c in run.commits()[before:] if len(c["contributors"]) == 3], "all take part again")
    assert [event["to"] for event in run.events("coordinator", "rewind")] == [kept[best]] * (kept[best] < head)
    assert last(run, best, "loaded")["number"] == kept[best]
    run.assert_parity(*names, rewound=True)
    measured(22, "commits lost when the power failed everywhere, a state saved every 5", head - kept[best], "commits")

    known = len(run.events(best, "saved"))
    run.until(lambda: len(run.events(best, "saved")) > known, "states are saved again")
    rewound = len(run.events("coordinator", "rewind"))
    head = kill_all(run, *names)
    kept = on_disk(run, *names)
    best = max(kept, key=lambda name: kept[name])
    before = len(run.commits())
    run.coordinator()
    run.peer(best)
    run.until(lambda: len(run.commits()) > before + 3, "the one who came back goes on alone")
    rewinds = [event["to"] for event in run.events("coordinator", "rewind")[rewound:]]
    assert rewinds == [kept[best]] * (kept[best] < head)
    for name in ("nora", "olga", "paul"):
        run.peer(name)
    run.until(lambda: [c for c in run.commits()[before:] if len(c["contributors"]) == 4], "newcomers take part, too")
    run.assert_parity(best, "nora", "olga", "paul", rewound=True)
    run.stop(best, "nora", "olga", "paul")


@pytest.mark.scenario(22)
def test_a_peer_killed_while_it_saves_leaves_whole_states_and_comes_back_with_one(new_run: Callable[..., Run]) -> None:
    run = new_run(options={"checkpoint": {"every": 1}})
    wide = ("--hidden", "4096")
    run.peer("anna", trainer=wide)
    run.until(lambda: len(saved_by(run, "anna")) > 3, "anna saves")
    run.peer("bert", trainer=wide)
    run.until(lambda: len(saved_by(run, "bert")) > 2, "bert saves")
    run.until(lambda: list(shelf(run, "bert").glob(".writing-*")), "bert is in the middle of it")
    run.kill("bert")
    run.exit_code("bert")
    entry = newest(shelf(run, "bert"))
    assert entry is not None
    for one in entries(shelf(run, "bert")):
        if isinstance(one, Entry):
            scan(one.path, one.saved)
    verified = run.wantrain("checkpoint", "verify", shelf(run, "bert"), "--json")
    assert verified.returncode == 0, verified
    run.peer("bert", trainer=wide)
    loaded = run.until(lambda: run.events("bert", "loaded"), "bert goes on from its disk")
    assert loaded[-1]["number"] == entry.saved.number
    run.until_commits(3, "anna", "bert")
    run.assert_parity("anna", "bert")
    run.stop("anna", "bert")


@pytest.mark.scenario(11)
def test_a_returning_peer_replays_and_passes_over_what_is_foreign_or_damaged(new_run: Callable[..., Run]) -> None:
    run = new_run(options={"checkpoint": {"every": 10**6}})
    run.peer("anna")
    run.peer("bert")
    run.until_commits(5, "anna", "bert")
    run.signal("bert", signal.SIGTERM)
    assert run.exit_code("bert") == 0
    left_at = on_disk(run, "bert")["bert"]  # a peer that leaves saves its state
    run.until_commits(5, "anna", after=left_at)
    snapshots = len(run.events("bert", "snapshot"))
    run.peer("bert")
    run.until_commits(3, "anna", "bert", after=left_at)
    assert last(run, "bert", "loaded")["number"] == left_at
    assert len(run.events("bert", "snapshot")) == snapshots  # it replayed
    run.assert_parity("anna", "bert")

    run.signal("bert", signal.SIGTERM)
    assert run.exit_code("bert") == 0
    state = shelf(run, "bert") / f"{on_disk(run, 'bert')['bert']:09}" / STATE_FILE
    damaged = bytearray(state.read_bytes())
    damaged[-3] ^= 4
    state.write_bytes(damaged)
    (shelf(run, "bert") / f"{left_at:09}" / "manifest.json").write_text("{}")
    assert run.wantrain("checkpoint", "verify", shelf(run, "bert")).returncode == 8
    run.peer("bert")
    run.until(lambda: len(run.events("bert", "snapshot")) > snapshots, "bert starts afresh")
    assert any("BLAKE3" in event["reason"] for event in run.events("bert", "saved-state-unusable"))
    run.until_commits(3, "anna", "bert")
    run.assert_parity("anna", "bert")
    run.stop("anna", "bert")


def test_a_state_is_saved_on_demand_exported_and_another_run_begins_with_it(
    new_run: Callable[..., Run], tmp_path: Path
) -> None:
    run = new_run(options={"checkpoint": {"every": 0}})
    run.peer("anna", "--checkpoints", tmp_path / "kept")
    run.until_commits(3, "anna")
    done = run.wantrain("checkpoint", "save", run.run_file, "--json")
    assert done.returncode == 0, done
    number = json.loads(done.stdout)["number"]
    assert number >= 3
    run.stop("anna")
    out = tmp_path / "model.safetensors"
    exported = run.wantrain("checkpoint", "export", tmp_path / "kept", out)
    assert exported.returncode == 0, exported
    saved = tmp_path / "kept" / f"{number:09}"
    tensors = load_file(out)
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == {
        tensor.name: tensor.shape for tensor in read(saved).model
    }

    folder = tmp_path / "other"
    folder.mkdir()
    with Run(folder, method="local-sgd", options={"checkpoint": {"every": 0}}) as other:
        other.coordinator()
        other.peer("dora", "--initial", tmp_path / "kept", trainer=("--hidden", "16"))
        assert other.exit_code("dora") == 3
        assert "0.weight: the saved state has [32, 16], the model [16, 16]" in other.error("dora")["error"]
        other.peer("anna", "--initial", tmp_path / "kept")
        other.until(lambda: [e for e in other.events("coordinator", "joined") if e["name"] == "anna"], "anna is there")
        other.peer("carl")
        other.until_commits(3, "anna", "carl")
        genesis = other.events("coordinator", "genesis")
        assert [event["name"] for event in genesis] == ["anna"]
        other.assert_parity("anna", "carl")
        other.peer("emil", "--resume", tmp_path / "kept")
        assert other.exit_code("emil") == 3
        assert "is of run" in other.error("emil")["error"]
        other.peer("fred", "--initial", tmp_path / "kept")
        assert other.exit_code("fred") == 3
        assert "has begun already" in other.error("fred")["error"]
        other.stop("anna", "carl")
