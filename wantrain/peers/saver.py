"""Does what a participant wants done with saved states: one chunk at a time, between other things, to any disk."""

from collections.abc import Callable, Iterator
from typing import Protocol

from wantrain.errors import WantrainError
from wantrain.peers.effects import BeginSave, LoadSaved
from wantrain.peers.events import (
    Event,
    GenesisReady,
    InitialUnusable,
    SavedLoaded,
    SavedUnusable,
    SaveFailed,
    StateCaptured,
    StateSaved,
)
from wantrain.peers.messages import Describe, Manifest
from wantrain.transport.collective import Payload
from wantrain.transport.digest import state_digest


class Writing(Protocol):
    """A saved state that is being written; see `wantrain.peers.checkpoint.Writing`. All raise WantrainError."""

    def write(self, data: Payload) -> None: ...
    def finish(self, state_digest: bytes) -> None: ...
    def poll(self) -> bool: ...
    def abandon(self) -> None: ...


class Stateful(Protocol):
    """Whose state is saved; see `wantrain.peers.engine.Engine`."""

    def save_steps(self, write: Callable[[Payload], None]) -> Iterator[tuple[bytes, ...] | None]: ...


class Disk(Protocol):
    """Where states are saved; see `wantrain.peers.checkpoint.SavedStates`. All raise WantrainError."""

    def begin(self, mark: BeginSave, model: Manifest, described: Describe | None) -> Writing: ...
    def load(self, number: int, tensors: Stateful) -> tuple[bytes, ...]:
        """Fill the tensors with what was saved at that log number; digests of the state's chunks."""

    def load_initial(self, tensors: Stateful, model: Manifest) -> bytes:
        """Fill the tensors with the state that the run is to begin with; digest of the state."""


class Saver:
    """At most one state is being saved at a time.

    Args:
        disk: where to; None if this peer keeps nothing.
    """

    def __init__(self, disk: Disk | None) -> None:
        self.described: Describe | None = None
        """What the model is to other software; goes with all that is saved from then on."""
        self._disk = disk
        self._number = -1
        self._steps: Iterator[tuple[bytes, ...] | None] | None = None
        self._writing: Writing | None = None

    @property
    def capturing(self) -> bool:
        """Whether the state is being read; it must not change."""
        return self._steps is not None

    def begin(self, mark: BeginSave, tensors: Stateful, model: Manifest) -> list[Event]:
        """Begin to save the state at hand."""
        if self._disk is None:
            return [SaveFailed(mark.number, "this peer keeps no saved states")]
        self.drop()
        try:
            self._writing = self._disk.begin(mark, model, self.described)
        except WantrainError as error:
            return [SaveFailed(mark.number, error.message)]
        self._number, self._steps = mark.number, tensors.save_steps(self._writing.write)
        return []

    def step(self) -> list[Event]:
        """Write one chunk."""
        if self._steps is None or self._writing is None:
            return []
        try:
            chunks = next(self._steps)
            if chunks is None:
                return []
            self._steps = None
            self._writing.finish(state_digest(chunks))
        except WantrainError as error:
            return self._failed(error.message)
        return [StateCaptured(self._number, chunks)]

    def poll(self) -> list[Event]:
        """Whether what was written last is durable by now."""
        if self._writing is None or self._steps is not None:
            return []
        try:
            if not self._writing.poll():
                return []
        except WantrainError as error:
            self._writing = None
            return [SaveFailed(self._number, error.message)]
        self._writing = None
        return [StateSaved(self._number)]

    def state_changes(self) -> list[Event]:
        """The state is about to become another one: what is half read of it is of no use."""
        return self._failed("the state was replaced meanwhile") if self.capturing else []

    def drop(self) -> None:
        """Give up what is being saved, without a word, also if it is only not durable yet."""
        if self._writing is not None:
            self._failed("")

    def _failed(self, reason: str) -> list[Event]:
        if self._writing is not None:
            self._writing.abandon()
        self._writing = self._steps = None
        return [SaveFailed(self._number, reason)]

    # ---- reading

    def load(self, effect: LoadSaved, tensors: Stateful) -> list[Event]:
        """Take over a saved state."""
        assert self._disk is not None, "there is no disk to load from"
        try:
            return [SavedLoaded(effect.number, self._disk.load(effect.number, tensors))]
        except WantrainError as error:
            return [SavedUnusable(effect.number, error.message)]

    def load_initial(self, tensors: Stateful, model: Manifest) -> list[Event]:
        """Take over the state that the run is to begin with."""
        assert self._disk is not None, "there is no disk to load from"
        try:
            return [GenesisReady(self._disk.load_initial(tensors, model))]
        except WantrainError as error:
            return [InitialUnusable(error.message)]
