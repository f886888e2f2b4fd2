"""How a peer gets in: what it asks and when, what it says while it waits, and which error ends it."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from wantrain.clock import FakeClock
from wantrain.errors import InviteError, RefusedError, UnreachableError, WantrainError
from wantrain.peers.admission import COORDINATOR, IDENTITY_PATIENCE_S, Admission
from wantrain.peers.messages import Enrolled, Record, Refused, Waiting, Welcome, pack, unpack
from wantrain.peers.place import Place, open_place
from wantrain.transport.auth import Invite, RunKeys
from wantrain.transport.link import Connected, Disconnected, Dropped, LinkEvent, Received
from wantrain.transport.wire import Message

RUN = bytes(range(8))
INVITE = Invite.issue(RunKeys.create(), RUN, "127.0.0.1", 7700, 2**32)
WELCOME = Welcome("me", 1, "", -1, b"", b"", {}, ())
UP = Connected(COORDINATOR)


class ScriptedLink:
    """Answers each question with what `answer` makes of its kind; a poll lets the clock go on by its timeout."""

    def __init__(self, clock: FakeClock, answer: Callable[[str], list[LinkEvent]]) -> None:
        self.asked: list[str] = []
        self.dialled: list[bool] = []
        self._clock = clock
        self._answer = answer
        self._events: list[LinkEvent] = []

    def connect(self, *_: Any, client_key: Any = None) -> None:
        self.dialled.append(client_key is not None)
        self._events += self._answer("connect")

    def disconnect(self, _: str) -> None:
        self._events = []

    def send(self, _: str, message: Message) -> bool:
        self.asked.append(type(unpack(message)).__name__)
        self._events += self._answer(self.asked[-1])
        return True

    def poll(self, timeout_s: float) -> list[LinkEvent]:
        self._clock.advance(timeout_s)
        events, self._events = self._events, []
        return events


def came(record: Record) -> LinkEvent:
    return Received(COORDINATOR, b"", pack(record))


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with open_place(RUN, tmp_path, "anna") as opened:
        yield opened


Talk = tuple[Welcome | WantrainError, ScriptedLink, list[dict[str, Any]]]


def talk(place: Place, answers: dict[str, list[LinkEvent]], give_up_s: float = 10.0) -> Talk:
    clock = FakeClock()
    link = ScriptedLink(clock, lambda question: answers.get(question, []))
    said: list[dict[str, Any]] = []
    admission = Admission(link, INVITE, place, "", said.append, clock)  # type: ignore[arg-type]
    try:
        return admission.run(give_up_s), link, said
    except WantrainError as error:
        return error, link, said


def test_a_newcomer_enrolls_with_the_invites_key_then_greets_with_its_own(place: Place) -> None:
    answers = {"connect": [UP], "Enroll": [came(Enrolled("me"))], "Hello": [came(WELCOME)]}
    result, link, _ = talk(place, answers)
    assert result == WELCOME
    assert link.asked == ["Enroll", "Hello"]
    assert link.dialled == [True, False]
    result, link, _ = talk(place, answers)
    assert link.asked == ["Hello"]


def test_a_peer_that_was_forgotten_enrolls_again(place: Place) -> None:
    place.mark_enrolled()
    refused = [Disconnected(COORDINATOR, "refused: key not admitted")]
    result, link, _ = talk(place, {"connect": refused})
    assert isinstance(result, InviteError)
    assert "does not know this invite" in result.message
    assert link.dialled == [False, True]


def test_waiting_is_told_less_and_less_often_until_it_gives_up(place: Place) -> None:
    result, _, said = talk(place, {"connect": [Disconnected(COORDINATOR, "nobody listens")]}, give_up_s=100.0)
    assert isinstance(result, UnreachableError)
    assert "for 100 s: nobody listens" in result.message
    assert [round(event["waited_s"]) for event in said] == [2, 6, 14, 30, 60, 90]
    assert "no coordinator at 127.0.0.1:7700 yet: nobody listens; trying again" in said[0]["reason"]


def test_a_question_without_an_answer_is_asked_again(place: Place) -> None:
    result, link, _ = talk(place, {"connect": [UP]})
    assert isinstance(result, UnreachableError)
    assert "connected, but no answer" in result.message
    assert len(link.asked) == 5


def test_an_identity_in_use_is_waited_for_but_not_for_ever(place: Place) -> None:
    place.mark_enrolled()
    in_use = came(Refused("identity-in-use", "another live process uses the identity of anna"))
    result, link, said = talk(place, {"connect": [UP], "Hello": [in_use]}, give_up_s=1000.0)
    assert isinstance(result, RefusedError)
    assert "another live process" in result.message
    assert IDENTITY_PATIENCE_S / 2 - 1 <= len(link.asked) <= IDENTITY_PATIENCE_S / 2 + 1
    assert all("another live process" in event["reason"] for event in said)


def test_a_coordinator_that_waits_is_asked_again_and_its_reason_said(place: Place) -> None:
    place.mark_enrolled()
    in_use, waits = Refused("identity-in-use", "the former process"), Waiting("writing the commit of param#4")
    result, link, said = talk(place, {"connect": [UP], "Hello": [came(in_use), came(waits)]}, give_up_s=100.0)
    assert isinstance(result, UnreachableError)
    assert "it is there and waits: writing the commit of param#4" in result.message
    assert len(link.asked) > 40
    assert all("writing the commit of param#4; trying again" in event["reason"] for event in said)


@pytest.mark.parametrize(
    ("answers", "kind", "words"),
    [
        ({"Enroll": [came(Refused("invite", "used up", "ask for another"))]}, InviteError, "used up"),
        ({"Enroll": [came(Refused("codec", "no int8"))]}, RefusedError, "no int8"),
        (
            {"Enroll": [Dropped(COORDINATOR, "protocol 2, here 1")]},
            RefusedError,
            "another protocol: protocol 2, here 1",
        ),
        ({"Enroll": [Received(COORDINATOR, b"", Message("Nonsense"))]}, RefusedError, "cannot be read"),
        (
            {"connect": [Disconnected(COORDINATOR, "handshake failed: the other side has another key")]},
            InviteError,
            "not the one that this invite is for",
        ),
    ],
)
def test_refusals_end_it_at_once(
    place: Place, answers: dict[str, list[LinkEvent]], kind: type[WantrainError], words: str
) -> None:
    result, _, _ = talk(place, {"connect": [UP], **answers})
    assert type(result) is kind
    assert words in result.message
