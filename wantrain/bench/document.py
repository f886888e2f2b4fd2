"""docs/benchmarks.md from the figures of a run of `scripts/bench`: tables, and how they were measured."""

from collections.abc import Callable, Sequence

from wantrain.bench.aims import aims
from wantrain.bench.tables import codecs_of, link_of
from wantrain.bench.worker import Json

HOW = """\
Every row is one run, in which the contestants take turns (A B C A B C …) with the same vectors and the same number of
processes, one for each peer, one thread of torch each. All peers begin at one moment of the machine's monotonic clock
that they are told before; an all-reduce lasts from then until the last peer holds the result as fp32. The first turn
does not count; figures are medians of the others. A contestant whose turns have lasted more than 30 s takes no more.
Over shaped links between two peers wantrain takes five turns before all others, in which the number of its connections
grows: a run has hundreds of syncs, and they stay.

* **wantrain**: what a peer of a run does: contribution in memory shared with a trainer, engine, topology core, outbox,
  ZeroMQ link, digest of every chunk of the outcome at every peer, and the outer update (`mean`). Every result is
  compared with the mean that was to be expected; all peers must have equal digests.
* **gloo**: `torch.distributed.all_reduce`, a sum of fp32 in place. No encryption, nothing compressed, no digest.
* **raw**: plain TCP sockets that move the bytes of the topology's formula, all at once, with nothing to encode, sum or
  wait for: what the wire can do. On shaped links with 1 and 8 connections for each pair, the best counts.

"MB sent" are tensor bytes and headers as handed to the link, by all peers, beside the formula's. "CPU" is processor
time of a peer's process, in seconds per GB of fp32. "Memory" is the peak of a peer's resident memory above that of the
process without vectors, as a multiple of the vector's fp32 size; a segment shared with the trainer (2x) is in it.
Shaped links are those of the network lab ([netlab.md](netlab.md)), which runs on the same cores. What gloo gets as
congestion control there is the machine's default, unless the row says otherwise.
"""


def markdown(record: Json, pictures: Sequence[str]) -> str:
    """The whole document."""
    machine = record["machine"]
    parts = [
        "# Benchmarks",
        "Written by `scripts/bench`; do not edit. Times on a machine with few, shared cores vary by tens of per cent "
        "from run to run: the ratios between contestants of one row are what counts.",
        f"* measured between {record['since']} and {record['until']}, {record['seconds']} s of measuring\n"
        f"* on {machine['cores']} cores of {machine['cpu']}, {machine['system']}, Python {machine['python']}\n"
        f"* again: `scripts/bench{'' if record['matrix'] == 'default' else ' --' + record['matrix']}`; figures: "
        "[img/benchmarks.json](img/benchmarks.json)",
        "## How it is measured",
        HOW.rstrip(),
        *_aims(record),
    ]
    parts += _allreduce(record, "loopback", "Loopback", _LOOPBACK, "loopback.png", pictures)
    parts += _allreduce(record, "codecs", "Codecs, over loopback without CURVE", _LOOPBACK, "", pictures)
    parts += _allreduce(record, "links", "Shaped links", _LINKS, "links.png", pictures)
    parts += _allreduce(record, "topologies", "Topologies where every hop takes long", _TOPOLOGIES, "", pictures)
    parts += _codecs(record["codecs"], pictures)
    parts += _peer(record["peer"]) if "peer" in record else []
    parts += _trainer(record["trainer"]) if "trainer" in record else []
    parts += _coordinator(record["coordinator"], pictures)
    return "\n\n".join(parts) + "\n"


def _aims(record: Json) -> list[str]:
    found = aims(record)
    said = (
        "The wire's share has a limit of its own: raw sockets move all bytes at once, an all-reduce has to have the "
        "contributions before it can send what comes of them."
    )
    return ["## Aims", _table(["what", "aim", "came out"], found), said] if found else []


Column = tuple[str, Callable[[Json], str]]


def _seconds(row: Json, name: str) -> str:
    return f"{row[name]['seconds']:.3f}" if name in row else ""


def _times(row: Json, name: str) -> str:
    return f"{row['ratio'][name]:.2f}" if name in row["ratio"] else ""


def _share(row: Json) -> str:
    return f"{100 * row['ratio']['raw']:.0f} %" if "raw" in row["ratio"] else ""


_COMMON: list[Column] = [
    ("peers", lambda row: f"{row['options']['peers']}"),
    ("MB", lambda row: f"{row['options']['size_mb']:g}"),
    ("codec", lambda row: codecs_of(row["options"])),
]
_SPEED: list[Column] = [
    ("wantrain s", lambda row: _seconds(row, "wantrain")),
    ("gloo s", lambda row: _seconds(row, "gloo")),
    ("raw s", lambda row: _seconds(row, "raw")),
    ("× gloo", lambda row: _times(row, "gloo")),
    ("of the wire", _share),
]
_LOOPBACK: list[Column] = [
    *_COMMON,
    ("", lambda row: "CURVE" if row["options"]["encrypt"] else "plain"),
    *_SPEED,
    ("fp32 MB/s", lambda row: f"{row['wantrain']['fp32_bytes_per_s'] / 1e6:,.0f}"),
    ("MB sent (formula)", lambda row: _sent(row["wantrain"])),
    ("CPU (gloo)", lambda row: _cpu(row)),
    ("first byte ms", lambda row: _first(row["wantrain"])),
    ("memory", lambda row: f"{row['wantrain']['tensor_memory_ratio']:.1f}×"),
]
_LINKS: list[Column] = [
    ("link", lambda row: _link(row["options"])),
    *_COMMON,
    *_SPEED,
    ("best raw", lambda row: row.get("raw", {}).get("best", "").removeprefix("raw, ")),
    ("first byte ms", lambda row: _first(row["wantrain"])),
]
_TOPOLOGIES: list[Column] = [
    ("link", lambda row: _link(row["options"])),
    ("topology", lambda row: row["options"]["topology"]),
    *_COMMON,
    ("wantrain s", lambda row: _seconds(row, "wantrain")),
    ("MB sent (formula)", lambda row: _sent(row["wantrain"])),
]


def _link(options: Json) -> str:
    return link_of(options["lab"], options["congestion"])


def _sent(own: Json) -> str:
    return f"{own['sent_bytes'] / 1e6:,.2f} ({own['formula_bytes'] / 1e6:,.2f})"


def _cpu(row: Json) -> str:
    gloo = f" ({row['gloo']['cpu_s_per_gb']:.2f})" if "gloo" in row else ""
    return f"{row['wantrain']['cpu_s_per_gb']:.2f}{gloo}"


def _first(own: Json) -> str:
    return f"{1e3 * own['first_byte_s']:.1f}" if own["first_byte_s"] is not None else ""


def _allreduce(
    record: Json, group: str, title: str, columns: list[Column], picture: str, pictures: Sequence[str]
) -> list[str]:
    rows = [row for row in record["allreduce"] if row["group"] == group]
    if not rows:
        return []
    done = [row for row in rows if "failed" not in row]
    parts = [f"## {title}", *_picture(picture, title, pictures)]
    if done:
        parts.append(_table([name for name, _ in columns], [[cell(row) for _, cell in columns] for row in done]))
    return parts + _missing([(row["options"], row["failed"]) for row in rows if "failed" in row])


def _missing(failed: Sequence[tuple[Json, str]]) -> list[str]:
    """What could not run, and why; rows with one reason together."""
    reasons: dict[str, list[str]] = {}
    for options, reason in failed:
        what = f"{options['peers']} peers, {options['size_mb']:g} MB, {codecs_of(options)}"
        where = _link(options) if options["lab"] else "CURVE" if options["encrypt"] else "plain"
        reasons.setdefault(reason, []).append(f"{what}, {where}")
    lines = [f"* {reason}: {'; '.join(rows)}" for reason, rows in reasons.items()]
    return ["Without figures:\n\n" + "\n".join(lines)] if lines else []


def _codecs(measured: Json, pictures: Sequence[str]) -> list[str]:
    title = "Codecs by themselves"
    parts = [f"## {title}", *_picture("codecs.png", title, pictures)]
    if measured["rows"]:
        names = ["codec", "error Gaussian", "t(4)", "bits", "encode GB/s", "decode", "accumulate", "expected"]
        cells = [
            [
                row["codec"], f"{row['error_gaussian']:.2%}", f"{row['error_t4']:.2%}", f"{row['bits']:.2f}",
                *(f"{row[what]:.1f}" for what in ("encode", "decode", "accumulate")),
                f"{row['expected'][0]:.2%}, {row['expected'][1]:.2%}, {row['expected'][2]:g} bits",
            ]
            for row in measured["rows"]
        ]  # fmt: skip
        parts += ["GB/s of fp32 on one thread; errors are relative, of one encoding.", _table(names, cells)]
    return parts + ([f"Without figures: {measured['failed']}"] if "failed" in measured else [])


def _peer(measured: Json) -> list[str]:
    from wantrain.bench.outer import pieces

    parts = ["## What a peer computes for a sync"]
    if rows := measured["rows"]:
        cells = [
            [
                row["what"], row["name"], f"{row['ms']:.2f}", f"{row['gb_per_s']:.2f}",
                f"{row['vectors']}" if row["what"] == "outer step" else "",
            ]
            for row in rows
        ]  # fmt: skip
        parts += [
            f"Of a fragment of {rows[0]['elements']:,} values, on one thread; GB/s of fp32. `wantrain bench outer`.",
            f"It is worked on in {pieces(rows[0]['elements'])}. A call costs some 0.1 ms whatever its size: encoding "
            "is slower here than above, where a call gets a million values.",
            _table(["what", "rule or codec", "ms", "GB/s", "state vectors"], cells),
        ]
    return parts + ([f"Without figures: {measured['failed']}"] if "failed" in measured else [])


def _trainer(measured: Json) -> list[str]:
    parts = ["## What taking part costs the trainer"]
    if rows := measured["rows"]:
        names = [
            "parameters",
            "a sync every",
            "inner step ms",
            "hooks, between syncs ms",
            "at a sync ms",
            "of step time",
        ]
        cells = [
            [
                f"{row['parameters']:,}", f"{row['every']} steps", f"{row['step_ms']:.1f}", f"{row['between_ms']:.3f}",
                f"{row['round_ms']:.2f}", f"{row['share']:.2%}",
            ]
            for row in rows
        ]  # fmt: skip
        parts += [
            "The demo's model on one thread; time in hooks, staging and adoption is not in the step, waits in neither. "
            "The aim is at most 1 % at 20 steps and more. `wantrain bench trainer`.",
            _table(names, cells),
        ]
    return parts + ([f"Without figures: {measured['failed']}"] if "failed" in measured else [])


def _coordinator(measured: Json, pictures: Sequence[str]) -> list[str]:
    title = "The coordinator"
    parts = [f"## {title}", *_picture("coordinator.png", title, pictures)]
    if measured["rows"]:
        names = [
            "peers", "messages in", "out", "MB in", "MB out", "core ms", "unpack ms", "pack ms", "all join: core s",
            "all join: MB out",
        ]  # fmt: skip
        cells = []
        for row in measured["rows"]:
            sync = row["sync"]
            cells.append([
                f"{row['peers']}", f"{sync['messages_in']:,.0f}", f"{sync['messages_out']:,.0f}",
                f"{sync['bytes_in'] / 1e6:,.3f}", f"{sync['bytes_out'] / 1e6:,.3f}", f"{1e3 * sync['core_s']:,.1f}",
                f"{1e3 * sync['unpack_s']:,.1f}", f"{1e3 * sync['pack_s']:,.1f}", f"{row['join']['core_s']:,.2f}",
                f"{row['join']['bytes_out'] / 1e6:,.1f}",
            ])  # fmt: skip
        parts += [
            "The real core with simulated peers, per sync: each peer is ready, is done, and has applied the update; "
            "and ten ticks. Packing and unpacking are what its daemon does for each message, measured on some of them.",
            _table(names, cells),
        ]
    return parts + ([f"Without figures: {measured['failed']}"] if "failed" in measured else [])


def _picture(name: str, title: str, pictures: Sequence[str]) -> list[str]:
    return [f"![{title}](img/{name})"] if name in pictures else []


def _table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [names, ["---"] * len(names), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
