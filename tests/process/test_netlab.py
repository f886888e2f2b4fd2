"""The lab on real network namespaces: links do what their shape says, and nothing of it stays behind."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from wantrain.errors import WantrainError
from wantrain.lab import Lab, Shape, available
from wantrain.lab.streams import rate_bytes_per_s

pytestmark = pytest.mark.skipif(bool(available()), reason=available())

DEADLINE_S = 10.0
ROOT = Path(__file__).parents[2]

ECHO = """
import socket
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as echo:
    echo.bind(("0.0.0.0", 0))
    print(echo.getsockname()[1], flush=True)
    while True:
        data, sender = echo.recvfrom(2000)
        echo.sendto(data, sender)
"""
# Every line in is one packet out; what comes back within the given time is answered with how long it took.
PING = """
import socket, sys, time
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as ping:
    for number, line in enumerate(sys.stdin):
        ping.settimeout(float(line))
        begin = time.monotonic()
        ping.sendto(str(number).encode(), (sys.argv[1], int(sys.argv[2])))
        try:
            while ping.recv(2000) != str(number).encode():
                pass
            print(time.monotonic() - begin, flush=True)
        except TimeoutError:
            print("lost", flush=True)
"""
# A starter that leaves a process and its child on a host, and then does not end by itself.
STARTER = """
import subprocess, sys
from wantrain.lab import Lab, Shape
with Lab(2, Shape()) as lab:
    host = lab.popen(1, ["sh", "-c", "sleep 600 & echo $!; wait"], stdout=subprocess.PIPE, text=True)
    print(host.pid, host.stdout.readline().strip(), flush=True)
    host.wait()
"""


class Pinger:
    """Round trips from host 0 to host 1, one at a time."""

    def __init__(self, lab: Lab) -> None:
        self._echo = lab.popen(1, [sys.executable, "-c", ECHO], stdout=subprocess.PIPE, text=True)
        assert self._echo.stdout is not None
        port = self._echo.stdout.readline().strip()
        command = [sys.executable, "-c", PING, lab.address(1), port]
        self._ping = lab.popen(0, command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def round_trip_s(self, within_s: float = DEADLINE_S) -> float | None:
        """None if nothing came back in time."""
        assert self._ping.stdin is not None
        assert self._ping.stdout is not None
        self._ping.stdin.write(f"{within_s}\n")
        self._ping.stdin.flush()
        answer = self._ping.stdout.readline().strip()
        return None if answer == "lost" else float(answer)

    def close(self) -> None:
        for process in (self._echo, self._ping):
            process.kill()
            process.communicate()


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab(2, Shape.parse("rate=100mbit,rtt=60ms"), seed=1) as made:
        yield made


@pytest.fixture
def pinger(lab: Lab) -> Iterator[Pinger]:
    made = Pinger(lab)
    yield made
    made.close()


def alive(process: int) -> bool:
    """Whether a process runs; one that has ended and was not waited for does not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def until_gone(processes: list[int]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while any(alive(process) for process in processes):
        assert time.monotonic() < deadline, f"{processes} outlive their lab"


def test_a_round_trip_takes_at_least_what_the_shape_says(lab: Lab, pinger: Pinger) -> None:
    taken_s = pinger.round_trip_s()
    assert taken_s is not None
    assert taken_s >= 0.060
    stats = lab.stats()
    assert stats[0, 1].packets == stats[1, 0].packets == 1
    assert stats[0, 1].size_bytes == 20 + 8 + 1


def test_a_shape_is_changed_while_the_link_is_used(lab: Lab, pinger: Pinger) -> None:
    assert pinger.round_trip_s() is not None
    lab.shape(0, 1, Shape.parse("down"))
    assert pinger.round_trip_s(0.3) is None
    assert lab.stats()[0, 1].lost == 1
    lab.shape(0, 1, Shape.parse("delay=300ms"))
    taken_s = pinger.round_trip_s()
    assert taken_s is not None
    assert taken_s >= 0.330, "300 ms there, 30 ms back"


def test_tcp_arrives_whole_through_loss_and_a_small_queue() -> None:
    """Bursts are cut at every loss: what the receiver puts together has to be what was sent."""
    receive = (
        "import hashlib, socket\n"
        "with socket.create_server(('0.0.0.0', 0)) as server:\n"
        "    print(server.getsockname()[1], flush=True)\n"
        "    with server.accept()[0] as other, other.makefile('rb') as stream:\n"
        "        print(hashlib.file_digest(stream, 'sha256').hexdigest())\n"
    )
    send = (
        "import hashlib, random, socket, sys\n"
        "data = random.Random(1).randbytes(4_000_000)\n"
        "with socket.create_connection((sys.argv[1], int(sys.argv[2]))) as other:\n"
        "    other.sendall(data)\n"
        "print(hashlib.sha256(data).hexdigest())\n"
    )
    with Lab(2, Shape.parse("rate=200mbit,rtt=4ms,loss=1%,queue=64KB"), seed=3) as lab:
        receiver = lab.popen(1, [sys.executable, "-c", receive], stdout=subprocess.PIPE, text=True)
        assert receiver.stdout is not None
        port = receiver.stdout.readline().strip()
        sender = lab.popen(0, [sys.executable, "-c", send, lab.address(1), port], stdout=subprocess.PIPE, text=True)
        sent = sender.communicate(timeout=DEADLINE_S)[0]
        assert receiver.communicate(timeout=DEADLINE_S)[0] == sent != ""
        stats = lab.stats()[0, 1]
    assert stats.lost > 0
    assert stats.packets >= 4_000_000 / 1448 + stats.lost + stats.dropped
    assert stats.size_bytes >= stats.packets * 1000, "bursts count as the packets they stand for"


def test_tcp_gets_no_more_than_the_rate_and_the_upload_limit(lab: Lab) -> None:
    lab.limit(0, 20e6 / 8)
    rate = rate_bytes_per_s(lab, 0, 1, streams=2, congestion="reno", skip_s=0.5, seconds=1.0)
    # Half of it again for what was sent before and is read within the second.
    assert 0 < rate < 1.5 * 20e6 / 8


def test_hosts_have_the_congestion_control_they_are_given() -> None:
    show = "import socket; print(socket.socket().getsockopt(6, socket.TCP_CONGESTION, 16).rstrip(b'\\0').decode())"
    with Lab(1, Shape(), congestion="reno") as lab:
        child = lab.popen(0, [sys.executable, "-W", "ignore", "-c", show], stdout=subprocess.PIPE, text=True)
        assert child.communicate(timeout=DEADLINE_S)[0].strip() == "reno"
    with pytest.raises(WantrainError, match="'no-such' is refused"), Lab(1, Shape(), congestion="no-such"):
        pass


def test_leaving_the_lab_ends_all_that_runs_on_its_hosts() -> None:
    descriptors = len(os.listdir("/proc/self/fd"))
    with Lab(2, Shape()) as lab:
        # It ignores SIGTERM and has a child that the lab was never told of.
        stubborn = "trap '' TERM; sleep 600 & echo $!; wait; wait"
        child = lab.popen(0, ["sh", "-c", stubborn], stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None
        grandchild = int(child.stdout.readline())
        assert os.stat(f"/proc/{grandchild}/ns/net").st_ino != os.stat("/proc/self/ns/net").st_ino
    child.stdout.close()
    until_gone([child.pid, grandchild])
    assert len(os.listdir("/proc/self/fd")) == descriptors, "an open descriptor would keep a namespace"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_lab_does_not_outlive_a_starter_that_is_ended(number: signal.Signals) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", STARTER], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as starter:
        assert starter.stdout is not None
        processes = [int(word) for word in starter.stdout.readline().split()]
        assert len(processes) == 2
        starter.send_signal(number)
        assert starter.wait(DEADLINE_S) != 0
    until_gone(processes)


def test_a_lab_whose_switch_is_gone_says_so(lab: Lab) -> None:
    os.kill(lab._switch.pid, signal.SIGKILL)
    with pytest.raises(WantrainError, match="switch has ended"):
        lab.stats()


def netlab(*arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "wantrain.lab.command", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)


def test_the_command_runs_on_all_hosts_and_gives_the_worst_exit_code() -> None:
    done = netlab("run", "--hosts", "3", "--stats", "--", "sh", "-c", "echo {host} $WANTRAIN_LAB_PEERS; exit {host}")
    peers = "10.77.0.1,10.77.0.2,10.77.0.3"
    assert sorted(done.stdout.splitlines()) == [f"[{host}] {host} {peers}" for host in range(3)]
    assert done.returncode == 2
    assert "2 > 0: 0.000 MB" in done.stderr


def test_the_command_changes_links_when_it_is_told_to() -> None:
    """Host 0 sends until a packet is answered, which can only be after the change."""
    talk = (
        "import os, socket\n"
        "with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as talk:\n"
        "    talk.bind(('0.0.0.0', 5000))\n"
        "    talk.settimeout(0.02)\n"
        "    while True:\n"
        "        try:\n"
        "            if {host} == 0: talk.sendto(b'x', ('{address1}', 5000))\n"
        "            data, sender = talk.recvfrom(10)\n"
        "            if {host} == 1: talk.sendto(b'y', sender)\n"
        "            break\n"
        "        except TimeoutError:\n"
        "            pass\n"
        "print('met')\n"
    )
    done = netlab(
        "run", "--shape", "loss=100%", "--at", "0.5:1-0:rtt=1ms", "--at", "0.5:0-1:rtt=1ms", "--stats", "--",
        sys.executable, "-c", talk,
    )  # fmt: skip
    assert sorted(done.stdout.splitlines()) == ["[0] met", "[1] met"], done.stderr
    assert done.returncode == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--shape", "rate=5"), "rate is '5'"),
        (("--at", "soon"), "--at is 'soon', allowed is SECONDS:FROM-TO:SHAPE"),
        (("--at", "1:0-5:down"), "host 5, allowed are 0 to 1"),
        (("--upload", "5"), "--upload is '5', allowed is HOST=RATE"),
        (("--upload", "0=50"), "--upload is '0=50': rate is '50'"),
        (("--hosts", "65"), "allowed are 1 to 64"),
    ],
)
def test_the_command_names_what_is_wrong_and_the_next_step(arguments: tuple[str, ...], words: str) -> None:
    done = netlab("run", *arguments, "--", "sleep", "600")
    assert words in done.stderr
    assert "next: " in done.stderr
    assert done.returncode == 2
