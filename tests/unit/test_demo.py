"""The demo's parts without a network: model, corpus, processes, and the verdicts over recorded runs."""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from wantrain.config import RunSpec, template
from wantrain.demo import corpus, display, model, plot, report, run, train
from wantrain.demo.processes import Children, json_lines
from wantrain.demo.report import Recording
from wantrain.errors import ConfigError
from wantrain.optimizers.method import METHODS

torch.set_num_threads(1)
LIMIT_S = 60.0
FAKE_RUN = """
import json, os, signal, sys, time
from pathlib import Path
role, *words = sys.argv[1:]
if role == "coordinator":
    print("a line that is no JSON")
    print(json.dumps({"event": "listening", "invite": "wantrain://fake"}), flush=True)
    time.sleep(60)
folder = Path(words[words.index("--events") + 1]).parent
with open(words[words.index("--events") + 1], "w") as events:
    granted = {"event": "granted", "stream": "param", "kind": "start", "index": 6, "time_unix": time.time()}
    print(json.dumps(granted), file=events)
while not (folder / "finished").exists():
    if "WANTRAIN_KILL_AT" in os.environ and (folder / "kill").exists():
        os.killpg(0, signal.SIGKILL)
    if "peer-1" in words and (folder / "fail").exists():
        sys.exit("no more memory")
    time.sleep(0.02)
"""


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """A small source tree with files that must be left out."""
    for number in range(60):
        (tmp_path / f"module{number:02}.py").write_text(f"# {number}\n" * (300 * (number % 7 + 20)))
    for name in ("test/test_x.py", "site-packages/other.py", "__pycache__/x.py", "readme.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("left out")
    return tmp_path


def test_corpus_parts_share_no_file_and_leave_none_out(library: Path) -> None:
    split = corpus.load(4, seed=1, root=library)
    files = [name for part in split.files for name in part]
    assert sorted(files) == [f"module{number:02}.py" for number in range(60)]
    sizes = [len(split.shard(peer)) for peer in range(4)]
    assert max(sizes) < 1.1 * min(sizes)
    assert 0.02 < len(split.held_out) / (sum(sizes) + len(split.held_out)) <= corpus.HELD_OUT_SHARE


def test_corpus_is_decided_by_its_arguments_alone(library: Path) -> None:
    first, again, other = (corpus.load(3, seed=seed, root=library) for seed in (1, 1, 2))
    assert first.files == again.files != other.files
    windows = [next(part.batches(2, batch=4, context=16, seed=5))[0] for part in (first, again)]
    assert torch.equal(*windows)
    assert not torch.equal(windows[0], next(first.batches(2, batch=4, context=16, seed=6))[0])


def test_targets_are_one_byte_ahead_of_tokens(library: Path) -> None:
    tokens, targets = corpus.load(2, seed=1, root=library).held_out_batch(batch=3, context=10)
    assert tokens.shape == targets.shape == (3, 10)
    assert tokens.dtype == torch.int64
    assert torch.equal(tokens[:, 1:], targets[:, :-1])


def test_corpus_refuses_more_peers_than_text(library: Path) -> None:
    with pytest.raises(ConfigError, match="40 peers need"):
        corpus.load(40, seed=1, root=library)
    with pytest.raises(ConfigError, match="shards 0 to 1"):
        corpus.load(2, seed=1, root=library).shard(2)


def test_standard_library_is_enough_for_the_demo() -> None:
    split = corpus.load(run.PEERS_MOST + 1, seed=1)
    assert min(map(len, split.shards)) > 100_000
    assert len(split.held_out) > 100_000


def test_model_has_a_million_parameters_and_starts_at_chance() -> None:
    gpt = model.build(seed=1)
    assert 1.0e6 <= sum(parameter.numel() for parameter in gpt.parameters()) <= 1.3e6
    tokens = torch.randint(256, (2, 129), generator=torch.Generator().manual_seed(1))
    loss = gpt(tokens[:, :-1], tokens[:, 1:])
    assert loss.shape == ()
    assert loss.item() == pytest.approx(5.545, abs=0.2)  # ln 256


def test_model_does_not_see_later_bytes() -> None:
    gpt = model.build(seed=1, config=model.GPTConfig(layers=1, width=16, heads=2, context=8))
    tokens = torch.arange(8)[None]
    changed = tokens.clone()
    changed[0, 5:] = 99
    targets = torch.full((1, 5), 7)
    assert torch.equal(gpt(tokens[:, :5], targets), gpt(changed[:, :5], targets))
    weight = gpt.token.weight[99].detach().clone()
    gpt(tokens, torch.zeros(1, 8, dtype=torch.int64)).backward()
    assert torch.equal(gpt.token.weight[99], weight)


def test_model_is_decided_by_its_seed_and_leaves_the_random_state() -> None:
    before = torch.get_rng_state()
    first, again, other = (train.flat(model.build(seed).parameters()) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(before, torch.get_rng_state())


def test_training_alone_reports_its_losses_and_those_of_saved_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "HELD_OUT_WINDOWS", 4)
    saved = tmp_path / "phi.npy"
    np.save(saved, train.flat(model.build(1).parameters()).numpy())
    result = train.train_alone(train.parse(["--alone", "3", "--compare", str(saved), "--seed", "1"]))
    assert result["swarm"] == pytest.approx(result["start"])
    assert result["alone"] < result["start"]
    assert (result["steps"], result["tokens"]) == (3, 3 * train.BATCH * 128)


def recorded() -> Recording:
    """A run of 10 rounds that passed: peer-4 was killed in round 4, peer-5 joined after round 5."""
    recording = Recording(
        {"peers": 4, "rounds": 10, "every": 20, "batch": 4, "context": 128, "method": "diloco", "codec": "int8"}
        | {"seed": 1, "killed": "peer-4", "newcomer": "peer-5"}
    )
    for index in range(1, 11):
        contributors = ["peer-1", "peer-2", "peer-3"] + (["peer-4"] if index < 4 else ["peer-5"] if index > 7 else [])
        peers = []
        for name in ["peer-1", "peer-2", "peer-3", "peer-4", "peer-5"]:
            reached = min(index, 3) if name == "peer-4" else index
            stats = {"step": 20 * reached, "loss": 3 - reached / 10, "tokens": 10240 * reached, "round": reached}
            stats |= {"bytes_sent": 1_600_000 * reached}
            if name == "peer-1":
                stats |= {"heldout": 3.2 - index / 10, "heldout_round": index, "heldout_tokens": 10240 * index}
            peers.append(
                {"peer": f"id{name[-1]}", "name": name, "state": "lost" if name == "peer-4" and index > 3 else "member"}
                | {"log_number": reached, "chain": f"{reached:08x}", "state_number": reached}
                | {"state_digest": f"{reached + 100:08x}", "waiting": "", "stats": stats}
            )
            if name in contributors:
                pause_s = 6.0 if index == 4 and name == "peer-2" else 0.5
                recording.events.append(
                    {"time_s": 3.0 * index, "from": name, "event": "granted", "stream": "param", "index": index}
                    | {"kind": "merge", "pause_s": pause_s}
                )
        commit = {"number": index, "index": index, "contributors": contributors}
        recording.events.append({"time_s": 3.0 * index, "from": "coordinator", "event": "commit", **commit})
        recording.sample(
            3.0 * index, {"log": {"head": index}, "peers": peers, "syncs": [], "commits": [], "reason": ""}
        )
    for at, source, event in (
        (12.0, "demo", {"event": "killed", "peer": "peer-4", "round": 4}),
        (15.5, "demo", {"event": "joins", "peer": "peer-5", "round": 5}),
        (21.5, "peer-5", {"event": "granted", "stream": "param", "kind": "start", "index": 7, "pause_s": 0.0}),
    ):
        recording.events.append({"time_s": at, "from": source, **event})
    recording.events.sort(key=lambda line: line["time_s"])
    recording.losses = {"parameters": 1_000_000, "start": 5.5, "swarm": 2.2, "alone": 2.4, "steps": 200}
    return recording


def test_a_good_run_passes_with_its_figures() -> None:
    summary = report.summarise(recorded())
    assert summary["problems"] == []
    killed, joined = summary["churn"]
    assert killed["longest_pause_s"] == 6.0
    assert killed["cost_s"] == pytest.approx(5.5)
    assert (joined["ready_at"], joined["first_round"], joined["rounds_to_contribute"]) == (7, 8, 1)
    assert joined["cost_s"] == 0.0
    # 200 steps of 2 * 3/4 * 4 MB against 16 MB sent
    assert summary["traffic"]["peer-1"] == {
        "tokens": 102400, "bytes_sent": 16_000_000, "ddp_bytes": 1_200_000_000, "times_less": 75.0,
    }  # fmt: skip
    text = report.text(summary)
    for words in ("2.200", "2.400", "75 times less", "cost the others 5.5 s", "equal on 4 live peers", "Passed."):
        assert words in text


def test_data_parallel_bytes_follow_the_ring_formula() -> None:
    assert report.ddp_bytes(tokens=5120, tokens_per_step=512, peers=4, parameters=1000) == 10 * 2 * 3 / 4 * 4 * 1000
    assert report.ddp_bytes(tokens=5120, tokens_per_step=512, peers=1, parameters=1000) == 0


def _other_model(recording: Recording) -> None:
    recording.states["state"]["peer-2"][10] = "ffff"


def _other_log(recording: Recording) -> None:
    recording.states["chain"]["peer-3"][9] = "ffff"


def _behind(recording: Recording) -> None:
    del recording.states["chain"]["peer-5"][10]


def _stalled(recording: Recording) -> None:
    recording.failure = "the run stalled: no commit for 60 s"
    recording.losses = {}


def _no_better(recording: Recording) -> None:
    recording.losses["alone"] = 2.1


def _worse(recording: Recording) -> None:
    recording.losses["swarm"] = 5.6


def _not_a_number(recording: Recording) -> None:
    recording.losses["swarm"] = float("nan")


def _never_in(recording: Recording) -> None:
    for line in recording.events:
        if "contributors" in line:
            line["contributors"] = [name for name in line["contributors"] if name != "peer-5"]


def _too_late(recording: Recording) -> None:
    _never_in(recording)
    next(line for line in recording.events if line.get("kind") == "start")["index"] = 10


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (_other_model, "model digests differ at commit 10"),
        (_other_log, "log digests differ at commit 9"),
        (_behind, "not all live peers reached the last commit"),
        (_stalled, "the run stalled"),
        (_no_better, "no better than alone: 2.200 against 2.100"),
        (_worse, "did not improve"),
        (_not_a_number, "did not improve"),
        (_never_in, "peer-5 joined and never contributed"),
        (_too_late, "had the weights after round 10 of 10; give more --rounds"),
    ],
)
def test_each_failing_verdict_is_a_sentence(spoil: Callable[[Recording], None], sentence: str) -> None:
    recording = recorded()
    spoil(recording)
    summary = report.summarise(recording)
    assert not summary["ok"]
    assert any(sentence in problem for problem in summary["problems"])
    assert f"FAILED: {summary['problems'][0]}" in report.text(summary)


def test_who_left_before_the_last_commit_need_not_have_it() -> None:
    """A contribution that missed the last round is committed after it, when others may have left."""
    recording = recorded()
    _behind(recording)
    recording.events.append({"time_s": 29.5, "from": "coordinator", "event": "left", "name": "peer-5"})
    assert report.parity(recording)[0], "commit 10 was at 30.0 s"
    recording.events[-1]["time_s"] = 30.5
    assert not report.parity(recording)[0]


def test_the_verdict_on_gossip_is_of_the_log_and_says_how_far_replicas_are_apart() -> None:
    recording = recorded()
    recording.settings |= {"gossip": True, "common": False, "merged": True}
    recording.sample(30.0, recording.status | {"replica_spread": 0.00123})
    recording.sample(30.5, recording.status | {"replica_spread": None})
    _other_model(recording)
    summary = report.summarise(recording)
    assert summary["ok"]
    assert (
        "differed by 0.0012 (standard deviation of a weight); the last exchange made 4 of 4"
        in summary["parity"]["text"]
    )
    assert "weights of peer-1" in report.text(summary)


def test_a_method_whose_results_come_a_round_later_need_not_beat_training_alone() -> None:
    recording = recorded()
    _no_better(recording)
    recording.settings["ahead"] = True
    summary = report.summarise(recording)
    assert summary["ok"]
    assert "for comparison only" in report.text(summary)
    _worse(recording)
    assert not report.summarise(recording)["ok"]


def test_an_empty_recording_still_gives_a_report(tmp_path: Path) -> None:
    recording = Recording(recorded().settings | {"killed": None, "newcomer": None}, failure="nothing started")
    summary = report.write(recording, tmp_path)
    assert summary["problems"][0] == "nothing started"
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    plot.draw(recording, summary, tmp_path / "report.png")


def test_report_files_are_complete(tmp_path: Path) -> None:
    recording = recorded()
    summary = report.write(recording, tmp_path)
    plot.draw(recording, summary, tmp_path / "report.png")
    assert (tmp_path / "report.png").read_bytes().startswith(b"\x89PNG")
    assert len((tmp_path / "events.jsonl").read_text().splitlines()) == len(recording.events)


def test_display_shows_who_waits_for_whom() -> None:
    status = recorded().status
    status["peers"][1]["waiting"] = "waiting for peer-3, 0.8 s late"
    status["syncs"] = [{"index": 11, "phase": "moving", "ready": ["peer-1"]}]
    console = Console(width=140, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    console.print(display.screen(31.0, "training", 20, status, ["30.0 s  peer-4 lost"]))
    console.file.close()
    shown = console.export_text()
    for words in ("round 10/20", "held-out loss 2.200", "waiting for peer-3, 0.8 s late", "11 moving", "peer-4 lost"):
        assert words in shown


def test_plain_display_prints_a_line_per_round(capsys: pytest.CaptureFixture[str]) -> None:
    plain = display.Plain(Console(width=80))
    for _ in range(3):
        plain.update(30.0, "training", 20, recorded().status)
    assert capsys.readouterr().out.splitlines() == ["  30.0 s  round 10/20, 4 members, held-out loss 2.200"]


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _group_is_gone(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return True
    return False


def test_no_child_or_grandchild_outlives_the_demo(tmp_path: Path) -> None:
    grandchild = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']); "
    pids = []

    def fail() -> None:
        with Children(tmp_path) as children:
            for name, rest in (("ends", ""), ("stays", "; import time; time.sleep(600)")):
                children.start(name, [sys.executable, "-c", grandchild + "print(1, flush=True)" + rest])
                pids.append(children._running[name].pid)
                _until(lambda name=name: bool(children.log(name).read_text()))
            raise RuntimeError("the demo fails")

    with pytest.raises(RuntimeError, match="the demo fails"):
        fail()
    for pid in pids:
        _until(lambda pid=pid: _group_is_gone(pid))


def test_a_second_ctrl_c_while_the_children_are_killed_spares_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kill, interrupts = Children.kill, iter(range(3))

    def interrupted(self: Children, name: str) -> None:
        if next(interrupts, None) is not None:
            raise KeyboardInterrupt
        kill(self, name)

    monkeypatch.setattr(Children, "kill", interrupted)
    children = Children(tmp_path)
    for name in ("one", "two"):
        children.start(name, [sys.executable, "-c", "import time; time.sleep(600)"])
    with pytest.raises(KeyboardInterrupt), children:
        pass
    assert all(_group_is_gone(children.pid(name)) for name in ("one", "two"))


def test_half_written_event_lines_are_read_when_they_are_whole(tmp_path: Path) -> None:
    children = Children(tmp_path)
    assert children.new_events("peer-1") == []
    with children.event_file("peer-1").open("w") as file:
        file.write('{"event": "attached"}\nnot json\n{"event": "gran')
        file.flush()
        assert [line["event"] for line in children.new_events("peer-1")] == ["attached"]
        file.write('ted"}\n')
    assert [line["event"] for line in children.new_events("peer-1")] == ["granted"]
    assert json_lines(b'[1]\n{"a": 1}\n\xff') == [{"a": 1}]


@pytest.fixture
def fake_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, Any]], Path]:
    """Stand-ins for the coordinator and the daemons; the status is `recorded()`, told sample by sample."""
    script = tmp_path / "fake.py"
    script.write_text(FAKE_RUN)
    folder = tmp_path / "out"

    def start(self: run.Demo, name: str, *words: str, environment: dict[str, str] | None = None) -> None:
        events = ["--events", str(self.children.event_file(name))]
        self.children.start(name, [sys.executable, str(script), *words, *events], environment)

    def install(files: dict[str, int]) -> Path:
        asked = 0

        def query(run_file: Path, timeout_s: float) -> dict[str, Any]:
            nonlocal asked
            asked += 1
            for name, when in files.items():
                if asked >= when:
                    (folder / name).touch()
            document = recorded().status
            index = min(10, asked)
            document["log"]["head"] = index
            for peer in document["peers"]:
                if peer["name"] != "peer-4":
                    peer["stats"]["round"] = peer["log_number"] = peer["state_number"] = index
                    peer |= {"chain": f"{index:08x}", "state_digest": f"{index + 100:08x}"}
            document["commits"] = [{"number": 7, "index": 7, "contributors": ["peer-1", "peer-5"]}]
            return document

        monkeypatch.setattr(run, "query", query)
        monkeypatch.setattr(run.Demo, "_wantrain", start)
        monkeypatch.setattr(
            run, "write_run_file", lambda path, options: RunSpec.parse(template("demo", "00" * 8, "ab" * 32))
        )
        monkeypatch.setattr(run, "POLL_S", 0.05)
        monkeypatch.setattr(run, "EVERY", 1)
        folder.mkdir()
        weights = train.flat(model.build(run.DemoOptions().seed).parameters())
        np.save(folder / "phi.npy", weights.numpy())
        return folder

    return install


def test_demo_kills_one_adds_one_and_judges(
    fake_run: Callable[[dict[str, int]], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = fake_run({"kill": 2, "finished": 14})
    code = run.run_demo(run.DemoOptions(rounds=10, out=folder, json=True))
    summary = json.loads(capsys.readouterr().out)
    assert summary["settings"]["killed"] == "peer-4"
    assert summary["settings"]["newcomer"] == "peer-5"
    assert [entry["event"] for entry in summary["churn"]] == ["killed", "joins"]
    # The stand-in for phi is the initial model, which cannot have improved.
    assert code == 1
    assert summary["parity"]["equal"]
    assert [problem.split(":")[0] for problem in summary["problems"]] == [
        "the held-out loss did not improve",
        "training together was no better than alone",
    ]
    assert (folder / "report.png").exists()


def test_demo_says_which_process_failed_and_why(
    fake_run: Callable[[dict[str, int]], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = fake_run({"fail": 2})
    assert run.run_demo(run.DemoOptions(rounds=10, churn=False, out=folder)) == 1
    assert "peer-1 ended with exit code 1:\nno more memory" in capsys.readouterr().out


def test_demo_ends_a_stalled_run(
    fake_run: Callable[[dict[str, int]], Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "STALL_S", 0.3)
    folder = fake_run({})
    assert run.run_demo(run.DemoOptions(rounds=20, churn=False, out=folder)) == 1
    assert "the run stalled: no commit for 0 s after commit 10" in capsys.readouterr().out


@pytest.mark.parametrize("method", METHODS)
def test_run_file_has_the_demo_period_and_the_own_codec_of_every_method(method: str, tmp_path: Path) -> None:
    run.write_run_file(tmp_path / "run.toml", run.DemoOptions(method=method))
    spec = RunSpec.load(tmp_path / "run.toml")
    assert {stream.codec for stream in spec.streams if stream.state == "param"} == {METHODS[method].codec}
    assert [stream.every for stream in spec.streams if stream.state == "param"][0] == run.EVERY
    assert spec.coordinator.bind == "127.0.0.1:0"
    assert (tmp_path / "run.key").exists()


def test_the_kill_strikes_in_the_stream_that_counts_the_rounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = []
    monkeypatch.setattr(run.Demo, "_wantrain", lambda self, *words, environment=None: given.append(environment))
    options = run.DemoOptions(peers=2, rounds=10)
    spec = run.write_run_file(tmp_path / "run.toml", options)
    demo = run.Demo(options, spec, tmp_path, Children(tmp_path), display.make(json=True))
    demo.recording.settings["lead"] = "param-0"
    demo._start_peer("peer-1")
    demo._start_peer("peer-2")
    assert given == [{}, {"WANTRAIN_KILL_AT": "param-0#4:moving"}]


@pytest.mark.parametrize("options", [{"peers": 1}, {"peers": 99}, {"rounds": 5}, {"rounds": 0, "churn": False}])
def test_demo_refuses_options_out_of_range(options: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="allowed is"):
        run.run_demo(run.DemoOptions(**options, out=tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_demo_does_not_write_into_another_run(tmp_path: Path) -> None:
    (tmp_path / "run.toml").touch()
    with pytest.raises(ConfigError, match="already holds a run"):
        run.run_demo(run.DemoOptions(out=tmp_path))
