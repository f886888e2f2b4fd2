"""Tables of docs/metrics.md and docs/deploy.md, written here from the code; the rest of the pages is prose and stays.

python -m tests.pages            rewrites the generated parts
"""

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from wantrain.metrics.families import COORDINATOR, PEER, Family
from wantrain.plan import Plan, Wanted, plan
from wantrain.plan_text import duration, share, size, words

DOCS = Path(__file__).parents[1] / "docs"
BEGIN, END = "<!-- generated: {} -->", "<!-- end -->"


def _families(families: Iterable[Family]) -> str:
    lines = ["| metric | kind | labels | |", "|---|---|---|---|"]
    lines += [f"| `{f.name}` | {f.kind} | {', '.join(f.labels)} | {f.help} |" for f in families]
    return "\n".join(lines)


def _planned(params: int, tokens_per_s: float, step_tokens: int, link: float = 12.5e6, **how: Any) -> Plan:
    known: dict[str, Any] = {"peers": 4, "method": "diloco", "rtt_s": 0.1, "codec": "int4"}
    rest = {**known, **how}
    return plan(Wanted(params, link_bytes_per_s=link, tokens_per_s=tokens_per_s, step_tokens=step_tokens, **rest))


def _example() -> str:
    lines = words(_planned(125_000_000, 20000.0, 65536))
    width = max(len(name) for name, _ in lines)
    return "\n".join(f"    {name:<{width}}  {text}" for name, text in lines)


SITES = (
    ("125 M", 125_000_000, 100e3, 1 << 19),
    ("1.3 B", 1_300_000_000, 50e3, 1 << 19),
    ("7 B", 7_000_000_000, 40e3, 1 << 20),
)
"""Models, tokens per second of a site that would train them, and tokens of its steps."""
LINES = (("20 Mbit/s", 2.5e6), ("100 Mbit/s", 12.5e6), ("1 Gbit/s", 125e6), ("10 Gbit/s", 1.25e9))


def _sizes() -> str:
    lines = ["| values | method | memory | /dev/shm | disk | saved state |", "|---|---|---|---|---|---|"]
    for name, params, rate, tokens in SITES:
        for method in ("diloco", "streaming-diloco", "eager", "local-adam", "noloco"):
            found = _planned(params, rate, tokens, method=method, codec="")
            sizes = (found.memory_bytes, found.shared_bytes, found.disk_bytes, found.state_bytes)
            lines.append(f"| {name} | {method} | {' | '.join(map(size, sizes))} |")
    return "\n".join(lines)


def _lines() -> str:
    lines = [
        "| values | site | peers | line | a sync | sent | H | waiting | sent a day |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, params, rate, tokens in SITES:
        for peers in (2, 8):
            for line, link in LINES:
                first = _planned(params, rate, tokens, link, peers=peers)
                period = max(500, first.shortest_every or 1)
                found = _planned(params, rate, tokens, link, peers=peers, options={"every": period})
                (stream,) = found.streams
                site = f"{rate:,.0f} tokens/s, steps of {duration(found.step_s)}"
                figures = [duration(stream.sync_s), size(stream.sent_bytes), f"{first.shortest_every:,}"]
                figures += [share(found.waiting_share), size(found.bytes_per_day)]
                lines.append(f"| {name} | {site} | {peers} | {line} | {' | '.join(figures)} |")
    return "\n".join(lines)


PARTS: dict[str, dict[str, Callable[[], str]]] = {
    "metrics.md": {"peer": lambda: _families(PEER), "coordinator": lambda: _families(COORDINATOR)},
    "deploy.md": {"example": _example, "sizes": _sizes, "lines": _lines},
}
"""By page and name of the part: what makes it."""


def written(name: str) -> str:
    """A page with its generated parts as they are to be."""
    page = (DOCS / name).read_text(encoding="utf-8")
    for part, make in PARTS[name].items():
        begin = BEGIN.format(part)
        assert begin in page, f"{name} has no {begin}"
        pattern = re.compile(f"{re.escape(begin)}\n.*?{re.escape(END)}", re.DOTALL)
        text = f"{begin}\n{make()}\n{END}"
        page = pattern.sub(lambda _, text=text: text, page)  # type: ignore[misc]
    return page


if __name__ == "__main__":
    for name in PARTS:
        (DOCS / name).write_text(written(name), encoding="utf-8")
