"""Ctrl-C, SIGTERM and a second signal: peers, trainers and coordinators end within a bound and leave nothing behind."""

import signal
from collections.abc import Callable

import pytest

from tests.process.harness import Run
from tests.process.test_reattach import left_behind, trainer_of
from wantrain.peers.orphan import started_at
from wantrain.peers.status import address_path


@pytest.mark.scenario(24)
@pytest.mark.parametrize(("number", "group"), [(signal.SIGINT, True), (signal.SIGTERM, False)])
def test_a_peer_that_is_told_to_go_leaves_in_order_and_nothing_behind(
    new_run: Callable[..., Run], number: int, group: bool
) -> None:
    run = new_run()
    run.peer("anna")
    run.peer("bert")
    run.until_commits(3, "anna", "bert")
    trainer = trainer_of(run, "bert")
    run.signal("bert", number, group=group)  # a terminal sends its SIGINT to daemon and trainer
    assert run.exit_code("bert") == 0
    assert [event["name"] for event in run.events("coordinator", "left")] == ["bert"]
    assert not started_at(trainer)
    assert left_behind(run, "bert") == []
    run.until_commits(3, "anna")
    run.signal("coordinator", number)
    assert run.exit_code("coordinator") == 0
    assert not address_path(run.run_file).exists()
    run.coordinator()
    run.until_commits(2, "anna")
    run.assert_parity("anna")
    run.stop("anna")


@pytest.mark.scenario(24)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_a_peer_and_its_trainer_at_once(new_run: Callable[..., Run], number: int) -> None:
    run = new_run()
    run.peer("anna")
    run.until_commits(2, "anna")
    run.signal("coordinator", signal.SIGSTOP)
    run.until(lambda: "waiting" in run.log("anna"), "it has something in flight that nobody decides about")
    trainer = trainer_of(run, "anna")
    run.signal("anna", number)
    run.until(lambda: run.events("anna", "leaving"), "it takes its leave")
    run.signal("anna", number)
    assert run.exit_code("anna") == 128 + number
    run.until(lambda: not started_at(trainer), "its trainer is gone")
    assert left_behind(run, "anna") == []
    run.signal("coordinator", signal.SIGCONT)
    run.assert_one_history("anna")


@pytest.mark.scenario(24)
def test_a_peer_that_has_not_joined_yet_ends_at_once(new_run: Callable[..., Run]) -> None:
    run = new_run()
    run.signal("coordinator", signal.SIGSTOP)
    for name, number in (("anna", signal.SIGTERM), ("bert", signal.SIGINT)):
        run.peer(name)
        run.until(lambda name=name: run.events(name, "listening"), f"{name} is on its way")
        run.signal(name, number)
        assert run.exit_code(name) == 128 + number
        assert left_behind(run, name) == []
