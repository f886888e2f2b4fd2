"""As many lanes as path and loss ask for; what the kernel says of a connection is never about another one."""

import os
import socket
import sys

import pytest

from wantrain.transport.lanes import (
    BURST_ROUND_TRIPS,
    FIRST_STEP,
    MAX_LANES,
    ONE_LANE_BYTES,
    lane_bytes_per_s,
    lanes_wanted,
)
from wantrain.transport.tcp_info import ends_of, limit_pace, tcp_info, use_congestion

MBIT = 1e6 / 8
SO_MAX_PACING_RATE = 47


@pytest.mark.parametrize(
    ("mbit", "rtt_s", "loss", "congestion", "measured_mbit"),
    [(1000, 0.1, 0.0, "cubic", 285), (1000, 0.1, 0.001, "bbr", 155), (1000, 0.1, 0.001, "cubic", 5)],
)
def test_what_one_lane_carries_is_near_what_was_measured(
    mbit: float, rtt_s: float, loss: float, congestion: str, measured_mbit: float
) -> None:
    assert lane_bytes_per_s(rtt_s, loss, congestion) / MBIT == pytest.approx(measured_mbit, rel=0.15)


def settle(link_mbit: float, rtt_s: float, loss: float, congestion: str) -> int:
    """Lanes in the end, on a path where each carries what the model says until the link is full."""
    lanes = 1
    for _ in range(10):
        rate = min(link_mbit * MBIT, lanes * lane_bytes_per_s(rtt_s, loss, congestion))
        lanes = lanes_wanted(rate, rtt_s, loss, congestion, lanes, busy=True)
    return lanes


@pytest.mark.parametrize(
    ("link_mbit", "rtt_s", "loss", "congestion", "least", "most"),
    [
        (20_000, 0.0001, 0.0, "cubic", 1, 1),  # one machine, a local network
        (10_000, 0.002, 0.001, "cubic", 1, 1),
        (100, 0.1, 0.0, "cubic", 1, 1),
        (100, 0.1, 0.001, "bbr", 1, 4),
        (100, 0.1, 0.001, "cubic", 16, 16),
        (1000, 0.1, 0.0, "cubic", 4, 8),
        (1000, 0.1, 0.001, "bbr", 8, 16),
        (1000, 0.02, 0.0, "cubic", 1, 4),
        (20, 0.3, 0.0, "bbr", 1, 1),
    ],
)
def test_lanes_settle_where_they_fill_the_path(
    link_mbit: float, rtt_s: float, loss: float, congestion: str, least: int, most: int
) -> None:
    assert least <= settle(link_mbit, rtt_s, loss, congestion) <= most


def test_lanes_are_doubled_and_at_least_four_then_and_only_when_busy() -> None:
    for lanes in range(1, MAX_LANES + 1):
        full = lanes_wanted(1e12, 0.1, 0.0, "bbr", lanes, busy=True)
        assert full == min(max(2 * lanes, FIRST_STEP), MAX_LANES)
        assert lanes_wanted(1e12, 0.1, 0.0, "bbr", lanes, busy=False) == lanes
        assert lanes_wanted(0.0, 0.1, 0.01, "cubic", lanes, busy=True) == lanes
    assert lanes_wanted(0.0, 0.0, 0.0, "", 0, busy=False) == 1


def test_a_burst_that_takes_several_round_trips_asks_for_some_more_lanes_though_it_fits_the_window() -> None:
    carries = BURST_ROUND_TRIPS * ONE_LANE_BYTES  # without loss
    rate = 0.7 * ONE_LANE_BYTES / 0.1
    assert lanes_wanted(rate, 0.1, 0.0, "bbr", 1, busy=False, burst_bytes=int(1.1 * carries)) == FIRST_STEP
    assert lanes_wanted(rate, 0.1, 0.0, "bbr", 1, busy=False, burst_bytes=int(0.9 * carries)) == 1
    slow = 0.3 * ONE_LANE_BYTES / 0.1  # the path itself is no faster
    assert lanes_wanted(slow, 0.1, 0.0, "bbr", 1, busy=False, burst_bytes=64 << 20) == 1
    assert lanes_wanted(1e9, 0.1, 0.0, "bbr", FIRST_STEP, busy=False, burst_bytes=64 << 20) == FIRST_STEP
    assert lanes_wanted(1e9, 0.0001, 0.0, "cubic", 1, busy=False, burst_bytes=64 << 20) == 1  # one machine


def test_lanes_that_a_long_lossy_path_holds_back_ask_for_more() -> None:
    """bbr at 300 ms and 0.1 % was seen to stay at 2.5 MB/s a lane, for as long as there were four."""
    assert lanes_wanted(FIRST_STEP * 2.5e6, 0.3, 0.001, "bbr", FIRST_STEP, busy=True) == 2 * FIRST_STEP


def test_loss_that_a_lane_makes_itself_does_not_ask_for_more() -> None:
    rate = 100 * MBIT  # far more than Mathis et al. allow for at this loss
    assert lanes_wanted(rate, 0.1, 0.01, "cubic", 1, busy=True) == 1
    assert lanes_wanted(rate, 0.12, 0.01, "cubic", 1, busy=True) == 1


@pytest.fixture
def connection() -> "tuple[socket.socket, socket.socket]":
    with socket.create_server(("127.0.0.1", 0)) as server:
        client = socket.create_connection(server.getsockname())
        return client, server.accept()[0]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells")
def test_the_kernel_tells_of_a_connection_that_another_part_of_the_process_holds(
    connection: tuple[socket.socket, socket.socket],
) -> None:
    client, server = connection
    with client, server:
        ends = ends_of(client.fileno())
        assert ends == (client.getsockname(), client.getpeername())
        client.sendall(b"x" * 1000)
        server.recv(1000)
        info = tcp_info(client.fileno(), ends)
        assert info is not None
        assert 0 < info.rtt_s < 1
        assert info.sent_segments >= 1
        in_use = client.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16).split(b"\0")[0].decode()
        assert info.congestion == in_use
        assert use_congestion(client.fileno(), ends, "no-such-thing") == in_use
        assert use_congestion(client.fileno(), ends, "reno") in ("reno", in_use)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux paces")
def test_a_limit_on_the_pace_is_the_kernels_until_it_is_lifted(
    connection: tuple[socket.socket, socket.socket],
) -> None:
    client, server = connection

    def limit(of: socket.socket) -> int:
        return int(of.getsockopt(socket.SOL_SOCKET, SO_MAX_PACING_RATE) & 0xFFFFFFFF)

    with client, server:
        ends = ends_of(client.fileno())
        assert ends is not None
        free = limit(client)
        limit_pace(client.fileno(), ends, 17_500_000)
        assert limit(client) == 17_500_000
        limit_pace(client.fileno(), ends, 10**12)  # more than the kernel can be told
        assert limit(client) >= 2**32 - 2
        limit_pace(client.fileno(), ends, 1000)
        limit_pace(client.fileno(), ends, None)
        assert limit(client) == free
        limit_pace(server.fileno(), ends, 1000)  # another connection by now
        assert limit(server) == free


def test_a_number_that_stands_for_something_else_by_now_is_left_alone(
    connection: tuple[socket.socket, socket.socket],
) -> None:
    client, server = connection
    with client, server:
        ends = ends_of(client.fileno())
        assert ends is not None
        assert ends_of(server.fileno()) != ends
        assert tcp_info(server.fileno(), ends) is None
        assert use_congestion(server.fileno(), ends, "reno") == ""
        with open(os.devnull) as file, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
            for other in (file.fileno(), udp.fileno(), -1, 1 << 20):
                assert ends_of(other) is None
                assert tcp_info(other, ends) is None
            assert not file.closed
        client.sendall(b"still there")
        assert server.recv(20) == b"still there"
