"""Sites of several ranks: sharded in every way, beside plain peers, killed in part and as a whole, back as more."""

import json
import os
import signal
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

from tests.process.harness import Run

SCRIPT = Path(__file__).with_name("site_trainer.py")
TOGETHER: dict[str, dict[str, Any]] = {"sync": {"quorum": 1.0, "grace_floor_s": 60.0, "grace_ceiling_s": 60.0}}
"""Every round has all of them in it, however slow one is."""


def site(run: Run, name: str, *words: str) -> None:
    """Start a peer whose command starts the ranks, without torchrun's own imports."""
    run.peer(name, script=(SCRIPT, run.folder, name, *words))


def with_torchrun(run: Run, name: str, ranks: int, *words: str) -> None:
    """Start a peer whose command is torchrun."""
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks))
    run.peer(name, script=(*torchrun, SCRIPT, run.folder, name, *words))


def pid_of(run: Run, name: str, rank: int) -> int:
    """Process id of a rank that has joined."""
    return int((run.folder / f"{name}.{rank}.pid").read_text())


def told_by(run: Run, **ranks: int) -> dict[str, list[dict[str, Any]]]:
    """What each rank of each peer has told in the end."""
    return {
        name: [json.loads((run.folder / f"{name}.{rank}.json").read_text()) for rank in range(count)]
        for name, count in ranks.items()
    }


def test_sharded_sites_and_a_plain_peer_have_the_same_weights(new_run: Callable[..., Run]) -> None:
    """One of the sites is of two hosts, as far as its ranks can tell."""
    run = new_run(options={**TOGETHER, "method": {"every": 5, "weight": "tokens"}})
    run.pause()  # all are to begin at the run's first weights, and to end with the same round
    site(run, "anna", "--ranks", "2", "--kind", "fsdp", "--rounds", "4")
    site(run, "bert", "--ranks", "2", "--kind", "fsdp", "--rounds", "4", "--far")
    site(run, "carl", "--kind", "plain", "--rounds", "4")
    names = ("anna", "bert", "carl")
    run.until(lambda: all((run.folder / f"{name}.0.pid").exists() for name in names), "all join")
    run.resume()
    assert {name: run.exit_code(name) for name in names} == dict.fromkeys(names, 0), run.story()
    told = told_by(run, anna=2, bert=2, carl=1)
    for rank in chain(*told.values()):
        assert rank["joined"] == told["anna"][0]["joined"]
        assert rank["values"] == told["carl"][0]["values"]  # phi, with no own steps since
        assert rank["values"] == rank["phi"] != rank["joined"]
        assert rank["known"][:3] == [4, 20, 20]
    assert [rank["known"][3] for rank in told["bert"]] == ["bert", "bert"]
    run.assert_one_history(*names)


def test_gradients_of_tensor_parallel_and_replicated_ranks(new_run: Callable[..., Run]) -> None:
    """Every inner step is made together; its mean gradient is the same however the ranks hold it."""
    run = new_run(method="ddp", codec="fp32", options=TOGETHER)
    run.pause()
    site(run, "anna", "--ranks", "2", "--kind", "tp", "--rounds", "2")
    site(run, "bert", "--ranks", "2", "--kind", "ddp", "--rounds", "2")
    run.until(lambda: all((run.folder / f"{name}.0.pid").exists() for name in ("anna", "bert")), "both join")
    run.resume()
    assert [run.exit_code(name) for name in ("anna", "bert")] == [0, 0], run.story()
    told = told_by(run, anna=2, bert=2)
    assert all(rank["values"] == told["anna"][0]["values"] for rank in chain(*told.values()))
    run.assert_one_history("anna", "bert")


def test_a_site_whose_rank_dies_and_that_dies_as_a_whole_comes_back_with_other_ranks(
    new_run: Callable[..., Run],
) -> None:
    run = new_run(options={"checkpoint": {"every": 3}})
    site(run, "anna", "--kind", "plain")
    with_torchrun(run, "bert", 2, "--kind", "fsdp")
    run.until_commits(3, "anna", "bert")
    os.kill(pid_of(run, "bert", 1), signal.SIGKILL)
    run.until(lambda: run.events("bert", "trainer-exit"), "torchrun ends what is left of the site")
    run.until_commits(3, "anna")
    run.until_commits(3, "anna", "bert")  # the peer has started all of it anew
    run.signal("bert", signal.SIGINT, group=True)  # as Ctrl-C does: to the daemon and to torchrun, not to the ranks
    assert run.exit_code("bert") == 0

    site(run, "bert", "--ranks", "3", "--kind", "fsdp")
    run.until_commits(3, "anna", "bert")
    run.kill("bert")
    run.until_commits(3, "anna")
    site(run, "bert", "--ranks", "1", "--kind", "fsdp")
    run.until_commits(3, "anna", "bert")
    assert len(run.events("bert", "loaded")) == 2, run.story()  # it had a saved state each time
    run.assert_parity("anna", "bert")
    run.stop("anna", "bert")


def test_the_ranks_of_a_site_draw_every_sample_between_them(new_run: Callable[..., Run]) -> None:
    run = new_run(options={"method": {"every": 4}})
    site(run, "anna", "--ranks", "2", "--kind", "fsdp", "--samples", "301", "--batch", "3")
    site(run, "bert", "--kind", "plain", "--samples", "301", "--batch", "3")
    assert [run.exit_code(name) for name in ("anna", "bert")] == [0, 0], run.story()
    told = told_by(run, anna=2, bert=1)
    drawn = [sample for rank in chain(*told.values()) for sample in rank["drawn"]]
    assert set(drawn) == set(range(301))
    assert len(drawn) <= 302  # the last one may be both ranks'
    steps = [rank["known"][2] for rank in told["anna"]]
    assert steps[0] == steps[1] > 0
    run.assert_one_history("anna", "bert")
