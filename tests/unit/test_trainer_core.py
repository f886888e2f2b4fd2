"""The trainer's schedule: when a stream is staged, what is waited for, and what becomes of work that came late."""

from wantrain.optimizers.stream import Stream
from wantrain.peers.messages import Granted
from wantrain.peers.trainer import (
    Adopt,
    AfterStep,
    BeforeStep,
    OutOfData,
    Stage,
    TrainerCore,
    TrainerEffect,
    Wait,
    WaitedLongEnough,
)

WAIT = Wait(("param",))


def granted(kind: str, serial: int = 0, *, index: int = 1, step: int = 0, stream: str = "param") -> Granted:
    return Granted(stream, kind, serial, index, step)


def started(*streams: Stream, index: int = 0) -> TrainerCore:
    core = TrainerCore(streams)
    for stream in streams:
        if stream.state == "param":
            start = granted("start", stream=stream.name, index=index)
            assert core.handle(start) == [Adopt(stream.name, "start", False)]
    return core


def steps(core: TrainerCore, count: int) -> list[TrainerEffect]:
    """Effects of `count` inner steps."""
    return [effect for _ in range(count) for effect in core.handle(BeforeStep()) + core.handle(AfterStep())]


def test_a_stream_is_staged_after_every_h_steps_and_waited_for() -> None:
    core = started(Stream("param", every=3))
    for serial in (1, 2, 3):
        assert core.steps_left == 3
        assert steps(core, 2) == []
        assert core.steps_left == 1
        assert steps(core, 1) == [Stage("param", serial, serial), WAIT]
        assert core.waiting == ("param",)
        assert core.handle(granted("merge", serial, index=serial)) == [Adopt("param", "merge", False)]
        assert core.waiting == ()
        assert core.rounds == core.index("param") == serial


def test_the_schedule_is_the_streams_own() -> None:
    """Own steps after which a stream is staged are those of `Stream.due`."""
    for stream in (Stream("param", every=4), Stream("param", every=4, offset=1), Stream("param", every=4, offset=3)):
        core, staged = started(stream), []
        for step in range(1, 20):
            if steps(core, 1):
                staged.append(step)
                core.handle(granted("merge", len(staged)))
        assert staged == [step for step in range(1, 20) if stream.due(step)]


def test_with_a_delay_training_goes_on_until_it_is_used_up() -> None:
    core = started(Stream("param", every=5, delay=2))
    assert steps(core, 5) == [Stage("param", 1, 1)]
    assert steps(core, 1) == []
    assert steps(core, 1) == [WAIT]
    assert core.handle(granted("merge", 1)) == [Adopt("param", "merge", True)]
    assert steps(core, 2) == []
    assert steps(core, 1) == [Stage("param", 2, 2)]


def test_steps_since_staging_are_told_at_adoption() -> None:
    core = started(Stream("param", every=5, delay=2))
    steps(core, 5)
    assert core.handle(granted("merge", 1)) == [Adopt("param", "merge", False)]


def test_a_late_peer_rebases_and_stages_again_at_once_without_waiting() -> None:
    core = started(Stream("param", every=3))
    steps(core, 3)
    assert core.handle(granted("move", 1)) == [Adopt("param", "move", False), Stage("param", 2, 2)]
    assert steps(core, 2) == []
    assert steps(core, 1) == [WAIT]  # what is staged has to come first
    assert core.handle(granted("merge", 2)) == [Adopt("param", "merge", True), Stage("param", 3, 3), WAIT]


def test_a_late_peer_that_adopts_drops_its_progress() -> None:
    core = started(Stream("param", every=3, late="adopt"))
    steps(core, 3)
    assert core.handle(granted("move", 1)) == [Adopt("param", "move", False)]
    assert steps(core, 2) == []
    assert steps(core, 1) == [Stage("param", 2, 2), WAIT]


def test_a_grant_for_another_staging_changes_nothing() -> None:
    core = started(Stream("param", every=1))
    steps(core, 1)
    assert core.handle(granted("merge", 2)) == []
    assert core.handle(granted("merge", 1, stream="other")) == []
    assert core.waiting == ("param",)
    core.handle(granted("merge", 1))
    assert core.handle(granted("merge", 1)) == []


def test_data_parallel_waits_for_the_mean_gradient_before_every_step() -> None:
    core = started(Stream("grad", state="grad", every=1, late="adopt"), Stream("param", every=2, late="adopt"))
    for step in range(1, 5):
        assert core.handle(BeforeStep()) == [Stage("grad", step, step - 1), Wait(("grad",))]
        assert core.handle(granted("grad", step, stream="grad", index=step)) == [Adopt("grad", "grad", False)]
        due = [Stage("param", step // 2, step // 2), WAIT] if step % 2 == 0 else []
        assert core.handle(AfterStep()) == due
        if due:
            core.handle(granted("merge", step // 2, index=step // 2))


def test_after_waiting_long_enough_training_goes_on_until_the_grant_comes() -> None:
    core = started(Stream("param", every=3))
    steps(core, 3)
    assert core.handle(WaitedLongEnough()) == []
    assert core.waiting == ()
    assert steps(core, 10) == []
    assert core.handle(granted("merge", 1)) == [Adopt("param", "merge", True), Stage("param", 2, 2), WAIT]


def test_a_newcomer_to_steps_made_together_contributes_weights_when_the_others_do() -> None:
    gradients = Stream("grad", state="grad", every=1, late="adopt")
    core = started(gradients, Stream("param", every=20, late="adopt"), index=7)
    for step in range(148, 160):
        core.handle(BeforeStep())
        core.handle(granted("grad", step - 147, stream="grad", index=step))
        assert core.handle(AfterStep()) == []
    core.handle(BeforeStep())
    core.handle(granted("grad", 13, stream="grad", index=160))
    assert core.handle(AfterStep()) == [Stage("param", 1, 1), Wait(("param",))]


def test_a_mean_gradient_that_comes_after_its_step_is_dropped() -> None:
    core = started(Stream("grad", state="grad", every=1, late="adopt"), Stream("param", every=50))
    assert core.handle(BeforeStep()) == [Stage("grad", 1, 0), Wait(("grad",))]
    core.handle(WaitedLongEnough())
    assert core.handle(AfterStep()) == []
    assert steps(core, 1) == []
    assert core.handle(granted("grad", 1, stream="grad")) == []
    assert core.handle(BeforeStep()) == [Stage("grad", 2, 1), Wait(("grad",))]


def test_a_fresh_start_takes_everything_over_and_forgets_what_was_staged() -> None:
    core = started(Stream("param", every=3))
    steps(core, 3)
    assert core.handle(granted("start", index=7, step=70)) == [Adopt("param", "start", False)]
    assert core.waiting == ()
    assert (core.rounds, core.global_step, core.steps_left) == (7, 70, 3)
    assert core.handle(granted("merge", 1)) == []


def test_the_runs_step_count_is_the_last_adoptions_and_own_steps_since() -> None:
    core = started(Stream("param", every=5, delay=2))
    steps(core, 7)
    core.handle(granted("merge", 1, index=1, step=5))
    assert (core.step, core.global_step) == (7, 7)
    steps(core, 3)
    assert core.global_step == 10


def test_a_contribution_says_which_grants_it_knows() -> None:
    """A `start` that crosses a Contribute makes it worthless; the daemon tells by the count."""
    core = started(Stream("param", every=3))
    assert steps(core, 3) == [Stage("param", 1, 1), WAIT]
    core.handle(granted("start", index=7))
    assert steps(core, 3) == [Stage("param", 2, 2), WAIT]
    core.handle(granted("merge", 1))  # it answers what is forgotten, and counts all the same
    core.handle(granted("merge", 2))
    assert steps(core, 3) == [Stage("param", 3, 4), WAIT]


def test_a_missed_mean_gradient_moves_no_weights() -> None:
    core = started(Stream("grad", state="grad", every=1, late="adopt"), Stream("param", every=50))
    core.handle(BeforeStep())
    assert core.handle(granted("start", stream="grad", index=9)) == []
    assert core.waiting == ()


def test_without_data_what_was_trained_is_staged_at_once_and_once() -> None:
    core = started(Stream("param", every=10))
    assert core.handle(OutOfData()) == []
    steps(core, 3)
    assert core.handle(OutOfData()) == [Stage("param", 1, 1)]
    assert core.handle(OutOfData()) == []
    assert core.waiting == ()  # it waits for data, not for the grant
    assert core.handle(granted("merge", 1)) == [Adopt("param", "merge", False)]
    assert core.handle(OutOfData()) == []
    assert steps(core, 9) == []
    assert steps(core, 1) == [Stage("param", 2, 2), WAIT]


def test_a_newcomer_falls_in_with_the_turns_of_the_others() -> None:
    """They are at step 37: of three streams of period 10 that of offset 7 has just been, that of offset 0 is next."""
    streams = [Stream(f"param-{offset}", every=10, offset=offset) for offset in (3, 7, 0)]
    core = TrainerCore(streams)
    for stream, index in zip(streams, (4, 4, 3), strict=True):
        core.handle(granted("start", stream=stream.name, index=index, step=37))
    staged = []
    for step in range(38, 60):
        for effect in steps(core, 1):
            if isinstance(effect, Stage):
                staged.append((step, effect.stream))
                core.handle(granted("merge", effect.serial, stream=effect.stream))
    assert staged == [
        (40, "param-0"),
        (43, "param-3"),
        (47, "param-7"),
        (50, "param-0"),
        (53, "param-3"),
        (57, "param-7"),
    ]


def test_a_trainer_that_continues_waits_only_when_the_stream_is_due_again() -> None:
    core = started(Stream("param", every=5, delay=2, overdue="continue"))
    assert steps(core, 5) == [Stage("param", 1, 1)]
    assert steps(core, 4) == []
    assert steps(core, 1) == [WAIT]
    assert core.handle(granted("merge", 1)) == [Adopt("param", "merge", True), Stage("param", 2, 2)]


def test_streams_are_under_way_at_the_same_time_and_waited_for_one_by_one() -> None:
    first, second = Stream("a", every=6, offset=2, delay=3), Stream("b", every=6, offset=4, delay=3)
    core = started(first, second)
    assert steps(core, 4) == [Stage("a", 1, 1), Stage("b", 1, 1)]
    assert core.outstanding == ("a", "b")
    assert steps(core, 1) == [Wait(("a",))]
    assert core.handle(granted("merge", 1, stream="a", step=2)) == [Adopt("a", "merge", True)]
    assert steps(core, 1) == []
    assert core.handle(granted("merge", 1, stream="b", step=4)) == [Adopt("b", "merge", True)]
    assert core.global_step == core.step == 6


def test_a_mean_gradient_that_is_not_to_be_had_leaves_the_periods_of_weights_alone() -> None:
    core = started(Stream("grad", state="grad", every=1, late="adopt"), Stream("param", every=50))
    for step in range(1, 4):
        core.handle(BeforeStep())
        core.handle(granted("grad", step, stream="grad", index=step))
        core.handle(AfterStep())
    core.handle(BeforeStep())
    core.handle(granted("start", stream="grad", index=9))
    assert core._streams["param"].since == 3


def test_what_missed_its_sync_is_not_waited_for_before_the_next_one() -> None:
    core = started(Stream("param", every=6, delay=2))
    steps(core, 6)
    assert core.handle(granted("move", 1)) == [Adopt("param", "move", False), Stage("param", 2, 2)]
    assert steps(core, 5) == []
    assert steps(core, 1) == [WAIT]


def test_a_grant_that_is_told_twice_counts_once_and_one_that_was_lost_is_made_up_for() -> None:
    core = TrainerCore((Stream("param", every=3),))
    start = Granted("param", "start", 0, 0, 0, count=1)
    assert core.handle(start) == [Adopt("param", "start", False)]
    assert core.handle(start) == []
    assert core.received == {"param": 1}
    assert core.handle(Granted("param", "start", 0, 0, 0, count=3)) == [Adopt("param", "start", False)]
    assert core.received == {"param": 3}
