"""Which all-reduces `scripts/bench` measures: three matrices, the most telling rows first; data only."""

from collections.abc import Iterator
from dataclasses import dataclass

from wantrain.bench.allreduce import Options

SIZES_MB = (1.0, 16.0, 64.0, 256.0)
PEERS = (2, 4, 8)
RATES = ("100mbit", "1gbit")
ROUND_TRIPS_MS = (20, 100, 300)
LOSSES = ("0", "0.1%", "1%")
WIRES = (("fp32", ""), ("int8", ""), ("int4", "int8"))
"""Codecs of both ways that every link is measured with."""
LOW_BITS = (
    "bf16", "bf16-planes+zstd", "int8+zstd", "int4", "int4+zstd", "e2m1", "e3m0", "e3m0+zstd", "rms0.35+zstd",
    "rms0.5+zstd", "rms0.75+huffman", "rms1+huffman", "sign", "topk",
)  # fmt: skip
CODECS = ("fp32", "int8", *LOW_BITS)
"""Measured by themselves."""
SETTLE = 5
"""All-reduces over a shaped link until its lanes have mostly grown: a run has hundreds."""
HEADLINE = "rate=100mbit,rtt=100ms,loss=0.1%"


@dataclass(frozen=True, slots=True)
class Row:
    """One run of `allreduce.measure`."""

    group: str
    """loopback, codecs, links or topologies: the table that it goes into."""
    options: Options


def rows(which: str) -> list[Row]:
    """The rows of a matrix: "quick" (a few minutes), "default" or "full" (hours)."""
    chosen = {"quick": _quick, "default": _default, "full": _full}[which]
    return list(dict.fromkeys(chosen()))


def shape(rate: str, rtt_ms: int, loss: str) -> str:
    """A link of the lab."""
    return f"rate={rate},rtt={rtt_ms}ms" + (f",loss={loss}" if loss != "0" else "")


def _loopback(peers: int, size_mb: float, codec: str, encrypt: bool, group: str = "loopback") -> Row:
    return Row(group, Options(peers=peers, size_mb=size_mb, codec=codec, encrypt=encrypt, repeat=5))


def _link(lab: str, codec: str, down: str, size_mb: float, peers: int = 2, congestion: str = "") -> Row:
    options = Options(
        peers=peers, size_mb=size_mb, codec=codec, down=down, lab=lab, congestion=congestion, repeat=2,
        settle=SETTLE if peers == 2 else 0, timeout_s=300.0,
    )  # fmt: skip
    return Row("links", options)


def _topology(topology: str, size_mb: float, peers: int = 8) -> Row:
    lab = shape("100mbit", 100, "0")
    options = Options(peers=peers, size_mb=size_mb, topology=topology, lab=lab, repeat=3, against=())
    return Row("topologies", options)


def _quick() -> Iterator[Row]:
    for codec in ("fp32", "int8"):
        yield _loopback(2, 16.0, codec, False)
        yield _loopback(4, 16.0, codec, False)
    yield _loopback(2, 16.0, "int8", True)
    for codec, down in WIRES:
        yield _link(HEADLINE, codec, down, 16.0)
    for topology in ("direct", "ring"):
        yield _topology(topology, 1.0, 4)


def _default() -> Iterator[Row]:
    for codec in ("fp32", "int8"):
        for peers in (2, 4):
            yield _loopback(peers, 64.0, codec, False)
    for codec, down in WIRES:
        yield _link(HEADLINE, codec, down, 64.0)
    for size_mb in (0.1, 1.0):
        for topology in ("direct", "ring"):
            yield _topology(topology, size_mb)
    links = (
        ("100mbit", 20, "0"), ("100mbit", 100, "0"), ("100mbit", 100, "1%"), ("100mbit", 300, "0.1%"),
        ("1gbit", 20, "0"), ("1gbit", 100, "0"), ("1gbit", 100, "0.1%"), ("1gbit", 300, "0.1%"),
    )  # fmt: skip
    for rate, rtt_ms, loss in links:
        for codec, down in WIRES[:1] + WIRES[2:]:
            yield _link(shape(rate, rtt_ms, loss), codec, down, 16.0 if rate == "100mbit" else 64.0)
    yield _link(HEADLINE, "fp32", "", 4.0, congestion="reno")
    yield _link(shape("100mbit", 100, "0"), "int8", "", 16.0, peers=4)
    for codec in ("fp32", "int8"):
        yield _loopback(2, 64.0, codec, True)
        for peers in PEERS:
            for size_mb in SIZES_MB[:3]:
                yield _loopback(peers, size_mb, codec, False)
        yield _loopback(2, 256.0, codec, False)
    for codec in LOW_BITS:
        yield _loopback(2, 64.0, codec, False, "codecs")
    for codec in ("fp32", "int8"):
        yield _loopback(4, 64.0, codec, True)


def _full() -> Iterator[Row]:
    yield from _default()
    for peers in PEERS:
        for size_mb in SIZES_MB:
            for codec in ("fp32", "int8"):
                for encrypt in (False, True):
                    yield _loopback(peers, size_mb, codec, encrypt)
    for codec in LOW_BITS:
        yield _loopback(4, 64.0, codec, False, "codecs")
    for rate in RATES:
        for rtt_ms in ROUND_TRIPS_MS:
            for loss in LOSSES:
                for peers in PEERS:
                    for codec, down in WIRES:
                        for size_mb in SIZES_MB:
                            yield _link(shape(rate, rtt_ms, loss), codec, down, size_mb, peers)
