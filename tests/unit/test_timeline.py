"""Virtual time: actions and threads in one order, an end for all of them, errors that are not lost."""

import threading
from collections.abc import Callable

import pytest
import torch

from wantrain.errors import ProtocolBug
from wantrain.sim.timeline import Task, Timeline


def started(timeline: Timeline, work: Callable[[Task], None]) -> Task:
    """A task whose work is given the task itself."""
    tasks: list[Task] = []
    tasks.append(timeline.start(lambda: work(tasks[0])))
    return tasks[0]


def test_actions_and_tasks_happen_in_the_order_of_their_time_then_of_asking() -> None:
    timeline, seen = Timeline(), []

    def work(name: str, every_s: float) -> Callable[[Task], None]:
        def run(task: Task) -> None:
            for _ in range(3):
                task.pause(timeline.now() + every_s)
                seen.append((name, timeline.now()))

        return run

    started(timeline, work("a", 2.0))
    started(timeline, work("b", 3.0))
    timeline.after(6.0, lambda: seen.append(("action", timeline.now())))
    timeline.after(10.0, timeline.stop)
    timeline.run()
    assert seen == [("a", 2.0), ("b", 3.0), ("a", 4.0), ("action", 6.0), ("b", 6.0), ("a", 6.0), ("b", 9.0)]


def test_a_wake_ends_the_pause_it_was_meant_for_and_no_later_one() -> None:
    timeline, seen = Timeline(), []

    def work(task: Task) -> None:
        for _ in range(2):
            task.pause(timeline.now() + 5.0)
            seen.append(timeline.now())
        timeline.stop()

    task = started(timeline, work)
    for _ in range(2):
        timeline.after(1.0, task.wake)
    timeline.run()
    assert seen == [1.0, 6.0]


def test_every_task_has_a_random_state_of_its_own() -> None:
    def drawn(others: int) -> list[float]:
        timeline, seen = Timeline(), []

        def work(seed: int, mine: bool) -> Callable[[Task], None]:
            def run(task: Task) -> None:
                torch.manual_seed(seed)
                for _ in range(4):
                    task.pause(timeline.now() + 1.0)
                    value = float(torch.rand(()))
                    if mine:
                        seen.append(value)

            return run

        for k in range(others):
            started(timeline, work(k + 1, False))
        started(timeline, work(7, True))
        timeline.after(10.0, timeline.stop)
        timeline.run()
        return seen

    before = torch.get_rng_state()
    assert drawn(0) == drawn(3)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("error", [ValueError("broken"), KeyboardInterrupt()])
def test_what_an_action_or_a_task_raises_ends_the_run(error: BaseException) -> None:
    def fail(_: object = None) -> None:
        raise error

    threads = threading.active_count()
    for plan in (lambda timeline: timeline.after(1.0, fail), lambda timeline: started(timeline, fail)):
        timeline, undone = Timeline(), []

        def wait(task: Task, timeline: Timeline = timeline, undone: list[str] = undone) -> None:
            try:
                task.pause(timeline.now() + 100.0)
            finally:
                undone.append("unwound")

        started(timeline, wait)
        plan(timeline)
        with pytest.raises(type(error)):
            timeline.run()
        assert undone == ["unwound"]
    assert threading.active_count() == threads


def test_a_task_that_is_ended_unwinds_and_the_others_go_on() -> None:
    timeline, seen = Timeline(), []

    def doomed(task: Task) -> None:
        try:
            task.pause(timeline.now() + 100.0)
            seen.append("not reached")
        finally:
            seen.append(f"unwound at {timeline.now():g}")

    def other(task: Task) -> None:
        task.pause(timeline.now() + 3.0)
        seen.append("other")
        timeline.stop()

    task = started(timeline, doomed)
    started(timeline, other)
    timeline.after(2.0, task.end)
    timeline.run()
    assert seen == ["unwound at 2", "other"]
    assert task.over


def test_a_run_in_which_nothing_can_happen_any_more_is_our_mistake() -> None:
    with pytest.raises(ProtocolBug, match="nothing will ever happen"):
        Timeline().run()
