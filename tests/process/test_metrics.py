"""Metrics and trackers of real daemons: what Prometheus scrapes, and the files that are left behind."""

import json
import urllib.request
from pathlib import Path

import pytest

from tests.process.harness import Run
from wantrain.metrics.families import COORDINATOR, PEER


def test_daemons_serve_metrics_and_write_points(tmp_path: Path) -> None:
    pytest.importorskip("prometheus_client", reason="scripts/setup dev installs prometheus-client")
    pytest.importorskip("tensorboard", reason="scripts/setup dev installs tensorboard")
    with Run(tmp_path) as run:
        run.coordinator("--metrics", "0")
        run.peer("anna", "--metrics", "127.0.0.1:0", "--track", f"tensorboard:{tmp_path / 'board'}")
        run.peer("bert")
        run.until_commits(3, "anna", "bert")
        of_run = run.until(lambda: settled(scrape(run, "coordinator")), "the coordinator has measured all of that")
        of_anna = run.until(lambda: settled(scrape(run, "anna")), "anna has measured all of that")
        assert {family.name for family in COORDINATOR if not family.labels} <= set(of_run)
        assert {family.name for family in PEER if not family.labels} <= set(of_anna)
        assert of_run["wantrain_sync_seconds_count"] == 2 * of_run["wantrain_commits_total"]
        assert of_anna["wantrain_sent_bytes_total"] > 0
        assert of_anna["wantrain_attempts_total"] >= of_anna["wantrain_commits_total"]
        assert of_anna["wantrain_global_step"] >= 45
        assert of_anna["wantrain_memory_tensor_bytes"] > 0
        run.stop("anna", "bert")
    read_points(tmp_path)


def scrape(run: Run, name: str) -> dict[str, float]:
    """What a process serves, as sums over labels; of a histogram all that has its name."""
    from prometheus_client.parser import text_string_to_metric_families

    (event,) = run.events(name, "metrics")
    with urllib.request.urlopen(f"http://{event['address']}/metrics", timeout=30.0) as answer:
        text = answer.read().decode()
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found[sample.name] = found.get(sample.name, 0.0) + sample.value
    return found


def settled(found: dict[str, float]) -> dict[str, float]:
    """What was scraped, if both peers and the commits are in it: what is served may be a second old."""
    return found if found.get("wantrain_view_members") == 2 and found.get("wantrain_commits_total", 0) >= 3 else {}


def read_points(folder: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    lines = [json.loads(line) for line in (folder / "anna" / "metrics.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in lines]
    assert steps == sorted(steps)
    assert steps[-1] >= 45
    assert lines[-1]["numbers"]["wantrain/commits_total"] >= 3
    assert lines[-1]["round"] >= 3
    (board,) = (folder / "board").glob("*/anna")
    reader = EventAccumulator(str(board))
    reader.Reload()
    assert [event.step for event in reader.Scalars("wantrain/commits_total")] == steps
