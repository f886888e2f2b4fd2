"""The pictures of docs/benchmarks.md: throughput, shaped links, codecs, and what a sync costs the coordinator."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from wantrain.bench.tables import codecs_of, link_of
from wantrain.bench.worker import Json
from wantrain.errors import ConfigError

INK, GRID = "#1c2630", "#e7eaed"
LONGEST_BAR = 6.0
COLOURS = {"raw": "#8a949e", "gloo": "#c2571a", "fp32": "#0b6e99", "int8": "#1b9e77", "low": "#7a3b8f"}


def draw(record: Json, folder: Path) -> list[str]:
    """Write those pictures for which there are figures; their names.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    done = [row for row in record["allreduce"] if "failed" not in row]
    made = {
        "loopback.png": _loopback(
            [row for row in done if row["group"] == "loopback" and not row["options"]["encrypt"]]
        ),
        "links.png": _links([row for row in done if row["group"] == "links"]),
        "codecs.png": _codecs(record["codecs"]["rows"]),
        "coordinator.png": _coordinator(record["coordinator"]["rows"]),
    }
    for name, figure in made.items():
        if figure is not None:
            figure.savefig(folder / name, dpi=130)
    return [name for name, figure in made.items() if figure is not None]


def panels(columns: int, width: float, height: float, title: str, sharey: bool = False) -> tuple[Any, Any]:
    """A figure, width and height in inches, and its axes side by side.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ConfigError(
            "the pictures need matplotlib, which is not installed", hint="pip install 'wantrain[plot]'"
        ) from None
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(1, columns, sharey=sharey, squeeze=False)[0]
    for axis in axes:
        axis.grid(color=GRID, linewidth=0.8)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title, color=INK, fontsize=13, x=0.01, ha="left")
    return figure, axes


def _loopback(rows: Sequence[Json]) -> Any:
    counts = sorted({row["options"]["peers"] for row in rows})
    if not counts:
        return None
    figure, axes = panels(len(counts), 4.2 * len(counts), 4.4, "All-reduce over loopback, without CURVE", sharey=True)
    for axis, peers in zip(axes, counts, strict=True):
        here = sorted((row for row in rows if row["options"]["peers"] == peers), key=lambda r: r["options"]["size_mb"])
        lines = (
            ("raw sockets, fp32", "raw", "raw", "fp32", "--"),
            ("gloo, fp32", "gloo", "gloo", "fp32", "-"),
            ("wantrain, fp32", "fp32", "wantrain", "fp32", "-"),
            ("wantrain, int8", "int8", "wantrain", "int8", "-"),
        )
        for label, colour, name, codec, style in lines:
            points = [
                (row["options"]["size_mb"], row[name]["fp32_bytes_per_s"] / 1e9)
                for row in here
                if row["options"]["codec"] == codec and name in row
            ]
            axis.plot(
                *zip(*points, strict=True) if points else ([], []),
                style, color=COLOURS[colour], marker="o", markersize=4, label=label,
            )  # fmt: skip
        sizes = sorted({row["options"]["size_mb"] for row in here})
        axis.set_xscale("log")
        axis.set_xticks(sizes, [f"{size:g}" for size in sizes])
        axis.minorticks_off()
        axis.set_title(f"{peers} peers", color=INK, fontsize=11)
        axis.set_xlabel("MB of fp32", color=INK)
        axis.set_ylim(bottom=0)
    axes[0].set_ylabel("GB of fp32 a second", color=INK)
    axes[-1].legend(frameon=False, fontsize=9)
    return figure


def _links(rows: Sequence[Json]) -> Any:
    """A group of bars for each link, size and number of peers: times in units of what raw sockets take for fp32."""
    groups: dict[str, list[Json]] = {}
    for row in rows:
        o = row["options"]
        label = f"{link_of(o['lab'], o['congestion'])}\n{o['size_mb']:g} MB, {o['peers']} peers"
        groups.setdefault(label, []).append(row)
    wires = {label: [r["raw"]["seconds"] for r in here if r["options"]["codec"] == "fp32" and "raw" in r]
             for label, here in groups.items()}  # fmt: skip
    groups = {label: here for label, here in groups.items() if wires[label]}
    if not groups:
        return None
    title = "All-reduce over shaped links, in units of the time that raw sockets take for fp32"
    figure, (axis,) = panels(1, 9.5, 1.8 + 0.95 * len(groups), title)
    seen = set()
    for at, (label, here) in enumerate(groups.items()):
        bars: list[tuple[str, str, float]] = []
        for row in here:
            codec = row["options"]["codec"]
            if codec == "fp32" and "gloo" in row:
                bars.append(("gloo, fp32", "gloo", row["gloo"]["seconds"]))
            colour = codec if codec in COLOURS else "low"
            bars.append((f"wantrain, {codecs_of(row['options'])}", colour, row["wantrain"]["seconds"]))
        bars.sort(key=lambda bar: list(COLOURS).index(bar[1]))
        height = 0.8 / max(len(bars), 3)
        for k, (name, colour, seconds) in enumerate(bars):
            y, length = at - 0.4 + height * (k + 0.5), seconds / wires[label][0]
            axis.barh(
                y, min(length, LONGEST_BAR), height=0.9 * height, color=COLOURS[colour],
                label=None if name in seen else name,
            )  # fmt: skip
            cut = f", {length:.0f} times the wire" if length > LONGEST_BAR else ""
            axis.annotate(f" {seconds:.3g} s{cut}", (min(length, LONGEST_BAR), y), va="center", fontsize=8, color=INK)
            seen.add(name)
    axis.axvline(1.0, color=INK, linewidth=1, linestyle="--")
    axis.set_yticks(range(len(groups)), list(groups), fontsize=8.5)
    axis.invert_yaxis()
    axis.grid(axis="y", visible=False)
    axis.margins(x=0.16, y=0.02)
    axis.set_xlabel("times the raw sockets' time (dashed); less is better", color=INK)
    figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    return figure


def _codecs(rows: Sequence[Json]) -> Any:
    shown = [row for row in rows if row["error_gaussian"] > 0]
    if not shown:
        return None
    figure, (axis,) = panels(1, 9.0, 5.6, "Codecs: error of one encoding against bits on the wire")
    from matplotlib.ticker import FuncFormatter, NullFormatter

    for key, label, marker, colour in (
        ("error_gaussian", "Gaussian values", "o", COLOURS["fp32"]),
        ("error_t4", "Student-t(4) values", "x", COLOURS["gloo"]),
    ):
        axis.scatter(
            [r["bits"] for r in shown], [r[key] for r in shown], marker=marker, color=colour, s=34, label=label
        )
    bits, errors = [row["bits"] for row in shown], [row["error_gaussian"] for row in shown]
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    axis.set_xlim(min(bits) / 1.3, max(bits) * 2)
    axis.set_ylim(min(errors) / 2, 2)
    figure.canvas.draw()
    _name_points(axis, [(row["codec"], row["bits"], row["error_gaussian"], row["error_t4"]) for row in shown])
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g} %"))
    axis.set_xlabel("bits per value", color=INK)
    axis.set_ylabel("relative error", color=INK)
    axis.legend(frameon=False, fontsize=9)
    return figure


def _name_points(axis: Any, points: Sequence[tuple[str, float, float, float]]) -> None:
    """Write each name beside its point (x, y), where neither another name nor any point (x, y or z) is in the way."""
    per_pixel = 72 / axis.figure.dpi

    def place(x: float, y: float) -> tuple[float, float]:
        across, up = axis.transData.transform((x, y))
        return across * per_pixel, up * per_pixel

    taken = [(x - 4, y - 4, x + 4, y + 4) for _, a, b, c in points for x, y in (place(a, b), place(a, c))]
    for name, a, b, _ in sorted(points, key=lambda point: -point[1]):
        x, y = place(a, b)
        for k in range(40):
            left, shift = k % 2 == 1, (k // 4 * 6.0) * (-1 if k // 2 % 2 else 1)
            start = x - 12 - 5.4 * len(name) if left else x + 12
            box = (start, y + shift - 5.5, start + 5.4 * len(name), y + shift + 5.5)
            if not any(
                box[0] < high and low < box[2] and box[1] < over and under < box[3] for low, under, high, over in taken
            ):
                break
        taken.append(box)
        axis.annotate(
            name, (a, b), xytext=(-12 if left else 12, shift), textcoords="offset points", fontsize=8.5,
            ha="right" if left else "left", va="center", color=INK,
            arrowprops={"arrowstyle": "-", "color": COLOURS["raw"], "linewidth": 0.6},
        )  # fmt: skip


def _coordinator(rows: Sequence[Json]) -> Any:
    if not rows:
        return None
    figure, axes = panels(2, 10.5, 4.4, "What one sync costs the coordinator")
    peers = [row["peers"] for row in rows]
    for key, label, colour in (
        ("core_s", "its core", "fp32"), ("unpack_s", "unpacking messages", "int8"), ("pack_s", "packing them", "low")
    ):  # fmt: skip
        axes[0].plot(peers, [row["sync"][key] for row in rows], "-o", markersize=4, color=COLOURS[colour], label=label)
    axes[0].set_ylabel("processor seconds", color=INK)
    for key, label, colour in (("bytes_in", "in", "int8"), ("bytes_out", "out", "low")):
        axes[1].plot(
            peers, [row["sync"][key] / 1e6 for row in rows], "-o", markersize=4, color=COLOURS[colour], label=label
        )
    axes[1].set_ylabel("MB of messages", color=INK)
    for axis in axes:
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.set_xticks(peers, [str(count) for count in peers])
        axis.minorticks_off()
        axis.set_xlabel("peers", color=INK)
        axis.legend(frameon=False, fontsize=9)
    return figure
