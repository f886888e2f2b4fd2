"""What the kernel says of a TCP connection, and what it can be told, on a real connection of loopback."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from wantrain.transport.tcp_info import BBR, Ends, ends_of, restart_congestion, tcp_info, use_congestion

ALLOWED = Path("/proc/sys/net/ipv4/tcp_allowed_congestion_control")
CONTROLS = ALLOWED.read_text(encoding="ascii").split() if ALLOWED.exists() else []
SENT_BYTES = 1 << 20


class Connection:
    """Two ends of one connection over loopback."""

    def __init__(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            self.near = socket.create_connection(server.getsockname())
            self.far, _ = server.accept()
        ends = ends_of(self.near.fileno())
        assert ends is not None
        self.descriptor, self.ends = self.near.fileno(), ends

    def carry(self) -> None:
        """Send SENT_BYTES, in pieces that both buffers hold."""
        piece = bytes(1 << 15)
        for _ in range(SENT_BYTES // len(piece)):
            self.near.sendall(piece)
            left = len(piece)
            while left:
                left -= len(self.far.recv(left))


@pytest.fixture
def connection() -> Iterator[Connection]:
    made = Connection()
    yield made
    made.near.close()
    made.far.close()


@pytest.mark.skipif(not CONTROLS, reason="not Linux")
def test_a_control_that_begins_again_is_the_one_that_was_in_use(connection: Connection) -> None:
    for name in CONTROLS:
        assert use_congestion(connection.descriptor, connection.ends, name) == name
        connection.carry()
        assert restart_congestion(connection.descriptor, connection.ends, name) == name
        connection.carry()  # still carries


@pytest.mark.skipif(not CONTROLS, reason="not Linux")
def test_what_bbr_takes_the_path_for_is_told_and_forgotten_when_it_begins_again(connection: Connection) -> None:
    def path_bytes_per_s() -> int:
        info = tcp_info(connection.descriptor, connection.ends)
        assert info is not None
        assert info.rtt_s > 0
        return info.path_bytes_per_s

    for name in CONTROLS:
        use_congestion(connection.descriptor, connection.ends, name)
        connection.carry()
        measured = path_bytes_per_s()
        assert (measured > 0) is name.startswith(BBR)
        restart_congestion(connection.descriptor, connection.ends, name)
        assert path_bytes_per_s() == 0


def test_nothing_is_said_of_another_connection(connection: Connection) -> None:
    other: Ends = (("127.0.0.1", 1), ("127.0.0.1", 2))
    assert tcp_info(connection.descriptor, other) is None
    assert restart_congestion(connection.descriptor, other, BBR) == ""
