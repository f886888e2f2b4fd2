"""Saved states as a peer's process finds them when it starts: its own, one it is to resume, one the run begins with."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wantrain.config import RunSpec
from wantrain.errors import CheckpointError, RefusedError
from wantrain.peers.checkpoint import Entry, SavedStates, Shelf, Unusable, entries, newest, scan
from wantrain.peers.messages import Welcome
from wantrain.peers.saved_state import SavedState
from wantrain.transport.digest import first_link

FOLDER = "checkpoints"
"""In a peer's home."""
GIVEN = "initial"
"""File in a peer's home: which beginning of the run, by chain[0], this peer gave it by --initial."""


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the user said about saved states: `--checkpoints`, `--resume` and `--initial`; None where nothing."""

    checkpoints: Path | None = None
    resume: Path | None = None
    initial: Path | None = None

    def find_initial(self) -> Entry | None:
        """The state that the run is to begin with, all of it checked, before anybody is asked anything.

        Raises:
            CheckpointError: there is none, or it is damaged.
        """
        if self.initial is None:
            return None
        entry = _newest(self.initial, "--initial")
        scan(entry.path, entry.saved)
        return entry


@dataclass(frozen=True, slots=True)
class OwnStates:
    """What a peer begins with, and where it saves."""

    disk: SavedStates
    saved: tuple[SavedState, ...]
    initial: SavedState | None


def own_states(
    home: Path,
    spec: RunSpec,
    welcome: Welcome,
    wishes: Wishes,
    initial: Entry | None,
    note: Callable[[str, dict[str, Any]], None],
) -> OwnStates:
    """Look at what there is, now that the run is known.

    Args:
        home: the peer's directory.
        spec: of the run.
        welcome: where the run is.
        wishes: what the user said.
        initial: what `find_initial` found.
        note: hears of what cannot be used, and why.

    Raises:
        CheckpointError: there is nothing to resume where the user said, or nothing can be saved there.
        RefusedError: what is to be resumed is of another run, or the run has begun without the initial state.
        AddressInUseError: another process saves its states there.
    """
    given = home / GIVEN
    if initial is not None and welcome.head >= 0:
        if not given.exists() or given.read_text(encoding="utf-8") != welcome.genesis.hex():
            raise RefusedError(
                f"the run has begun already, with other weights than those of {initial.path}",
                hint="start a new run for it with this peer first, or leave out --initial",
            )
        initial = None  # a restart: the run has what this peer gave it

    shelf = Shelf(wishes.checkpoints or home / FOLDER, spec.run, spec.digest, spec.streams, spec.checkpoint.keep)
    try:
        found = shelf.usable(lambda reason: note("saved-state-unusable", {"reason": reason}))
        if wishes.resume is not None:
            entry = _newest(wishes.resume, "--resume")
            if entry.saved.run != spec.run:
                raise RefusedError(
                    f"{entry.path} is of run {entry.saved.run.hex()}, this one is {spec.run.hex()}",
                    hint="to begin a new run with it, use --initial instead of --resume",
                )
            found = [entry, *(one for one in found if one.saved.number != entry.saved.number)]
        if found and welcome.head < 0:
            hint = "to begin it with one of them, make a new run and use --initial"
            reason = f"the run has no state, and does not know those in {found[0].path.parent}: {hint}"
            note("saved-state-unusable", {"reason": reason})
    except BaseException:
        shelf.close()
        raise

    def gave(digest: bytes) -> None:
        given.write_text(first_link(spec.run, digest).hex(), encoding="utf-8")

    disk = SavedStates(shelf, found, initial, gave, lambda event, reason: note(event, {"reason": reason}))
    saved_states = tuple(entry.saved for entry in found)
    return OwnStates(disk, saved_states, None if initial is None else initial.saved)


def _newest(path: Path, option: str) -> Entry:
    entry = newest(path)
    if entry is None:
        flaws = "; ".join(f"{one.path.name}: {one.flaw}" for one in entries(path)[-3:] if isinstance(one, Unusable))
        raise CheckpointError(
            f"{option} is {path}, where no whole saved state is" + (f" ({flaws})" if flaws else ""),
            hint=f"see what there is: wantrain checkpoint ls {path}",
        )
    return entry
