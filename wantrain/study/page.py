"""docs/methods.md: what each method is, and the tables of the study, from its figures."""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import fields
from statistics import fmean, stdev

from wantrain.optimizers.method import METHODS
from wantrain.study.language import Json
from wantrain.study.plan import ALONE, DDP

HOW = """\
Byte-level GPTs (pre-norm, learned positions, output tied to the embedding) learn the source of Python's standard
library. The text is split by files into eight parts and a held-out one; worker i reads part i. All methods get the same
initial weights, the same AdamW (β 0.9 and 0.95, weight decay 0.1, gradients clipped to norm 1, warm-up over a tenth of
the steps, then a cosine to a tenth), the same windows in the same order, and the same number of tokens: only what is
exchanged differs. What runs is `wantrain.sim`: coordinator, peers, codecs and trainers as between machines, in one
process, on virtual time.

* **loss**: of the common weights φ on 256 held-out windows at the end, in nats per byte: mean over the seeds ± standard
  deviation. *vs data parallel* is the mean over the seeds of the ratio to data parallel with the same seed and as many
  workers.
* **bytes per token**: what a peer has sent for contributions and means, for each token that its worker was trained on.
* **fewer bytes**: bytes of data parallel, in fp32 every step, over those.

Nothing was tuned for a method: every option that the table does not name has its default. What was expected from the
papers is named with each table; what came out is what is printed."""

TABLES = (
    (
        "methods",
        "Methods",
        "Every 30 steps where nothing else is said, int8 both ways where nothing else is said. Expected: DiLoCo and "
        "Streaming DiLoCo within 1 to 2 % of data parallel at 30 to 100 times fewer exchanges (arXiv 2311.08105, "
        "2501.18512); eager well above delayed (2502.12996: 2.69 and 3.01 at 500 M); NoLoCo within some per cent of "
        "DiLoCo (2506.10911); DES-LOC within 0.5 % of Local Adam at half the bytes (2505.22549).",
    ),
    (
        "regimes",
        "Longer runs, larger batches",
        "The papers train for thousands of rounds, each worker with batches so large that larger ones would gain it "
        "little. The same small model, with four times the steps, and with four times the batch.",
    ),
    (
        "codecs",
        "Bits on the wire",
        "The same DiLoCo with other codecs. Expected: 4 bits up no worse than fp32 (2501.18512).",
    ),
    ("periods", "How seldom", "DiLoCo with other numbers of inner steps between two syncs."),
    (
        "churn",
        "Churn",
        "Every four rounds a worker and its daemon are killed in the middle of a sync, and another one joins with a "
        "new optimizer. Expected: some per cent at most.",
    ),
    ("speeds", "Unequal speeds", "One of the workers makes half as many steps in the same time."),
)


def markdown(record: Json, pictures: Sequence[str]) -> str:
    """The whole document."""
    parts = [
        "# Methods",
        "Written by `scripts/study`; do not edit.",
        "A method is a named set of streams: fragments of the model, each with the rule by which it is exchanged. "
        "`[method] name = …` in run.toml chooses one; `wantrain init --method NAME` writes all of its options with "
        "their defaults and what they mean.",
        _catalogue(),
    ]
    if record["rows"]:
        machine = record["machine"]
        parts += [
            "## The study",
            f"* trained until {record['date']}, in {record['seconds'] / 3600:.1f} h\n* on {machine['cores']} cores of "
            f"{machine['cpu']}, Python {machine['python']}\n* again: `scripts/study`; figures: "
            "[img/methods.json](img/methods.json)",
            HOW,
        ]
        for table, title, words in TABLES:
            found = list(_tables(record, table))
            if found:
                picture = [f"![{title}](img/study-{table}.png)"] if f"study-{table}.png" in pictures else []
                parts += [f"### {title}", words, *picture, *found]
    return "\n\n".join(parts) + "\n"


def _catalogue() -> str:
    lines = ["| method | what it is | options |", "| --- | --- | --- |"]
    for name, method in METHODS.items():
        options = ", ".join(f"`{option.name}` {option.default}" for option in fields(method.options))
        what = (sys.modules[method.options.__module__].__doc__ or "").splitlines()[0]
        lines.append(f"| `{name}` | {what} | {options} |")
    return "\n".join(lines)


def _tables(record: Json, table: str) -> Iterator[str]:
    """A table for each size and number of workers that there are rows of; the lone worker stands in all of its size."""
    rows = [row for row in record["rows"] if row["setting"]["table"] == table and finished(row)]
    for size, peers in sorted({(row["size"]["name"], row["peers"]) for row in rows if row["peers"] > 1}, key=_order):
        here = [row for row in rows if row["size"]["name"] == size and row["peers"] == peers]
        alone = [row for row in record["rows"] if row["size"]["name"] == size and is_setting(row, ALONE.label)]
        alike = [row for row in record["rows"] if (row["size"]["name"], row["peers"]) == (size, peers)]
        base = next((row for row in alike if is_setting(row, DDP.label)), None)
        chosen = here[0]["size"]
        parameters, _, what = size.partition(", ")
        lines = [
            f"**{peers} workers, {parameters} parameters{what and f', {what}'},** {chosen['steps']:,} steps of "
            f"{chosen['batch'] * chosen['model']['context']:,} tokens each",
            "",
            "| | loss | vs data parallel | bytes per token | fewer bytes | seeds |",
            "| --- | --- | --- | --- | --- | --- |",
            *(_line(row, base) for row in [*(alone if table in ("methods", "regimes") else []), *here]),
        ]
        yield "\n".join(lines)
        failed = {
            f"{row['setting']['label']}: {outcome['failed']}"
            for row in here
            for outcome in row["seeds"].values()
            if "failed" in outcome
        }
        if failed:
            yield "Without figures:\n\n" + "\n".join(f"* {line}" for line in sorted(failed))


def _order(key: tuple[str, int]) -> tuple[float, int]:
    return float(key[0].split()[0]), key[1]


def _line(row: Json, base: Json | None) -> str:
    outcomes = finished(row)
    losses = [outcome["loss"] for outcome in outcomes.values()]
    spread = f" ± {stdev(losses):.3f}" if len(losses) > 1 else ""
    ratio, fewer = "", ""
    sent = fmean(outcome["sync_bytes"] / outcome["tokens"] for outcome in outcomes.values())
    both = sorted(set(outcomes) & set(finished(base))) if base is not None else []
    if base is not None and both and row is not base:
        ratio = f"{100 * (fmean(outcomes[s]['loss'] / finished(base)[s]['loss'] for s in both) - 1):+.1f} %"
        whole = fmean(finished(base)[s]["sync_bytes"] / finished(base)[s]["tokens"] for s in both)
        fewer = f"{whole / sent:,.0f}×" if sent else ""
    said = f"{sent:,.1f}" if sent else "0"
    return f"| {row['setting']['label']} | {fmean(losses):.3f}{spread} | {ratio} | {said} | {fewer} | {len(losses)} |"


def is_setting(row: Json, label: str) -> bool:
    """Whether a row is of this setting."""
    return bool(row["setting"]["label"] == label)


def finished(row: Json) -> dict[str, Json]:
    """The outcomes of a row by seed, without those runs that failed."""
    return {seed: outcome for seed, outcome in row["seeds"].items() if "failed" not in outcome}
