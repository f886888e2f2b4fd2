"""Records that are valid one by one, in any order, from a member that means harm: they end nothing and grow nothing."""

import random
from dataclasses import is_dataclass
from typing import Any, get_args, get_origin, get_type_hints

import pytest

from tests.unit.test_coordinator_core import run
from tests.unit.test_peer_shell import CHAIN0, SYNC, running
from wantrain.errors import WireError
from wantrain.peers.commit_log import ATTEMPTS_PER_EPOCH
from wantrain.peers.coordinator import FromPeer, Tick
from wantrain.peers.messages import Contribute, Record, Report, Start, pack, unpack

pytestmark = pytest.mark.scenario(13)

TEXTS = [
    "param",
    "a",
    "b",
    "c",
    "me",
    "nobody",
    "coordinator",
    "",
    "direct",
    "ring",
    "ready",
    "moving",
    "done",
    "failed",
]
TEXTS += ["none", "starting", "training", "waiting", "start", "merge", "x" * 64, "\udcff", "no\nline"]
NUMBERS = [0, 1, 2, 3, 4, 5, 7, -1, 2**31, 2**62]
BYTES = [b"", b"x" * 8, b"bootboot", b"k" * 32, b"d" * 32, CHAIN0, b"s" * 64]


def draw(rng: random.Random, hint: Any) -> Any:
    """A value of a type, with an eye to those that mean something; perhaps one that is out of range."""
    if isinstance(hint, type) and is_dataclass(hint):
        if hint.__name__ == "SyncId" and rng.random() < 0.5:
            return SYNC
        return hint(**{name: draw(rng, kind) for name, kind in get_type_hints(hint).items()})
    if get_origin(hint) is tuple:
        return tuple(draw(rng, get_args(hint)[0]) for _ in range(rng.choice([0, 1, 1, 2, 5])))
    if get_origin(hint) is dict:
        key, value = get_args(hint)
        return {draw(rng, key): draw(rng, value) for _ in range(rng.choice([0, 1, 3]))}
    values: dict[Any, list[Any]] = {str: TEXTS, int: NUMBERS, bytes: BYTES, bool: [False, True]}
    if hint is float:
        return rng.choice([0.0, 1.0, -1.0, 1e-300, 1e15, 1e300, float("inf"), float("nan")])
    return rng.choice(values.get(hint, [1]))


def records(rng: random.Random, count: int, leave_out: tuple[type, ...] = ()) -> list[Record]:
    """As they would come off the wire: what is not valid has been dropped there."""
    kinds = [kind for kind in Record.__args__ if kind not in leave_out]
    found: list[Record] = []
    while len(found) < count:
        try:
            found.append(unpack(pack(draw(rng, rng.choice(kinds)))))
        except (WireError, UnicodeError):
            continue
    return found


@pytest.mark.parametrize("seed", range(6))
def test_a_peer_goes_on_whatever_a_member_says(seed: int) -> None:
    rng = random.Random(seed)
    one = running()
    one.say(Contribute("param", 1, 10, 0, 1))
    one.start()
    for turn, record in enumerate(records(rng, 1500)):
        buffers = tuple(rng.choice(["false", "part", "state"]) for _ in range(rng.choice([0, 1, 1, 2, 64])))
        one.peer.receive(rng.choice(["b", "c", "stranger"]), record, buffers, turn / 100)
        one.peer.tick(turn / 100)
    assert one.around.exits == []
    assert len(one.peer._owed) < 10
    assert one.peer.backlog < 1000
    assert one.peer.core.applied == 0, "nobody but the coordinator commits"
    one.start(attempt=10**6, contributors=("me",))
    one.commit(("me",), attempt=10**6)
    assert one.peer.core.applied == 1


@pytest.mark.parametrize("seed", range(6))
def test_the_coordinator_goes_on_whatever_a_member_says(seed: int) -> None:
    rng = random.Random(seed)
    made = run("a", "b", "c")
    mine = get_type_hints(Report)
    for turn, record in enumerate(records(rng, 700, leave_out=(Report,))):
        now = 1.0 + turn / 100
        made.tell("c", record, now)
        for _ in range(2):  # reports are the most that it may say
            report = {name: draw(rng, hint) for name, hint in mine.items()} | {
                "boot": b"bootboot",
                "sequence": 10 + turn,
                "revision": made.core.epoch * ATTEMPTS_PER_EPOCH + 1,
            }
            try:
                made.handle(FromPeer("c", unpack(pack(Report(**report))), b"k" * 32), now)
            except (WireError, UnicodeError):
                continue
        if turn % 20 == 0:
            for peer in "ab":
                made.report(peer, made.core.head, now)
            made.handle(Tick(), now)
    assert {"a", "b"} <= set(made.core.membership.members)
    known = {"a", "b", "c"}
    assert set(made.core.membership.peers) <= known
    assert set(made.core.links.paths) <= known
    assert set(made.core.offences._accusers) <= known
    assert not [said for said in made.said if said.event == "refetch" and said.details["peer"] != "c"]
    start = [send.record for send in made.sent if isinstance(send.record, Start)]
    assert all(set(one.contributors) <= known for one in start)
