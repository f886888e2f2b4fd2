"""Streaming DiLoCo: fragments in turns, the exact course of a model of scalars, mixing, and peers that agree."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.unit.lockstep import Lockstep
from wantrain.errors import ConfigError
from wantrain.optimizers.method import build
from wantrain.optimizers.stream import Stream, Wire

torch.set_num_threads(1)

EXACT = Wire("fp32", "fp32")
Run = Callable[..., Lockstep]


class Scalars(nn.Module):
    """Two blocks of two scalars and one that is in none."""

    def __init__(self, value: float = 1.0) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.ParameterDict({n: torch.full((), value) for n in "ab"}) for _ in range(2))
        self.head = nn.Parameter(torch.full((), value))

    def values(self) -> Tensor:
        """fp32[3]: a scalar of each fragment, and that of the rest."""
        return torch.stack([self.blocks[0]["a"], self.blocks[1]["a"], self.head]).detach()


def streams(**options: Any) -> tuple[Stream, ...]:
    return build("streaming-diloco", {"fragments": 2, **options}, EXACT)


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    made: list[Lockstep] = []

    def start(rows: tuple[Stream, ...], peers: int = 1, late_steps: int = 0) -> Lockstep:
        def make(_: int) -> tuple[nn.Module, torch.optim.Optimizer]:
            model = Scalars()
            return model, torch.optim.SGD(model.parameters(), lr=1.0)

        made.append(Lockstep(make, peers, rows, tmp_path / str(len(made)), late_steps))
        return made[-1]

    yield start
    for one in made:
        one.close()


def gradient_of(lockstep: Lockstep, value: Callable[[int], float]) -> Callable[[int], None]:
    def gradients(k: int) -> None:
        for parameter in lockstep.workers[k].model.parameters():
            parameter.grad = torch.full_like(parameter, value(k))

    return gradients


def test_fragments_take_turns_spread_over_the_period() -> None:
    rows = build("streaming-diloco", {"every": 100, "fragments": 3}, EXACT)
    assert [row.name for row in rows] == ["param-0", "param-1", "param-2", "param-rest"]
    assert [row.offset for row in rows] == [25, 50, 75, 0]
    assert [row.fragment for row in rows] == ["strided:0/3", "strided:1/3", "strided:2/3", "rest"]
    assert {(row.every, row.delay, row.adopt, row.alpha, row.merge) for row in rows} == {
        (100, 1, "mix", 0.5, "nesterov")
    }
    assert rows[0].merge_options == (("lr", 0.4), ("momentum", 0.9))
    balanced = build("streaming-diloco", {"every": 100, "fragments": 3, "split": "balanced"}, EXACT)
    assert [(row.fragment, row.offset) for row in balanced] == [
        ("balanced:0/3", 33), ("balanced:1/3", 67), ("balanced:2/3", 0),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"every": 3, "fragments": 3}, "every is 3.* one step for each of 4 fragments"),
        ({"every": 9, "delay": 10}, "delay"),
    ],
)
def test_options_that_leave_no_turn_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        build("streaming-diloco", options, EXACT)


def test_the_exact_course_of_scalars(run: Run) -> None:
    """w = 1, gradient 2, inner SGD of rate 1, outer plain SGD of rate 2, H = 6, P = 2, no delay, one peer."""
    rows = tuple(
        replace(row, merge="mean", merge_options=(("lr", 2.0),))
        for row in streams(every=6, delay=0, outer_lr=2, momentum=0.0)
    )
    lockstep, seen = run(rows), []
    worker = lockstep.workers[0]
    for _ in range(12):
        lockstep.step(gradient_of(lockstep, lambda _: 2.0))
        seen.append(worker.model.values().tolist())
    # theta falls by 2 a step; when its fragment is due phi goes twice as far as theta went from it, and theta with it.
    first = [-1, -7, -9, -11, -13, -15, -17, -31, -33, -35, -37, -39]
    second = [-1, -3, -5, -15, -17, -19, -21, -23, -25, -39, -41, -43]
    rest = [-1, -3, -5, -7, -9, -23, -25, -27, -29, -31, -33, -47]
    assert seen == [[float(v) for v in values] for values in zip(first, second, rest, strict=True)]
    assert worker.staged_at == [
        (2, "param-0"), (4, "param-1"), (6, "param-rest"), (8, "param-0"), (10, "param-1"), (12, "param-rest"),
    ]  # fmt: skip


def test_after_a_delay_a_share_of_the_own_weights_is_kept_and_phi_is_the_outer_result(run: Run) -> None:
    rows = tuple(
        replace(row, merge="mean", merge_options=(("lr", 1.0),)) for row in streams(every=6, delay=2, alpha=0.25)
    )
    lockstep = run(rows, late_steps=1)
    worker = lockstep.workers[0]
    for _ in range(2):
        lockstep.step(gradient_of(lockstep, lambda _: 2.0))
    assert worker.model.values()[0] == -3.0  # staged: phi becomes -3
    lockstep.step(gradient_of(lockstep, lambda _: 2.0))
    assert worker.phi()["param-0"].tolist() == [-3.0, -3.0]
    assert worker.model.values()[0] == 0.25 * -5.0 + 0.75 * -3.0
    for _ in range(5):
        lockstep.step(gradient_of(lockstep, lambda _: 2.0))
    # The next difference is taken against phi, not against what was mixed: with rate 1 phi becomes theta again.
    assert worker.phi()["param-0"].tolist() == [-3.5 - 10.0] * 2


def test_several_fragments_in_flight_leave_peers_with_one_phi(run: Run) -> None:
    rows = streams(every=6, delay=5, overdue="continue")
    lockstep = run(rows, peers=3, late_steps=4)
    most = 0
    for step in range(40):
        lockstep.step(gradient_of(lockstep, lambda k, step=step: float((step * 7 + k * 3) % 5)))
        most = max(most, len(lockstep.workers[0].core.outstanding))
    assert most >= 2
    assert all(index >= 5 for index in lockstep.indices.values())
    first, *others = (worker.phi() for worker in lockstep.workers)
    assert all(torch.equal(first[name], other[name]) for other in others for name in first)
    assert lockstep.workers[0].core.global_step == 40


def test_one_fragment_without_delay_is_diloco(run: Run) -> None:
    options = {"every": 5, "outer_lr": 0.7, "momentum": 0.9}
    whole = build("streaming-diloco", {**options, "delay": 0, "fragments": 1, "split": "balanced"}, EXACT)
    outcomes = []
    for rows in (whole, build("diloco", options, EXACT)):
        lockstep = run(rows, peers=2)
        for step in range(20):
            lockstep.step(gradient_of(lockstep, lambda k, step=step: 0.1 * (step % 3) + k))
        outcomes.append([worker.model.values() for worker in lockstep.workers])
    assert all(torch.equal(a, b) for a, b in zip(*outcomes, strict=True))
