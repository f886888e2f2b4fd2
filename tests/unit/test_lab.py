"""The lab without a network: shapes as people write them, queue arithmetic on a made-up clock, and cut bursts."""

import math
import random
import struct

import pytest

from wantrain.errors import ConfigError
from wantrain.lab import Lab
from wantrain.lab.check import CASES
from wantrain.lab.fabric import Fabric, address
from wantrain.lab.frames import BURST_TCP4, PREFIX, PREFIX_BYTES, burst, cut, ip_checksum
from wantrain.lab.path import Path, Wire
from wantrain.lab.shape import Shape, default_queue_bytes


def never() -> float:
    raise AssertionError("no dice are needed here")


def path(shape: Shape, seed: int = 0) -> Path:
    return Path(shape, random.Random(seed).random)


def tcp_frame(source: int, destination: int, payload: bytes, segment_bytes: int) -> bytes:
    """What the kernel hands over for one TCP write: PSH and FIN set, 12 bytes of TCP options."""
    header_bytes = 20 + 32
    ends = [bytes(map(int, address(host).split("."))) for host in (source, destination)]
    ip = bytearray(struct.pack("!BBHHHBBH4s4s", 0x45, 0, header_bytes + len(payload), 65534, 0, 64, 6, 0, *ends))
    struct.pack_into("!H", ip, 10, ip_checksum(ip))
    tcp = struct.pack("!HHIIBBHHH", 1, 2, 2**32 - 100, 7, 8 << 4, 0x80 | 0x19, 100, 0, 0) + bytes(12)
    kind = BURST_TCP4 if len(payload) > segment_bytes else 0
    return PREFIX.pack(1, kind, header_bytes, segment_bytes if kind else 0, 20, 16) + bytes(ip) + tcp + payload


# Shape


def test_a_shape_is_read_as_written() -> None:
    shape = Shape.parse("rate=100mbit, rtt=100ms, loss=0.1%, jitter=2ms, queue=1MB")
    assert shape == Shape(12.5e6, 0.05, 0.002, 0.001, 1_000_000)
    assert Shape.parse("delay=30ms,loss=0.5") == Shape(math.inf, 0.03, 0.0, 0.5)
    assert Shape.parse("down").loss == 1


def test_the_default_queue_is_one_bandwidth_delay_product_within_bounds() -> None:
    assert Shape.parse("rate=100mbit,rtt=100ms").queue_bytes == 1_250_000
    assert Shape.parse("rate=1mbit,rtt=1ms").queue_bytes == 64_000
    assert default_queue_bytes(12.5e9, 1.0) == 32_000_000


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "keys are rate"),
        ("speed=1mbit", "'speed=1mbit', which is unknown"),
        ("loss=1%,loss=2%", "'loss=2%', which is twice"),
        ("rate=fast", "rate is 'fast', allowed is a number with a unit of: bit, kbit, mbit, gbit"),
        ("rate=100", "unit of"),
        ("rate=-1mbit", "rate is '-1mbit'"),
        ("rate=1bit", "allowed is 8kbit or more"),
        ("rtt=100", "rtt is '100'"),
        ("rtt=30s", "delay is 15, allowed is 0s to 10s"),
        ("rtt=10ms,delay=5ms", "both rtt and delay"),
        ("delay=1ms,jitter=2ms", "jitter is 0.002, allowed is at most the one-way delay"),
        ("loss=101%", "loss is 1.01, allowed is 0% to 100%"),
        ("queue=100B", "allowed is 1500B"),
        ("down,rate=1mbit", "'down', which is unknown"),
    ],
)
def test_a_shape_that_cannot_be_is_refused_with_what_is_allowed(text: str, words: str) -> None:
    with pytest.raises(ConfigError) as raised:
        Shape.parse(text)
    assert words in raised.value.message
    assert raised.value.hint


def test_the_shapes_of_the_check_can_be_read() -> None:
    assert all(Shape.parse(case.shape).rate_bytes_per_s < math.inf for case in CASES)


def test_a_lab_of_no_or_too_many_hosts_is_refused() -> None:
    for hosts in (0, 65):
        with pytest.raises(ConfigError, match="allowed are 1 to 64"):
            Lab(hosts, Shape())


# Queues


def test_a_wire_carries_its_rate() -> None:
    link = Path(Shape(1e6, 0.05, queue_bytes=10_000), never)
    assert [link.offer(0.0, 1, 1000, 1000)[0] for _ in range(3)] == pytest.approx([0.051, 0.052, 0.053])
    assert link.offer(1.0, 4, 1000, 3500)[0] == pytest.approx(1.0535), "an idle wire starts at once"


def test_an_unlimited_rate_only_delays() -> None:
    link = Path(Shape(delay_s=0.01), never)
    assert [link.offer(2.0, 100, 1500, 150_000) for _ in range(3)] == [(2.01, [(0, 100)])] * 3


def test_a_full_queue_drops_the_tail_of_a_burst_and_nothing_else() -> None:
    wire = Wire(1e6, 5000)
    assert wire.take(0.0, 4, 1000, 3900) == 4
    assert wire.take(0.0, 4, 1000, 4000) == 1
    assert wire.take(0.0, 1, 1000, 1000) == 0
    assert wire.free_s == pytest.approx(0.0049)
    assert wire.take(0.0040, 4, 1000, 4000) == 4, "the first burst has left"


def test_dropped_packets_are_counted_and_do_not_arrive() -> None:
    link = Path(Shape(1e6, queue_bytes=2000), never)
    assert link.offer(0.0, 5, 1000, 5000)[1] == [(0, 2)]
    assert link.stats.dropped == 3


@pytest.mark.parametrize("loss", [0.001, 0.1, 0.9])
def test_packets_are_lost_at_the_given_rate_alone_or_in_bursts(loss: float) -> None:
    sent = 40_000
    for count in (1, 40):
        link = path(Shape(loss=loss))
        arrived = 0
        for _ in range(sent // count):
            runs = link.offer(0.0, count, 1500, count * 1500)[1]
            assert all(0 <= first < last <= count for first, last in runs)
            assert all(left[1] < right[0] for left, right in zip(runs, runs[1:], strict=False))
            arrived += sum(last - first for first, last in runs)
        assert link.stats.lost == sent - arrived
        assert link.stats.lost == pytest.approx(sent * loss, abs=5 * math.sqrt(sent * loss * (1 - loss)))


def test_the_same_seed_loses_the_same_packets() -> None:
    runs = [[path(Shape(loss=0.3), seed).offer(0.0, 50, 1, 50)[1]] for seed in (1, 1, 2)]
    assert runs[0] == runs[1] != runs[2]


def test_a_link_that_is_down_passes_nothing_until_it_is_reshaped() -> None:
    link = Path(Shape(loss=1), never)
    assert link.offer(0.0, 3, 1, 3)[1] == []
    link.reshape(Shape())
    assert link.offer(0.0, 3, 1, 3)[1] == [(0, 3)]


def test_jitter_stays_in_its_bounds_and_keeps_the_order() -> None:
    link = path(Shape(delay_s=0.1, jitter_s=0.05))
    apart = [link.offer(float(at), 1, 1, 1)[0] - at for at in range(1000)]
    assert 0.05 <= min(apart) < 0.06 < 0.14 < max(apart) <= 0.15
    together = [link.offer(2000 + at / 1000, 1, 1, 1)[0] for at in range(1000)]
    assert together == sorted(together)


def test_a_new_shape_never_lets_packets_overtake() -> None:
    link = Path(Shape(1e6, 1.0), never)
    first = link.offer(0.0, 1, 1000, 1000)[0]
    link.reshape(Shape(1e9))
    assert link.offer(0.0, 1, 1000, 1000)[0] == first


# Frames


def test_a_burst_counts_as_the_packets_it_stands_for() -> None:
    found = burst(tcp_frame(0, 1, bytes(1000), 300))
    assert found is not None
    assert (found.packets, found.each_bytes, found.total_bytes) == (4, 352, 1000 + 4 * 52)
    single = burst(tcp_frame(0, 1, bytes(300), 300))
    assert single is not None
    assert (single.packets, single.each_bytes, single.total_bytes) == (1, 352, 352)


def test_cut_bursts_are_the_packets_the_kernel_would_have_sent() -> None:
    payload = bytes(random.Random(1).randbytes(1000))
    whole = burst(tcp_frame(0, 1, payload, 300))
    assert whole is not None
    assert cut(whole, 0, 4) is whole.frame
    for first, last, flags in [(0, 1, 0x90), (1, 3, 0x10), (3, 4, 0x19), (0, 3, 0x90), (2, 4, 0x19)]:
        part = cut(whole, first, last)
        expected = payload[first * 300 : last * 300]
        assert part[PREFIX_BYTES + 52 :] == expected
        again = burst(part)
        assert again is not None
        assert again.packets == last - first
        ip = part[PREFIX_BYTES : PREFIX_BYTES + 20]
        assert ip_checksum(ip) == 0
        assert struct.unpack_from("!HH", ip, 2) == (52 + len(expected), (65534 + first) % 65536)
        tcp = part[PREFIX_BYTES + 20 :]
        assert struct.unpack_from("!I", tcp, 4)[0] == (2**32 - 100 + first * 300) % 2**32
        assert tcp[13] == flags, "FIN and PSH belong to the last packet, CWR to the first"


@pytest.mark.parametrize(
    "frame", [b"", bytes(29), bytes(PREFIX_BYTES) + b"\x60" + bytes(60), tcp_frame(0, 1, b"", 1)[:29]]
)
def test_what_is_no_ipv4_is_not_a_burst(frame: bytes) -> None:
    assert burst(frame) is None


# Fabric


def fabric(hosts: int, shape: Shape) -> Fabric:
    return Fabric(hosts, shape, lambda source, destination: random.Random(f"{source} {destination}").random)


def test_frames_reach_the_host_they_are_addressed_to_when_they_are_due() -> None:
    made = fabric(3, Shape(delay_s=0.5))
    made.reshape(0, 1, Shape(delay_s=0.1))
    slow, fast = tcp_frame(0, 2, b"slow", 9), tcp_frame(0, 1, b"fast", 9)
    made.send(0, slow, 0.0)
    made.send(0, fast, 0.0)
    assert made.next_due_s() == pytest.approx(0.1)
    assert list(made.receive(0.09)) == []
    assert list(made.receive(0.4)) == [(1, fast)]
    assert list(made.receive(0.5)) == [(2, slow)]
    assert made.next_due_s() is None


def test_frames_to_nobody_are_dropped() -> None:
    made = fabric(2, Shape())
    for frame in (tcp_frame(0, 7, b"x", 9), tcp_frame(0, 0, b"x", 9), b"junk"):
        made.send(0, frame, 0.0)
    assert made.next_due_s() is None


def test_an_upload_limit_holds_for_the_sum_over_all_links() -> None:
    made = fabric(3, Shape())
    made.limit(0, 1e6, 100_000)
    for _ in range(10):
        made.send(0, tcp_frame(0, 1, bytes(948), 948), 0.0)
        made.send(0, tcp_frame(0, 2, bytes(948), 948), 0.0)
    assert len(list(made.receive(0.01001))) == 10
    assert len(list(made.receive(0.02001))) == 10
    made.send(1, tcp_frame(1, 0, bytes(948), 948), 1.0)
    assert made.next_due_s() == 1.0, "others are not limited"


def test_an_upload_limit_drops_what_its_queue_cannot_hold() -> None:
    made = fabric(2, Shape())
    made.limit(0, 1e6, 2000)
    made.send(0, tcp_frame(0, 1, bytes(4 * 948), 948), 0.0)
    made.send(0, tcp_frame(0, 1, bytes(948), 948), 0.0)
    [(_, frame)] = list(made.receive(1.0))
    assert len(frame) == PREFIX_BYTES + 52 + 2 * 948
    stats = made.stats()[0, 1]
    assert (stats.packets, stats.size_bytes, stats.lost, stats.dropped) == (5, 5000, 0, 3)
