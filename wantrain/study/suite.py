"""`scripts/study`: trains what the plan says within a budget of time, writes docs/methods.md and pictures."""

import json
import sys
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from datetime import UTC, datetime
from multiprocessing import active_children, get_context
from os import cpu_count
from pathlib import Path

import click

from wantrain.bench.allreduce import machine
from wantrain.bench.figures import keep
from wantrain.demo.processes import terminated_like_ctrl_c
from wantrain.errors import WantrainError
from wantrain.study.language import Json, measure
from wantrain.study.page import markdown
from wantrain.study.plan import Run, runs
from wantrain.study.plots import draw

FIGURES = "methods.json"


@click.command()
@click.option("--quick", "which", flag_value="quick", help="One seed of four settings: some minutes.")
@click.option("--full", "which", flag_value="full", help="All sizes of the model: hours.")
@click.option("--budget", type=click.FloatRange(1.0), help="Seconds after which no further run is begun.")
@click.option("--more", is_flag=True, help="Keep the figures of img/methods.json, train only what has none.")
@click.option("--render", is_flag=True, help="Train nothing: write text and pictures from img/methods.json again.")
@click.option("--workers", type=click.IntRange(1, 256), help="Runs at a time. [default: one for each core]")
@click.option(
    "--out",
    default="docs",
    show_default=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="Where methods.md and img/ are written.",
)
def main(which: str | None, budget: float | None, more: bool, render: bool, workers: int | None, out: Path) -> None:
    """Train small GPTs with every method on this machine and write what came out.

    Figures are kept after every run: a study that was interrupted goes on with --more.

    \b
    Examples:
      scripts/study --quick --out runs/study
      scripts/study --more --budget 3600
    """
    figures = out / "img" / FIGURES
    try:
        figures.parent.mkdir(parents=True, exist_ok=True)
        record: Json = json.loads(figures.read_text(encoding="utf-8")) if more or render else new_record()
        if not render:
            train(record, list(runs(which or "default")), budget or float("inf"), workers or cpu_count() or 1, figures)
        write(record, out)
    except WantrainError as error:
        click.echo(f"error: {error.message}", err=True)
        sys.exit(error.exit_code)
    except OSError as error:
        click.echo(f"error: {error.strerror}: {error.filename}", err=True)
        sys.exit(1)
    click.echo(f"written: {out / 'methods.md'}", err=True)


def new_record() -> Json:
    """Figures of nothing yet."""
    return {"machine": machine(), "date": "", "seconds": 0, "rows": []}


def write(record: Json, out: Path) -> None:
    """The page and its pictures."""
    pictures = draw(record, out / "img")
    (out / "methods.md").write_text(markdown(record, pictures), encoding="utf-8")


def train(record: Json, planned: list[Run], budget_s: float, workers: int, figures: Path) -> None:
    """Do all runs that `record` has no figures of, several at a time, and keep each when it is done."""
    if record["machine"] != machine():
        click.echo(f"figures so far are from {record['machine']}: losses do not depend on that, times do", err=True)
        record["machine"] = machine()
    began, spent_s = time.monotonic(), record["seconds"]
    left: list[Run] = []
    for run in planned:
        if outcome := row_of(record, run)["seeds"].get(str(run.seed)):
            note(record, planned, run, outcome)
    for run in planned:
        known = str(run.seed) in row_of(record, run)["seeds"]
        if not known and not any(run.training == other.training for other in left):
            left.append(run)
    click.echo(f"{len(left)} trainings to do for {len(planned)} rows and seeds, {workers} at a time", err=True)
    under_way: dict[Future[Json], Run] = {}
    done = 0
    with (
        terminated_like_ctrl_c(),
        ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool,
        ended_at_once(),
    ):
        while left or under_way:
            while left and len(under_way) < workers and time.monotonic() - began < budget_s:
                run = left.pop(0)
                under_way[pool.submit(measure, run)] = run
            if not under_way:
                click.echo(f"the budget of {budget_s:g} s is used up: {len(left)} runs are left for --more", err=True)
                return
            for future in wait(under_way, return_when=FIRST_COMPLETED).done:
                run = under_way.pop(future)
                done += 1
                words = f"{run.setting.label}, {run.peers} workers, {run.size.name}, seed {run.seed}"
                try:
                    outcome = future.result()
                except WantrainError as error:
                    outcome = {"failed": error.message}
                note(record, planned, run, outcome)
                said = outcome.get("failed") or f"{outcome['loss']:.3f} nats, {outcome['seconds']:.0f} s"
                click.echo(f"{done}, {len(left)} left: {words}: {said}", err=True)
                record["date"] = datetime.now(UTC).isoformat(timespec="minutes")
                record["seconds"] = spent_s + round(time.monotonic() - began)
                keep(record, figures)


@contextmanager
def ended_at_once() -> Iterator[None]:
    """Runs under way end with an interrupt, and not when they are done."""
    try:
        yield
    except KeyboardInterrupt:
        for child in active_children():
            child.terminate()
        raise


def row_of(record: Json, run: Run) -> Json:
    """The row of a run in the figures, made if there is none: {size, peers, setting, seeds: {seed: outcome}}."""
    known = json.loads(json.dumps(run.row))
    for row in record["rows"]:
        if {name: row[name] for name in known} == known:
            found: Json = row
            return found
    record["rows"].append({**known, "seeds": {}})
    made: Json = record["rows"][-1]
    return made


def note(record: Json, planned: list[Run], run: Run, outcome: Json) -> None:
    """Enter what came out of a run in all rows that are the same training."""
    for alike in planned:
        if alike.training == run.training:
            row_of(record, alike)["seeds"].setdefault(str(alike.seed), outcome)


if __name__ == "__main__":
    main()
