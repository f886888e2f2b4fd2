"""Schedules: how long a round is, by the tables of their papers, and what a trainer makes of it."""

from typing import Any

import pytest

from wantrain.optimizers.schedule import SCHEDULES, Moment, round_steps
from wantrain.optimizers.stream import Stream
from wantrain.peers.messages import Granted
from wantrain.peers.trainer import AfterStep, BeforeStep, OutOfData, Stage, TrainerCore

QSR = {"growth": 0.0175, "cap": 1000.0, "warmup": 0.0}


def moment(**known: Any) -> Moment:
    unknown: dict[str, Any] = {"made": 0, "spent_s": 0.0, "step_s": 0.0, "pace_s": 0.0, "lr": 0.1, "global_step": 0}
    return Moment(**(unknown | known))


@pytest.mark.parametrize(
    ("lr", "steps"),
    [
        (0.1, 4),
        (0.00875, 4),
        (0.008, 4),
        (0.0078, 5),
        (0.004, 19),
        (0.002, 76),
        (0.001, 306),
        (1e-4, 1000),
        (0.0, 1000),
    ],
)
def test_qsr_grows_with_the_inverse_square_of_the_learning_rate(lr: float, steps: int) -> None:
    assert round_steps("qsr", 4, QSR, moment(lr=lr)) == steps


def test_qsr_stays_at_the_base_in_warm_up() -> None:
    assert round_steps("qsr", 4, QSR | {"warmup": 100.0}, moment(lr=0.004, global_step=99)) == 4
    assert round_steps("qsr", 4, QSR | {"warmup": 100.0}, moment(lr=0.004, global_step=100)) == 19


@pytest.mark.parametrize(("name", "options"), [("qsr", QSR), ("fixed", {}), ("seconds", {"round_s": 1.0})])
def test_the_last_round_is_cut_to_the_steps_that_remain(name: str, options: dict[str, float]) -> None:
    where = {"lr": 0.002, "step_s": 0.001}
    assert round_steps(name, 50, options | {"total": 1000.0}, moment(global_step=990, **where)) == 10
    whole = round_steps(name, 50, options, moment(global_step=500, **where))
    assert round_steps(name, 50, options | {"total": 2000.0}, moment(global_step=500, **where)) == whole
    assert round_steps(name, 50, options | {"total": 1000.0}, moment(global_step=1000, **where)) == whole


@pytest.mark.parametrize(
    ("step_s", "steps"), [(0.1, 100), (0.125, 80), (0.2, 50), (0.3, 33), (1.0, 10), (100.0, 1), (0.01, 100), (0.0, 100)]
)
def test_dynamic_steps_are_those_that_fit_while_the_fastest_makes_h(step_s: float, steps: int) -> None:
    """floor(v / v_max * H) with v = 1 / step_s, v_max = 10 per second and H = 100; H while nothing is known."""
    assert round_steps("dynamic", 100, {}, moment(step_s=step_s, pace_s=0.1)) == steps
    assert round_steps("dynamic", 100, {}, moment(step_s=step_s)) == 100


def test_a_round_of_seconds_ends_when_no_other_step_fits() -> None:
    options = {"round_s": 10.0}
    assert round_steps("seconds", 100, options, moment()) == 100
    assert round_steps("seconds", 100, options, moment(step_s=0.5)) == 20
    assert round_steps("seconds", 100, options, moment(made=5, spent_s=5.0, step_s=1.0)) == 10
    assert round_steps("seconds", 100, options, moment(made=5, spent_s=9.5, step_s=1.0)) == 5
    assert round_steps("seconds", 100, options, moment(made=1, spent_s=30.0, step_s=30.0)) == 1
    assert round_steps("seconds", 100, options, moment(step_s=30.0)) == 1


def test_every_schedule_gives_at_least_one_step() -> None:
    for name, rule in SCHEDULES.items():
        for lr in (0.0, 1e-30, 1e30):
            for step_s in (0.0, 1e-9, 1e9):
                assert round_steps(name, 1, rule.options, moment(lr=lr, step_s=step_s, pace_s=1e-3)) >= 1


# ---- in the trainer


def started(stream: Stream, step: int = 0, pace_s: float = 0.0) -> TrainerCore:
    core = TrainerCore((stream,))
    core.handle(Granted("param", "start", 0, 0, step, pace_s))
    return core


def rounds(core: TrainerCore, count: int, lr: float = 0.1, step_s: float = 0.0, pace_s: float = 0.0) -> list[int]:
    """Own steps of `count` rounds; the run's step count is the trainer's own."""
    lengths: list[int] = []
    while len(lengths) < count:
        core.handle(BeforeStep(lr))
        for effect in core.handle(AfterStep(step_s, step_s)):
            if isinstance(effect, Stage):
                lengths.append(core.made("param"))
                made = core.global_step
                core.handle(Granted("param", "merge", effect.serial, len(lengths), made, pace_s))
    return lengths


def test_qsr_takes_the_learning_rate_at_the_start_of_a_round() -> None:
    core = started(Stream("param", every=4, schedule="qsr", schedule_options=tuple(sorted(QSR.items()))))
    core.handle(BeforeStep(0.004))
    assert core.steps_left == 19
    core.handle(AfterStep())
    for _ in range(17):
        core.handle(BeforeStep(0.1))
        assert core.handle(AfterStep()) == []
    core.handle(BeforeStep(0.1))
    assert isinstance(core.handle(AfterStep())[0], Stage)
    core.handle(Granted("param", "merge", 1, 1, 19))
    assert rounds(core, 2) == [4, 4]


def test_a_run_of_known_length_ends_with_a_sync() -> None:
    core = started(Stream("param", every=30, schedule_options=(("total", 100.0),)))
    assert rounds(core, 4) == [30, 30, 30, 10]
    assert core.global_step == 100


def test_a_newcomer_ends_its_first_round_by_the_runs_count() -> None:
    assert rounds(started(Stream("param", every=30, schedule_options=(("total", 100.0),)), step=90), 1) == [10]


def test_unequal_trainers_make_unequal_rounds_once_the_pace_is_known() -> None:
    stream = Stream("param", every=12, schedule="dynamic", weight="tokens")
    assert rounds(started(stream), 3, step_s=0.3, pace_s=0.1) == [12, 4, 4]
    assert rounds(started(stream), 3, step_s=0.1, pace_s=0.1) == [12, 12, 12]
    assert rounds(started(stream, pace_s=0.2), 2, step_s=0.3, pace_s=0.1) == [8, 4]


def test_a_round_of_seconds_does_not_count_time_without_steps() -> None:
    stream = Stream("param", every=7, schedule="seconds", schedule_options=(("round_s", 2.0),))
    assert rounds(started(stream), 3, step_s=0.25) == [8, 8, 8]


def test_a_script_that_ends_before_its_first_sync_is_told_so() -> None:
    core = started(Stream("param", every=30))
    assert core.wasted is None
    for _ in range(12):
        core.handle(BeforeStep())
        core.handle(AfterStep())
    assert core.wasted == (12, "param", 30)
    core.handle(OutOfData())
    assert core.wasted is None
