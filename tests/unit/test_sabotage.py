"""The switches that kill processes at chosen moments, which tests of failures rely on."""

import os
import signal

import pytest

from wantrain.errors import ConfigError
from wantrain.peers.messages import Commit, Part, SyncId, View
from wantrain.peers.sabotage import COORDINATOR_VARIABLE, VARIABLE, CoordinatorKillSwitch, KillSwitch


@pytest.fixture
def killed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """What would have been killed: a process or a group."""
    victims: list[tuple[str, int]] = []
    monkeypatch.setattr(os, "kill", lambda pid, number: victims.append(("process", pid)))
    monkeypatch.setattr(os, "killpg", lambda group, number: victims.append(("group", group)))
    assert signal.SIGKILL
    return victims


@pytest.mark.parametrize(
    ("moment", "victim"),
    [("param#3:moving", ("group", os.getpgrp())), ("param#3:moving daemon", ("process", os.getpid()))],
)
def test_a_peer_ends_when_its_first_bytes_of_the_sync_are_due(
    killed: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch, moment: str, victim: tuple[str, int]
) -> None:
    assert KillSwitch.from_environment() is None
    monkeypatch.setenv(VARIABLE, moment)
    switch = KillSwitch.from_environment()
    assert switch is not None
    switch.sending(Part(SyncId("param", 2, 1), (0,)))
    switch.sending(View(1, ()))
    assert killed == []
    switch.sending(Part(SyncId("param", 3, 1), (0,)))
    assert killed == [victim]


def test_a_coordinator_ends_at_the_chosen_moment_of_a_commit(
    killed: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert CoordinatorKillSwitch.from_environment() is None
    monkeypatch.setenv(COORDINATOR_VARIABLE, "8:send")
    switch = CoordinatorKillSwitch.from_environment()
    assert switch is not None
    switch.at("persist", 8)
    switch.at("persisted", 8)
    switch.sent(Commit((), 7))
    assert killed == []
    switch.sent(Commit((), 8))
    assert killed == [("process", os.getpid())]


def test_a_moment_that_does_not_exist_is_refused() -> None:
    for make in (KillSwitch, CoordinatorKillSwitch):
        with pytest.raises(ConfigError) as caught:
            make("param#3:soon")
        assert "soon" in caught.value.message
