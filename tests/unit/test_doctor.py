"""The doctor's own steps over real sockets: peers that are dialled, dial, or cannot be met are told apart."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from wantrain.peers.doctor import Doctor, _measure
from wantrain.peers.messages import Examined, Member, Visitor
from wantrain.peers.visitors import Visitors
from wantrain.transport.auth import Identity, Invite, RunKeys
from wantrain.transport.zmq_link import ZmqLink

RUN = b"run-id-8"


class Neighbour:
    """A peer's link and its desk for visitors, served by a thread; `dialled`: it listens."""

    def __init__(self, name: str, visitor: Visitor, *, dialled: bool) -> None:
        identity = Identity.create()
        members: dict[bytes, str] = {}
        key = (identity.curve_public, identity.curve_secret)
        self._link = ZmqLink(RUN, bind="127.0.0.1:0" if dialled else None, key=key, admit=members.get)
        self._visitor = visitor
        self._desk = Visitors(self._link, members)
        self.member = Member(name, name, self._link.address, identity.curve_public, True)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        self._desk.announced(self._visitor, 0.0)
        while not self._stop.is_set():
            self._link.poll(0.01)
        self._link.close()

    def close(self) -> None:
        self._stop.set()
        self._thread.join()


@pytest.fixture
def neighbours() -> Iterator[list[Neighbour]]:
    made: list[Neighbour] = []
    yield made
    for neighbour in made:
        neighbour.close()


@pytest.mark.scenario(18)
@pytest.mark.parametrize("listens", [True, False])
def test_who_is_dialled_who_dials_and_who_is_relayed(listens: bool, neighbours: list[Neighbour]) -> None:
    me, members = Identity.create(), dict[bytes, str]()
    key = (me.curve_public, me.curve_secret)
    link = ZmqLink(RUN, bind="127.0.0.1:0" if listens else None, key=key, admit=members.get)
    visitor = Visitor(me.curve_public, link.address, 20)
    try:
        neighbours += [Neighbour("anna", visitor, dialled=True), Neighbour("ben", visitor, dialled=False)]
        answer = Examined(0, "0", "", 1, (), 0, (), {})
        anna, ben = _measure(link, [neighbour.member for neighbour in neighbours], answer, members)
    finally:
        link.close()
    assert (anna.way, ben.way) == (("both", "in") if listens else ("out", ""))
    assert ben.through == (() if listens else ("anna",))
    assert anna.rate_bytes_per_s > 0
    assert anna.rtt_s > 0
    assert (ben.rate_bytes_per_s > 0) == listens


def test_what_is_wrong_with_the_invite_or_the_address_does_not_end_the_checks() -> None:
    invite = Invite.issue(RunKeys.create(), RUN, "no-such-host.invalid", 7700, 2**32)
    for text, failed in (("wantrain://x", "invite"), (str(invite), "address")):
        findings = list(Doctor(text, None).run())
        assert next(finding.check for finding in findings if finding.level == "fail") == failed
        assert findings[-1].check == "software"


def test_the_doctor_needs_no_torch_and_knows_the_codecs_that_a_peer_has() -> None:
    code = (
        "import sys; from wantrain.peers.doctor import NAMES; assert 'torch' not in sys.modules;"
        "from wantrain.transport.codec import CODECS; assert NAMES == tuple(sorted(CODECS))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=False).returncode == 0


def test_a_device_is_looked_at_if_one_is_named() -> None:
    (finding,) = [found for found in Doctor("", device="cuda:99")._host(Path(), 0) if found.check == "device"]
    assert finding.level == "fail"
    assert "device is 'cuda:99', and PyTorch finds" in finding.text
    assert "--device cpu always works" in finding.next
    assert "device" not in {found.check for found in Doctor("")._host(Path(), 0)}
