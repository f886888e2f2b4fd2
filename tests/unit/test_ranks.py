"""Ranks of a site, each a thread with a gloo group and a replica of its own, against a daemon in another thread."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar

import pytest
import torch
import torch.distributed as dist
from torch import nn

import wantrain
from tests.unit.test_look import Showing, distinct
from tests.unit.test_session import DEADLINE_S, GRAD, MEAN, Daemon, Trainer, serve, served, until
from wantrain import ranked_replica
from wantrain.errors import ConfigError, RefusedError, TrainerError
from wantrain.peers.messages import Contribute, Log
from wantrain.peers.shared_memory import LOCAL_RUN
from wantrain.ranked_replica import blocks
from wantrain.ranked_session import ranked
from wantrain.ranks import Place, Ranks, Told, site_ranks, split_of
from wantrain.session import Swarm
from wantrain.trainer_shell import DAEMON
from wantrain.transport.zmq_link import ZmqLink

__all__ = ["serve"]

T = TypeVar("T")


def groups(size: int, patience_s: float = 20.0) -> list[Any]:
    """A gloo group of threads: the part of each."""
    store = dist.HashStore()
    with ThreadPoolExecutor(size) as pool:
        return list(
            pool.map(lambda rank: dist.ProcessGroupGloo(store, rank, size, timedelta(seconds=patience_s)), range(size))
        )


def together(size: int, work: Callable[[Ranks], T], patience_s: float = 20.0) -> list[T | BaseException]:
    """What the work of each rank gives or raises."""
    parts = groups(size, patience_s)

    def one(rank: int) -> T:
        return work(Ranks(parts[rank], rank, size))

    with ThreadPoolExecutor(size) as pool:
        futures: list[Future[T]] = [pool.submit(one, rank) for rank in range(size)]
        return [future.exception(DEADLINE_S) or future.result() for future in futures]


@contextmanager
def joined(daemon: Daemon, ranks: Ranks, trainer: Trainer, *, queued: bool = False) -> Iterator[Swarm]:
    link = ZmqLink(LOCAL_RUN)
    try:
        swarm = ranked(trainer.model, [trainer.optimizer], ranks, link, wait_ceiling_s=DEADLINE_S)
        swarm._replica._queued = queued
        if ranks.leads:
            link.connect(DAEMON, daemon.address, b"")
        swarm.attach()
        swarm.hook([trainer.optimizer])
        with swarm:
            yield swarm
    finally:
        link.close()


def started(daemon: Daemon) -> Daemon:
    daemon.start()
    assert daemon.listening.wait(DEADLINE_S)
    return daemon


def results(found: list[T | BaseException]) -> list[T]:
    for one in found:
        if isinstance(one, BaseException):
            raise one
    return [one for one in found if not isinstance(one, BaseException)]


# ---- training


@pytest.mark.parametrize("far", [False, True])
def test_all_ranks_adopt_at_the_same_step_and_know_the_same(
    serve: Callable[..., Daemon], monkeypatch: pytest.MonkeyPatch, far: bool
) -> None:
    if far:
        monkeypatch.setattr(ranked_replica, "host_id", lambda: str(threading.get_ident()))
        monkeypatch.setattr(ranked_replica, "BLOCK_ELEMENTS", 4)
    daemon = started(serve(MEAN))

    def work(ranks: Ranks) -> list[object]:
        trainer, seen = Trainer(), list[object]()
        with joined(daemon, ranks, trainer) as swarm:
            seen.append(trainer.values)
            for _ in range(6):
                trainer.step()
                seen.append((trainer.values, swarm.round, swarm.global_step, swarm.own_steps, swarm.peer, swarm.alone))
        return seen

    first, *others = results(together(3, work))
    assert others == [first, first]
    assert first[0] == {1.0}
    assert [step[0] for step in first[1:]] == [{0.0}, {-1.0}, {-2.0}, {-3.0}, {-4.0}, {-5.0}]  # type: ignore[index]
    assert [step[1] for step in first[1:]] == [4, 5, 5, 6, 6, 7]  # type: ignore[index]
    assert [step[2] for step in first[1:]] == [9, 10, 11, 12, 13, 14]  # type: ignore[index]
    assert [c.step for c in daemon.of(Contribute)] == [2, 4, 6]


@pytest.mark.parametrize("kind", ["merge", "move"])
def test_own_steps_are_kept_by_every_rank_as_by_a_single_process(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setattr(ranked_replica, "host_id", lambda: str(threading.get_ident()))

    def seen(trainer: Trainer) -> list[set[float]]:
        values: list[set[float]] = []
        for _ in range(7):
            trainer.step()
            values.append(trainer.values)
        return values[2::2]  # in between the result may have come or not

    def work(ranks: Ranks) -> list[set[float]]:
        trainer = Trainer()
        with joined(daemon, ranks, trainer):
            return seen(trainer)

    found: list[list[set[float]]] = []
    for size in (2, 0):
        with served(Daemon) as make:
            answer = partial(_first, kind)
            daemon = started(make(replace(MEAN, delay=1), answer=answer))
            if size:
                found += results(together(size, work))
            else:
                trainer = Trainer()
                with wantrain.join(trainer.model, trainer.optimizer, daemon=daemon.address):
                    found.append(seen(trainer))
    assert found[0] == found[1] == found[2]


def _first(kind: str, contribution: Contribute) -> str:
    return kind if contribution.serial == 1 else "merge"


def test_where_nothing_can_happen_nobody_listens(serve: Callable[..., Daemon]) -> None:
    daemon = started(serve(replace(MEAN, every=20)))

    def work(ranks: Ranks) -> tuple[int, list[tuple[int, int, int]]]:
        trainer, heard, seen, hear = Trainer(), 0, list[tuple[int, int, int]](), ranks.hear

        def counted() -> tuple[Told, list[int], bytes]:
            nonlocal heard
            heard += 1
            return hear()

        with pytest.MonkeyPatch.context() as patch, joined(daemon, ranks, trainer) as swarm:
            patch.setattr(ranks, "hear", counted)
            for _ in range(60):
                trainer.step()
                seen.append((swarm.round, swarm.global_step, swarm.own_steps))
        return heard, seen

    (_, first), (heard, second) = results(together(2, work))
    assert first == second
    assert first[-1][2] == 60
    assert 6 <= heard < 40


def test_copies_that_last_longer_are_over_on_all_ranks_before_the_daemon_is_told(
    serve: Callable[..., Daemon], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on GPUs; here they are over at once, but all ranks are asked. Rank 1 is far, and not to write."""
    asked: list[str] = []
    finish = ranked_replica.RankedReplica.finish_part

    def counted(self: ranked_replica.RankedReplica, stream: str) -> None:
        asked.append(stream)
        finish(self, stream)

    monkeypatch.setattr(ranked_replica.RankedReplica, "finish_part", counted)
    monkeypatch.setattr(ranked_replica, "host_id", lambda: str(threading.get_ident()))
    daemon = started(serve(MEAN, initial=None))

    def work(ranks: Ranks) -> set[float]:
        trainer = Trainer()
        with joined(daemon, ranks, trainer, queued=True):
            for _ in range(4):
                trainer.step()
        return trainer.values

    assert results(together(2, work)) == [{6.0, 16.0}] * 2
    assert len(daemon.of(Contribute)) == 2
    assert asked == ["param"] * 2 * 3  # the first weights, and two contributions


def test_gradients_are_the_leaders_and_the_mean_is_for_all(serve: Callable[..., Daemon]) -> None:
    daemon = started(serve(MEAN, GRAD, answer=lambda c: "grad" if c.stream == "grad" else "merge", foreign=3.0))

    def work(ranks: Ranks) -> set[float]:
        trainer = Trainer()
        with joined(daemon, ranks, trainer):
            trainer.step()
        return trainer.values

    assert results(together(2, work)) == [{-1.0}, {-1.0}]  # 1 less the mean of a gradient of 1 and one of 3


def test_the_first_weights_of_a_run_are_rank_0s(serve: Callable[..., Daemon]) -> None:
    daemon = started(serve(MEAN, initial=None))

    def work(ranks: Ranks) -> set[float]:
        trainer = Trainer()
        if not ranks.leads:
            nn.init.zeros_(trainer.model.second)
        with joined(daemon, ranks, trainer):
            return trainer.values

    assert results(together(2, work)) == [{10.0, 20.0}] * 2


def test_contributions_weigh_the_tokens_of_all_ranks(serve: Callable[..., Daemon]) -> None:
    daemon = started(serve(replace(MEAN, weight="tokens")))

    def work(ranks: Ranks) -> None:
        trainer = Trainer()
        with joined(daemon, ranks, trainer) as swarm:
            for _ in range(4):
                swarm.tokens(10 if ranks.leads else 3)
                swarm.log(loss=ranks.rank)
                trainer.step()

    results(together(2, work))
    assert [c.tokens for c in daemon.of(Contribute)] == [26, 52]
    assert daemon.of(Log)[-1].values["tokens"] == 52
    assert {log.values["loss"] for log in daemon.of(Log) if "loss" in log.values} == {0.0}


def test_all_ranks_look_at_the_common_weights_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranked_replica, "BLOCK_ELEMENTS", 4)
    with served(Showing) as make:
        daemon = started(make(replace(MEAN, every=4)))

        def work(ranks: Ranks) -> None:
            trainer = Trainer()
            with joined(daemon, ranks, trainer) as swarm:
                trainer.step()
                before = trainer.values
                phi = distinct(daemon)
                with swarm.evaluating() as evaluated:
                    assert torch.equal(trainer.model.first, phi["first"])
                    assert torch.equal(trainer.model.second, phi["second"])
                    assert (evaluated.round, evaluated.global_step, evaluated.number) == (5, 9, 11)
                    with pytest.raises(ConfigError, match="within"):
                        trainer.step()
                assert trainer.values == before
                with pytest.raises(ConfigError, match="one process"):
                    swarm.common_state_dict()
                trainer.step()

        results(together(3, work))


# ---- what goes wrong


def test_a_refusal_ends_all_ranks(serve: Callable[..., Daemon]) -> None:
    daemon = started(serve(MEAN, answer=lambda _: "refuse"))

    def work(ranks: Ranks) -> None:
        trainer = Trainer()
        with joined(daemon, ranks, trainer):
            until(lambda: False, "end", trainer.step)

    errors = together(3, work)
    assert [type(error) for error in errors] == [RefusedError] * 3
    assert len({str(error) for error in errors}) == 1


def test_what_one_rank_cannot_do_ends_all(serve: Callable[..., Daemon]) -> None:
    """The run exchanges moments, and rank 1 has an optimizer that keeps none."""
    daemon = started(serve(MEAN, replace(MEAN, name="exp_avg", state="exp_avg")))

    def work(ranks: Ranks) -> None:
        trainer = Trainer()
        if ranks.leads:
            trainer.optimizer = torch.optim.Adam(trainer.model.parameters())
        with joined(daemon, ranks, trainer):
            pass

    errors = together(2, work)
    assert [type(error) for error in errors] == [ConfigError, ConfigError]
    assert all("rank 1: the run exchanges exp_avg" in str(error) for error in errors)


def test_ranks_with_different_models_are_told_so(serve: Callable[..., Daemon]) -> None:
    daemon = started(serve(MEAN))

    def work(ranks: Ranks) -> None:
        with joined(daemon, ranks, Trainer(torch.bfloat16 if ranks.rank == 2 else torch.float32)):
            pass

    assert [str(error).splitlines()[0] for error in together(3, work)] == ["rank 2 has another model than rank 0"] * 3


def test_ranks_that_go_different_ways_are_told_so(serve: Callable[..., Daemon]) -> None:
    daemon = started(serve(MEAN))

    def work(ranks: Ranks) -> None:
        trainer = Trainer()
        with joined(daemon, ranks, trainer):
            if ranks.leads:
                trainer.step()

    _, error = together(2, work, patience_s=3.0)  # a process that fails is gone, a thread is not
    assert isinstance(error, ConfigError)
    assert "rank 1 is in swarm.leave and rank 0 in optimizer.step()" in str(error)


def test_a_rank_that_is_gone_is_an_error_that_says_so() -> None:
    parts = groups(2)
    del parts[0]
    with pytest.raises(TrainerError, match="rank 1 has lost the other ranks"):
        Ranks(parts[0], 1, 2).hear()


def test_a_torchrun_that_is_gone_ends_its_ranks() -> None:
    (group,) = groups(1)
    Ranks(group, 0, 1).check_launcher()
    with pytest.raises(TrainerError, match="torchrun"):
        Ranks(group, 0, 1, launcher=-1).check_launcher()


def test_several_ranks_without_torch_distributed_are_told_what_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match=r"init_process_group\(\)"):
        site_ranks()
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert site_ranks() is None


def test_a_message_of_any_size_arrives() -> None:
    def work(ranks: Ranks) -> tuple[Told, list[int], bytes]:
        ranks.place = Place.DRAW
        if ranks.leads:
            ranks.tell(Told.GO_ON, 1, -2, payload=bytes(range(256)) * 40)
            return Told.GO_ON, [1, -2], bytes(range(256)) * 40
        return ranks.hear()

    leader, other = results(together(2, work))
    assert leader == other


# ---- data and blocks


@pytest.mark.parametrize("split", [(1, 1), (-1, 1), (0, 2), (0, 0)])
def test_a_part_that_is_not_there_cannot_be_drawn(split: tuple[int, int]) -> None:
    with pytest.raises(ConfigError, match="split"):
        split_of(split)
    assert split_of(None) == split_of((0, 1)) == (0, 1)


@pytest.mark.parametrize("shape", [(), (0, 3), (7,), (3, 5), (2, 3, 4), (1, 9, 2)])
def test_blocks_are_the_tensor_in_order_none_too_large(shape: tuple[int, ...]) -> None:
    tensor = torch.arange(torch.Size(shape).numel()).view(shape)
    found = list(blocks(tensor, 4))
    assert all(0 < block.numel() <= 4 for block in found)
    assert torch.equal(torch.cat([block.flatten() for block in found] or [torch.arange(0)]), tensor.flatten())
