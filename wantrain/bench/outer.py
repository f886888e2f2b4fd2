"""What a sync costs on the host besides moving bytes: the outer step of each rule, encoding, decoding; one thread."""

from collections.abc import Sequence
from typing import Any

import torch
from rich.table import Table

from wantrain.bench.codecs import best_s, gaussian
from wantrain.optimizers.merge import merge
from wantrain.transport.codec import codec
from wantrain.transport.partition import chunk_bounds, chunk_elements


def measure(rules: Sequence[str], codecs: Sequence[str], elements: int, seconds: float) -> list[dict[str, Any]]:
    """Measure outer rules and codecs on a fragment of `elements` (>= 1) values, for about `seconds` each.

    It is worked on chunk by chunk, as a peer does.

    Returns:
        A row each: `what` ("outer step", "encode" or "decode"), `name`, `elements`, `ms` of CPU time for the fragment
        (the best of several repeats), `gb_per_s` of fp32 values, and `vectors` of fp32 outer state besides phi.

    Raises:
        ConfigError: an unknown rule or codec.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        rows = [_outer_step(name, elements, seconds) for name in rules]
        return rows + [row for name in codecs for row in _coded(name, elements, seconds / 2)]
    finally:
        torch.set_num_threads(threads)


def pieces(elements: int) -> str:
    """In what the work on a fragment of `elements` (>= 1) values comes, in words: small pieces make codecs slower."""
    chunks, size = len(chunk_bounds(elements)), min(elements, chunk_elements(elements))
    return f"{chunks} chunk{'s' * (chunks > 1)} of {size:,} values, a call for each, as in a sync"


def table(rows: Sequence[dict[str, Any]], elements: int) -> Table:
    """The rows of `measure` for a terminal."""
    shown = Table(
        title=f"A fragment of {elements:,} values",
        caption=f"CPU time of one thread; GB/s of fp32 values; {pieces(elements)}",
    )
    for heading in ("what", "name"):
        shown.add_column(heading)
    for heading in ("ms", "GB/s", "state vectors"):
        shown.add_column(heading, justify="right")
    for row in rows:
        vectors = str(row["vectors"]) if row["what"] == "outer step" else ""
        shown.add_row(row["what"], row["name"], f"{row['ms']:.2f}", f"{row['gb_per_s']:.2f}", vectors)
    return shown


def _outer_step(name: str, elements: int, seconds: float) -> dict[str, Any]:
    rule, bounds = merge(name), chunk_bounds(elements)
    phi, mean = gaussian(elements), gaussian(elements)
    state = tuple(torch.full((elements,), value) for value in rule.start(rule.options))
    longest = max((stop - start for start, stop in bounds), default=0)
    delta, scratch = torch.empty(longest), torch.empty(longest)
    options = {**rule.options, "index": 1.0}

    def step() -> None:
        for start, stop in bounds:
            part, other = delta[: stop - start], scratch[: stop - start]
            part.copy_(mean[start:stop])
            rule.apply(phi[start:stop], part, tuple(slot[start:stop] for slot in state), options, other)

    return _row("outer step", name, elements, best_s(step, seconds), len(rule.slots))


def _coded(name: str, elements: int, seconds: float) -> list[dict[str, Any]]:
    coder, bounds, values = codec(name), chunk_bounds(elements), gaussian(elements)
    out = [torch.empty(coder.max_bytes(stop - start), dtype=torch.uint8) for start, stop in bounds]
    sizes = [coder.encode(values[start:stop], part) for (start, stop), part in zip(bounds, out, strict=True)]
    encoded = [part[:size].clone() for part, size in zip(out, sizes, strict=True)]
    decoded = torch.empty(elements)

    def encode() -> None:
        for (start, stop), part in zip(bounds, out, strict=True):
            coder.encode(values[start:stop], part)

    def decode() -> None:
        for (start, stop), part in zip(bounds, encoded, strict=True):
            coder.decode(part, decoded[start:stop])

    return [
        _row(what, name, elements, best_s(work, seconds), 0) for what, work in [("encode", encode), ("decode", decode)]
    ]


def _row(what: str, name: str, elements: int, seconds: float, vectors: int) -> dict[str, Any]:
    speed = 4 * elements / seconds / 1e9
    return {
        "what": what,
        "name": name,
        "elements": elements,
        "ms": 1e3 * seconds,
        "gb_per_s": speed,
        "vectors": vectors,
    }
