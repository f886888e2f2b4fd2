"""Methods by real processes: peers agree, a newcomer takes part, and the result is one model."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.process.harness import Run
from wantrain.config import RunSpec

METHODS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "streaming-diloco": ({"every": 30, "fragments": 3, "split": "balanced", "delay": 2}, ()),
    "des-loc": ({"every": 8, "every_exp_avg": 16, "every_exp_avg_sq": 24}, ("--adam",)),
    "sparta": ({"parts": 10, "every": 3}, ()),
    "eager": ({"every": 8}, ()),
    "fedyogi": ({"schedule": "seconds", "round_s": 0.3}, ()),
}


@pytest.mark.parametrize("method", METHODS)
def test_peers_agree_and_leave_one_model(method: str, new_run: Callable[..., Run]) -> None:
    options, trainer = METHODS[method]
    run = new_run(method=method, options={"method": options})
    run.peer("anna", trainer=trainer)
    run.peer("bert", trainer=trainer)
    run.until_commits(12, "anna", "bert")
    run.peer("nora", trainer=trainer)
    run.until_commits(12, "anna", "bert", "nora")
    run.assert_parity("anna", "bert", "nora")
    streams = {commit["sync"].partition("#")[0] for commit in run.events("coordinator", "commit")}
    assert streams == {stream.name for stream in RunSpec.load(run.run_file).streams}
    run.stop("anna", "bert", "nora")
    kept = max((run.folder / "nora" / "checkpoints").glob("0*"))
    done = run.wantrain("checkpoint", "export", kept, run.folder / "model.safetensors", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["tensors"] == 4
