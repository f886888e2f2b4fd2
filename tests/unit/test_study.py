"""The study: what it plans, trains and keeps, and the page that is made of its figures."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from wantrain.demo.model import GPTConfig
from wantrain.optimizers.method import METHODS
from wantrain.study import suite
from wantrain.study.language import measure
from wantrain.study.page import markdown
from wantrain.study.plan import ALONE, DDP, DILOCO, SMALL, Run, Setting, Size, runs
from wantrain.study.plots import draw

TINY = Size("0.01 M", GPTConfig(layers=1, width=16, heads=2, context=16), steps=40, batch=2, lr=3e-3)


def outcome(loss: float, sent: int = 1000) -> dict[str, Any]:
    return {"loss": loss, "curve": [[0, 5.5], [20, 4.0], [40, loss]], "sync_bytes": sent, "tokens": 100}


def record_of(*rows: tuple[Run, dict[str, Any]]) -> dict[str, Any]:
    record = suite.new_record()
    for run, result in rows:
        suite.row_of(record, run)["seeds"][str(run.seed)] = result
    return record


@pytest.mark.parametrize("which", ["quick", "default", "full"])
def test_every_planned_run_is_another_one_of_a_known_method(which: str) -> None:
    planned = list(runs(which))
    assert {run.setting.method for run in planned} <= set(METHODS)
    keys = [json.dumps([run.row, run.seed], sort_keys=True) for run in planned]
    assert len(keys) == len(set(keys))


def test_the_plan_compares_with_data_parallel_and_a_lone_worker_in_every_table_of_methods() -> None:
    planned = list(runs("full"))
    for size, peers in {(run.size.name, run.peers) for run in planned if run.setting is DILOCO}:
        assert any(r.setting is DDP and (r.size.name, r.peers) == (size, peers) for r in planned)
        assert any(r.setting is ALONE and r.size.name == size for r in planned)


def test_a_run_gives_loss_curve_and_bytes_and_the_same_again() -> None:
    run = Run(TINY, 2, Setting("DiLoCo", "diloco", {"every": 10}), 1)
    first, again = measure(run), measure(run)
    assert {**first, "seconds": 0} == {**again, "seconds": 0}
    assert [step for step, _ in first["curve"]][-1] == TINY.steps
    assert first["loss"] == pytest.approx(first["curve"][-1][1], abs=1e-3)
    assert first["curve"][0][1] > first["loss"]
    assert first["tokens"] == TINY.steps * TINY.tokens
    assert first["syncs"] == 4
    assert first["sync_bytes"] > 0


def test_churn_and_unequal_paces_are_carried_out() -> None:
    churn = Run(TINY, 2, Setting("churn", "diloco", {"every": 4}, churn=True), 1)
    assert measure(churn)["aborts"] >= 1
    slow = Run(TINY, 2, Setting("slow", "diloco", {"every": 4}, paces=(1.0, 0.5)), 1)
    assert measure(slow)["waited"] > 0.2  # half of the time, for one of two


def test_the_page_has_means_spreads_and_ratios_to_data_parallel_and_names_what_failed() -> None:
    base, other = Run(SMALL, 4, DDP, 1), Run(SMALL, 4, DILOCO, 1)
    page = markdown(
        record_of(
            (base, outcome(2.0, 100_000)),
            (other, outcome(2.1)),
            (replace(other, seed=2), outcome(2.3)),
            (Run(SMALL, 1, ALONE, 1), outcome(2.5, 0)),
            (replace(base, seed=3), {"failed": "the run stalled"}),
        ),
        ["study-methods.png"],
    )
    assert "| DiLoCo | 2.200 ± 0.141 | +5.0 % | 10.0 | 100× | 2 |" in page
    assert "| data parallel | 2.000 |  | 1,000.0 |  | 1 |" in page
    assert "| one worker alone, as many steps | 2.500 |" in page
    assert "* data parallel: the run stalled" in page
    assert all(f"| `{name}` |" in page for name in METHODS)
    assert "![Methods](img/study-methods.png)" in page


def test_pictures_are_drawn_of_what_there_are_figures_of(tmp_path: Path) -> None:
    assert draw(suite.new_record(), tmp_path) == []
    assert draw(record_of((Run(SMALL, 4, DILOCO, 1), outcome(2.1))), tmp_path) == ["study-methods.png"]
    assert (tmp_path / "study-methods.png").stat().st_size > 10_000


def test_a_study_that_was_interrupted_goes_on_with_what_is_missing(tmp_path: Path) -> None:
    figures = tmp_path / "methods.json"
    planned = [Run(TINY, 2, Setting("DiLoCo", "diloco", {"every": 10}), seed) for seed in (1, 2)]
    record = record_of((planned[0], outcome(2.0)))
    suite.train(record, planned, float("inf"), 1, figures)
    kept = json.loads(figures.read_text())
    assert kept == record
    assert sorted(kept["rows"][0]["seeds"]) == ["1", "2"]
    assert kept["rows"][0]["seeds"]["1"]["loss"] == 2.0
    figures.unlink()
    suite.train(record, planned, float("inf"), 1, figures)
    assert not figures.exists()  # there was nothing to do


def test_what_is_the_same_training_is_done_once_and_stands_in_all_of_its_rows(tmp_path: Path) -> None:
    setting = Setting("DiLoCo", "diloco", {"every": 10})
    same = replace(setting, label="DiLoCo, every 10", table="periods")
    other = replace(setting, label="DiLoCo, fp32", codec="fp32")
    planned = [Run(TINY, 2, one, seed) for seed in (1, 2) for one in (setting, same, other)]
    record = record_of((planned[1], outcome(2.0)), (planned[2], outcome(2.1)), (planned[5], outcome(2.2)))
    suite.train(record, planned, float("inf"), 1, tmp_path / "methods.json")
    seeds = {row["setting"]["label"]: row["seeds"] for row in record["rows"]}
    assert seeds["DiLoCo"] == seeds["DiLoCo, every 10"]
    assert seeds["DiLoCo"]["1"]["loss"] == 2.0
    assert (seeds["DiLoCo, fp32"]["1"]["loss"], seeds["DiLoCo, fp32"]["2"]["loss"]) == (2.1, 2.2)


def test_a_study_may_go_on_on_another_machine_which_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = {**suite.new_record(), "machine": {"cpu": "another"}}
    suite.train(record, [], float("inf"), 1, tmp_path / "methods.json")
    assert record["machine"] == suite.machine()
    assert "figures so far are from {'cpu': 'another'}" in capsys.readouterr().err


def test_what_cannot_be_done_is_said_with_the_next_step(tmp_path: Path) -> None:
    missing = CliRunner().invoke(suite.main, ["--render", "--out", str(tmp_path)])
    assert missing.exit_code == 1
    assert "methods.json" in missing.output
    (tmp_path / "img").mkdir(exist_ok=True)
    record = {**suite.new_record(), "machine": {"cpu": "another"}}
    (tmp_path / "img" / "methods.json").write_text(json.dumps(record))
    assert CliRunner().invoke(suite.main, ["--render", "--out", str(tmp_path)]).exit_code == 0
    assert (tmp_path / "methods.md").read_text().startswith("# Methods")
