"""`wantrain checkpoint`, and what a peer makes of --checkpoints, --resume and --initial before it takes part."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file

from tests.unit.test_checkpoint import MODEL, NESTEROV, engine, save, shelf
from wantrain.cli.main import main
from wantrain.config import RunSpec, template
from wantrain.errors import CheckpointError, RefusedError
from wantrain.peers.messages import Welcome
from wantrain.peers.own_states import GIVEN, OwnStates, Wishes, own_states
from wantrain.peers.saved_state import STATE_FILE
from wantrain.transport.digest import first_link

SPEC = RunSpec.parse(template("new", "00" * 8, "ab" * 32))


def wantrain(*words: object) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    """Two whole states, one of them damaged later, and one that was never finished."""
    root = tmp_path / "kept"
    where = shelf(root)
    save(where, engine(), 3)
    save(where, engine(seed=2), 12)
    where.close()
    (root / ".writing-000000015").mkdir()
    return root


def test_ls_shows_what_is_there_and_what_is_not_whole(kept: Path) -> None:
    rows = json.loads(wantrain("checkpoint", "ls", kept, "--json").output)
    assert [(row["state"], row.get("number")) for row in rows] == [
        ("complete", 3),
        ("complete", 12),
        ("unfinished", None),
    ]
    text = wantrain("checkpoint", "ls", kept).output
    assert "unfinished" in text
    result = wantrain("checkpoint", "ls", kept / "nothing")
    assert (result.exit_code, "is no directory" in result.stderr) == (8, True)
    (kept / "empty").mkdir()
    assert "nothing is in" in wantrain("checkpoint", "ls", kept / "empty").output


@pytest.mark.scenario(22)
def test_verify_reads_every_bit_and_says_by_its_exit_code_what_it_found(kept: Path) -> None:
    result = wantrain("checkpoint", "verify", kept, "--json")
    assert result.exit_code == 0
    assert [row["state"] for row in json.loads(result.output)] == ["verified", "verified", "unfinished"]
    state = kept / f"{12:09}" / STATE_FILE
    data = bytearray(state.read_bytes())
    data[-1] ^= 1
    state.write_bytes(data)
    result = wantrain("checkpoint", "verify", kept, "--json")
    assert result.exit_code == 8
    assert [row["state"] for row in json.loads(result.output)] == ["verified", "damaged", "unfinished"]
    assert wantrain("checkpoint", "verify", kept / f"{3:09}").exit_code == 0
    assert wantrain("checkpoint", "export", kept, kept / "x").exit_code == 8


def test_export_writes_the_models_names_shapes_and_dtypes(kept: Path, tmp_path: Path) -> None:
    out = tmp_path / "model.safetensors"
    done = json.loads(wantrain("checkpoint", "export", kept, out, "--json").output)
    assert (done["number"], done["tensors"], done["bytes"]) == (12, len(MODEL), out.stat().st_size)
    tensors = load_file(out)
    phi = engine(seed=2).phi("param")
    for tensor in MODEL:
        found, size = tensors[tensor.name], torch.Size(tensor.shape).numel()
        assert (tuple(found.shape), str(found.dtype)) == (tensor.shape, f"torch.{tensor.dtype}")
        assert torch.equal(found.reshape(-1), phi[:size].to(found.dtype))
        phi = phi[size:]
    assert wantrain("checkpoint", "export", kept / f"{3:09}", out, "--dtype", "float16").exit_code == 0
    assert {tensor.dtype for tensor in load_file(out).values()} == {torch.float16}
    result = wantrain("checkpoint", "export", kept, tmp_path / "no" / "where")
    assert (result.exit_code, "cannot be written" in result.stderr) == (8, True)
    assert not list(tmp_path.glob(".model*"))


@pytest.mark.parametrize("out", [".", "..", "/"])
def test_export_refuses_a_directory_before_it_writes(
    kept: Path, out: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(kept)
    monkeypatch.setattr("wantrain.peers.export.write_tensors", pytest.fail)
    result = wantrain("checkpoint", "export", kept, out)
    assert (result.exit_code, "is a directory" in result.stderr) == (8, True)
    assert "model.safetensors for example" in result.stderr


def test_export_refuses_what_a_dtype_cannot_hold(tmp_path: Path) -> None:
    where, state = shelf(tmp_path / "huge"), engine()
    state.vectors()["param"]["phi"][7] = 1e30
    save(where, state, 1)
    where.close()
    result = wantrain("checkpoint", "export", tmp_path / "huge", tmp_path / "out", "--dtype", "float16")
    assert (result.exit_code, "layer.weight has values" in result.stderr) == (8, True)
    assert not (tmp_path / "out").exists()


# ---- what a peer's process begins with


def states(home: Path, wishes: Wishes, head: int, genesis: bytes = b"g" * 32) -> tuple[OwnStates, list[dict[str, Any]]]:
    notes: list[dict[str, Any]] = []
    home.mkdir(exist_ok=True)
    link = genesis if head >= 0 else b""
    welcome = Welcome("me", 1, "", head, link, link, {"param": 0}, MODEL if head >= 0 else ())
    made = own_states(home, SPEC, welcome, wishes, wishes.find_initial(), lambda event, what: notes.append(what))
    made.disk.close()
    return made, notes


def test_a_peer_finds_its_own_states_newest_first(tmp_path: Path) -> None:
    where = shelf(tmp_path / "checkpoints", run=SPEC.run)
    for number in (4, 9):
        save(where, engine(), number)
    where.close()
    made, notes = states(tmp_path, Wishes(), 20)
    assert [saved.number for saved in made.saved] == [9, 4]
    assert notes == []
    _, notes = states(tmp_path, Wishes(), -1)
    assert "use --initial" in notes[0]["reason"]


@pytest.mark.scenario(11)
def test_what_is_to_be_resumed_must_be_whole_and_of_this_run(kept: Path, tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match="is of run"):
        states(tmp_path / "a", Wishes(resume=kept), 20)
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="no whole saved state"):
        states(tmp_path / "a", Wishes(resume=tmp_path / "empty"), 20)
    where = shelf(tmp_path / "mine", NESTEROV, run=SPEC.run)
    save(where, engine(), 6)
    where.close()
    made, _ = states(tmp_path / "a", Wishes(resume=tmp_path / "mine"), 20)
    assert [saved.number for saved in made.saved] == [6]


def test_an_initial_state_is_for_a_run_that_has_not_begun_or_that_this_peer_began(kept: Path, tmp_path: Path) -> None:
    home, wishes = tmp_path / "home", Wishes(initial=kept)
    made, _ = states(home, wishes, -1)
    assert made.initial is not None
    assert made.initial.number == 12
    with pytest.raises(RefusedError, match="has begun already"):
        states(home, wishes, 5)
    target = engine(seed=7)
    digest = made.disk.load_initial(target, MODEL)
    assert (home / GIVEN).exists()
    made, _ = states(home, wishes, 5, first_link(SPEC.run, digest))
    assert made.initial is None  # a restart of the peer that began the run
