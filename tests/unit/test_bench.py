"""Benchmarks: what they measure is right (results, bytes, who takes part), and what cannot be measured is refused."""

import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from wantrain.bench import allreduce, coordinator, inputs, matrix, suite
from wantrain.bench.aims import aims
from wantrain.bench.allreduce import ALLOWED_ERROR, Options, expected_traffic, measure
from wantrain.bench.document import markdown
from wantrain.bench.member import STREAM, Member
from wantrain.bench.plots import draw
from wantrain.bench.processes import Workers
from wantrain.bench.swarm import peer_name, plan_of
from wantrain.bench.tables import allreduce_table
from wantrain.bench.traffic import group_of, shard_shares, total_bytes, traffic
from wantrain.bench.worker import Setup
from wantrain.cli.main import main
from wantrain.errors import ConfigError, WantrainError
from wantrain.interfaces import interface_of
from wantrain.lab import available
from wantrain.optimizers.stream import Stream
from wantrain.transport.codec import CODECS
from wantrain.transport.codec.names import FORMATS, format_of
from wantrain.transport.memory_link import MemoryHub, MemoryLink

ELEMENTS = 70_000


def in_process(folder: Path, peers: int, topology: str, codec: str, elements: int = ELEMENTS) -> list[Member]:
    """Members of one all-reduce over links in memory, each with its result."""
    torch.set_num_threads(1)
    hub = MemoryHub()
    plan = plan_of(peers, elements)
    stream = Stream(STREAM, merge="mean", codec=codec, down=format_of(codec).down)
    links = [MemoryLink(hub, peer_name(k)) for k in range(peers)]
    for link in links:
        for other in links:
            if other is not link:
                link.connect(other.me, "", b"")
        link.poll(0.0)
    members = [
        Member(peer_name(k), plan, topology, stream, elements, link, folder / f"segment-{k}")
        for k, link in enumerate(links)
    ]
    for k, member in enumerate(members):
        member.prepare(1, k)
    for member in members:
        member.begin()
    for _ in range(2000):
        for member in members:
            member.step(0.0)
        if all(member.digest and member.idle for member in members):
            break
    for member in members:
        member.close()
    return members


# ---- the contestant: a real peer's data path


@pytest.mark.parametrize("codec", sorted(CODECS))
def test_every_codec_gives_all_peers_the_same_mean_within_its_error(tmp_path: Path, codec: str) -> None:
    members = in_process(tmp_path, 2, "direct", codec)
    assert len({member.digest for member in members}) == 1
    assert members[0].digest
    assert torch.equal(members[0].result, members[1].result)
    _, worst = inputs.distance(members[0].result, [0, 1], -1.0)
    assert worst <= allreduce.allowed_error(Options(codec=codec))


@pytest.mark.parametrize("topology", allreduce.TOPOLOGIES)
@pytest.mark.parametrize("elements", [0, 1, 5000, ELEMENTS])
def test_every_topology_gives_the_mean_of_its_group(tmp_path: Path, topology: str, elements: int) -> None:
    members = in_process(tmp_path, 3, topology, "fp32", elements)
    names = [member.me for member in members]
    for member in members:
        group = [names.index(peer) for peer in group_of(topology, names, member.me)]
        assert inputs.distance(member.result, group, -1.0)[1] <= 1e-6


def test_a_lost_block_shows_in_the_distance() -> None:
    result = torch.empty(3 * inputs.BLOCK_ELEMENTS)
    inputs.fill(result, 0)
    assert inputs.distance(result, [0]) == (0.0, 0.0)
    other = result.clone()
    other[inputs.BLOCK_ELEMENTS : 2 * inputs.BLOCK_ELEMENTS] = result[: inputs.BLOCK_ELEMENTS]
    assert inputs.distance(other, [0])[1] > 0.5
    assert inputs.distance(result, [0, 1])[1] > 0.5
    assert inputs.bits_sum(other) != inputs.bits_sum(result)


def test_every_format_has_an_allowed_error() -> None:
    assert set(FORMATS) == set(ALLOWED_ERROR)


# ---- bytes


@pytest.mark.parametrize("topology", ["direct", "ring"])
@pytest.mark.parametrize("peers", [2, 3, 8])
def test_all_peers_together_send_what_the_formula_says(topology: str, peers: int) -> None:
    names = [str(k) for k in range(peers)]
    shares = [(k + 1) / (peers * (peers + 1) / 2) for k in range(peers)]
    moved = traffic(topology, names, shares, 1000.0, 100.0)
    assert total_bytes(moved) == pytest.approx((peers - 1) * 1100.0)
    for name in names:
        received = sum(size for (_, to), size in moved.items() if to == name)
        share = shares[int(name)]
        assert topology == "ring" or received == pytest.approx((peers - 1) * 1000 * share + 100 * (1 - share))


def test_a_pair_moves_half_of_each_way_in_both_directions_and_a_lone_peer_nothing() -> None:
    moved = traffic("pair", ["a", "b", "c"], [], 1000.0, 100.0, seed=3)
    assert sorted(moved.values()) == [550.0, 550.0]
    ((a, b), (c, d)) = moved
    assert (a, b) == (d, c)


@pytest.mark.parametrize("topology", allreduce.TOPOLOGIES)
def test_one_peer_sends_nothing(topology: str) -> None:
    assert traffic(topology, ["a"], [1.0], 1000.0, 100.0) == {}


def test_shares_are_those_of_the_elements() -> None:
    assert shard_shares(10, [(0, 4), (4, 8), (8, 10)], (1, 2)) == [0.4, 0.6]
    assert shard_shares(0, [], (0, 0)) == [0.5, 0.5]


def test_an_unknown_topology_is_refused() -> None:
    with pytest.raises(ConfigError):
        traffic("star", ["a", "b"], [0.5, 0.5], 1.0, 1.0)


# ---- processes


def test_contestants_take_turns_and_their_results_are_right() -> None:
    said: list[str] = []
    options = Options(peers=2, size_mb=1.0, codec="fp32", topology="direct", encrypt=False, repeat=1, timeout_s=60.0)
    document = measure(options, said.append)
    own = document["wantrain"]
    assert own["error"] <= 1e-6
    assert document["gloo"]["error"] <= 1e-5
    assert document["raw"]["sent_bytes"] == pytest.approx(sum(expected_traffic(options).values()), abs=8)
    assert own["formula_bytes"] <= own["sent_bytes"] <= 1.05 * own["formula_bytes"] + 10_000
    assert own["peak_bytes"] > 0
    assert own["cpu_s_per_gb"] > 0
    turns = [line.partition(":")[0] for line in said if line.endswith(")")]
    assert turns == ["wantrain", "gloo", "raw, 1 connection"] * 2
    json.dumps(document)
    assert allreduce_table(document).row_count == 3


@pytest.mark.skipif(bool(available()), reason=f"the network lab cannot run here: {available()}")
def test_an_encrypted_ring_in_the_network_lab_gives_the_mean_too() -> None:
    lab = "rate=1gbit,rtt=2ms"
    options = Options(peers=2, size_mb=0.1, topology="ring", lab=lab, repeat=1, settle=2, against=("raw",))
    said: list[str] = []
    document = measure(options, said.append)
    assert [line.endswith(" to settle)") for line in said if line.startswith("wantrain: 0")] == [True] * 2 + [False] * 2
    assert len(document["wantrain"]["all_seconds"]) == 1
    assert document["wantrain"]["error"] <= allreduce.allowed_error(options)
    assert document["raw"]["seconds"] > 0.001


def setup(kind: str, **changes: Any) -> Setup:
    fields: dict[str, Any] = {"kind": kind, "index": 0, "peers": 1, "elements": 100, "codec": "fp32", "down": "fp32"}
    fields |= {"topology": "direct", "encrypt": True, "host": "127.0.0.1", "timeout_s": 20.0, "traffic": []}
    return Setup(**(fields | {"variants": []} | changes))


def test_a_worker_says_why_it_cannot_work() -> None:
    variants = [{"name": "odd", "streams": 1, "congestion": "never-heard-of"}]
    setups = [setup("raw", index=k, peers=2, traffic=[[0, 1, 10]], variants=variants, timeout_s=1.0) for k in (0, 1)]
    with Workers("x", setups, spawn) as workers:
        roster = workers.hear(20.0)
        with pytest.raises(WantrainError, match="peer 0 of x: congestion control never-heard-of cannot be had"):
            workers.ask(20.0, do="meet", roster=roster)


def test_a_worker_that_dies_is_noticed_and_named() -> None:
    with Workers("x", [setup("raw")], spawn) as workers:
        workers.hear(20.0)
        os.kill(spawned[-1].pid, signal.SIGKILL)
        with pytest.raises(WantrainError, match="peer 0 of x ended with code -9"):
            workers.ask(20.0, do="verify", full=False)


def test_workers_end_with_their_parent_s_interest() -> None:
    with Workers("x", [setup("raw"), setup("raw")], spawn) as workers:
        workers.hear(20.0)
    assert [process.poll() for process in spawned[-2:]] == [0, 0]


spawned: list[subprocess.Popen[bytes]] = []


def spawn(host: int, argv: Any, **options: Any) -> subprocess.Popen[bytes]:
    spawned.append(subprocess.Popen(argv, **options))
    return spawned[-1]


@pytest.mark.skipif(sys.platform != "linux", reason="interfaces are asked for as Linux has it")
def test_the_interface_of_an_address_is_found_or_refused() -> None:
    assert interface_of("127.0.0.1") == "lo"
    with pytest.raises(ConfigError, match="203.0.113.9"):
        interface_of("203.0.113.9")


def test_the_raw_sockets_best_variant_goes_on_and_slow_ones_stop() -> None:
    runs: dict[str, list[dict[str, Any]]] = {"a": [{"seconds": 1.0}], "b": [{"seconds": 2.1}]}
    assert [allreduce._out(name, ("a", "b", "c"), runs) for name in "abc"] == [False, True, False]
    runs["a"] += [{"seconds": 30.0}]
    assert allreduce._out("a", ("a", "b", "c"), runs)


# ---- the coordinator


def test_a_sync_costs_three_reports_a_peer_and_one_start_and_one_commit() -> None:
    (row,) = coordinator.measure([5], 2)
    assert (row["sync"]["messages_in"], row["sync"]["messages_out"]) == (15, 10)
    assert row["sync"]["bytes_in"] > 0
    assert row["sync"]["core_s"] > 0
    assert coordinator.table([row]).row_count == 1


# ---- the commands


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(main, ["bench", *arguments])
    return result.exit_code, result.output


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("allreduce", "--codec", "int7"), "unknown codec 'int7'"),
        (("allreduce", "--topology", "star"), "unknown topology 'star'"),
        (("allreduce", "--against", "nccl"), "unknown contestant 'nccl'"),
        (("allreduce", "--codec", "fp32", "--down", "sign"), "--down int8"),
        (("allreduce", "--plain", "--lab", "rate=1gbit,rtt=1ms"), "--plain is for loopback"),
        (("allreduce", "--congestion", "reno"), "--congestion reno is for the network lab"),
        (("codecs", "--codec", "int7"), "unknown codec 'int7'"),
        (("coordinator", "--peers", "8,x"), "'8,x'"),
        (("coordinator", "--peers", "5000"), "allowed are 1 to 4096"),
    ],
)
def test_what_cannot_be_measured_is_refused_with_a_next_step(arguments: tuple[str, ...], says: str) -> None:
    code, output = run(*arguments)
    assert code == 2
    assert says in output
    assert "next: " in output
    code, output = run(*arguments, "--json")
    assert json.loads(output.strip().splitlines()[-1])["code"] == code == 2


def test_the_commands_print_tables_or_json() -> None:
    code, output = run("coordinator", "--peers", "2", "--syncs", "1", "--json")
    assert code == 0
    assert json.loads(output.strip().splitlines()[-1])[0]["peers"] == 2
    code, output = run("codecs", "--codec", "int8", "--elements", "4096", "--seconds", "0.001")
    assert code == 0
    assert "int8" in output


# ---- scripts/bench


@pytest.mark.parametrize("which", ["quick", "default", "full"])
def test_every_row_of_the_matrices_can_be_asked_for(which: str) -> None:
    rows = matrix.rows(which)
    assert len(set(rows)) == len(rows)
    for row in rows:
        row.options.check()


def test_the_document_shows_figures_and_why_others_are_missing(tmp_path: Path) -> None:
    own = {
        "seconds": 1.0, "fp32_bytes_per_s": 1e6, "cpu_s_per_gb": 1.0, "sent_bytes": 10, "formula_bytes": 9,
        "first_byte_s": None, "peak_bytes": 1, "error": 0.0, "tensor_memory_ratio": 4.0, "spent_s": {},
    }  # fmt: skip
    options = {"peers": 2, "size_mb": 1.0, "codec": "fp32", "down": "fp32", "topology": "direct", "encrypt": False}
    options |= {"lab": "", "congestion": ""}
    rows = [
        {"group": "loopback", "options": options, "wantrain": own, "gloo": own, "raw": {**own, "best": "raw, 1"},
         "ratio": {"gloo": 1.5, "raw": 0.9}},
        {"group": "links", "options": {**options, "lab": "rate=1mbit,rtt=1ms"}, "failed": "no root here"},
    ]  # fmt: skip
    cost = dict.fromkeys(("messages_in", "messages_out", "bytes_in", "bytes_out", "core_s", "unpack_s", "pack_s"), 1.0)
    codec = {"codec": "int8", "error_gaussian": 0.007, "error_t4": 0.01, "bits": 8.1, "encode": 1.0, "decode": 1.0}
    step = {"name": "nesterov", "elements": 10**6, "ms": 2.5, "gb_per_s": 1.6, "vectors": 1}
    record = {
        "since": "2026-01-01", "until": "2026-01-02", "seconds": 1, "matrix": "quick", "allreduce": rows,
        "machine": {"cores": 2, "cpu": "x", "system": "y", "python": "3"},
        "coordinator": {"rows": [{"peers": 8, "sync": cost, "join": cost}]},
        "codecs": {"rows": [{**codec, "accumulate": 1.0, "expected": [0.007, 0.013, 7.44]}]},
        "peer": {"rows": [{**step, "what": "outer step"}, {**step, "what": "encode", "name": "int8"}]},
        "trainer": {"rows": [
            {"parameters": 10**6, "every": 20, "step_ms": 150.0, "between_ms": 0.01, "round_ms": 9.0, "share": 0.0041}
        ]},
    }  # fmt: skip
    pictures = draw(record, tmp_path)
    assert pictures == ["loopback.png", "codecs.png", "coordinator.png"]
    text = markdown(record, pictures)
    assert "| 2 | 1 | fp32 | plain | 1.000 | 1.000 | 1.000 | 1.50 | 90 % |" in text
    assert "measured between 2026-01-01 and 2026-01-02, 1 s" in text
    assert "again: `scripts/bench --quick`" in text
    assert "no root here: 2 peers, 1 MB, fp32, rate=1mbit, rtt=1ms" in text
    tables = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
    assert len(tables) == 5
    assert "Of a fragment of 1,000,000 values" in text
    assert "| outer step | nesterov | 2.50 | 1.60 | 1 |" in text
    assert "| 1,000,000 | 20 steps | 150.0 | 0.010 | 9.00 | 0.41% |" in text
    without = markdown({key: value for key, value in record.items() if key not in ("peer", "trainer")}, pictures)
    assert "What taking part costs" not in without
    assert all(len({line.count("|") for line in table.splitlines()}) == 1 for table in tables)
    assert all((tmp_path / name).stat().st_size > 1000 for name in pictures)


def test_every_aim_is_told_beside_what_came_out_and_a_missed_one_as_such() -> None:
    def row(group: str, ratio: dict[str, float], seconds: float = 1.0, **options: Any) -> dict[str, Any]:
        spent = {"loop": 3.0, "poll": 1.0, "digest": 1.0, "apply": 1.0, "reduce": 1.0}
        known = {"peers": 2, "size_mb": 64.0, "codec": "fp32", "topology": "direct", "encrypt": False, "lab": ""}
        own = {"seconds": seconds, "spent_s": spent}
        return {"group": group, "options": known | options, "wantrain": own, "ratio": ratio}

    far = {"lab": matrix.HEADLINE, "codec": "int4"}
    ring = {"peers": 8, "size_mb": 0.1, "lab": "rate=1gbit,rtt=9ms"}
    rows = [
        row("loopback", {"gloo": 0.5}),
        row("loopback", {"gloo": 0.75}, peers=4),
        row("loopback", {"gloo": 9.0}, encrypt=True),
        row("loopback", {"gloo": 9.0}, size_mb=1.0),
        row("links", {"gloo": 8.5, "raw": 0.95}, **far),
        row("links", {"gloo": 3.5, "raw": 0.5}, codec="int8", lab="rate=100mbit,rtt=9ms"),
        row("topologies", {}, 2.0, topology="ring", **ring),
        row("topologies", {}, 0.5, **ring),
        {"group": "links", "options": {"lab": "rate=1mbit"}, "failed": "no root here"},
    ]
    found = {what: (aim, came) for what, aim, came in aims({"allreduce": rows})}
    assert list(found.values()) == [
        ("1", "0.50, 0.75; 50% of its thread's time are digests, checks and the outer update, which gloo has not"),
        ("8", "8.5"),
        ("90%", "50% to 95%; reached in 1 of 2 rows"),
        ("7, the ratio of their hops", "4.0"),
    ]
    assert not aims({"allreduce": []})


def test_more_measures_only_the_rows_without_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Options] = []

    def measured(options: Options, say: object) -> dict[str, Any]:
        asked.append(options)
        if len(asked) == 2:
            raise WantrainError("no room")
        return {"options": {**asdict(options), "down": options.way_down, "against": list(options.against)}}

    monkeypatch.setattr(suite.allreduce, "measure", measured)
    monkeypatch.setattr(suite.coordinator, "measure", lambda *_: [])
    monkeypatch.setattr(suite, "_codecs", lambda: [])
    monkeypatch.setattr(suite, "_peer", lambda: [])
    monkeypatch.setattr(suite, "_trainer", lambda: [{"share": 0.004}])
    kept: list[int] = []

    def noted(record: dict[str, Any]) -> None:
        kept.append(len(record["allreduce"]))

    first = suite.measure("quick", 1e9, noted)
    rows = len(asked)
    assert kept == [0, 0, 0, 0, *range(1, rows + 1)]  # what is interrupted goes on with --more
    assert [row.get("failed") for row in first["allreduce"]].count("no room") == 1
    again = suite.measure("quick", 1e9, noted, json.loads(json.dumps(first)))
    assert asked[rows:] == asked[1:2]
    assert not any("failed" in row for row in again["allreduce"])
    assert again["since"] == first["since"] <= again["until"]
    monkeypatch.setattr(suite, "_trainer", lambda: pytest.fail("there are figures"))
    older = {key: value for key, value in first.items() if key != "peer"}
    assert suite.measure("quick", 1e9, noted, older)["trainer"] == {"rows": [{"share": 0.004}]}
    with pytest.raises(ConfigError, match="another machine"):
        suite.measure("quick", 1e9, noted, {**first, "machine": {}})
