"""Real daemons that cannot be dialled: two of them exchange through a third, and nobody stalls for it."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Measured
from tests.process.harness import Event, Run
from tests.process.lab_rows import SEVERAL_CHUNKS
from wantrain.lab import Lab, Shape, available

NewRun = Callable[..., Run]
OUTBOUND = "--outbound-only"
NOWHERE = "10.77.0.99:7700"
"""An address of the lab's network that no host has: who dials it hears nothing at all, as behind most NATs."""


def attempts_given_up(run: Run) -> list[Event]:
    return run.events("coordinator", "abort") + run.events("coordinator", "left-behind")


@pytest.mark.scenario(18)
def test_two_that_only_dial_out_train_through_one_that_can_be_reached(new_run: NewRun, measured: Measured) -> None:
    run = new_run()
    run.peer("ben", OUTBOUND)
    run.peer("anna")
    run.peer("carl", OUTBOUND)  # whoever is first gives the weights: they reach the third through anna too
    run.until_commits(10, "anna", "ben", "carl")
    given_up = attempts_given_up(run)
    assert given_up == []
    document = run.status()
    assert {peer["name"]: bool(peer["address"]) for peer in document["peers"]} == {
        "anna": True, "ben": False, "carl": False,
    }  # fmt: skip
    (pair,) = document["relayed"]
    assert (set(pair["pair"]), pair["why"], pair["through"]) == ({"ben", "carl"}, "both can only dial out", ["anna"])
    ways = {(link["from"], link["to"]): link["way"] for link in document["links"]}
    assert ways["ben", "anna"] == "direct, dialled by it only"
    assert ways["anna", "ben"] == "direct, dialled by the other only"
    run.assert_parity("anna", "ben", "carl")
    measured(18, "attempts given up, two peers behind NAT and one reachable", len(given_up), "")
    run.stop("anna", "ben", "carl")


@pytest.mark.scenario(18)
def test_when_the_only_reachable_peer_leaves_the_others_are_told_and_come_together_again(new_run: NewRun) -> None:
    run = new_run()
    run.peer("anna")
    run.peer("ben", OUTBOUND)
    run.peer("carl", OUTBOUND)
    run.until_commits(3, "anna", "ben", "carl")
    run.kill("anna")

    words = "is cut off: it can only dial out, and so can"
    run.until(lambda: words in run.status().get("reason", ""), "status says who is cut off, and why")
    run.until_commits(3)  # one of the two goes on
    run.peer("dora")  # anybody who can be reached will do; it has to fetch the state from one of them
    run.until_commits(3, "ben", "carl", "dora")
    run.assert_parity("ben", "carl", "dora")
    run.stop("ben", "carl", "dora")


@pytest.mark.scenario(18)
@pytest.mark.skipif(bool(available()), reason=available())
def test_hosts_that_cannot_be_dialled_are_found_out_before_a_sync_waits_for_them(tmp_path: Path) -> None:
    """Both say that they can be dialled, and cannot: only what the connections show tells that."""
    with Lab(4, Shape.parse("rtt=20ms,rate=100mbit")) as lab, Run(tmp_path, lab=lab) as run:
        run.coordinator()
        run.peer("anna", trainer=SEVERAL_CHUNKS)
        run.peer("ben", "--advertise", NOWHERE, trainer=SEVERAL_CHUNKS)
        run.peer("carl", "--advertise", NOWHERE, trainer=SEVERAL_CHUNKS)
        run.until_commits(8, "anna", "ben", "carl")
        assert attempts_given_up(run) == []
        (pair,) = run.status()["relayed"]
        assert (set(pair["pair"]), pair["why"]) == ({"ben", "carl"}, "no connection between them")
        run.assert_parity("anna", "ben", "carl")
        run.stop("anna", "ben", "carl")
