"""What the doctor says: each finding has its level, and whatever is not ok a next step."""

from dataclasses import replace

import pytest

from wantrain.peers.findings import Finding, Met, Room, of_clock, of_codecs, of_invite, of_members, of_room
from wantrain.peers.messages import Examined

GOOD = Examined(1000, "1.0", "", 3, (), 10**9, (), {})
ROOM = Room(10**10, 10**10, "/dev/shm", 10**10, "/home", 10**5)


def only(findings: list[Finding], check: str) -> Finding:
    (found,) = [finding for finding in findings if finding.check == check]
    return found


@pytest.mark.parametrize(
    ("apart_s", "level", "words"),
    [(0, "ok", "agree"), (60, "ok", "60 s ahead of"), (-60, "ok", "60 s behind"), (61, "warn", "61 s ahead of")],
)
def test_clocks_that_differ_are_named_with_the_difference(apart_s: int, level: str, words: str) -> None:
    found = of_clock(1000 + apart_s, 1000)
    assert (found.level, words in found.text, bool(found.next)) == (level, True, level != "ok")


def test_an_invite_is_good_refused_or_not_needed() -> None:
    assert "3 uses left; this check takes none" in of_invite(GOOD, known=False).text
    refused = of_invite(replace(GOOD, invite="it was for 1 peer, all used"), known=False)
    assert (refused.level, refused.text) == ("fail", "refused: it was for 1 peer, all used")
    assert "knows this machine's identity" in of_invite(GOOD, known=True).text


def test_a_version_without_the_runs_codecs_fails_with_the_version_to_install() -> None:
    found = of_codecs(replace(GOOD, missing_codecs=("e9m9",)), "0.9")
    assert (found.level, found.next) == ("fail", "install wantrain 1.0, as at the coordinator")
    assert of_codecs(GOOD, "0.9").level == "ok"


@pytest.mark.scenario(18)
@pytest.mark.parametrize(
    ("met", "address", "level", "words"),
    [
        (
            Met("ben", "h:1", "both", 1e7, 0.02),
            "me:1",
            "ok",
            "direct, either side can dial, round trip 20 ms, 80 Mbit/s",
        ),
        (Met("ben", "h:1", "out"), "me:1", "ok", "direct, only this machine can dial, it cannot dial me:1"),
        (Met("ben", "h:1", "out"), "", "ok", "direct, only this machine can dial"),
        (Met("ben", "h:1", "in"), "me:1", "ok", "direct, only it can dial; h:1 cannot be dialled from here"),
        (Met("ben", "", "in"), "me:1", "ok", "direct, only it can dial"),
        (
            Met("ben", "", "", through=("anna",)),
            "",
            "warn",
            "relayed through anna: it only dials out, this machine only",
        ),
        (Met("ben", "h:1", ""), "me:1", "fail", "no way at all: h:1 cannot be dialled from here, it cannot dial me:1"),
    ],
)
def test_the_way_to_a_peer_is_named(met: Met, address: str, level: str, words: str) -> None:
    (found,) = of_members([met], address)
    assert found.level == level
    assert words in found.text
    assert ("--advertise" in found.next) == (level != "ok")


def test_room_that_is_not_enough_is_named_with_what_is_needed() -> None:
    assert {finding.level for finding in of_room(ROOM, 10**9, 4)} == {"ok"}
    memory = only(of_room(replace(ROOM, memory_bytes=4 * 10**9), 10**9, 4), "memory")
    assert (memory.level, memory.text) == ("fail", "4 GB free for the daemon, besides the trainer, 4.3 GB needed")
    shared = only(of_room(replace(ROOM, shared_bytes=64 << 20), 10**9, 4), "shared memory")
    assert (shared.level, shared.text) == ("fail", "67.2 MB free in /dev/shm, 2 GB needed")
    assert only(of_room(replace(ROOM, home_bytes=0), 10**9, 4), "disk").level == "fail"
    files = [only(of_room(replace(ROOM, files=count), 10**9, 4), "files") for count in (150, 256, 1024)]
    assert [(found.level, found.next) for found in files] == [
        ("fail", "raise it: ulimit -n 700"), ("warn", "raise it: ulimit -n 700"), ("ok", ""),
    ]  # fmt: skip


def test_what_cannot_be_told_is_a_warning() -> None:
    findings = of_room(replace(ROOM, memory_bytes=-1), 0, 0)
    assert {finding.check for finding in findings if finding.level == "warn"} == {"memory", "model"}
