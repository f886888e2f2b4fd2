"""`swarm.save_inner` and `load_inner`: a trainer's own state in a run, its counts, and no step that is none."""

from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.unit.scripted_link import Wire
from wantrain.errors import CheckpointError, ConfigError
from wantrain.optimizers.method import build
from wantrain.optimizers.stream import Stream
from wantrain.optimizers.stream import Wire as Codecs
from wantrain.peers.engine import Engine
from wantrain.peers.messages import Attached, Granted, pack
from wantrain.replica import Replica
from wantrain.session import Swarm
from wantrain.trainer_shell import DAEMON
from wantrain.transport.link import Received

torch.set_num_threads(1)

DILOCO = build("diloco", {"every": 100}, Codecs("fp32", "fp32"))
LOCAL_ADAM = build("local-adam", {"every": 100}, Codecs("fp32", "fp32"))


class Trainer:
    """One trainer process in a run; what it begins with is phi."""

    def __init__(self, folder: Path, streams: tuple[Stream, ...], phi: list[float] | None, run: str) -> None:
        torch.manual_seed(0)
        self.model = nn.Linear(4, 3)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.01)
        self.scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, 20)
        replica = Replica(self.model, (self.optimizer,))
        self.engine = Engine(replica.manifest, streams)
        segment = self.engine.open_segment(folder)
        wire = Wire()
        self.swarm = Swarm(wire, replica, wait_ceiling_s=60.0)  # type: ignore[arg-type]
        rows = tuple(asdict(stream) for stream in streams)
        begin = [Granted(stream.name, "start", 0, 0, 0) for stream in streams]
        for stream in streams:
            weights = stream.state == "param"
            given = segment.given(stream.name)
            given.copy_(torch.tensor(phi) if weights and phi else torch.linspace(-1, 1, given.numel()) * weights)
        attached = Attached("p" * 52, "p", str(segment.path), rows, False, run)
        wire.events = [Received(DAEMON, b"", pack(record)) for record in (attached, *begin)]
        self.swarm.attach()
        self.swarm.hook((self.optimizer,))

    def train(self, steps: range) -> None:
        for step in steps:
            rng = torch.Generator().manual_seed(step)
            self.optimizer.zero_grad()
            self.model(torch.randn(5, 4, generator=rng)).square().mean().backward()
            self.swarm.tokens(5)
            self.optimizer.step()
            self.scheduler.step()

    @property
    def weights(self) -> list[float]:
        return [value for parameter in self.model.parameters() for value in parameter.detach().flatten().tolist()]

    @property
    def moments(self) -> list[float]:
        states = [self.optimizer.state[p] for p in self.model.parameters()]
        return [value for state in states for key in sorted(state) for value in state[key].flatten().tolist()]


@pytest.fixture
def join(tmp_path: Path) -> Iterator[Callable[..., Trainer]]:
    made: list[Trainer] = []

    def start(streams: tuple[Stream, ...] = DILOCO, phi: list[float] | None = None, run: str = "r") -> Trainer:
        made.append(Trainer(tmp_path / f"segment-{len(made)}", streams, phi, run))
        return made[-1]

    yield start
    for trainer in made:
        trainer.swarm.close()
        trainer.engine.close()


def test_training_goes_on_as_without_an_interruption(join: Callable[..., Trainer], tmp_path: Path) -> None:
    one = join()
    one.train(range(4))
    one.swarm.save_inner(tmp_path / "inner", one.scheduler)
    assert one.swarm.own_steps == 4
    two = join(phi=one.weights)
    two.swarm.load_inner(tmp_path / "inner", two.scheduler)
    assert (two.swarm.own_steps, two.swarm.state_dict()["tokens"]) == (4, 20)
    for trainer in (one, two):
        trainer.train(range(4, 9))
        assert trainer.swarm.own_steps == 9
    assert one.weights == two.weights
    assert one.moments == two.moments


def test_moments_that_the_run_exchanges_are_the_runs(join: Callable[..., Trainer], tmp_path: Path) -> None:
    one = join(LOCAL_ADAM)
    one.train(range(4))
    one.swarm.save_inner(tmp_path / "inner", one.scheduler)
    two = join(LOCAL_ADAM, phi=one.weights)
    two.swarm.load_inner(tmp_path / "inner", two.scheduler)
    assert not any(two.moments)
    assert any(one.moments)


def test_a_state_of_another_run_or_behind_steps_is_refused(join: Callable[..., Trainer], tmp_path: Path) -> None:
    one = join()
    one.train(range(2))
    one.swarm.save_inner(tmp_path / "inner", one.scheduler)
    other = join(run="s")
    with pytest.raises(CheckpointError, match="of run 'r', this trainer takes part in 's'"):
        other.swarm.load_inner(tmp_path / "inner", other.scheduler)
    assert not any(other.moments)
    assert other.swarm.own_steps == 0
    with pytest.raises(ConfigError, match="after 2 inner steps"):
        one.swarm.load_inner(tmp_path / "inner", one.scheduler)
    one.train(range(2, 3))
    assert one.swarm.own_steps == 3, "its hooks are there again"
