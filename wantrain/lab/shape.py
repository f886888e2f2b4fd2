"""What a link does to packets in one direction, and how people write it: "rate=100mbit,rtt=100ms,loss=0.1%"."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from wantrain.errors import ConfigError

EXAMPLE = "rate=100mbit,rtt=100ms,loss=0.1%,jitter=2ms,queue=1MB"
KEYS = ("rate", "rtt", "delay", "jitter", "loss", "queue")

LEAST_QUEUE_BYTES = 64_000
LARGEST_DEFAULT_QUEUE_BYTES = 32_000_000
"""Queues are held in the switch's memory, one per directed pair; who wants more says so."""

MTU_BYTES = 1500
"""Of every host's interface; loss and queues are per packet of at most this size."""

_RATES = {"bit": 1 / 8, "kbit": 1e3 / 8, "mbit": 1e6 / 8, "gbit": 1e9 / 8}
_TIMES = {"us": 1e-6, "ms": 1e-3, "s": 1.0}
_SIZES = {"B": 1.0, "KB": 1e3, "MB": 1e6, "GB": 1e9, "KiB": 1024.0, "MiB": 1024.0**2}
_SHARES = {"%": 0.01, "": 1.0}


@dataclass(frozen=True, slots=True)
class Shape:
    """One direction of a link."""

    rate_bytes_per_s: float = math.inf
    """What the wire carries, IP headers included; infinite means that packets never wait for each other."""
    delay_s: float = 0.0
    """One way, on top of queueing."""
    jitter_s: float = 0.0
    """Each packet's delay is drawn evenly from delay_s - jitter_s to delay_s + jitter_s; packets never overtake."""
    loss: float = 0.0
    """Chance of each packet to be lost behind the queue, independent of all others; 1 is a link that is down."""
    queue_bytes: int = LEAST_QUEUE_BYTES
    """Waiting for the wire and on it; what comes beyond that is dropped."""

    def __post_init__(self) -> None:
        _within("rate", self.rate_bytes_per_s, 1e3, math.inf, "8kbit or more")
        _within("delay", self.delay_s, 0, 10, "0s to 10s one way")
        _within("jitter", self.jitter_s, 0, self.delay_s, "at most the one-way delay")
        _within("loss", self.loss, 0, 1, "0% to 100%")
        _within("queue", self.queue_bytes, MTU_BYTES, 1e9, f"{MTU_BYTES}B (one packet) to 1GB")

    @staticmethod
    def parse(text: str) -> "Shape":
        """Read "key=value,key=value"; every key may be left out, "down" alone is a link that loses everything.

        `rtt` is split into equal halves, one per direction; `delay` is one way. Without `queue` a packet may wait for
        one bandwidth-delay product of rate and round trip, at least 64 KB and at most 32 MB.

        Raises:
            ConfigError: a key or value that is not allowed; names it and what is.
        """
        if text.strip() == "down":
            return Shape(loss=1.0)
        given: dict[str, str] = {}
        for part in text.split(","):
            key, equals, value = (piece.strip() for piece in part.partition("="))
            if not equals or key not in KEYS or key in given:
                what = "twice" if key in given else "unknown"
                raise ConfigError(
                    f"the shape {text!r} has {part.strip()!r}, which is {what}; keys are {', '.join(KEYS)}, once each",
                    hint=f"write it like {EXAMPLE!r}, or 'down'",
                )
            given[key] = value
        if "rtt" in given and "delay" in given:
            raise ConfigError(
                f"the shape {text!r} has both rtt and delay; allowed is one of them",
                hint="keep rtt (both directions together) or delay (one way)",
            )
        rate = parse_rate(given["rate"]) if "rate" in given else math.inf
        delay_s = _number("delay", given.get("delay", "0s"), _TIMES)
        if "rtt" in given:
            delay_s = _number("rtt", given["rtt"], _TIMES) / 2
        queue_bytes = default_queue_bytes(rate, 2 * delay_s)
        if "queue" in given:
            queue_bytes = int(_number("queue", given["queue"], _SIZES))
        jitter_s = _number("jitter", given.get("jitter", "0s"), _TIMES)
        return Shape(rate, delay_s, jitter_s, _number("loss", given.get("loss", "0%"), _SHARES), queue_bytes)


def parse_rate(text: str) -> float:
    """Bytes per second of a rate as people write it: "50mbit", "1gbit".

    Raises:
        ConfigError: it is no number with a unit.
    """
    return _number("rate", text, _RATES)


def default_queue_bytes(rate_bytes_per_s: float, round_trip_s: float) -> int:
    """One bandwidth-delay product, the usual rule for a router's buffer, within 64 KB and 32 MB."""
    if math.isinf(rate_bytes_per_s):
        return LEAST_QUEUE_BYTES  # never used: nothing waits
    return int(min(max(rate_bytes_per_s * round_trip_s, LEAST_QUEUE_BYTES), LARGEST_DEFAULT_QUEUE_BYTES))


def _number(key: str, text: str, units: Mapping[str, float]) -> float:
    found = re.fullmatch(r"([0-9]{1,12}(?:\.[0-9]{1,9})?) ?([A-Za-z%]*)", text)
    if found is None or found[2] not in units:
        allowed = ", ".join(unit or "no unit" for unit in units)
        raise ConfigError(
            f"{key} is {text!r}, allowed is a number with a unit of: {allowed}", hint=f"write it as in {EXAMPLE!r}"
        )
    return float(found[1]) * units[found[2]]


def _within(key: str, value: float, low: float, high: float, allowed: str) -> None:
    if not low <= value <= high:
        raise ConfigError(f"{key} is {value:g}, allowed is {allowed}", hint=f"write a shape like {EXAMPLE!r}")
