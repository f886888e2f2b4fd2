"""Data leases on real processes: an epoch shared by peers of which one is killed, over a coordinator's restart."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Measured
from tests.process.harness import EVERY, Run

SAMPLES = 2500


def drawn(folder: Path, name: str) -> list[int]:
    """The samples that a peer's trainers have drawn, in order."""
    path = folder / f"{name}.samples"
    return [int(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.mark.scenario(1)
def test_an_epoch_is_gone_through_once_although_a_peer_is_killed(
    new_run: Callable[..., Run], measured: Measured
) -> None:
    run = new_run()
    words = ("--samples", str(SAMPLES))
    run.pause()
    for name in ("anna", "bert", "carl"):
        run.peer(name, trainer=words)
    run.until(lambda: len(run.events("coordinator", "joined")) == 3, "all have joined")
    run.resume()
    run.until_commits(4, "anna", "bert", "carl")
    run.kill("carl")
    killed = drawn(run.folder, "carl")
    run.until_commits(2, "anna", "bert")
    run.kill("coordinator")
    run.coordinator()
    run.until_commits(2, "anna", "bert")
    assert run.exit_code("anna") == run.exit_code("bert") == 0

    times = Counter(sample for name in ("anna", "bert", "carl") for sample in drawn(run.folder, name))
    assert set(times) == set(range(SAMPLES))
    repeated = {sample for sample, count in times.items() if count > 1}
    assert repeated <= set(killed)
    assert max(times.values()) <= 2
    # Nothing is repeated of what its commits contain: it came first. Two rounds are staged or under way, at most.
    assert repeated == set(killed[-len(repeated) :] if repeated else [])
    assert len(repeated) <= 3 * EVERY
    back = run.events("coordinator", "samples-back")
    ids = {event["name"]: event["peer"] for event in run.events("coordinator", "joined")}
    assert [event["peer"] for event in back] == [ids["carl"]]
    measured(1, f"samples that a killed peer had drawn and others drew again, of {SAMPLES}", len(repeated), "samples")
    run.assert_one_history("anna", "bert")
