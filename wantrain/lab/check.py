"""Does the lab behave like the links it stands for: plain TCP over known shapes, beside what such links carried."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from wantrain.lab.lab import Lab
from wantrain.lab.shape import Shape
from wantrain.lab.streams import rate_bytes_per_s

SKIP_S = {"bbr": 2.0, "cubic": 5.0}
"""Until bbr has found the rate, and until loss-based control has come down from its first steep rise."""


@dataclass(frozen=True, slots=True)
class Case:
    """A shape, how TCP was used over it, and what arrived over a link shaped so by other means, in Mbit/s."""

    shape: str
    congestion: str
    streams: int
    expected_mbit_per_s: float


@dataclass(frozen=True, slots=True)
class Measured:
    """What this machine's lab carried, payload only; `why_not` says why there is no figure."""

    case: Case
    mbit_per_s: float
    switch_cpu: float
    """Share of one processor that the switch used."""
    why_not: str = ""


CASES = (
    Case("rate=100mbit,rtt=100ms,loss=0.1%", "bbr", 1, 92),
    Case("rate=100mbit,rtt=100ms,loss=0.1%", "bbr", 8, 97),
    Case("rate=100mbit,rtt=100ms,loss=0.1%", "cubic", 1, 6),
    Case("rate=100mbit,rtt=100ms,loss=0.1%", "cubic", 8, 58),
    Case("rate=100mbit,rtt=100ms,loss=1%", "bbr", 1, 90),
    Case("rate=100mbit,rtt=100ms,loss=1%", "cubic", 8, 11),
    Case("rate=1gbit,rtt=100ms", "cubic", 1, 285),
    Case("rate=1gbit,rtt=100ms", "cubic", 8, 867),
    Case("rate=1gbit,rtt=100ms,loss=0.1%", "bbr", 1, 155),
    Case("rate=1gbit,rtt=100ms,loss=0.1%", "bbr", 8, 952),
    Case("rate=1gbit,rtt=100ms,loss=0.1%", "cubic", 8, 72),
)
"""Medians on Linux 6.18 with its default windows. One lossless stream is held back by the 4 MB that tcp_wmem allows."""


def measure(seconds: float, seed: int) -> Iterator[Measured]:
    """Each case in turn, in a lab of its own, measured for `seconds`.

    Raises:
        WantrainError: there can be no lab here, or nothing arrived.
    """
    there = Path("/proc/sys/net/ipv4/tcp_available_congestion_control").read_text().split()
    for case in CASES:
        if case.congestion not in there:
            yield Measured(case, 0.0, 0.0, f"this kernel has no {case.congestion}: modprobe tcp_{case.congestion}")
            continue
        with Lab(2, Shape.parse(case.shape), seed) as lab:
            before_s = lab.switch_cpu_s()
            skip_s = SKIP_S[case.congestion]
            rate = rate_bytes_per_s(
                lab, 0, 1, streams=case.streams, congestion=case.congestion, skip_s=skip_s, seconds=seconds
            )
            cpu = (lab.switch_cpu_s() - before_s) / (skip_s + seconds)
        yield Measured(case, rate * 8 / 1e6, cpu)
