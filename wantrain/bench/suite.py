"""`scripts/bench`: runs a matrix of measurements within a budget of time, writes docs/benchmarks.md and pictures."""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from wantrain.bench import allreduce, coordinator, matrix
from wantrain.bench.document import markdown
from wantrain.bench.figures import keep
from wantrain.bench.plots import draw
from wantrain.bench.worker import Json
from wantrain.errors import ConfigError, WantrainError

BUDGET_S = {"quick": 240.0, "default": 1500.0, "full": 86400.0}
FRAGMENT = 10**6
"""Values of the fragment whose outer step is measured."""
TRAINED_EVERY = (20, 100)
"""Inner steps of a round for which the trainer's own cost is measured."""
COORDINATED = {"quick": (8, 64, 512), "default": (8, 64, 512, 4096), "full": (8, 64, 512, 4096)}


@click.command()
@click.option("--quick", "which", flag_value="quick", help="A few rows, a few minutes.")
@click.option("--full", "which", flag_value="full", help="Every size, number of peers, codec and link: hours.")
@click.option("--budget", type=click.FloatRange(1.0), help="Seconds after which no further row is begun.")
@click.option(
    "--out",
    default="docs",
    show_default=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="Where benchmarks.md and img/ are written.",
)
@click.option("--more", is_flag=True, help="Keep the figures of img/benchmarks.json, measure the rows without any.")
@click.option("--render", is_flag=True, help="Measure nothing: write text and pictures from img/benchmarks.json again.")
def main(which: str | None, budget: float | None, out: Path, more: bool, render: bool) -> None:
    """Measure wantrain on this machine and write what came out.

    \b
    Examples:
      scripts/bench --quick
      scripts/bench --budget 600 --out runs/bench
    """
    figures = out / "img" / "benchmarks.json"
    try:
        former: Json | None = json.loads(figures.read_text(encoding="utf-8")) if render or more else None
        if render and former is not None:
            record = former
        else:
            budget = budget or BUDGET_S[which or "default"]
            figures.parent.mkdir(parents=True, exist_ok=True)
            record = measure(which or "default", budget, lambda found: keep(found, figures), former)
        pictures = draw(record, figures.parent)
        (out / "benchmarks.md").write_text(markdown(record, pictures), encoding="utf-8")
    except WantrainError as error:
        click.echo(f"error: {error.message}", err=True)
        sys.exit(error.exit_code)
    except OSError as error:
        click.echo(f"error: {error.strerror}: {error.filename}", err=True)
        sys.exit(1)
    _say(f"written: {out / 'benchmarks.md'}")


def measure(which: str, budget_s: float, noted: Callable[[Json], None], former: Json | None = None) -> Json:
    """All of a matrix but what `former` has figures of; what cannot run is recorded with the reason.

    Args:
        noted: gets the figures so far, whenever there are new ones.

    Raises:
        ConfigError: `former` was measured on another machine.
    """
    began = time.monotonic()
    machine = allreduce.machine()
    if former is not None and former["machine"] != machine:
        raise ConfigError(
            f"the figures are from another machine: {former['machine']}, here {machine}", hint="leave out --more"
        )
    before: Json = {"since": _now(), "seconds": 0, "allreduce": []} if former is None else former
    record: Json = {**before, "matrix": which, "machine": machine}

    def note(**found: Any) -> None:
        record.update(found, until=_now(), seconds=round(time.monotonic() - began) + before["seconds"])
        noted(record)

    parts: dict[str, Callable[[], list[Json]]] = {
        "coordinator": lambda: coordinator.measure(COORDINATED[which], 3, _say),
        "codecs": _codecs,
        "peer": _peer,
        "trainer": _trainer,
    }
    for name, measured in parts.items():
        if name not in record:
            note(**{name: _try(measured)})
    known = {_key(row): row for row in before["allreduce"] if "failed" not in row}
    rows = matrix.rows(which)
    keys = [_key(_entry(row)) for row in rows]
    for key, row in zip(keys, rows, strict=True):
        if key in known:
            continue
        entry = _entry(row)
        _say(f"{row.group}: {describe(row.options)}")
        if time.monotonic() - began > budget_s:
            entry["failed"] = f"not run: the budget of {budget_s:g} s was used up"
        else:
            try:
                entry |= allreduce.measure(row.options, lambda line: _say(f"  {line}"))
            except WantrainError as error:
                entry["failed"] = error.message
        if "failed" in entry:
            _say(f"  {entry['failed']}")
        known[key] = entry
        # As the matrix has them, whenever each was measured.
        note(allreduce=[known[key] for key in keys if key in known])
    return record


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="minutes")


def _entry(row: matrix.Row) -> Json:
    """A row as it stands in the figures, without what was measured."""
    options = {**asdict(row.options), "down": row.options.way_down, "against": list(row.options.against)}
    return {"group": row.group, "options": options}


def _key(entry: Json) -> str:
    """What makes a row the same as another: its table and its options."""
    return json.dumps([entry["group"], entry["options"]], sort_keys=True)


def describe(options: allreduce.Options) -> str:
    """A row in words."""
    where = options.lab or ("loopback, CURVE" if options.encrypt else "loopback, plain")
    return f"{options.size_mb:g} MB, {options.peers} peers, {options.topology}, {options.codec}, {where}"


def _codecs() -> list[Json]:
    from wantrain.bench.codecs import measure as measure_codecs

    rows: list[Json] = measure_codecs(matrix.CODECS, 2**20, 0.1)
    return rows


def _peer() -> list[Json]:
    from wantrain.bench.outer import measure as measure_outer
    from wantrain.optimizers.merge import MERGES

    _say("outer steps, encoding and decoding of a fragment")
    rows: list[Json] = measure_outer(tuple(MERGES), ("fp32", "int8", "int4"), FRAGMENT, 0.5)
    return rows


def _trainer() -> list[Json]:
    from wantrain.bench.trainer import measure as measure_trainer

    return [measure_trainer(every, 10, _say) for every in TRAINED_EVERY]


def _try(what: Callable[[], list[Json]]) -> Json:
    """Rows, or why there are none."""
    try:
        return {"rows": what()}
    except WantrainError as error:
        return {"rows": [], "failed": error.message}


def _say(line: str) -> None:
    click.echo(line, err=True)


if __name__ == "__main__":
    main()
