"""`wantrain plan`: its numbers are those of the formulas that runs use, and its command says them."""

import json
from typing import Any

import pytest
from click.testing import CliRunner

from wantrain.bench.traffic import shard_shares, traffic
from wantrain.cli.main import main
from wantrain.errors import ConfigError
from wantrain.optimizers.method import METHODS
from wantrain.peers.engine import Engine
from wantrain.peers.findings import PROCESS_BYTES
from wantrain.plan import Memory, Plan, Wanted, plan, stand_in
from wantrain.transport.codec import codec
from wantrain.transport.codec.names import bits
from wantrain.transport.partition import chunk_bounds, split_chunks

PARAMS = 3_000_000


def wanted(**changes: Any) -> Wanted:
    known: dict[str, Any] = {
        "params": 125_000_000,
        "peers": 4,
        "method": "diloco",
        "link_bytes_per_s": 12.5e6,
        "rtt_s": 0.1,
        "tokens_per_s": 20000.0,
        "step_tokens": 65536,
        "codec": "int4",
    }
    return Wanted(**{**known, **changes})


def planned(**changes: Any) -> Plan:
    return plan(wanted(**changes))


@pytest.mark.parametrize("method", METHODS)
def test_memory_is_what_the_engine_of_a_peer_expects(method: str) -> None:
    from wantrain.config import RunSpec, template

    spec = RunSpec.parse(template("x", "0" * 16, "0" * 64, method=method), "x")
    manifest = stand_in(PARAMS)
    engine = Engine(manifest, spec.streams)
    memory = Memory.of(spec.streams, manifest)
    assert memory.state_bytes == engine.state_bytes
    assert memory.tensor_bytes == engine.expected_bytes
    assert memory.shared_bytes < memory.tensor_bytes


def test_a_diloco_daemon_holds_four_times_the_model() -> None:
    found = planned()
    assert found.model_bytes == 500_000_000
    tensors = found.memory_bytes - found.log_bytes - PROCESS_BYTES
    assert tensors / found.model_bytes == pytest.approx(4.0, rel=0.02)
    assert found.shared_bytes / found.model_bytes == pytest.approx(2.0, rel=0.01)
    assert (found.state_bytes, found.disk_bytes) == (10**9, 3 * 10**9)


@pytest.mark.parametrize("topology", ["direct", "ring"])
@pytest.mark.parametrize("name", ["int8", "bf16", "fp32"])
def test_bytes_are_those_of_the_topology(topology: str, name: str) -> None:
    (stream,) = planned(topology=topology, codec=name, peers=3).streams
    bounds = chunk_bounds(stream.elements)
    sizes = stream.elements * bits(name) / 8
    shares = shard_shares(stream.elements, bounds, split_chunks(len(bounds), [1.0] * 3))
    moved = traffic(topology, "abc", shares, sizes, sizes)
    most = max(sum(size for (source, _), size in moved.items() if source == peer) for peer in "abc")
    assert (stream.topology, stream.sent_bytes) == (topology, pytest.approx(most, rel=1e-6))


@pytest.mark.parametrize("name", ["fp32", "bf16", "int8", "int4", "e2m1", "e3m0", "sign"])
def test_sizes_are_those_of_the_codec(name: str) -> None:
    (stream,) = planned(codec=name, down="fp32", peers=2).streams
    chunks = [stop - start for start, stop in chunk_bounds(stream.elements)]
    encoded = sum(map(codec(name).max_bytes, chunks))
    assert stream.sent_bytes == pytest.approx((encoded + 4 * stream.elements) / 2, rel=0.02)


def test_a_sync_takes_no_less_than_its_bytes_and_its_two_hops() -> None:
    for link in (1.25e6, 12.5e6, 125e6):
        (stream,) = planned(link_bytes_per_s=link).streams
        assert stream.sent_bytes / link + 0.1 <= stream.sync_s <= 1.2 * stream.sent_bytes / link + 0.5


def test_waiting_is_what_the_delay_does_not_cover() -> None:
    (plain,) = planned().streams
    assert plain.wait_s == plain.sync_s
    (late,) = planned(options={"delay": 2}).streams
    assert late.wait_s == pytest.approx(plain.sync_s - 2 * 65536 / 20000)
    assert planned(options={"delay": 50}).waiting_share == 0.0
    assert planned(method="eager").waiting_share == 0.0
    free = planned(method="streaming-diloco", options={"overdue": "continue"})
    assert (free.waiting_share, free.streams[0].delay) == (0.0, None)


def test_the_shortest_useful_period_waits_a_twentieth_of_the_time() -> None:
    found = planned()
    assert found.shortest_every is not None
    at_best = planned(options={"every": found.shortest_every})
    assert at_best.waiting_share <= 0.05 < planned(options={"every": found.shortest_every - 1}).waiting_share
    assert at_best.shortest_every == found.shortest_every
    assert planned(method="ddp").shortest_every is None


def test_with_a_delay_the_lines_set_the_shortest_useful_period() -> None:
    found = planned(method="eager", link_bytes_per_s=1.25e6)
    assert found.shortest_every is not None
    assert planned(method="eager", link_bytes_per_s=1.25e6, options={"every": found.shortest_every}).line_share <= 1.0
    assert planned(method="eager", link_bytes_per_s=1.25e6, options={"every": 10}).line_share > 0.99


def test_a_day_has_as_many_syncs_as_steps_and_waits_leave_room_for() -> None:
    found = planned(options={"every": 50})
    period_s = 50 * found.step_s + found.streams[0].wait_s
    assert found.bytes_per_day == pytest.approx(found.streams[0].sent_bytes * 86400 / period_s, rel=1e-6)


def test_one_peer_alone_sends_nothing() -> None:
    found = planned(peers=1)
    assert (found.bytes_per_day, found.waiting_share, found.shortest_every) == (0, 0.0, 1)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_can_be_planned(method: str) -> None:
    found = planned(method=method, codec="", peers=3)
    assert found.bytes_per_day > 0
    assert 0 <= found.waiting_share < 1
    assert json.loads(json.dumps(found.document()))["streams"][0]["sent_bytes"] == found.streams[0].sent_bytes


def test_a_plan_for_what_no_run_can_be_is_refused() -> None:
    with pytest.raises(ConfigError, match="topology is 'star'"):
        planned(topology="star")
    with pytest.raises(ConfigError, match="unknown method"):
        planned(method="nope")
    with pytest.raises(ConfigError, match="delay is 200"):
        planned(options={"delay": 200})


# ---- the command


def invoke(*words: str) -> Any:
    return CliRunner().invoke(main, ["plan", *words])


def test_the_command_says_all_of_it() -> None:
    options = "--params 125m --peers 4 --method diloco --codec int4 --link 100mbit --rtt 100ms --tokens-per-s 20000"
    result = invoke(*options.split())
    assert result.exit_code == 0, result.output
    lines = dict(line.split("  ", 1) for line in result.output.splitlines())
    assert list(lines) == [
        "model", "method", "each peer sends", "a sync takes", "training waits", "lines in use", "shortest useful H",
        "daemon's memory", "/dev/shm", "disk",
    ]  # fmt: skip
    assert "500 MB as fp32" in lines["model"]
    expected = json.loads(json.dumps(planned(options={}).document()))
    assert json.loads(invoke(*options.split(), "--json").output) == expected


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["--params", "many"], "--params is 'many', allowed is a number from 1k to 10t"),
        (["--params", "1m", "--option", "every"], "--option is 'every'"),
        (["--params", "1m", "--rtt", "fast"], "--rtt is 'fast'"),
        ([], "Missing option '--params'"),
    ],
)
def test_what_cannot_be_read_is_named(words: list[str], error: str) -> None:
    result = invoke(*words)
    assert result.exit_code == 2
    assert error in result.output
