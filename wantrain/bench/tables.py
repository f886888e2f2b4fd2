"""What `wantrain bench allreduce` prints: one row for each contestant."""

from rich.table import Table

from wantrain.bench.worker import Json


def allreduce_table(document: Json) -> Table:
    """The document of `allreduce.measure` for a terminal."""
    options = document["options"]
    where = options["lab"] or "loopback"
    table = Table(
        title=f"all-reduce of {options['size_mb']:g} MB fp32 among {options['peers']} peers, {where}, "
        f"{options['topology']}, {codecs_of(options)}, {'CURVE' if options['encrypt'] else 'plain'}",
        title_justify="left",
        caption=_caption(document),
        caption_justify="left",
    )
    for heading in (
        "",
        "s",
        "fp32 MB/s",
        "wantrain is",
        "MB sent",
        "CPU s per GB",
        "first byte ms",
        "peak MB",
        "error",
    ):
        table.add_column(heading, justify="left" if not heading else "right")
    own_s = document["wantrain"]["seconds"]
    for name in ("wantrain", "gloo", "raw"):
        if name not in document:
            continue
        row = document[name]
        first_s = row["first_byte_s"]
        table.add_row(
            row.get("best", name), f"{row['seconds']:.3f}", f"{row['fp32_bytes_per_s'] / 1e6:,.0f}",
            f"{row['seconds'] / own_s:.2f} times as fast" if name != "wantrain" else "",
            f"{row['sent_bytes'] / 1e6:,.2f}" if row["sent_bytes"] else "", f"{row['cpu_s_per_gb']:.2f}",
            f"{1e3 * first_s:.1f}" if first_s is not None else "", f"{row['peak_bytes'] / 1e6:,.0f}",
            f"{100 * row['error']:.3g} %" if row["error"] is not None else "",
        )  # fmt: skip
    return table


def codecs_of(options: Json) -> str:
    """ "int4 up, int8 down", or one name for both ways."""
    up, down = options["codec"], options["down"] or options["codec"]
    return f"{up} up, {down} down" if up != down else str(up)


def link_of(lab: str, congestion: str = "") -> str:
    """A link of the lab, and the congestion control of its hosts if that was chosen."""
    return lab.replace(",", ", ") + (f", {congestion}" if congestion else "")


def _caption(document: Json) -> str:
    own = document["wantrain"]
    spent = {name: seconds for name, seconds in own["spent_s"].items() if name not in ("loop", "poll")}
    whole = sum(own["spent_s"].get(name, 0.0) for name in ("loop", "poll"))
    parts = [f"{name} {100 * seconds / whole:.0f} %" for name, seconds in spent.items()] if whole else []
    return (
        f"formula: {own['formula_bytes'] / 1e6:,.2f} MB on the wire; processor time of wantrain's own thread: "
        f"{', '.join(parts)}, link {100 * own['spent_s'].get('poll', 0.0) / whole if whole else 0:.0f} %"
    )
