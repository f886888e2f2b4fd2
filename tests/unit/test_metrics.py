"""Metrics: what events and measurements come to, what Prometheus reads of it, and the page that lists all of them."""

import urllib.request
from collections.abc import Iterator

import pytest

from tests.pages import DOCS, written
from wantrain.errors import AddressInUseError, ConfigError
from wantrain.metrics.coordinator_meter import CoordinatorMeter
from wantrain.metrics.endpoint import Endpoint, metrics_address
from wantrain.metrics.families import BOUNDS_S, COORDINATOR, PEER, Family
from wantrain.metrics.ledger import Ledger
from wantrain.metrics.peer_meter import Measured, PeerMeter
from wantrain.transport.link import LinkStats

UNITS = ("_total", "_seconds", "_bytes", "_ratio", "_bytes_per_second")
COUNTS = {"step", "global_step", "round", "tokens", "view_members", "view_number", "log_number", "peers", "data_epoch"}


def measured(**changes: object) -> Measured:
    known = {"stats": {}, "links": {}, "names": {}, "step_s": 0.5, "global_step": 7, "log_number": 3, "members": 2}
    return Measured(**{**known, **changes})  # type: ignore[arg-type]


def test_the_page_lists_all_metrics() -> None:
    page = (DOCS / "metrics.md").read_text(encoding="utf-8")
    assert written("metrics.md") == page, "run scripts/pages and commit docs/metrics.md"


@pytest.mark.parametrize("families", [PEER, COORDINATOR], ids=["peer", "coordinator"])
def test_names_end_in_their_unit_and_only_counters_in_total(families: tuple[Family, ...]) -> None:
    assert len({family.name for family in families}) == len(families)
    for family in families:
        bare = family.name.removeprefix("wantrain_")
        assert bare != family.name
        assert bare.endswith(UNITS) or bare in COUNTS | {"data_leases"}, family.name
        assert (family.kind == "counter") == family.name.endswith("_total"), family.name
        assert family.help.endswith(".")


def test_a_sync_is_counted_with_its_parts() -> None:
    meter = PeerMeter()
    meter.contributed("param", 10.0)
    meter.event("start", {"sync": "param#1.1"}, 12.0)
    meter.event("abort", {"sync": "param#1.1"}, 13.0)
    meter.event("start", {"sync": "param#1.2"}, 14.0)
    meter.event("commit", {"sync": "param#1.2", "bytes": 100}, 17.0)
    meter.event("granted", {"stream": "param"}, 17.25)
    found = meter.ledger.snapshot()
    assert found.values["wantrain_attempts_total"] == {("param",): 2.0}
    assert found.values["wantrain_aborts_total"] == {("param",): 1.0}
    assert found.values["wantrain_commits_total"] == {("param",): 1.0}
    assert found.values["wantrain_update_bytes_total"] == {(): 100.0}
    parts = {labels[0]: row.total for labels, row in found.distributions["wantrain_sync_seconds"].items()}
    assert parts == {"gather": 2.0, "move": 3.0, "answer": 0.25}


def test_a_sync_that_others_made_has_no_duration_here() -> None:
    meter = PeerMeter()
    meter.event("commit", {"sync": "param#1.1", "bytes": 1}, 17.0)
    assert meter.ledger.snapshot().distributions["wantrain_sync_seconds"] == {}


def test_links_of_peers_that_are_gone_are_forgotten() -> None:
    meter = PeerMeter()
    links = {"a": LinkStats(bytes_sent=5, rtt_s=0.1), "b": LinkStats(bytes_sent=6)}
    meter.measured(measured(links=links, names={"a": "anna", "b": "bert"}))
    meter.measured(measured(links=links, names={"a": "anna"}))
    rows = meter.ledger.snapshot().values
    assert rows["wantrain_sent_bytes_total"] == {("a", "anna"): 5.0}
    assert rows["wantrain_link_rtt_seconds"] == {("a", "anna"): 0.1}


def test_the_coordinator_counts_attempts_that_are_over() -> None:
    meter = CoordinatorMeter()
    meter.event("abort", {"sync": "param#1.1"})
    meter.event("commit", {"sync": "param#1.2", "gather_s": 1.0, "move_s": 2.0})
    meter.event("lost", {"peer": "a"})
    values = meter.ledger.snapshot().values
    assert values["wantrain_attempts_total"] == {("param",): 2.0}
    assert values["wantrain_suspicions_total"] == {(): 1.0}


def test_a_snapshot_does_not_change() -> None:
    ledger = Ledger(PEER)
    before = ledger.snapshot()
    ledger.add("wantrain_commits_total", "param")
    ledger.observe("wantrain_sync_seconds", 1.0, "move")
    assert before.values["wantrain_commits_total"] == {}
    assert before.distributions["wantrain_sync_seconds"] == {}


def test_a_value_on_a_bound_is_in_the_bucket_of_that_bound() -> None:
    ledger = Ledger(PEER)
    for value in (BOUNDS_S[0], 1e9):
        ledger.observe("wantrain_sync_seconds", value, "move")
    row = ledger.snapshot().distributions["wantrain_sync_seconds"]["move",]
    assert (row.counts[0], row.counts[-1], sum(row.counts)) == (1, 1, 2)


def test_flat_numbers_are_sums_over_labels() -> None:
    ledger = Ledger(PEER)
    ledger.add("wantrain_commits_total", "a", amount=2.0)
    ledger.add("wantrain_commits_total", "b")
    ledger.observe("wantrain_sync_seconds", 1.5, "move")
    flat = ledger.snapshot().flat()
    assert (flat["commits_total"], flat["sync_seconds_move_sum"], flat["sync_seconds_move_count"]) == (3.0, 1.5, 1.0)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("9464", ("127.0.0.1", 9464)),
        (":0", ("127.0.0.1", 0)),
        ("0.0.0.0:9464", ("0.0.0.0", 9464)),
        ("[::1]:80", ("::1", 80)),
    ],
)
def test_without_a_host_it_is_the_loopback(text: str, address: tuple[str, int]) -> None:
    assert metrics_address(text) == address


@pytest.mark.parametrize("text", ["", "x", "1:2:3", "host:99999"])
def test_an_address_that_is_none_is_named(text: str) -> None:
    with pytest.raises(ConfigError, match="--metrics is"):
        metrics_address(text)


# ---- what Prometheus reads


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    pytest.importorskip("prometheus_client", reason="scripts/setup dev installs prometheus-client")
    served = Endpoint("127.0.0.1:0", PEER)
    yield served
    served.close()


def scrape(endpoint: Endpoint) -> str:
    with urllib.request.urlopen(f"http://{endpoint.address}/metrics", timeout=10.0) as answer:
        return str(answer.read().decode())


def test_prometheus_reads_what_the_page_lists(endpoint: Endpoint) -> None:
    from prometheus_client.parser import text_string_to_metric_families

    found = {family.name: family for family in text_string_to_metric_families(scrape(endpoint))}
    listed = {family.name: family for family in PEER}
    assert {name.removesuffix("_total") for name in listed} == {name.removesuffix("_total") for name in found}
    for name, family in listed.items():
        told = found[name.removesuffix("_total")] if name.removesuffix("_total") in found else found[name]
        assert (told.type, told.documentation) == (family.kind, family.help)


def test_prometheus_reads_the_last_snapshot(endpoint: Endpoint) -> None:
    from prometheus_client.parser import text_string_to_metric_families

    meter = PeerMeter()
    meter.contributed("param", 0.0)
    meter.event("start", {"sync": "param#1.1"}, 0.3)
    meter.measured(measured(links={"a": LinkStats(bytes_sent=5)}, names={"a": 'an"na\n'}))
    endpoint.snapshot = meter.ledger.snapshot()
    samples = {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(scrape(endpoint))
        for sample in family.samples
    }
    assert samples["wantrain_global_step",] == 7.0
    assert samples["wantrain_sent_bytes_total", 'an"na\n', "a"] == 5.0
    assert samples["wantrain_sync_seconds_bucket", "0.25", "gather"] == 0.0
    assert samples["wantrain_sync_seconds_bucket", "0.5", "gather"] == 1.0
    assert samples["wantrain_sync_seconds_count", "gather"] == 1.0


def test_a_port_that_is_taken_is_named(endpoint: Endpoint) -> None:
    with pytest.raises(AddressInUseError, match=endpoint.address):
        Endpoint(endpoint.address, PEER)
