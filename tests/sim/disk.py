"""A machine's disk in the simulation: what a peer saves of its state outlives its process, if the disk does."""

from typing import TYPE_CHECKING, Any

from wantrain.errors import CheckpointError
from wantrain.peers.effects import BeginSave
from wantrain.peers.messages import Describe, Manifest
from wantrain.peers.saved_state import STATE_FILE, SavedFile, SavedState

if TYPE_CHECKING:
    from tests.sim.world import SimPeer

KEEP = 2


class SimDisk:
    """See `wantrain.peers.saver.Disk`.

    Args:
        peer: whose it is.
    """

    def __init__(self, peer: "SimPeer") -> None:
        self.peer = peer
        self.broken = False
        """Whether nothing can be written."""
        self.kept: dict[int, tuple[SavedState, tuple[str, ...]]] = {}
        """By log number: manifest, and the chunks."""

    @property
    def found(self) -> tuple[SavedState, ...]:
        """What a new process finds, the newest first."""
        return tuple(self.kept[number][0] for number in sorted(self.kept, reverse=True))

    def begin(self, mark: BeginSave, model: Manifest, described: Describe | None) -> "SimWriting":
        if self.broken:
            raise CheckpointError("disk full")
        return SimWriting(self, mark, model)

    def load(self, number: int, tensors: Any) -> tuple[bytes, ...]:
        _, chunks = self.kept[number]
        for k, chunk in enumerate(chunks):
            tensors.store_state(k, chunk)
        return tuple(tensors.digest_steps())

    def load_initial(self, tensors: Any, model: Manifest) -> bytes:
        raise CheckpointError("not simulated")


class SimWriting:
    """See `wantrain.peers.saver.Writing`."""

    def __init__(self, disk: SimDisk, mark: BeginSave, model: Manifest) -> None:
        self._disk = disk
        self._mark = mark
        self._model = model
        self._chunks: list[str] = []
        self._done = self._given_up = False
        self._life = disk.peer.boot

    def write(self, data: Any) -> None:
        if self._disk.broken:
            raise CheckpointError("disk full")
        self._chunks.append(data)

    def finish(self, digest: bytes) -> None:
        peer = self._disk.peer
        peer.world.net.on(peer.name, peer.world.rng.choice([0.0, 0.1, 3.0]), lambda: self._durable(digest))

    def _durable(self, digest: bytes) -> None:
        disk, mark = self._disk, self._mark
        if disk.peer.boot != self._life or not disk.peer.alive or self._given_up:
            return
        saved = SavedState(
            format=2,
            version="0",
            run=b"sim-run!",
            spec_digest=bytes(32),
            number=mark.number,
            chain=mark.chain,
            genesis=mark.genesis,
            indices=mark.indices,
            streams=(),
            model=self._model,
            state_digest=digest,
            files={STATE_FILE: SavedFile(size_bytes=0, blake3=bytes(32))},
            saved_unix=0.0,
            extra={},
        )
        disk.peer.world.checkers.saved(disk.peer.name, mark.chain, tuple(self._chunks), wanted=not disk.peer.leaving)
        disk.kept[mark.number] = (saved, tuple(self._chunks))
        ours = sorted((number for number in disk.kept if number <= mark.number), reverse=True)
        disk.kept = {number: disk.kept[number] for number in ours[:KEEP]}
        self._done = True

    def poll(self) -> bool:
        return self._done

    def abandon(self) -> None:
        self._chunks = []
        self._given_up = True
