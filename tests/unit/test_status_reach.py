"""What `wantrain status` says of each link: direct, dialled by one side only, or through whom; what it leaves out."""

import json

import pytest

from tests.unit.test_coordinator_core import Run
from tests.unit.test_reachability_cores import behind_nat
from wantrain.cli.status import _relayed
from wantrain.peers.messages import LinkReport
from wantrain.peers.status import DOCUMENT_BYTES, LISTS, _links, fitting
from wantrain.peers.status import _relayed as relayed


@pytest.fixture
def one() -> Run:
    return behind_nat("b", "c", dialled="a")


@pytest.mark.scenario(18)
def test_a_link_says_who_has_dialled(one: Run) -> None:
    paths = {peer: LinkReport(0.0, 0.0, 0.0, 0, "", way) for peer, way in (("b", "in"), ("c", "both"))}
    one.report("a", 3, paths=paths)
    one.report("b", 3, paths={"a": LinkReport(0.0, 0.0, 0.0, 0, "", "out")})
    ways = {(link["from"], link["to"]): link["way"] for link in _links(one.core)}
    assert ways == {
        ("a", "b"): "direct, dialled by the other only",
        ("a", "c"): "direct",
        ("b", "a"): "direct, dialled by it only",
    }


@pytest.mark.scenario(18)
def test_a_pair_that_cannot_meet_is_listed_with_the_reason_and_who_relays(one: Run) -> None:
    one.report("a", 3, unreached=("c",))
    assert relayed(one.core) == [
        {"pair": ["a", "c"], "why": "no connection between them", "through": []},
        {"pair": ["b", "c"], "why": "both can only dial out", "through": []},
    ]
    one.report("a", 3)
    assert relayed(one.core) == [{"pair": ["b", "c"], "why": "both can only dial out", "through": ["a"]}]
    assert [str(cell) for cell in _relayed(relayed(one.core)).columns[2].cells] == ["a"]


def test_of_a_document_that_is_too_large_rows_are_left_out_and_counted() -> None:
    rows = {name: [{"name": f"{name}-{k}", "more": "x" * 100} for k in range(100)] for name in LISTS}
    found = {"reason": "", **rows, "peers": [{"name": f"peer-{k}", "more": "x" * 4000} for k in range(400)]}
    text = fitting(found)
    told = json.loads(text)
    assert DOCUMENT_BYTES / 2 < len(text) <= DOCUMENT_BYTES
    assert told["left_out"] == {"peers": 400 - len(told["peers"])}
    assert {name: told[name] for name in LISTS[1:]} == {name: found[name] for name in LISTS[1:]}
    assert json.loads(fitting(told)) == {**told, "left_out": {}}
