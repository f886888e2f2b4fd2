"""Saved states on disk: what is written comes back to the bit; nothing torn, changed or foreign is loaded."""

import os
import random
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from wantrain.errors import AddressInUseError, CheckpointError, WantrainError
from wantrain.optimizers.stream import Stream
from wantrain.peers.checkpoint import (
    Entry,
    SavedStates,
    Shelf,
    Unusable,
    Writing,
    entries,
    newest,
    read,
    saved_streams,
    scan,
)
from wantrain.peers.effects import BeginSave
from wantrain.peers.engine import Engine
from wantrain.peers.export import export
from wantrain.peers.layout import stream_tensors
from wantrain.peers.messages import TensorSpec
from wantrain.peers.saved_state import MANIFEST_FILE, STATE_FILE, initial_difference
from wantrain.transport.digest import state_digest

torch.set_num_threads(1)
RUN = b"run-id-8"
MODEL = (
    TensorSpec("layer.weight", (300, 200), "float32"),
    TensorSpec("layer.bias", (200,), "bfloat16"),
    TensorSpec("empty", (0, 3), "float32"),
    TensorSpec("scale", (), "float32"),
)
"""Several chunks."""
NESTEROV = Stream("param", merge="nesterov", merge_options=(("lr", 0.7), ("momentum", 0.9)), codec="fp32")
MEAN = Stream("weights", merge="mean", codec="fp32")


def engine(*streams: Stream, seed: int = 1, model: tuple[TensorSpec, ...] = MODEL) -> Engine:
    made = Engine(model, streams or (NESTEROV,))
    torch.manual_seed(seed)
    for slots in made.vectors().values():
        for tensor in slots.values():
            tensor.copy_(torch.randn(tensor.shape))
    return made


def mark(number: int, salt: int = 0) -> BeginSave:
    chain = bytes([number % 256, salt]) * 16
    return BeginSave(
        number, chain, b"g" * 32, {"param": number, "weights": number, "grad": 3}, '{"leases":{"data":[1,2]}}'
    )


def shelf(root: Path, *streams: Stream, run: bytes = RUN, keep: int = 2) -> Shelf:
    return Shelf(root, run, b"s" * 32, streams or (NESTEROV,), keep)


def save(where: Shelf, state: Engine, number: int, salt: int = 0) -> Path:
    writing = where.begin(mark(number, salt), MODEL)
    *_, chunks = state.save_steps(writing.write)
    assert state_digest(chunks or ()) == state.state_digest()
    writing.finish(state_digest(chunks or ()))
    writing.wait()
    assert writing.poll()
    return where.root / f"{number:09}"


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    where = shelf(tmp_path)
    path = save(where, engine(), 7)
    where.close()
    return path


def test_what_is_saved_comes_back_to_the_bit(saved: Path) -> None:
    manifest = read(saved)
    assert (manifest.number, manifest.run, manifest.chain) == (7, RUN, mark(7).chain)
    assert (manifest.model, manifest.indices, manifest.extra) == (MODEL, mark(7).indices, {"leases": {"data": [1, 2]}})
    other, same = engine(seed=2), engine()
    scan(saved, manifest, other.vectors())
    assert other.state_digest() == same.state_digest() == manifest.state_digest


def test_the_file_is_plain_safetensors_with_the_models_names(saved: Path) -> None:
    tensors = load_file(saved / STATE_FILE)
    assert set(tensors) == {f"param.{slot}.{tensor.name}" for slot in ("phi", "momentum") for tensor in MODEL}
    state = engine()
    assert all(tensors[f"param.phi.{tensor.name}"].shape == tensor.shape for tensor in MODEL)
    whole = torch.cat([tensors[f"param.phi.{tensor.name}"].reshape(-1) for tensor in MODEL])
    assert torch.equal(whole, state.phi("param"))


def test_a_peer_takes_over_a_saved_state_of_its_streams_only(saved: Path, tmp_path: Path) -> None:
    where = shelf(tmp_path)
    (entry,) = where.usable(pytest.fail)
    states, target = SavedStates(where, [entry], None, pytest.fail, lambda *_: None), engine(seed=3)
    assert state_digest(states.load(7, target)) == engine().state_digest() == target.state_digest()
    where.close()
    other = shelf(tmp_path, MEAN)
    with pytest.raises(CheckpointError, match="streams that are not the run's"):
        SavedStates(other, [entry], None, pytest.fail, lambda *_: None).load(7, engine(MEAN))
    other.close()


# ---- torn, changed, foreign


@pytest.mark.parametrize("name", [STATE_FILE, MANIFEST_FILE])
def test_a_file_that_is_cut_off_anywhere_is_recognised(saved: Path, name: str) -> None:
    path = saved / name
    whole = path.read_bytes()
    for length in (0, 1, 7, 8, 9, 100, len(whole) // 2, len(whole) - 4096, len(whole) - 1):
        path.write_bytes(whole[: max(length, 0)])
        (entry,) = entries(saved)
        assert isinstance(entry, Unusable)
        assert name in entry.flaw
    path.unlink()
    assert newest(saved.parent) is None


@pytest.mark.parametrize("name", [STATE_FILE, MANIFEST_FILE])
def test_a_flipped_bit_anywhere_is_recognised(saved: Path, name: str) -> None:
    path = saved / name
    whole = path.read_bytes()
    rng = random.Random(1)
    places = [0, 7, 8, 9, len(whole) - 1, *(rng.randrange(len(whole)) for _ in range(40))]
    for place in places:
        changed = bytearray(whole)
        changed[place] ^= 1 << rng.randrange(8)
        path.write_bytes(changed)
        with pytest.raises(CheckpointError, match="cannot be used"):
            scan(saved, read(saved))
    path.write_bytes(whole)
    scan(saved, read(saved))


def edited(path: Path, **changes: Any) -> None:
    """The manifest with other values, and a digest that fits: as if somebody had meant it."""
    manifest = read(path).model_copy(update=changes)
    (path / MANIFEST_FILE).write_bytes(manifest.encoded())


@pytest.mark.parametrize(
    "changes",
    [
        {"format": 1},
        {"number": -1},
        {"chain": b"short"},
        {"files": {}},
        {"streams": ()},
        {"indices": {}},
        {"model": MODEL[1:]},
        {"model": (*MODEL, MODEL[0])},
        {"state_digest": bytes(32)},
        {"saved_unix": float("inf")},
    ],
    ids=str,
)
def test_a_manifest_that_does_not_fit_together_is_refused(saved: Path, changes: dict[str, Any]) -> None:
    try:
        edited(saved, **changes)
    except ValueError:
        return  # it cannot even be written
    with pytest.raises(CheckpointError, match="cannot be used"):
        scan(saved, read(saved))


def test_a_value_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    where, state = shelf(tmp_path), engine()
    state.vectors()["param"]["momentum"][4321] = float("inf")
    path = save(where, state, 1)
    with pytest.raises(CheckpointError, match="momentum of stream param has NaN or Inf"):
        scan(path, read(path))
    where.close()


def test_states_of_another_run_and_damaged_ones_are_passed_over_with_a_reason(tmp_path: Path) -> None:
    mine, said = shelf(tmp_path), list[str]()
    save(mine, engine(), 3)
    mine.close()
    foreign = shelf(tmp_path, run=b"another!")
    save(foreign, engine(), 9)
    foreign.close()
    (tmp_path / f"{11:09}").mkdir()
    mine = shelf(tmp_path)
    (tmp_path / ".writing-000000012-0badcafe").mkdir()
    assert [entry.path.name for entry in mine.usable(said.append)] == [f"{3:09}"]
    assert len(said) == 3
    assert any("is of run" in reason for reason in said)
    assert any("never finished" in reason for reason in said)
    mine.close()


# ---- keeping


def test_the_newest_are_kept_and_those_of_a_history_that_was_given_up_go(tmp_path: Path) -> None:
    where, state = shelf(tmp_path, keep=2), engine()
    for number in (1, 2, 30):
        save(where, state, number)
    assert [entry.path.name for entry in entries(tmp_path)] == [f"{k:09}" for k in (2, 30)]
    save(where, state, 4)
    assert [entry.path.name for entry in entries(tmp_path)] == [f"{k:09}" for k in (2, 4)]
    save(where, state, 4, salt=1)
    assert read(tmp_path / f"{4:09}").chain == mark(4, 1).chain
    assert not list(tmp_path.glob(".*"))
    where.close()


def test_a_directory_is_of_one_process_at_a_time(tmp_path: Path) -> None:
    where = shelf(tmp_path)
    with pytest.raises(AddressInUseError, match="another process"):
        shelf(tmp_path)
    where.close()
    shelf(tmp_path).close()


def test_a_disk_without_room_is_an_error_that_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    where = shelf(tmp_path)
    before = save(where, engine(), 1)

    def full(*_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(CheckpointError, match=r"No space left on device \(0.5 MiB are needed\)"):
        where.begin(mark(2), MODEL)
    monkeypatch.undo()
    writing = where.begin(mark(2), MODEL)
    for _ in engine().save_steps(writing.write):
        pass
    monkeypatch.setattr(os, "fsync", full)
    writing.finish(bytes(32))
    writing.wait()
    with pytest.raises(CheckpointError, match="No space left"):
        writing.poll()
    assert [entry.path for entry in entries(tmp_path)] == [before]
    where.close()


def killed_after(steps: int, root: Path) -> bool:
    """Save a state in a process of its own, which kills itself before one of its calls; whether it came to that."""
    child = os.fork()
    if child == 0:
        left = steps

        def counted(call: Any) -> Any:
            def run(*arguments: Any, **options: Any) -> Any:
                nonlocal left
                left -= 1
                if left < 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                return call(*arguments, **options)

            return run

        try:
            os.fsync, Path.rename, Path.mkdir = map(counted, (os.fsync, Path.rename, Path.mkdir))
            Writing.write = counted(Writing.write)  # type: ignore[method-assign]
            save(shelf(root), engine(seed=5), 2)
            os._exit(0)
        finally:
            os._exit(1)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, -signal.SIGKILL)
    return code != 0


@pytest.mark.scenario(22)
def test_a_process_killed_at_any_step_of_the_write_leaves_the_former_state_whole(tmp_path: Path) -> None:
    where = shelf(tmp_path)
    first = save(where, engine(), 1)
    where.close()
    steps = 0
    while killed_after(steps, tmp_path):
        found = newest(tmp_path)
        assert found is not None
        scan(found.path, found.saved)
        scan(first, read(first))
        steps += 1
    assert steps > 10
    assert [entry.path.name for entry in entries(tmp_path)] == [f"{1:09}", f"{2:09}"]


@pytest.mark.scenario(22)
def test_a_process_killed_while_it_saves_a_state_again_leaves_one_that_the_next_process_finds(tmp_path: Path) -> None:
    where = shelf(tmp_path)
    save(where, engine(), 2)
    where.close()
    steps = 0
    while killed_after(steps, tmp_path):
        where = shelf(tmp_path)
        (found,) = where.usable(lambda _: None)
        scan(found.path, found.saved)
        where.close()
        steps += 1
    assert steps > 10
    assert [entry.path.name for entry in entries(tmp_path)] == [f"{2:09}"]


def test_a_state_that_was_given_up_may_still_be_on_its_way_to_the_disk_when_it_is_saved_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where, state, go_on, sync = shelf(tmp_path), engine(), threading.Event(), os.fsync
    monkeypatch.setattr(os, "fsync", lambda descriptor: go_on.wait(30.0) and sync(descriptor))
    writings = []
    for salt in (0, 1):
        writing = where.begin(mark(7, salt), MODEL)
        for _ in state.save_steps(writing.write):
            pass
        writing.finish(state.state_digest())
        writings.append(writing)
    go_on.set()
    for writing in writings:
        writing.wait()
        assert writing.poll()
    (found,) = where.usable(lambda _: None)
    scan(found.path, found.saved)
    where.close()


def test_a_state_that_is_given_up_on_its_way_to_the_disk_does_not_replace_what_is_saved_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where, state, go_on, sync = shelf(tmp_path), engine(), threading.Event(), os.fsync
    monkeypatch.setattr(os, "fsync", lambda descriptor: go_on.wait(30.0) and sync(descriptor))
    given_up = where.begin(mark(7), MODEL)
    for _ in state.save_steps(given_up.write):
        pass
    given_up.finish(state.state_digest())
    given_up.abandon()
    monkeypatch.setattr(os, "fsync", sync)
    save(where, state, 7, salt=1)
    go_on.set()
    given_up.wait()
    assert not given_up.poll()
    assert read(tmp_path / f"{7:09}").chain == mark(7, 1).chain
    assert not list(tmp_path.glob(".*"))
    where.close()


def test_a_state_that_cannot_be_replaced_stays_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    where, state, rename = shelf(tmp_path), engine(), Path.rename
    save(where, state, 3)

    def full(path: Path, target: Path) -> Path:
        if path.name.startswith(".writing-"):
            raise OSError(122, "Disk quota exceeded")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", full)
    writing = where.begin(mark(3, salt=1), MODEL)
    for _ in state.save_steps(writing.write):
        pass
    writing.finish(state.state_digest())
    writing.wait()
    with pytest.raises(CheckpointError, match="Disk quota exceeded"):
        writing.poll()
    monkeypatch.undo()
    save(where, state, 4)
    assert [entry.path.name for entry in entries(tmp_path)] == [f"{k:09}" for k in (3, 4)]
    scan(tmp_path / f"{3:09}", read(tmp_path / f"{3:09}"))
    where.close()


def test_a_state_whose_successor_never_took_its_place_counts_as_whole_to_who_only_reads(saved: Path) -> None:
    aside = saved.rename(saved.with_name(f".replaced-{saved.name}"))
    found = newest(saved.parent)
    assert found is not None
    assert found.path == aside
    scan(found.path, found.saved)
    saved.mkdir()
    assert newest(saved.parent) is None


# ---- the beginning of another run


def initial(path: Path, *streams: Stream, model: tuple[TensorSpec, ...] = MODEL) -> tuple[Engine, list[str]]:
    said, given = list[str](), list[bytes]()
    where = shelf(path.parent / "new", *streams, run=b"new run!")
    target = engine(*streams, seed=9, model=model)
    SavedStates(
        where, [], Entry(path, read(path)), given.append, lambda event, reason: said.append(event)
    ).load_initial(target, model)
    where.close()
    return target, said


def by_name(state: Engine, stream: str, slot: str, model: tuple[TensorSpec, ...]) -> dict[str, torch.Tensor]:
    sizes = [torch.Size(tensor.shape).numel() for tensor in model]
    parts = state.vectors()[stream][slot].split(sizes)
    return {tensor.name: part for tensor, part in zip(model, parts, strict=True)}


def test_a_new_run_begins_with_a_saved_state_and_its_outer_state_where_that_fits(saved: Path) -> None:
    target, said = initial(saved, NESTEROV)
    assert target.state_digest() == engine().state_digest()
    assert said == []


def test_another_method_and_another_order_take_phi_by_name_and_begin_with_fresh_outer_state(saved: Path) -> None:
    model = tuple(reversed([TensorSpec(tensor.name, tensor.shape, "float32") for tensor in MODEL]))
    target, said = initial(saved, MEAN, model=model)
    assert said == []  # a mean has no outer state to lose
    ours = by_name(target, "weights", "phi", model)
    theirs = by_name(engine(), "param", "phi", MODEL)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)

    where = shelf(saved.parent / "means", MEAN)
    plain = save(where, engine(MEAN), 5)
    where.close()
    target, said = initial(plain, NESTEROV)
    assert said == ["fresh-outer-state"]
    assert not target.vectors()["param"]["momentum"].any()
    assert torch.equal(target.phi("param"), engine(MEAN).phi("weights"))


def test_a_model_that_does_not_fit_is_named_tensor_by_tensor(saved: Path) -> None:
    manifest = read(saved)
    assert initial_difference(manifest, MODEL) == []
    other = (MODEL[0], TensorSpec("layer.bias", (201,), "float32"), TensorSpec("more", (2,), "float32"), *MODEL[2:])
    assert initial_difference(manifest, other) == [
        "not in the saved state: more [2]",
        "layer.bias: the saved state has [200], the model [201]",
    ]
    assert initial_difference(manifest, MODEL[:1], limit=2)[-1] == "and 1 more"


def test_errors_name_what_is_no_directory(tmp_path: Path) -> None:
    with pytest.raises(WantrainError, match="is no directory"):
        entries(tmp_path / "nowhere")
    with pytest.raises(CheckpointError):
        read(tmp_path)
    assert saved_streams((Stream("g", state="grad"),), MODEL) == ()
    assert newest(tmp_path) is None


def test_a_directory_that_may_not_be_read_is_named(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    is_dir = Path.is_dir

    def refused(path: Path) -> bool:
        if path == saved:
            raise PermissionError(13, "Permission denied", str(path))
        return is_dir(path)

    monkeypatch.setattr(Path, "is_dir", refused)
    with pytest.raises(CheckpointError, match="cannot be read: Permission denied"):
        entries(saved)


# ---- several streams

FRAGMENTS = (
    Stream("param-0", fragment="balanced:0/2", merge="nesterov", codec="fp32"),
    Stream("param-1", fragment="balanced:1/2", merge="nesterov", codec="fp32"),
    Stream("exp_avg", state="exp_avg", merge="mean", codec="fp32"),
)


def of_fragments(root: Path) -> Path:
    where = Shelf(root, RUN, b"s" * 32, FRAGMENTS, 2)
    at = {stream.name: 7 for stream in FRAGMENTS}
    writing = where.begin(BeginSave(7, b"c" * 32, b"g" * 32, at, ""), MODEL)
    *_, chunks = engine(*FRAGMENTS).save_steps(writing.write)
    writing.finish(state_digest(chunks or ()))
    writing.wait()
    where.close()
    return root / f"{7:09}"


def values(state: Engine, streams: tuple[Stream, ...], slot: str) -> dict[str, torch.Tensor]:
    """Per tensor of the model, from whichever of these streams it is in."""
    found = {}
    for stream in streams:
        parts = stream_tensors(stream, MODEL)
        sizes = [torch.Size(tensor.shape).numel() for tensor in parts]
        pieces = state.vectors()[stream.name][slot].split(sizes)
        found.update({tensor.name: piece for tensor, piece in zip(parts, pieces, strict=True)})
    return found


def test_a_state_of_fragments_and_moments_comes_back_to_the_bit(tmp_path: Path) -> None:
    path = of_fragments(tmp_path)
    other = engine(*FRAGMENTS, seed=2)
    scan(path, read(path), other.vectors())
    assert other.state_digest() == engine(*FRAGMENTS).state_digest()


def test_an_export_of_fragments_has_every_parameter_once_and_no_moments(tmp_path: Path) -> None:
    path, out = of_fragments(tmp_path), tmp_path / "model.safetensors"
    assert export(path, read(path), out, "float32") == len(MODEL)
    written, phi = load_file(out), values(engine(*FRAGMENTS), FRAGMENTS[:2], "phi")
    assert set(written) == {tensor.name for tensor in MODEL}
    assert all(torch.equal(written[name].reshape(-1), phi[name]) for name in phi)


def test_a_run_of_fragments_begins_another_with_all_it_has_in_common(tmp_path: Path) -> None:
    path = of_fragments(tmp_path)
    target, said = initial(path, NESTEROV)
    assert said == []
    source = engine(*FRAGMENTS)
    for slot in ("phi", "momentum"):
        ours, theirs = values(target, (NESTEROV,), slot), values(source, FRAGMENTS[:2], slot)
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    squares = Stream("exp_avg_sq", state="exp_avg_sq", merge="nonnegative-mean", codec="fp32")
    target, said = initial(path, NESTEROV, FRAGMENTS[2], squares)
    assert said == ["fresh-outer-state"]
    assert torch.equal(target.phi("exp_avg"), source.phi("exp_avg"))
    assert not target.phi("exp_avg_sq").any()


def test_an_export_without_all_parameters_is_refused(tmp_path: Path) -> None:
    path = of_fragments(tmp_path)
    saved = read(path)
    partial = saved.model_copy(update={"streams": saved.streams[1:]})
    with pytest.raises(CheckpointError, match="holds no value of"):
        export(path, partial, tmp_path / "out", None)
