"""The pictures of docs/methods.md: loss against steps, and what a nat costs in bytes."""

from pathlib import Path
from statistics import fmean
from typing import Any

from wantrain.bench.plots import panels
from wantrain.study.language import Json
from wantrain.study.page import finished
from wantrain.study.plan import SMALL

PEERS = 4
LONGEST = 14


def draw(record: Json, folder: Path) -> list[str]:
    """Write those pictures for which there are figures; their names.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    names = []
    for table, title in (("methods", "Methods"), ("codecs", "Bits on the wire"), ("periods", "How seldom")):
        rows = [
            row
            for row in record["rows"]
            if row["setting"]["table"] == table
            and (row["size"]["name"], row["peers"]) in ((SMALL.name, PEERS), (SMALL.name, 1))
            and finished(row)
        ]
        if rows:
            words = f"{title}: {PEERS} workers, {SMALL.name} parameters, mean over the seeds"
            figure, axes = panels(2, 12.5, 5.4, words)
            _fill(axes, rows)
            figure.savefig(folder / f"study-{table}.png", dpi=120)
            names.append(f"study-{table}.png")
    return names


def _fill(axes: Any, rows: list[Json]) -> None:
    from matplotlib import colormaps

    curves, costs = axes
    colours = colormaps["tab20"]
    for k, row in enumerate(rows[:LONGEST]):
        outcomes = list(finished(row).values())
        points = list(zip(*(outcome["curve"] for outcome in outcomes), strict=False))
        steps = [fmean(point[0] for point in at) for at in points if at[0][0]]
        losses = [fmean(point[1] for point in at) for at in points if at[0][0]]
        colour, label = colours(k), row["setting"]["label"]
        curves.plot(steps, losses, color=colour, linewidth=1.6, label=label)
        sent = fmean(outcome["sync_bytes"] / outcome["tokens"] for outcome in outcomes)
        if sent:
            costs.errorbar(
                sent, fmean(o["loss"] for o in outcomes), marker="o", color=colour, label=label,
                yerr=[[fmean(o["loss"] for o in outcomes) - min(o["loss"] for o in outcomes)],
                      [max(o["loss"] for o in outcomes) - fmean(o["loss"] for o in outcomes)]],
            )  # fmt: skip
    curves.set(xlabel="inner steps of a worker", ylabel="held-out loss of φ, nats per byte")
    costs.set(xlabel="bytes sent by a peer for each of its tokens", ylabel="at the end; bars: all seeds", xscale="log")
    curves.legend(frameon=False, fontsize=8)
