"""`swarm.shard`: samples by leases from the daemon, the end of an epoch, data of other kinds, and files of tokens."""

from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.unit.test_session import MEAN, Daemon, Trainer, joined, served, until
from wantrain import TokenFile, trainer_shell
from wantrain.errors import ConfigError
from wantrain.optimizers.stream import Stream
from wantrain.peers.leases import Leases
from wantrain.peers.messages import Attach, Contribute, Drawn, Granted, Leased, Record, WantLease
from wantrain.permutation import Permutation
from wantrain.shard import repeated


class LeasingDaemon(Daemon):
    """The peer of a run of one, with the coordinator's core behind it."""

    def __init__(self, folder: Path, *streams: Stream, **options: Any) -> None:
        super().__init__(folder, *streams, **options)
        self.leases = Leases({}, 30.0)
        self.number = 0
        self.silent = False
        """Whether the coordinator is away."""

    def react(self, record: Record) -> list[Record]:
        if isinstance(record, WantLease):
            self.leases.reported("p", record.reader, [], busy=False, now=0.0)
            answer, _ = self.leases.wanted("p", record, (), 0.0)
            return [] if answer is None or self.silent else [answer]
        replies = super().react(record)
        if isinstance(record, Contribute) and any(isinstance(r, Granted) and r.kind == "merge" for r in replies):
            self.number += 1
            self.leases.committed(self.number, {"p": record.drawn})
        return replies

    def confirmed(self, name: str = "data") -> int:
        return sum(lease.confirmed for _, _, lease in self.leases.data[name].all())


@pytest.fixture
def serve() -> Iterator[Callable[..., LeasingDaemon]]:
    with served(LeasingDaemon) as make:
        yield make


def test_samples_come_in_the_runs_order(serve: Callable[..., LeasingDaemon]) -> None:
    data = [f"sample {k}" for k in range(300)]
    with joined(serve(MEAN), Trainer()) as swarm:
        found = list(islice(swarm.shard(data, seed=5), 650))
    orders = [Permutation(300, 5, epoch) for epoch in range(3)]
    assert found == [data[orders[k // 300].index(k % 300)] for k in range(650)]


def test_one_epoch_is_every_sample_once_and_all_of_them_are_committed(serve: Callable[..., LeasingDaemon]) -> None:
    daemon, trainer = serve(MEAN), Trainer()
    with joined(daemon, trainer) as swarm:
        found = []
        for sample in swarm.shard(range(25), epochs=1):  # an odd number, in rounds of two steps
            found.append(sample)
            trainer.step()
        assert sorted(found) == list(range(25))
        assert daemon.confirmed() == 25
        assert swarm.round == 4 + 13  # the last round had one step


@pytest.mark.parametrize("kind", [np.int64, np.uint8, torch.tensor, bool])
def test_an_integer_of_any_kind_is_a_seed_and_a_count(serve: Callable[..., LeasingDaemon], kind: Any) -> None:
    daemon, trainer = serve(MEAN), Trainer()
    with joined(daemon, trainer) as swarm:
        found = []
        for sample in swarm.shard(range(3), seed=kind(1), epochs=kind(1)):
            found.append(sample)
            trainer.step()
    assert found == [Permutation(3, 1, 0).index(k) for k in range(3)]
    assert {(want.seed, want.epochs) for want in daemon.of(WantLease)} == {(1, 1)}


def test_a_wait_for_samples_says_if_the_daemon_has_not_taken_the_question(
    serve: Callable[..., LeasingDaemon], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(trainer_shell, "SAY_EVERY_S", 0.0)
    with joined(serve(MEAN), Trainer()) as swarm:
        next(swarm.shard(range(3)))
    assert "for samples of data set 'data': the peer daemon has not taken the question yet" in caplog.text


def test_a_contribution_says_what_was_drawn_before_its_last_step(serve: Callable[..., LeasingDaemon]) -> None:
    daemon, trainer = serve(MEAN), Trainer()
    with joined(daemon, trainer) as swarm:
        samples = swarm.shard(range(100), name="words")
        for _ in range(3):  # micro-batches of one step
            next(samples)
        trainer.step()
        next(samples)
        trainer.step()
        next(samples)
    (contribute,) = daemon.of(Contribute)
    assert contribute.drawn.counts == {"words": 4}
    assert len(contribute.drawn.reader) == 8


def test_batches_are_stacked_and_the_last_one_may_be_short(serve: Callable[..., LeasingDaemon]) -> None:
    data = [(torch.full((2,), float(k)), k) for k in range(10)]
    trainer = Trainer()
    with joined(serve(MEAN), trainer) as swarm:
        shapes, labels = [], []
        for inputs, numbers in swarm.shard(data, epochs=1, batch=4):
            shapes.append(tuple(inputs.shape))
            labels += numbers.tolist()
            trainer.step()
    assert shapes == [(4, 2), (4, 2), (2, 2)]
    assert sorted(labels) == list(range(10))


def test_opening_a_data_set_again_goes_on_where_it_was(serve: Callable[..., LeasingDaemon]) -> None:
    with joined(serve(MEAN), Trainer()) as swarm:
        first = list(islice(swarm.shard(range(8)), 5))
        second = list(islice(swarm.shard(range(8)), 3))
        assert sorted(first + second) == list(range(8))
        with pytest.raises(ConfigError, match="'data' was opened with 8 samples, seed 0.* now with 9, 0"):
            swarm.shard(range(9))


def test_another_data_set_of_this_name_in_the_run_is_an_error(serve: Callable[..., LeasingDaemon]) -> None:
    daemon = serve(MEAN)
    daemon.leases.wanted("q", WantLease("data", 70, 0, 0, b"reader-q", 1, 0, 0, 5, 1, 0, False), (), 0.0)
    with joined(daemon, Trainer()) as swarm, pytest.raises(ConfigError, match="has 70 samples.*has 80 samples"):
        next(swarm.shard(range(80)))


def test_a_trainer_that_has_to_start_over_is_a_new_reader(serve: Callable[..., LeasingDaemon]) -> None:
    daemon, trainer = serve(MEAN), Trainer()
    with joined(daemon, trainer) as swarm:
        samples = swarm.shard(range(40), epochs=1)
        lost = [next(samples) for _ in range(3)]
        swarm._react(Granted("param", "start", 0, 4, 8))
        found = []
        for sample in samples:
            found.append(sample)
            trainer.step()
        assert sorted(found) == list(range(40))
        assert set(lost) <= set(found)
    assert len({want.reader for want in daemon.of(WantLease)}) == 2


def test_a_trainer_that_has_to_start_over_at_another_daemon_is_a_new_reader(
    serve: Callable[..., LeasingDaemon], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer_shell, "LOST_PATIENCE_S", 0.0)
    monkeypatch.setattr(trainer_shell, "LOOK_EVERY_S", 0.0)
    first, trainer = serve(MEAN), Trainer()
    with joined(first, trainer) as swarm:
        samples = swarm.shard(range(40), epochs=1)
        next(samples)
        trainer.step()  # a round has two: this sample is in no contribution
        first.stop()
        until(lambda: swarm.alone, "loss", lambda: swarm._poll(0.001))
        (first.folder / "segment").rename(first.folder / "former")  # the memory is gone: there is nothing to resume
        second = serve(MEAN)
        second.folder, second.leases = first.folder / "second", first.leases
        second.folder.mkdir()
        second.start()
        until(lambda: not (swarm.alone or swarm._to_start), "weights of the run", lambda: swarm._poll(0.001))
        found = []
        for sample in samples:
            found.append(sample)
            trainer.step()
    assert sorted(found) == list(range(40))
    assert second.confirmed() == 40


def test_a_trainer_tells_another_daemon_which_reader_it_is(serve: Callable[..., LeasingDaemon]) -> None:
    first = serve(MEAN)
    with joined(first, Trainer()) as swarm:
        next(swarm.shard(range(40)))
        first.stop()
        second = serve(MEAN)
        second.mute = True
        second.start()
        until(lambda: second.of(Attach), "question", lambda: swarm._poll(0.001))
        assert second.of(Attach)[0].reader == first.of(WantLease)[0].reader


def test_a_trainer_that_lost_its_daemon_uses_up_its_leases_then_an_order_of_its_own(
    serve: Callable[..., LeasingDaemon], caplog: pytest.LogCaptureFixture
) -> None:
    daemon = serve(MEAN)
    with joined(daemon, Trainer()) as swarm:
        samples, finite = swarm.shard(range(50)), swarm.shard(range(50), name="once", epochs=1)
        next(samples), next(finite)
        daemon.stop()
        swarm.close()
        assert len(list(islice(samples, 120))) == 120
        assert len(list(finite)) < 50
    assert caplog.text.count("the leases are used up") == 1


def test_waiting_for_the_last_samples_ends(
    serve: Callable[..., LeasingDaemon], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Somebody else holds them, is alive, and does not use them."""
    monkeypatch.setenv("WANTRAIN_WAIT_CEILING_S", "0.3")
    daemon, trainer = serve(MEAN), Trainer()
    daemon.leases.wanted("q", WantLease("data", 10, 0, 1, b"reader-q", 1, 0, 0, 10, 10, 0, False), (), 0.0)
    with joined(daemon, trainer) as swarm:
        found = []
        for sample in swarm.shard(range(10), epochs=1):
            found.append(sample)
            trainer.step()
    assert len(found) == 5
    assert "no more samples came back" in caplog.text
    assert "q (5)" in caplog.text


def test_while_the_coordinator_is_away_the_leases_last(serve: Callable[..., LeasingDaemon]) -> None:
    daemon = serve(MEAN)
    with joined(daemon, Trainer()) as swarm:
        samples = swarm.shard(range(10**6))
        first = list(islice(samples, 200))
        daemon.silent = True
        # Leases have 64 samples at least: whatever was under way, four of them were there for the first 200.
        assert len(set(first) | set(islice(samples, 50))) == 250


# ---- data of other kinds


def test_what_has_no_indices_is_passed_through_again_and_again() -> None:
    assert list(islice(repeated({3}, None), 3)) == [3, 3, 3]
    assert list(repeated({3}, 2)) == [3, 3]
    loader: torch.utils.data.DataLoader[Any] = torch.utils.data.DataLoader([1, 2, 3, 4], batch_size=2)
    assert [batch.tolist() for batch in islice(repeated(loader, None), 3)] == [[1, 2], [3, 4], [1, 2]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dataset": []}, "empty"),
        ({"dataset": iter([1])}, "only once"),
        ({"dataset": [1], "seed": -1}, "seed is -1"),
        ({"dataset": [1], "seed": 2**62 + 1}, "seed is 4611686018427387905, allowed is 0 to"),
        ({"dataset": [1], "seed": 1.5}, "seed is 1.5, allowed are integers"),
        ({"dataset": [1], "seed": None}, "seed is None, allowed are integers"),
        ({"dataset": [1], "seed": torch.tensor(1.5)}, "seed is tensor.1.5000., allowed are integers"),
        ({"dataset": [1], "epochs": 0}, "epochs is 0"),
        ({"dataset": [1], "epochs": 2**62 + 1}, "epochs is 4611686018427387905, allowed is 1 to"),
        ({"dataset": [1], "epochs": 1.0}, "epochs is 1.0, allowed are integers"),
        ({"dataset": [1], "batch": 0}, "batch is 0"),
        ({"dataset": [1], "name": ""}, "name ''"),
        ({"dataset": [1], "name": "n" * 129}, "has 129 characters, allowed are 1 to 128"),
        ({"dataset": [1], "name": "\udcff"}, "has 1 characters, allowed are 1 to 128 printable"),
        ({"dataset": [1], "name": 7}, "the name is 7, allowed are"),
    ],
)
def test_arguments_that_cannot_be_used_are_refused(
    serve: Callable[..., LeasingDaemon], arguments: dict[str, Any], message: str
) -> None:
    with joined(serve(MEAN), Trainer()) as swarm, pytest.raises(ConfigError, match=message):
        swarm.shard(**arguments)


def test_an_empty_set_is_refused_when_it_is_read() -> None:
    with pytest.raises(ConfigError, match="empty"):
        next(repeated(set(), None))


def test_records_without_leases_say_nothing_of_data(serve: Callable[..., LeasingDaemon]) -> None:
    daemon, trainer = serve(MEAN), Trainer()
    with joined(daemon, trainer):
        trainer.step()
        trainer.step()
    assert [record.drawn for record in daemon.of(Contribute)] == [Drawn()]
    assert daemon.of(WantLease) == []
    assert not any(isinstance(record, Leased) for record in daemon.received)


# ---- files of tokens


@pytest.mark.parametrize("kind", ["plain", "npy"])
def test_a_token_file_gives_windows_and_their_targets(tmp_path: Path, kind: str) -> None:
    tokens = np.arange(100, dtype=np.uint32)
    path = tmp_path / ("tokens.npy" if kind == "npy" else "tokens.bin")
    np.save(path, tokens) if kind == "npy" else tokens.tofile(path)
    windows = TokenFile(path, "uint32", block=8)
    assert len(windows) == 12
    inputs, targets = windows[3]
    assert inputs.tolist() == list(range(24, 32))
    assert targets.tolist() == list(range(25, 33))
    assert inputs.dtype == torch.int64
    assert windows[11][1].tolist()[-1] == 96
    with pytest.raises(IndexError, match="12"):
        windows[12]


def test_a_token_file_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    short, floats = tmp_path / "short.bin", tmp_path / "floats.npy"
    np.arange(8, dtype=np.uint16).tofile(short)
    np.save(floats, np.zeros((4, 4)))
    for path, options, message in [
        (short, {"block": 8}, "holds 8 tokens, a window needs 9"),
        (short, {"block": 0}, "block is 0"),
        (short, {"block": 4, "dtype": "letters"}, "as letters"),
        (floats, {"block": 4}, "float64 in 2 dimensions"),
        (tmp_path / "none.bin", {"block": 4}, "none.bin"),
    ]:
        with pytest.raises(ConfigError, match=message):
            TokenFile(path, **options)  # type: ignore[arg-type]


def test_a_token_file_is_a_data_set(serve: Callable[..., LeasingDaemon], tmp_path: Path) -> None:
    path = tmp_path / "tokens.bin"
    np.arange(65, dtype=np.uint16).tofile(path)
    trainer = Trainer()
    with joined(serve(MEAN), trainer) as swarm:
        first = []
        for inputs, targets in swarm.shard(TokenFile(path, block=4), epochs=1, batch=3):
            assert torch.equal(inputs + 1, targets)
            first += inputs[:, 0].tolist()
            trainer.step()
    assert sorted(first) == list(range(0, 64, 4))
    assert trainer_shell.POLL_S <= 1.0
