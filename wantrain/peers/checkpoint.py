"""Saved states on disk: written whole or not at all, checked to the last bit when they are read, the newest kept.

A saved state is a directory, `<root>/<log number>/`, with state.safetensors and manifest.json (see `saved_state.py`).
It is written beside its place under a name that begins with a dot, made durable, and then renamed: what has another
name than nine digits, or no readable manifest, was never finished and is not loaded.
"""

import contextlib
import fcntl
import io
import json
import math
import os
import re
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from blake3 import blake3
from safetensors import SafetensorError, safe_open
from torch import Tensor

from wantrain import __version__
from wantrain.errors import AddressInUseError, CheckpointError
from wantrain.optimizers.fragment import mask_of
from wantrain.optimizers.merge import merge
from wantrain.optimizers.stream import Stream
from wantrain.peers.effects import BeginSave
from wantrain.peers.layout import stream_tensors
from wantrain.peers.messages import Describe, Manifest
from wantrain.peers.saved_state import (
    MANIFEST_FILE,
    MAX_MANIFEST_BYTES,
    PHI,
    STATE_FILE,
    SavedFile,
    SavedState,
    SavedStream,
    damaged,
    state_bytes,
    state_header,
    vector_elements,
)
from wantrain.peers.saved_values import SavedValues, pieces
from wantrain.transport.collective import Payload
from wantrain.transport.digest import state_digest
from wantrain.transport.memory import bytes_of
from wantrain.transport.partition import chunk_bounds

_UNFINISHED = ".writing-"
_REPLACED = ".replaced-"
_PLACING = threading.Lock()
"""Held by the thread that puts a saved state where its number says."""
_NAME = re.compile(r"\d{9,}")

Vectors = Mapping[str, Mapping[str, Tensor]]
"""Per stream: fp32[elements] of each slot, `phi` first."""


def saved_streams(streams: Sequence[Stream], model: Manifest) -> tuple[SavedStream, ...]:
    """What of the streams of a run goes into a saved state."""
    return tuple(
        SavedStream(
            name=stream.name,
            state=stream.state,
            slots=(PHI, *merge(stream.merge).slots),
            tensors=() if mask_of(stream.fragment) else tuple(tensor.name for tensor in stream_tensors(stream, model)),
            mask=mask_of(stream.fragment),
        )
        for stream in streams
        if stream.held
    )


# ---- reading


@dataclass(frozen=True, slots=True)
class Entry:
    """A saved state, whole as far as manifest and sizes tell."""

    path: Path
    saved: SavedState


@dataclass(frozen=True, slots=True)
class Unusable:
    """A directory among the saved states that holds none, and why."""

    path: Path
    flaw: str


def entries(path: Path) -> list[Entry | Unusable]:
    """The saved states in a directory, oldest first, unfinished ones after them; or the one that it is itself.

    Raises:
        CheckpointError: there is no such directory, or it cannot be read.
    """
    try:
        if not path.is_dir():
            raise CheckpointError(f"{path} is no directory", hint="give the directory of saved states, or one of them")
        if (path / MANIFEST_FILE).exists() or _NAME.fullmatch(path.name):
            return [_entry(path)]
        found = [_entry(child) for child in path.iterdir() if child.is_dir() and _is_ours(child.name)]
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}", hint="see that you may read it") from None
    return sorted(found, key=lambda entry: (entry.path.name.startswith("."), len(entry.path.name), entry.path.name))


def newest(path: Path) -> Entry | None:
    """The newest whole saved state in a directory, or the one that it is itself; None if there is none.

    Raises:
        CheckpointError: there is no such directory, or it cannot be read.
    """
    return max(_whole(path), key=lambda entry: entry.saved.number, default=None)


def _whole(path: Path) -> list[Entry]:
    return [entry for entry in entries(path) if isinstance(entry, Entry)]


def _is_ours(name: str) -> bool:
    return _NAME.fullmatch(name) is not None or name.startswith((_UNFINISHED, _REPLACED))


def _entry(path: Path) -> Entry | Unusable:
    if path.name.startswith(_UNFINISHED):
        return Unusable(path, "it was never finished")
    if path.name.startswith(_REPLACED) and _place_of(path).exists():
        return Unusable(path, "it was replaced")
    try:
        return Entry(path, read(path))
    except CheckpointError as error:
        return Unusable(path, error.message)


def read(path: Path) -> SavedState:
    """The manifest of a saved state, checked against the size and the header of its tensor file.

    Raises:
        CheckpointError: it is not whole.
    """
    manifest, state = path / MANIFEST_FILE, path / STATE_FILE
    try:
        if manifest.stat().st_size > MAX_MANIFEST_BYTES:
            raise damaged(manifest, f"it has {manifest.stat().st_size:,} bytes, allowed are {MAX_MANIFEST_BYTES:,}")
        saved = SavedState.decoded(manifest.read_bytes(), str(manifest))
        wanted, there = saved.files[STATE_FILE].size_bytes, state.stat().st_size
        if there != wanted:
            raise damaged(state, f"it has {there:,} bytes where {wanted:,} belong")
        front = state_header(saved.streams, saved.model)
        with state.open("rb") as file:
            if file.read(len(front)) != front:
                raise damaged(state, "its header is not that of its manifest")
    except OSError as error:
        raise damaged(path, f"{error.filename or path}: {error.strerror}") from None
    return saved


def scan(path: Path, saved: SavedState, into: Vectors | None = None) -> tuple[bytes, ...]:
    """Read all of a saved state once and check it: hash of the file, finite values, digest of the state.

    Args:
        path: its directory.
        saved: its manifest.
        into: where to put the values, shaped like its streams; what is in there is undefined if it fails.

    Returns:
        Digests of the chunks of the state.

    Raises:
        CheckpointError: it is damaged.
    """
    state = path / STATE_FILE
    chunks, front = list[bytes](), state_header(saved.streams, saved.model)
    of_file = blake3(front)
    try:
        with state.open("rb") as file:
            file.seek(len(front))
            for stream in saved.streams:
                bounds = chunk_bounds(vector_elements(stream, saved.model))
                digests = [blake3() for _ in bounds]
                for slot in stream.slots:
                    target = None if into is None else into[stream.name][slot]
                    for digest, (start, stop) in zip(digests, bounds, strict=True):
                        values = torch.empty(stop - start) if target is None else target[start:stop]
                        data = _read_into(file, values, state)
                        digest.update(data)
                        of_file.update(data)
                        if not math.isfinite(values.sum().item()) and not torch.isfinite(values).all():
                            raise damaged(state, f"{slot} of stream {stream.name} has NaN or Inf in it")
                chunks += [digest.digest() for digest in digests]
    except OSError as error:
        raise damaged(state, str(error.strerror)) from None
    if of_file.digest() != saved.files[STATE_FILE].blake3:
        raise damaged(state, "its BLAKE3 is not that of its manifest: bits have changed since it was written")
    if state_digest(chunks) != saved.state_digest:
        raise damaged(state, "its values are not those of the state that its manifest names")
    return tuple(chunks)


def _read_into(file: io.BufferedReader, values: Tensor, source: Path) -> memoryview:
    data = bytes_of(values)
    if file.readinto(data) != len(data):
        raise damaged(source, "it ends too early")
    return data


def read_initial(path: Path, saved: SavedState, streams: Sequence[SavedStream], into: Vectors, model: Manifest) -> bool:
    """Take a saved state as the beginning of another run, tensor by tensor: whatever its fragments were, by name.

    Args:
        path: its directory, of which everything is checked first.
        saved: its manifest.
        streams: those of the new run.
        into: where the values go.
        model: of the new run; `saved_state.initial_difference` has found that it fits.

    Returns:
        Whether all of it was there: outer state comes along from streams with the same slots; what the inner optimizer
        keeps, from streams of it, or is 0. Other outer state stays as it is.

    Raises:
        CheckpointError: it is damaged.
    """
    scan(path, saved)
    complete = True
    try:
        with safe_open(path / STATE_FILE, framework="pt") as file:
            there = SavedValues(file, saved)
            for stream in streams:
                for slot in stream.slots:
                    for tensor, where, first, last in pieces(stream, model):
                        values = there.read(tensor, stream.state, slot, stream.slots)
                        target = into[stream.name][slot][first:last]
                        if values is not None:
                            target.copy_(values if where is None else values[where])
                        elif slot == PHI:
                            target.zero_()
                        complete = complete and values is not None
    except (SafetensorError, OSError) as error:
        raise damaged(path / STATE_FILE, str(error)) from None
    return complete


# ---- writing


class Shelf:
    """Where a peer keeps the states that it saves of one run; of one process at a time.

    Args:
        root: the directory, made if it does not exist.
        run: id of the run.
        spec_digest: of its spec.
        streams: its streams.
        keep: how many saved states of the run stay; older ones are removed when a new one is durable.

    Raises:
        AddressInUseError: another process uses the directory.
        CheckpointError: it cannot be made.
    """

    def __init__(self, root: Path, run: bytes, spec_digest: bytes, streams: Sequence[Stream], keep: int) -> None:
        self.root = root
        self._run = run
        self._spec_digest = spec_digest
        self.streams = tuple(streams)
        self._keep = keep
        try:
            root.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock = (root / "lock").open("w")
        except OSError as error:
            raise CheckpointError(
                f"{root} cannot hold saved states: {error.strerror}", hint="name another one by --checkpoints"
            ) from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.close()
            raise AddressInUseError(
                f"another process keeps its saved states in {root}", hint="give each peer one of its own"
            ) from None
        _tidy(root)

    def close(self) -> None:
        """Let others use the directory."""
        self._lock.close()

    def usable(self, note: Callable[[str], None]) -> list[Entry]:
        """Saved states of this run, newest first; `note` hears of those that are not, with the reason."""
        found = []
        for entry in entries(self.root):
            if isinstance(entry, Unusable):
                note(f"{entry.path}: {entry.flaw}")
            elif entry.saved.run != self._run:
                note(f"{entry.path} is of run {entry.saved.run.hex()}, this one is {self._run.hex()}")
            else:
                found.append(entry)
        return sorted(found, key=lambda entry: -entry.saved.number)

    def begin(self, mark: BeginSave, model: Manifest, described: Describe | None = None) -> "Writing":
        """Begin to write the state at a place in the history.

        Raises:
            CheckpointError: it cannot be written; there is not enough room, for example.
        """
        streams = saved_streams(self.streams, model)
        saved = SavedState(
            format=2,
            version=__version__,
            run=self._run,
            spec_digest=self._spec_digest,
            number=mark.number,
            chain=mark.chain,
            genesis=mark.genesis,
            indices=dict(mark.indices),
            streams=streams,
            model=model,
            state_digest=bytes(32),
            files={STATE_FILE: SavedFile(size_bytes=state_bytes(streams, model), blake3=bytes(32))},
            saved_unix=time.time(),
            extra=json.loads(mark.extra or "{}"),
            described=described,
        )
        return Writing(self.root, saved, self._keep)


class Writing:
    """A saved state that is being written: `write` everything in order, `finish`, then `poll` until it is durable.

    Nothing of it is a saved state before that; `abandon` removes what there is.

    Args:
        root: the directory of all.
        saved: the manifest, all but hashes.
        keep: how many are to stay.

    Raises:
        CheckpointError: it cannot be written.
    """

    def __init__(self, root: Path, saved: SavedState, keep: int) -> None:
        self._root = root
        self._saved = saved
        self._keep = keep
        # One that was given up may still be on its way to the disk, of the same number.
        self._folder = root / f"{_UNFINISHED}{saved.number:09}-{secrets.token_hex(4)}"
        self._given_up = False
        self._hash = blake3()
        self._outcome: CheckpointError | bool = False
        self._thread: threading.Thread | None = None
        with self._explained():
            self._folder.mkdir(mode=0o700)
            self._file = (self._folder / STATE_FILE).open("xb", buffering=0)
        try:
            with self._explained():
                os.posix_fallocate(self._file.fileno(), 0, saved.files[STATE_FILE].size_bytes)
            self.write(state_header(saved.streams, saved.model))
        except BaseException:
            self._remove()
            raise

    def write(self, data: Payload) -> None:
        """Add bytes to the tensor file.

        Raises:
            CheckpointError: they cannot be written.
        """
        self._hash.update(data)
        rest = memoryview(data)
        with self._explained():
            while rest:
                rest = rest[self._file.write(rest) :]

    def finish(self, state_digest: bytes) -> None:
        """All is written: make it durable, in a thread of its own, as that may take as long as the disk likes."""
        saved = self._saved.model_copy(
            update={
                "state_digest": state_digest,
                "files": {STATE_FILE: SavedFile(size_bytes=self._file.tell(), blake3=self._hash.digest())},
            }
        )
        self._thread = threading.Thread(target=self._make_durable, args=(saved,), name="checkpoint", daemon=True)
        self._thread.start()

    def poll(self) -> bool:
        """Whether it is durable now.

        Raises:
            CheckpointError: it will never be.
        """
        if isinstance(self._outcome, CheckpointError):
            raise self._outcome
        return self._outcome

    def wait(self) -> None:
        """Wait for the thread of `finish`."""
        if self._thread is not None:
            self._thread.join()

    def abandon(self) -> None:
        """Give it up and remove it; after `finish` its thread does that, unless it is in its place already."""
        self._given_up = True  # without the lock, which may be held while gigabytes are removed
        if self._thread is None:
            self._remove()

    def _remove(self) -> None:
        self._file.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _make_durable(self, saved: SavedState) -> None:
        try:
            with self._explained():
                os.fsync(self._file.fileno())
                self._file.close()
                with (self._folder / MANIFEST_FILE).open("xb") as file:
                    file.write(saved.encoded())
                    file.flush()
                    os.fsync(file.fileno())
                _sync_directory(self._folder)
                with _PLACING:
                    if self._given_up:
                        self._remove()
                        return
                    self._put(saved.number)
                    _sync_directory(self._root)
                    _prune(self._root, saved, self._keep)
        except CheckpointError as error:
            self._remove()
            self._outcome = error
        else:
            self._outcome = True

    def _put(self, number: int) -> None:
        """Give it its place, or leave there what was there before."""
        place = self._root / f"{number:09}"
        try:
            if place.exists():
                replaced = self._root / f"{_REPLACED}{number:09}"
                shutil.rmtree(replaced, ignore_errors=True)
                place.rename(replaced)
            self._folder.rename(place)
        finally:
            _put_back(self._root)

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            size_mib = self._saved.files[STATE_FILE].size_bytes / 2**20
            raise CheckpointError(
                f"the state cannot be saved in {self._root}: {error.strerror} ({size_mib:,.1f} MiB are needed)",
                hint="make room there, or name another directory by --checkpoints",
            ) from None


def _tidy(root: Path) -> None:
    """Set right what a process has left that was killed: nobody else writes here."""
    for leftover in root.glob(f"{_UNFINISHED}*"):
        shutil.rmtree(leftover, ignore_errors=True)
    _put_back(root)


def _put_back(root: Path) -> None:
    """Give what was to be replaced its place again where the one that was to take it never did."""
    for replaced in root.glob(f"{_REPLACED}*"):
        if not _place_of(replaced).exists():
            with contextlib.suppress(OSError):
                replaced.rename(_place_of(replaced))


def _place_of(replaced: Path) -> Path:
    return replaced.with_name(replaced.name.removeprefix(_REPLACED))


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _prune(root: Path, saved: SavedState, keep: int) -> None:
    """Remove what the newest `keep` of this run make superfluous.

    Those with larger numbers are of a history that the run has given up, as it has come to `saved` since.
    """
    numbers = [(entry.saved.number, entry.path) for entry in _whole(root) if entry.saved.run == saved.run]
    ours = [path for number, path in sorted(numbers, reverse=True) if number <= saved.number]
    given_up = [path for number, path in numbers if number > saved.number]
    # First, as without those that took their places they would count as whole again.
    replaced = [path for path in root.glob(f"{_REPLACED}*") if _place_of(path).exists()]
    for path in (*replaced, *ours[keep:], *given_up):
        shutil.rmtree(path, ignore_errors=True)


class SavedStates:
    """What a peer's shell does with saved states; its `Disk` (see `saver.py`).

    Args:
        shelf: where they are written.
        found: those that it may begin with.
        initial: one of another run that this run is to begin with.
        gave: hears the digest of the state that was made of it.
        note: hears what people should know.
    """

    def __init__(
        self,
        shelf: Shelf,
        found: Sequence[Entry],
        initial: Entry | None,
        gave: Callable[[bytes], None],
        note: Callable[[str, str], None],
    ) -> None:
        self._shelf = shelf
        self._found = {entry.saved.number: entry for entry in found}
        self._initial = initial
        self._gave = gave
        self._note = note

    def close(self) -> None:
        """Let others use the directory."""
        self._shelf.close()

    def begin(self, mark: BeginSave, model: Manifest, described: Describe | None) -> Writing:
        return self._shelf.begin(mark, model, described)

    def load(self, number: int, tensors: Any) -> tuple[bytes, ...]:
        """See `Disk`; `tensors` is an `Engine`."""
        entry = self._found[number]
        vectors: Vectors = tensors.vectors()
        if entry.saved.streams != saved_streams(self._shelf.streams, entry.saved.model):
            raise damaged(entry.path, "it was made by streams that are not the run's")
        return scan(entry.path, entry.saved, vectors)

    def load_initial(self, tensors: Any, model: Manifest) -> bytes:
        """See `Disk`; `tensors` is an `Engine`."""
        entry = self._initial
        assert entry is not None
        vectors: Vectors = tensors.vectors()
        tensors.begin_outer_state()
        streams = saved_streams(self._shelf.streams, model)
        if not read_initial(entry.path, entry.saved, streams, vectors, model):
            reason = f"{entry.path} has no outer state that fits: that of this run begins anew"
            self._note("fresh-outer-state", reason)
        digest: bytes = tensors.state_digest()
        self._gave(digest)
        return digest
