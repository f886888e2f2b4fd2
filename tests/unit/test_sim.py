"""`wantrain.sim`: what a user gives, gets and is told; that methods work through it is tests/methods."""

import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import wantrain.sim
from wantrain.errors import ConfigError, RefusedError, WantrainError
from wantrain.sim import Join, Kill, Leave, Pace, Restart, Worker, train

ROOT = Path(__file__).parents[2]
Built = tuple[nn.Module, torch.optim.Optimizer, Callable[[], Tensor]]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def descent(slope: Callable[[int], float] = float, spoil: Callable[[int, int], None] = lambda i, step: None) -> Any:
    """Worker i's gradient is slope(i) everywhere; `spoil` is called with i and the step before each of them."""

    def build(i: int) -> Built:
        model = nn.ParameterList([torch.zeros(5)])
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        steps = [0]

        def step() -> Tensor:
            steps[0] += 1
            spoil(i, steps[0])
            optimizer.zero_grad()
            loss = model[0].sum() * slope(i)
            loss.backward()
            optimizer.step()
            return loss.detach()

        return model, optimizer, step

    return build


MEAN: dict[str, Any] = {"method": "local-sgd", "options": {"every": 4}, "codec": "fp32"}


def test_the_example_in_the_readme_runs() -> None:
    text = (ROOT / "README.md").read_text()
    (code,) = [block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "wantrain.sim" in block]
    names: dict[str, Any] = {}
    exec(code, names)
    result = names["result"]
    assert result.losses[-1] < 0.1 * result.losses[0]
    assert len(code.splitlines()) <= 30


def test_it_is_reached_through_the_package() -> None:
    assert wantrain.sim.train is train


def test_rounds_have_phi_at_each_sync() -> None:
    """Two workers with gradients 0 and 1: four steps of the mean, 0.5, from one round to the next."""
    result = train(descent(), peers=2, steps=12, evaluate=lambda model: float(next(model.parameters())[0]), **MEAN)
    assert [entry.loss for entry in result.rounds] == [0.0, -2.0, -4.0, -6.0]
    assert [(entry.index, entry.step) for entry in result.rounds] == [(0, 0), (1, 4), (2, 8), (3, 12)]
    assert [entry.contributors for entry in result.rounds] == [(), *[("w0", "w1")] * 3]
    assert result.losses == [0.0, -2.0, -4.0, -6.0]
    assert result.state_dict["0"].tolist() == [-6.0] * 5
    assert [worker.ended for worker in result.workers] == ["finished"] * 2
    assert [len(worker.losses) for worker in result.workers] == [12, 12]
    assert result.workers[1].step_times_s == pytest.approx([0.1 * k for k in range(1, 13)])


def test_evaluations_can_be_seldom_and_the_last_round_always_has_one() -> None:
    calls = []
    train(descent(), peers=1, steps=20, evaluate=lambda m: calls.append(1) or 0.0, evaluate_every=3, **MEAN)  # type: ignore[func-returns-value]
    result = train(descent(), peers=1, steps=20, evaluate=lambda m: 0.0, evaluate_every=3, **MEAN)
    assert [entry.loss is not None for entry in result.rounds] == [True, False, False, True, False, True]
    assert len(calls) == 3


def test_workers_draw_random_numbers_of_their_own_that_others_do_not_change() -> None:
    seen: dict[int, dict[int, list[float]]] = {}

    def drawing(peers: int) -> None:
        drawn: dict[int, list[float]] = {i: [] for i in range(peers)}
        build = descent(spoil=lambda i, step: drawn[i].append(float(torch.rand(()))))
        before = torch.get_rng_state()
        train(build, peers=peers, steps=8, seed=3, **MEAN)
        assert torch.equal(torch.get_rng_state(), before)
        seen[peers] = drawn

    drawing(1)
    drawing(3)
    assert seen[1][0] == seen[3][0]
    assert seen[3][0] != seen[3][1]


def test_a_slow_worker_makes_fewer_steps_and_the_others_wait_for_it_or_not() -> None:
    churn = [Pace(0, worker=1, pace=0.5)]
    waiting = train(descent(), peers=2, steps=12, churn=churn, **MEAN)
    assert waiting.workers[0].waited_s > 0
    assert waiting.workers[1].waited_s == 0
    assert all(len(commit.contributors) == 2 for commit in waiting.commits)
    hasty = {"sync": {"grace_floor_s": 0.01, "grace_ceiling_s": 0.01}}
    going_on = train(descent(), peers=2, steps=12, churn=churn, run=hasty, **MEAN)
    assert len(going_on.workers[1].losses) < 12
    assert any(len(commit.contributors) == 1 for commit in going_on.commits)


def test_with_a_delay_nobody_waits_while_messages_are_on_their_way() -> None:
    slow: dict[str, Any] = {"peers": 3, "steps": 40, "link": "delay=50ms", "codec": "fp32", "method": "diloco"}
    blocking = train(descent(lambda i: i + 1.0), options={"every": 10}, **slow)
    assert min(worker.waited_s for worker in blocking.workers) > 4 * 0.05
    overlapped = train(descent(lambda i: i + 1.0), options={"every": 10, "delay": 9}, **slow)
    assert [worker.waited_s for worker in overlapped.workers] == [0.0] * 3
    assert [len(commit.contributors) for commit in overlapped.commits] == [3] * 4


def test_the_bytes_of_a_sync_take_their_time_on_the_link() -> None:
    """Two peers: each sends half of the vector, then half of the mean, at 1 MB/s and 50 ms one way."""
    elements, rounds = 2**17, 4

    def wide(i: int) -> Built:
        model = nn.ParameterList([torch.zeros(elements)])
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)

        def step() -> Tensor:
            model[0].grad = torch.full((elements,), i + 1.0)
            optimizer.step()
            return torch.zeros(())

        return model, optimizer, step

    def waited_s(codec: str = "fp32", **options: Any) -> float:
        result = train(
            wide, peers=2, steps=10 * rounds, method="diloco", options={"every": 10, **options}, codec=codec,
            link="rate=8mbit,rtt=100ms",
        )  # fmt: skip
        assert not result.aborts
        assert {len(commit.contributors) for commit in result.commits} == {2}
        return max(worker.waited_s for worker in result.workers) / rounds

    ways_s = 6 * 0.05  # ready, start, the parts, the mean, done, commit
    whole_s = 4 * elements / 1e6
    found = [waited_s(), waited_s("int8"), waited_s(delay=9)]
    assert found[0] == pytest.approx(ways_s + whole_s, abs=0.03)
    assert found[1] == pytest.approx(ways_s + whole_s / 4, abs=0.03)
    assert found[2] == 0.0


def test_a_contribution_that_cannot_be_right_is_named() -> None:
    """With three and more, who has not moved at all while others have is left out."""
    result = train(descent(), peers=3, steps=12, **MEAN)
    assert [len(commit.contributors) for commit in result.commits[:3]] == [2] * 3
    assert len(result.rejected) == 3
    assert "w0: its contribution is all zeros" in result.rejected[0]


def test_tokens_weigh_contributions() -> None:
    def build(i: int) -> Worker:
        return Worker(*descent()(i), tokens=(1, 3)[i])

    options = {"every": 4, "weight": "tokens"}
    result = train(build, peers=2, steps=4, method="local-sgd", options=options, codec="fp32")
    assert result.state_dict["0"].tolist() == [-4 * 0.75] * 5


def test_what_a_worker_raises_comes_out_with_its_number_and_no_thread_stays() -> None:
    def spoil(i: int, step: int) -> None:
        if (i, step) == (1, 7):
            raise ZeroDivisionError("in the loop")

    threads = threading.active_count()
    with pytest.raises(ZeroDivisionError, match="in the loop") as caught:
        train(descent(spoil=spoil), peers=3, steps=12, **MEAN)
    assert "in worker 1 of the simulated run, after 6 steps" in caught.value.__notes__
    assert threading.active_count() == threads


def test_what_evaluate_raises_comes_out() -> None:
    def evaluate(model: nn.Module) -> float:
        raise ZeroDivisionError("cannot say")

    with pytest.raises(ZeroDivisionError, match="cannot say"):
        train(descent(), peers=2, steps=12, evaluate=evaluate, **MEAN)


def test_a_contribution_that_is_not_finite_ends_the_run() -> None:
    with pytest.raises(RefusedError, match="NaN or Inf"):
        train(descent(lambda i: float("nan")), peers=2, steps=12, **MEAN)


def test_a_step_that_makes_no_step_is_told_of() -> None:
    def build(i: int) -> Built:
        model, optimizer, _ = descent()(i)
        return model, optimizer, lambda: torch.zeros(())

    with pytest.raises(WantrainError, match=r"no worker has made a step.*optimizer"):
        train(build, peers=1, steps=12, step_s=10.0, **MEAN)


def test_a_run_that_nobody_is_left_of_fails() -> None:
    with pytest.raises(WantrainError, match="all workers are gone after 1 commits"):
        train(descent(), peers=2, steps=12, churn=[Leave(5, worker=0), Kill(worker=1, at=6)], **MEAN)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"peers": 0}, "peers is 0, allowed is 1 to"),
        ({"steps": 3}, "steps is 3, allowed is 4 and more"),
        ({"method": "dilocco"}, "unknown method 'dilocco'"),
        ({"options": {"evry": 4}}, "no option 'evry'"),
        ({"codec": "int7"}, "codec is 'int7'"),
        ({"step_s": 0.0}, "step_s is 0.0"),
        ({"link": "rate=10"}, "rate is '10', allowed is a number with a unit"),
        ({"link": "rate=10mbit,loss=1%"}, "allowed are rate, rtt and delay"),
        ({"run": {"sink": {}}}, "unknown section or option 'sink'"),
        ({"churn": [Kill(worker=2, at=1)]}, "there is no such worker, they are 0 to 1"),
        ({"churn": [Kill(worker=1)]}, "allowed is either at >= 0 or sync >= 1"),
        ({"churn": [Join(-1)]}, "at is -1"),
        ({"churn": [Pace(1, worker=0, pace=0)]}, "pace is 0"),
        ({"churn": [Restart(0)]}, "step is 0"),
        ({"churn": [Restart(4), Restart(8)]}, "several Restarts"),
    ],
)
def test_what_cannot_be_used_is_refused_in_words(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(words)) as caught:
        train(descent(), **{"peers": 2, "steps": 12, **MEAN, **arguments})
    assert caught.value.hint


@pytest.mark.parametrize("made", [None, (nn.Linear(1, 1), None), (1, 2, 3)])
def test_a_function_that_returns_no_worker_is_refused(made: object) -> None:
    with pytest.raises(ConfigError, match=re.escape("allowed is (model, optimizer, step)")):
        train(lambda i: made, peers=1, steps=12, **MEAN)  # type: ignore[arg-type,return-value]


def test_a_run_with_other_options_cannot_be_resumed() -> None:
    result = train(descent(), peers=2, steps=4, **MEAN)
    with pytest.raises(ConfigError, match="that run had other options"):
        train(descent(), peers=2, steps=8, method="local-sgd", options={"every": 2}, codec="fp32", resume=result)
    with pytest.raises(ConfigError, match="peers is 3, allowed is 2"):
        train(descent(), peers=3, steps=8, resume=result, **MEAN)
