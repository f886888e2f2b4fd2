"""Trackers: what each writes is read back by its own reader, and none that is slow or fails holds anybody up."""

import importlib.util
import json
import re
import sqlite3
import struct
import threading
import time
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from wantrain.errors import ConfigError
from wantrain.metrics.peer_meter import Measured
from wantrain.own_daemon import OwnDaemon
from wantrain.peers import monitor
from wantrain.peers.monitor import Monitor, Watch
from wantrain.tracking import trackers
from wantrain.tracking.feed import Feed
from wantrain.tracking.jsonl import FILE, JsonLines
from wantrain.tracking.tracker import Point, Source, Tracker
from wantrain.tracking.trackers import TRACKERS, feeds
from wantrain.transport.auth import Invite, RunKeys

DEADLINE_S = 60.0
POINTS = [
    Point(1000.0, 10, 1, {"loss": 2.5, "wantrain/step": 10.0}),
    Point(1005.0, 20, 2, {"loss": 2.25, "wantrain/step": 20.0}),
]


def source(home: Path) -> Source:
    return Source("0123456789abcdef", "peer-id", "berlin", home)


def track(feed: Feed) -> None:
    """Write POINTS to a tracker and close it."""
    feed.start()
    for point in POINTS:
        feed.offer(point)
    feed.end()
    assert feed.join(DEADLINE_S)
    assert feed.trouble() == ""
    assert feed.dropped == 0


class Recorder:
    """A tracker that keeps what it gets, and waits for leave before it takes anything."""

    def __init__(self, leave: threading.Event | None = None, fails: str = "") -> None:
        self.points: list[Point] = []
        self.closed = False
        self._leave, self._fails = leave, fails

    def write(self, point: Point) -> None:
        if self._leave is not None:
            assert self._leave.wait(DEADLINE_S)
        if self._fails:
            raise OSError(self._fails)
        self.points.append(point)

    def close(self) -> None:
        self.closed = True


def log_records(data: bytes) -> Iterator[bytes]:
    """Records of a LevelDB log after a header of 7 bytes: blocks of 32 KiB with pieces (checksum, length, kind)."""
    at, whole = 7, b""
    while at + 7 <= len(data):
        if (left := -at % 32768) and left < 7:
            at += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        if at + 7 + length > len(data):
            return  # it is being written
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a whole record, or its last piece
            yield whole
            whole = b""


def opens(tracker: Tracker) -> Callable[[], Tracker]:
    return lambda: tracker


# ---- the queue


def test_points_arrive_in_order_and_the_tracker_is_closed() -> None:
    recorder = Recorder()
    track(Feed("x", opens(recorder)))
    assert recorder.points == POINTS
    assert recorder.closed


def test_what_a_slow_tracker_has_no_room_for_is_dropped_and_counted() -> None:
    leave = threading.Event()
    recorder = Recorder(leave)
    feed = Feed("x", opens(recorder), queue_points=4)
    feed.start()
    for _ in range(20):
        feed.offer(POINTS[0])
    assert feed.dropped >= 15
    feed.end()
    leave.set()
    assert feed.join(DEADLINE_S)
    assert len(recorder.points) + feed.dropped == 20


def test_a_tracker_that_hangs_does_not_keep_the_peer_from_leaving(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(monitor, "CLOSE_S", 0.05)
    leave = threading.Event()
    monkeypatch.setattr(monitor, "feeds", lambda *_: [Feed("x", opens(Recorder(leave)))])
    said: list[dict[str, Any]] = []
    with Monitor(Watch(), source(tmp_path), said.append) as watching:
        watching.measure(Measured({}, {}, {}, 0.5, 7, 3, 2), {}, 0.0)
    assert [event["event"] for event in said] == ["tracker-late"]
    leave.set()


@pytest.mark.parametrize("fails", ["write", "open"])
def test_a_tracker_that_fails_is_told_of_once_and_the_others_go_on(
    tmp_path: Path, monkeypatch: Any, fails: str
) -> None:
    def cannot_open() -> Tracker:
        raise OSError("disk full")

    bad = cannot_open if fails == "open" else opens(Recorder(fails="disk full"))
    good = Recorder()
    monkeypatch.setattr(monitor, "feeds", lambda *_: [Feed("bad", bad), Feed("good", opens(good))])
    said: list[dict[str, Any]] = []
    with Monitor(Watch(), source(tmp_path), said.append) as watching:
        for step in range(3):
            watching.measure(Measured({}, {}, {}, 0.5, step, 3, 2), {"loss": 2.0}, 100.0 * step)
    assert said == [{"event": "tracker-failed", "name": "bad", "reason": "OSError: disk full"}]
    assert [point.step for point in good.points] == [0, 1, 2]
    assert good.points[0].numbers["loss"] == 2.0
    assert good.points[0].numbers["wantrain/log_number"] == 3.0


def test_a_point_is_made_every_five_seconds_a_minute_without_steps_and_at_the_end(tmp_path: Path) -> None:
    with Monitor(Watch(), source(tmp_path), lambda _: None) as watching:
        for now, step in [(0.0, 0), (1.0, 1), (5.0, 5), (6.0, 5), (30.0, 5), (64.0, 5), (65.0, 5), (66.0, 6)]:
            watching.measure(Measured({"round": 2.0}, {}, {}, 0.5, step, 3, 2), {}, now)
    lines = [json.loads(line) for line in (tmp_path / FILE).read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 5, 5, 6]
    assert {line["round"] for line in lines} == {2}


# ---- each tracker


def test_json_lines_are_one_for_each_point_and_a_full_file_is_put_aside(tmp_path: Path) -> None:
    track(feeds((), source(tmp_path))[0])
    lines = [json.loads(line) for line in (tmp_path / FILE).read_text().splitlines()]
    assert lines[1] == {"time_unix": 1005.0, "step": 20, "round": 2, "numbers": dict(POINTS[1].numbers)}
    small = JsonLines(tmp_path / FILE, max_bytes=1)
    for _ in range(3):
        small.write(POINTS[0])
    small.close()
    assert [len(path.read_text().splitlines()) for path in sorted(tmp_path.iterdir())] == [1, 1]


@pytest.mark.parametrize("folder", ["", "elsewhere"])
def test_tensorboard_reads_the_scalars(tmp_path: Path, folder: str) -> None:
    pytest.importorskip("tensorboard", reason="scripts/setup dev installs tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    wanted = f"tensorboard:{tmp_path / folder}" if folder else "tensorboard"
    track(feeds((wanted,), source(tmp_path))[1])
    reader = EventAccumulator(str(tmp_path / (folder or "tensorboard") / "0123456789abcdef" / "berlin"))
    reader.Reload()
    assert set(reader.Tags()["scalars"]) == {"loss", "wantrain/step", "round"}
    assert [(e.wall_time, e.step, e.value) for e in reader.Scalars("loss")] == [(1000.0, 10, 2.5), (1005.0, 20, 2.25)]


def test_wandb_keeps_the_points_offline(tmp_path: Path, monkeypatch: Any) -> None:
    pytest.importorskip("wandb", reason="scripts/setup dev installs wandb")
    from wandb.proto.wandb_internal_pb2 import Record

    monkeypatch.setenv("WANDB_MODE", "offline")
    track(feeds(("wandb:mine",), source(tmp_path))[1])
    (file,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    deadline = time.monotonic() + DEADLINE_S
    records: list[Any] = []
    while not any(record.WhichOneof("record_type") == "exit" for record in records):  # written by a process of its own
        assert time.monotonic() < deadline
        records = [Record.FromString(data) for data in log_records(file.read_bytes())]
    runs = [record.run for record in records if record.WhichOneof("record_type") == "run"]
    assert (runs[0].project, runs[0].display_name, runs[0].run_id) == (
        "mine", "0123456789abcdef/berlin", "0123456789abcdef-peer-id",
    )  # fmt: skip
    rows = [
        {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        for record in records
        if record.WhichOneof("record_type") == "history"
    ]
    assert [(row["_step"], row["loss"], row["round"]) for row in rows] == [(10, 2.5, 1), (20, 2.25, 2)]


def test_wandb_without_a_key_is_told_of_and_asks_nothing(tmp_path: Path, monkeypatch: Any) -> None:
    pytest.importorskip("wandb", reason="scripts/setup dev installs wandb")
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    feed = feeds(("wandb",), source(tmp_path))[1]
    feed.start()
    feed.end()
    assert feed.join(DEADLINE_S)
    assert "no API key" in feed.trouble()


def test_trackio_reads_the_points(tmp_path: Path, monkeypatch: Any) -> None:
    if importlib.util.find_spec("trackio") is None:
        pytest.skip("trackio is not installed (its pins do not fit ours): pip install 'wantrain[trackio]'")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path))
    track(feeds(("trackio:mine",), source(tmp_path))[1])
    (database,) = tmp_path.glob("mine*.db")
    with sqlite3.connect(database) as connection:
        rows = connection.execute("select run_name, step, metrics from metrics order by step").fetchall()
    assert [(name, step, json.loads(text)["loss"]) for name, step, text in rows] == [
        ("0123456789abcdef/berlin", 10, 2.5),
        ("0123456789abcdef/berlin", 20, 2.25),
    ]


# ---- what the user asks for


def test_the_package_of_every_tracker_is_an_extra_of_its_name() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    extras = project["project"]["optional-dependencies"]
    for name in TRACKERS:
        assert [re.match(r"[\w-]+", package)[0] for package in extras[name]] == [name]  # type: ignore[index]


def test_a_script_that_starts_its_own_peer_may_name_trackers() -> None:
    invite = str(Invite.issue(RunKeys.create(), bytes(8), "127.0.0.1", 7700, 2**31))
    own = OwnDaemon(invite, {"track": ["tensorboard", "wandb:mine"], "metrics": 0})
    assert own._words == [invite, "--track", "tensorboard", "--track", "wandb:mine", "--metrics", "0"]


@pytest.mark.parametrize("wanted", ["csv", "tensorboard:", ""])
def test_a_tracker_that_does_not_exist_is_named(tmp_path: Path, wanted: str) -> None:
    with pytest.raises(ConfigError, match="allowed is tensorboard or tensorboard:DIR"):
        feeds((wanted,), source(tmp_path))


@pytest.mark.parametrize("name", TRACKERS)
def test_a_missing_package_is_an_error_that_names_the_extra(tmp_path: Path, monkeypatch: Any, name: str) -> None:
    def missing(*_: object) -> None:
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setitem(TRACKERS, name, trackers.Kind(missing, ""))  # type: ignore[arg-type]
    with pytest.raises(ConfigError) as caught:
        feeds((name,), source(tmp_path))
    assert caught.value.hint == f"pip install 'wantrain[{name}]'"
