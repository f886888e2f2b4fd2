"""The run's initial state as a peer has a part in it: its trainer's weights, or a saved state that it was given; pure.

A part of `participant.py`, which alone calls it.
"""

import json
from collections.abc import Sequence

from wantrain.errors import ConfigError
from wantrain.optimizers.stream import Stream
from wantrain.peers.contributions import Contributions
from wantrain.peers.effects import Effect, Exit, LoadInitial, Note, OpenModel, Tell
from wantrain.peers.layout import check_streams
from wantrain.peers.messages import COORDINATOR, MAX_LEASES, Genesis, Manifest, Welcome
from wantrain.peers.recovery import Recovery
from wantrain.peers.saved_state import SavedState, initial_difference
from wantrain.transport.digest import first_link


class Beginning:
    """What this peer gives the run to begin with.

    Args:
        run: id of the run.
        streams: its streams.
        initial: what it is to begin with, if that is not a trainer's weights.
        recovery, mine: parts of the same participant.
    """

    def __init__(
        self,
        run: bytes,
        streams: Sequence[Stream],
        initial: SavedState | None,
        recovery: Recovery,
        mine: Contributions,
    ) -> None:
        self._run = run
        self._streams = streams
        self._initial = initial
        self._recovery = recovery
        self._mine = mine
        self._opened: Manifest = ()
        self._wanted = False
        """Whether the coordinator has asked this peer for it."""
        self._own: tuple[bytes, bytes] | None = None
        """Digest and first link of the initial state that was made here."""

    def open(self, manifest: Manifest) -> list[Effect]:
        """Make room for the tensors of this model, once."""
        if self._opened == manifest:
            return []
        self._opened = manifest
        self._recovery.open(manifest)
        return [OpenModel(manifest)]

    def asked(self) -> list[Effect]:
        """The coordinator wants it from this peer."""
        self._wanted = True
        if self._own is not None and (self._mine.gives_genesis or self._initial is not None):
            return self.made(self._own[0], takes=self._mine.gives_genesis)
        return self.offer()

    def offer(self) -> list[Effect]:
        """Answer the trainer, if there is one and the coordinator has asked: its model is to be the run's."""
        mine = self._mine
        if not self._wanted or not mine.manifest:
            return []
        try:
            check_streams(self._streams, mine.manifest)
        except ConfigError as error:
            return mine.refuse("model", f"the model does not fit the run's method: {error.message}", error.hint)
        if self._initial is not None:
            return self._give(self._initial)
        return self.open(mine.manifest) + mine.answer(None)

    def _give(self, initial: SavedState) -> list[Effect]:
        """Let the run begin with a saved state, if this peer's model is that state's."""
        model = self._mine.manifest
        if difference := initial_difference(initial, model):
            reason = "the model differs from the saved state of --initial:\n    " + "\n    ".join(difference)
            return self._mine.refuse("model", reason, "train the model that the state was saved of")
        return [*self.open(model), LoadInitial()] if self._own is None else []

    def made(self, digest: bytes, *, takes: bool) -> list[Effect]:
        """The state is there: tell the coordinator its digest; b"" if it has NaN or Inf in it.

        `takes`: whether it may still become the run's, if it is of a trainer's weights.
        """
        mine = self._mine
        if not takes and (self._initial is None or not mine.manifest):
            return []
        if not digest:
            reason = "the model's initial weights have NaN or Inf in them"
            return mine.refuse("non-finite", reason, "check how the model is initialised, or what was loaded into it")
        self._own = (digest, first_link(self._run, digest))
        effects: list[Effect] = []
        leases = ""
        if self._initial is not None and "leases" in self._initial.extra:
            leases = json.dumps(self._initial.extra["leases"])
            if len(leases) > MAX_LEASES:
                reason = f"the leases of the data take {len(leases):,} letters, allowed are {MAX_LEASES:,}"
                effects, leases = [Note("begun-without-leases", {"reason": reason})], ""
        return [*effects, Tell(COORDINATOR, Genesis(mine.manifest, digest, leases))]

    def over(self, welcome: Welcome) -> Exit | None:
        """The run has begun: with what was made here, or with something else, for which `initial` came too late."""
        own, fits = self._own, self._own is not None and self._own[1] == welcome.genesis
        if own is not None and fits and not self._recovery.has_begun and welcome.head == 0:
            self._recovery.start_at(welcome.genesis)
        elif self._initial is not None and not fits:
            hint = "start a new run for it, and this peer first; or leave out --initial"
            return Exit(3, "the run has begun already, with other weights than --initial names", hint)
        self._initial = None
        return None

    def reset(self) -> None:
        """The run that this was made for is not the one that there is."""
        self._wanted, self._own = False, None
