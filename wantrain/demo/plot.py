"""The demo's picture: held-out loss against what each peer trained on and against what it sent."""

from pathlib import Path
from statistics import fmean

from wantrain.demo.report import Json, Recording
from wantrain.errors import ConfigError

INK, QUIET, SWARM, ALONE, CHURN = "#1c2630", "#8a949e", "#0b6e99", "#c2571a", "#7a3b8f"


def draw(recording: Recording, summary: Json, path: Path) -> None:
    """Write the picture as PNG.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    try:
        import matplotlib as mpl
    except ImportError:
        raise ConfigError(
            "the picture of the demo needs matplotlib, which is not installed",
            hint="pip install 'wantrain[plot]'",
        ) from None
    mpl.use("Agg")
    from matplotlib import pyplot

    curve: dict[float, Json] = {}
    for entry in recording.samples:
        if "heldout" in entry:
            curve.setdefault(entry["heldout_round"], entry)
    settings, losses = summary["settings"], summary["losses"]
    figure, axes = pyplot.subplots(1, 2, figsize=(12.5, 5.2), sharey=True, layout="constrained")
    panels = (
        ("heldout_tokens", "tokens", 1e3, "thousand tokens per peer"),
        ("bytes_sent", "bytes_sent", 1e6, "MB sent per peer, state for newcomers included"),
    )
    for axis, (key, train_key, scale, label) in zip(axes, panels, strict=True):
        for name in summary["traffic"]:
            own = [
                entry for entry in recording.samples if entry["peer"] == name and {"loss", train_key} <= entry.keys()
            ]
            means = _means_per_round(own, train_key)
            axis.plot(
                [x / scale for x, _ in means], [y for _, y in means], color=QUIET, alpha=0.6, linewidth=0.9, zorder=1
            )
        axis.plot([], [], color=QUIET, alpha=0.6, linewidth=0.9, label="training loss of each peer, mean of a round")
        points = [(entry[key] / scale, entry["heldout"]) for entry in curve.values() if key in entry]
        axis.plot(
            [x for x, _ in points],
            [y for _, y in points],
            color=SWARM, linewidth=2.2, marker="o", markersize=3.5, zorder=3,
            label=f"held-out loss, {settings['peers']} peers together",
        )  # fmt: skip
        if "alone" in losses:
            label_alone = f"one peer alone after the same {losses['steps']} steps: {losses['alone']:.3f}"
            axis.axhline(losses["alone"], color=ALONE, linewidth=1.6, linestyle="--", zorder=2, label=label_alone)
        for entry in summary["churn"]:
            at = _position(curve, key, entry["time_s"])
            if at is not None:
                what = "killed" if entry["event"] == "killed" else "joins"
                axis.axvline(at / scale, color=CHURN, linewidth=1, linestyle=":", zorder=2)
                axis.annotate(
                    f"{entry['peer']} {what}", (at / scale, 0.98), xycoords=("data", "axes fraction"),
                    rotation=90, ha="right", va="top", fontsize=9, color=CHURN,
                )  # fmt: skip
        axis.set_xlabel(label, color=INK)
        axis.grid(color="#e7eaed", linewidth=0.8)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
        axis.margins(x=0.02)
    values = [entry["heldout"] for entry in curve.values()] + [
        losses[key] for key in ("alone", "swarm") if key in losses
    ]
    if values:
        # The first loss is ln 256 = 5.5; cutting above the curve's second point keeps the interesting part large.
        top = sorted(values)[-2] if len(values) > 3 else max(values)
        axes[0].set_ylim(min(values) - 0.15, top + 0.25)
    axes[0].set_ylabel("loss, nats per byte", color=INK)
    axes[1].legend(
        frameon=True, framealpha=1.0, edgecolor="none", fontsize=9, loc="upper right", bbox_to_anchor=(1.0, 0.78)
    )
    figure.suptitle(
        f"wantrain demo: {settings['peers']} peers, {settings['method']}, {settings['codec']},"
        f" {settings['rounds']} rounds of {settings['every']} steps",
        color=INK, fontsize=13, x=0.01, ha="left",
    )  # fmt: skip
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def _means_per_round(entries: list[Json], key: str) -> list[tuple[float, float]]:
    """Mean position and mean loss of a peer in each round."""
    rounds: dict[float, list[Json]] = {}
    for entry in entries:
        rounds.setdefault(entry.get("round", 0), []).append(entry)
    return [(fmean(e[key] for e in own), fmean(e["loss"] for e in own)) for own in rounds.values()]


def _position(curve: dict[float, Json], key: str, time_s: float) -> float | None:
    """Where on an axis the evaluating peer was at a time: between the two points of the curve around it."""
    points = [(entry["time_s"], entry[key]) for entry in curve.values() if key in entry]
    for (before_s, low), (after_s, high) in zip(points, points[1:], strict=False):
        if before_s <= time_s <= after_s and after_s > before_s:
            return float(low + (high - low) * (time_s - before_s) / (after_s - before_s))
    return None
