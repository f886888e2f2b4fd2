"""A daemon is killed at every instant of its work on the memory shared with the trainer: the next one goes on."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from wantrain.errors import WantrainError
from wantrain.optimizers.stream import Stream
from wantrain.peers.engine import Engine
from wantrain.peers.inheritance import GRANTED, MERGING, MOVING, STAGING
from wantrain.peers.messages import Contribute, Granted, TensorSpec
from wantrain.peers.shared_memory import Segment

torch.set_num_threads(1)

SIZE = 2 * 16384 + 100
MANIFEST = (TensorSpec("w", (SIZE,), "float32"),)
STREAM = Stream("param", codec="fp32")
GIVEN, THETA, PHI = (torch.randint(-1000, 1000, (SIZE,)).float() for _ in range(3))
OFFER = Contribute("param", 3, 30, 500, 2)


class Killed(BaseException):
    """The process ends right here."""


class Fuse:
    """Kills after so many writes to the memory; a copy is first done by half, as the processor may do it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.left = -1
        self.watched: list[Tensor] = []
        copy, subtract, note = Tensor.copy_, torch.sub, Segment.note_phase

        def copied(target: Tensor, source: Tensor) -> Tensor:
            if self.lights(target):
                copy(target[::2], source[::2])
                raise Killed
            return copy(target, source)

        def subtracted(one: Tensor, other: Tensor, out: Tensor) -> Tensor:
            if self.lights(out):
                subtract(one[::2], other[::2], out=out[::2])
                raise Killed
            return subtract(one, other, out=out)

        def noted(segment: Segment, *args: int) -> None:
            self.burn()
            note(segment, *args)  # type: ignore[arg-type]
            self.burn()

        monkeypatch.setattr(Tensor, "copy_", copied)
        monkeypatch.setattr(torch, "sub", subtracted)
        monkeypatch.setattr(Segment, "note_phase", noted)

    def lights(self, _: Tensor) -> bool:
        self.left -= 1
        return self.left == 0

    def burn(self) -> None:
        if self.lights(torch.empty(0)):
            raise Killed


@dataclass
class Daemon:
    """An engine on a segment; `regions` are what the trainer sees."""

    engine: Engine

    @property
    def segment(self) -> Segment:
        assert self.engine.segment is not None
        return self.engine.segment

    @classmethod
    def first(cls, path: Path) -> "Daemon":
        """With a trainer that has adopted GIVEN and trained to THETA."""
        daemon = cls(Engine(MANIFEST, [STREAM]))
        daemon.engine.open_segment(path)
        daemon.engine.phi("param").copy_(GIVEN)
        daemon.engine.grant("param", "start", Granted("param", "start", 0, 4, 40), 2)
        daemon.engine.note_place(4, b"c" * 32)
        daemon.segment.out("param").copy_(THETA)
        daemon.engine.phi("param").copy_(PHI)
        return daemon

    @classmethod
    def next(cls, path: Path) -> "Daemon":
        """The one after it, with the run's newest state."""
        daemon = cls(Engine(MANIFEST, [STREAM]))
        daemon.engine.resume_segment(path)
        daemon.engine.phi("param").copy_(PHI)
        return daemon

    def work(self, kind: str) -> None:
        """Stage what the trainer has offered and grant it."""
        assert self.engine.stage("param", OFFER)[1]
        self.engine.use_stage("param", 7)
        self.engine.grant("param", kind, Granted("param", kind, 3, 5, 50), 3)

    def told(self) -> tuple[Tensor, Tensor]:
        return self.segment.out("param").clone(), self.segment.given("param").clone()


@pytest.fixture
def fuse(monkeypatch: pytest.MonkeyPatch) -> Fuse:
    return Fuse(monkeypatch)


@pytest.mark.parametrize("kind", ["merge", "move"])
def test_killed_at_any_instant_the_trainer_is_given_the_same(tmp_path: Path, fuse: Fuse, kind: str) -> None:
    reference = THETA if kind == "merge" else GIVEN
    instants, phases = 0, set()
    while True:
        instants += 1
        path = tmp_path / f"segment-{instants}"
        daemon = Daemon.first(path)
        fuse.left = instants
        try:
            daemon.work(kind)
            break
        except Killed:
            fuse.left = -1
        following = Daemon.next(path)
        mark = following.segment.mark("param")
        phases.add(mark.phase)
        if mark.phase != GRANTED or mark.serial != OFFER.serial or mark.count != 3:
            following.work(kind)
        out, given = following.told()
        assert torch.equal(given, PHI), instants
        assert torch.equal(out, reference), instants
        mark = following.segment.mark("param")
        assert (mark.phase, mark.kind, mark.index, mark.count, mark.offered) == (GRANTED, kind, 5, 3, 500)
        assert mark.tokens == (500 if kind == "merge" else 0)
    assert {STAGING, MERGING if kind == "merge" else MOVING} <= phases
    assert instants > 20


def test_what_was_noted_down_is_read_by_the_next_daemon(tmp_path: Path) -> None:
    daemon = Daemon.first(tmp_path / "segment")
    daemon.engine.stage("param", OFFER)
    daemon.engine.use_stage("param", 7)
    engine = Engine(MANIFEST, [STREAM])
    held = engine.resume_segment(tmp_path / "segment")
    assert (held.number, held.chain) == (4, b"c" * 32)
    mark = held.marks["param"]
    assert (mark.phase, mark.serial, mark.used, mark.floor, mark.offered) == (STAGING, 3, 3, 7, 500)


def test_the_next_daemon_counts_grants_of_its_own(tmp_path: Path) -> None:
    daemon = Daemon.first(tmp_path / "segment")
    daemon.segment.bump()
    trainer = Segment.open(tmp_path / "segment")
    assert trainer.granted == 1
    Daemon.next(tmp_path / "segment")
    assert trainer.granted == 0


def test_places_are_noted_one_beside_the_other(tmp_path: Path) -> None:
    segment = Segment.create(tmp_path / "segment", {"param": 5})
    assert segment.held().number == -1
    for number in range(5):
        segment.note_reach(number + 1, bytes([number + 1]) * 32)
        segment.note_place(number, bytes([number]) * 32)
        held = Segment.open(tmp_path / "segment").held()
        assert (held.number, held.chain) == (number, bytes([number]) * 32)
        assert (held.reach, held.reach_chain) == (number + 1, bytes([number + 1]) * 32)


def test_memory_of_another_model_is_not_taken_over(tmp_path: Path) -> None:
    Segment.create(tmp_path / "segment", {"param": 5})
    engine = Engine(MANIFEST, [STREAM])
    with pytest.raises(WantrainError, match="another model"):
        engine.resume_segment(tmp_path / "segment")
    assert engine.segment is None
