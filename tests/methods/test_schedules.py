"""Rounds of uneven length in whole runs: unequal workers arrive together, all count the run's steps alike."""

from typing import Any

import pytest
import torch

from tests.methods.table import equal, regression
from wantrain.sim import Join, Pace, Result, Worker, train


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def unequal(**options: Any) -> Result:
    """Two workers, the second at half the pace of the first, for 100 steps of the run."""

    def worker(i: int) -> Worker:
        made = regression()(i)
        return Worker(made.model, made.optimizer, made.step, tokens=10)

    slow = [Pace(0.0, worker=1, pace=0.5)]
    return train(worker, peers=2, method="diloco", options=options, codec="fp32", steps=100, churn=slow)


def test_dynamic_rounds_let_unequal_workers_arrive_together() -> None:
    fixed = unequal(every=20, weight="tokens")
    dynamic = unequal(every=20, schedule="dynamic", weight="tokens")
    assert {len(commit.contributors) for run in (fixed, dynamic) for commit in run.commits} == {2}
    assert [commit.steps for commit in dynamic.commits] == [20, 40, 60, 80, 100]
    # Nothing is known in the first round, whose 20 steps take the second worker twice as long.
    weights = [dict(zip(commit.contributors, commit.weights, strict=True)) for commit in dynamic.commits]
    assert [made["w0"] for made in weights] == [200.0] * 5
    assert [made["w1"] for made in weights] == [200.0] + [100.0] * 4
    assert fixed.workers[0].waited_s > 3 * dynamic.workers[0].waited_s


def test_rounds_grow_as_the_learning_rate_falls_and_the_run_ends_with_a_sync() -> None:
    def worker(i: int) -> Worker:
        made = regression()(i)
        steps = 0

        def step() -> torch.Tensor | float:
            nonlocal steps
            steps += 1
            for group in made.optimizer.param_groups:  # type: ignore[union-attr]
                group["lr"] = 0.01 if steps <= 24 else 0.005
            return made.step()

        return Worker(made.model, made.optimizer, step)

    options = {"every": 4, "schedule": "qsr", "growth": 0.02, "warmup": 8, "total": 60}
    result = train(worker, peers=2, method="local-sgd", options=options, codec="fp32", steps=60)
    # (0.02 / 0.01)^2 = 4 while the rate at a round's first step is 0.01, then 16; the last one is cut.
    assert [commit.steps for commit in result.commits] == [4, 8, 12, 16, 20, 24, 40, 56, 60]
    assert {len(worker.losses) for worker in result.workers} == {60}


def test_a_gossip_run_that_knows_its_end_ends_with_the_mean_of_all_replicas() -> None:
    options = {"every": 5, "total": 30}
    open_end = train(regression(), peers=4, method="noloco", options={"every": 5}, steps=30)
    result = train(regression(), peers=4, method="noloco", options=options, steps=30)
    assert [commit.consensus for commit in result.commits] == [False] * 10 + [True]
    assert len(result.commits[-1].contributors) == 4
    assert all(equal(worker.state_dict, result.state_dict) for worker in result.workers)
    assert not equal(open_end.workers[0].state_dict, open_end.workers[1].state_dict)
    slow = train(regression(), peers=4, method="noloco", options=options, steps=30, churn=[Pace(0, 3, pace=0.4)])
    assert all(equal(worker.state_dict, slow.state_dict) for worker in slow.workers), "who is behind ends with them"


def test_workers_may_train_alone_to_the_end_and_be_merged_once() -> None:
    """`every` = `total` of local-sgd is the mean of models trained apart, however long the slowest takes."""
    steps, pauses = 60, {"grace_ceiling_s": 3600.0, "wait_ceiling_s": 3600.0}
    options = {"every": steps, "total": steps}
    result = train(
        regression(), peers=3, method="local-sgd", options=options, codec="fp32", steps=steps, run={"sync": pauses},
        churn=[Pace(0.0, worker=2, pace=0.02)],
    )  # fmt: skip
    assert [commit.contributors for commit in result.commits] == [("w0", "w1", "w2")]
    alone = []
    for i in range(3):
        torch.manual_seed(0)
        made = regression()(i)
        torch.manual_seed(1_000_003 + i)
        for _ in range(steps):
            made.step()
        alone.append(dict(made.model.named_parameters()))
    for name, value in result.state_dict.items():
        assert torch.allclose(value, torch.stack([one[name] for one in alone]).mean(0), atol=1e-5)


def test_a_newcomer_counts_the_runs_steps_and_ends_with_the_others() -> None:
    options = {"every": 10, "total": 55}
    result = train(
        regression(), peers=2, method="local-sgd", options=options, codec="fp32", steps=55, churn=[Join(25.0)]
    )
    assert result.commits[-1].steps == 55
    assert len(result.commits[-1].contributors) == 3
