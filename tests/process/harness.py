"""Runs with real processes: a run directory, coordinator and peers as subprocesses, conditions with a deadline.

Nothing here sleeps for a fixed time: `Run.until` polls what the processes write and what the coordinator answers.
"""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import msgpack

from tests.process import forked
from tests.process.forked import ROOT
from wantrain.config import store_path
from wantrain.demo.processes import Children, json_lines
from wantrain.errors import UnreachableError
from wantrain.lab import Lab
from wantrain.new_run import create_run
from wantrain.peers.messages import Commit, CommitRecord, unpack
from wantrain.peers.place import remove_leftovers, segment_directory
from wantrain.peers.status import query
from wantrain.peers.store import Store
from wantrain.transport.digest import next_link
from wantrain.transport.wire import Message

TRAINER = Path(__file__).parent / "trainer.py"
DEADLINE_S = 90.0
"""For any one condition; generous, as many imports of PyTorch may share the cores."""
POLL_S = 0.05
EVERY = 15
"""Inner steps per round: with trainer.py's pace some ten rounds a second."""
TIGHT: dict[str, dict[str, Any]] = {
    "sync": {"grace_floor_s": 1.0, "grace_ceiling_s": 5.0, "deadline_floor_s": 5.0, "deadline_ceiling_s": 30.0},
    "liveness": {"heartbeat_s": 0.3, "suspect_floor_s": 4.0, "suspect_ceiling_s": 8.0},
}
PERIOD = {"ddp": "resync"}
"""The option that sets the period of the parameter stream, where it is not `every`."""

# Answers every line with the run's status.
ASKER = """
import json, sys
from pathlib import Path
from wantrain.errors import UnreachableError
from wantrain.peers.status import query
for _ in sys.stdin:
    try:
        document = query(Path(sys.argv[1]), 5.0)
    except UnreachableError:
        document = {}
    print(json.dumps(document), flush=True)
"""

T = TypeVar("T")
Event = dict[str, Any]


class Run:
    """One run in a directory of its own. As a context manager it kills every process group at its end.

    Args:
        folder: for run.toml, logs, events and homes.
        options: sections of run.toml with the values that differ from TIGHT and the template.
        lab: a network lab in which the run takes place: the coordinator on host 0, every peer on one of its own, in
            the order in which they are first started. Without it all are on this host's loopback.
    """

    def __init__(
        self,
        folder: Path,
        *,
        method: str = "diloco",
        codec: str = "int8",
        options: dict[str, dict[str, Any]] | None = None,
        lab: Lab | None = None,
    ) -> None:
        self.folder = folder
        self.method = method
        self.lab = lab
        self.hosts: dict[str, int] = {"coordinator": 0}
        """Where in the lab each process is, by its name."""
        self._asker: subprocess.Popen[str] | None = None
        self.run_file = folder / "run.toml"
        self.invite = ""
        self.address = ""
        self._children = Children(folder)
        self._events: dict[str, list[Event]] = {}
        spec = create_run(self.run_file, method=method, codec=codec, bind=self._where("coordinator"))
        sections: dict[str, Any] = {
            name: getattr(spec, name).model_copy(update={**TIGHT.get(name, {}), **(options or {}).get(name, {})})
            for name in ("sync", "liveness", "log", "checkpoint")
        }
        period = {**spec.method.options, PERIOD.get(method, "every"): EVERY, **(options or {}).get("method", {})}
        sections["method"] = spec.method.model_copy(update={"options": period})
        self.run_file.write_text(spec.model_copy(update=sections).to_toml(), encoding="utf-8")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._children.__exit__(kind, error, _)
        for note in self.folder.rglob("scratch"):  # of a killed daemon, whose trainer may be in no process group
            remove_leftovers(note.parent, segment_directory())
        if self._asker is not None:
            self._asker.kill()
            self._asker.communicate()

    # ---- processes

    @property
    def environment(self) -> dict[str, str]:
        """What every process of the run gets, beside this one's environment."""
        return {"PYTHONPATH": str(ROOT), "XDG_STATE_HOME": str(self.folder / "state")}

    def start(
        self, name: str, *words: str | Path, environment: dict[str, str] | None = None, fork: bool = False
    ) -> None:
        """Start a command under a name, in a process group of its own; `fork`: from one that has PyTorch already."""
        popen: Any = subprocess.Popen
        if self.lab is not None:
            popen = partial(self.lab.popen, self._host(name))
        elif fork and forked.AVAILABLE:
            popen = forked.Forked
        self._children.start(name, [str(word) for word in words], {**self.environment, **(environment or {})}, popen)

    def coordinator(self, *words: str, environment: dict[str, str] | None = None, fork: bool = True) -> None:
        """Start the coordinator, again at the same address, and wait until it listens; `fork` as of `start`."""
        known = len(self.events("coordinator", "listening"))
        where = ["--bind", self.address] if self.address else []
        command = [sys.executable, "-m", "wantrain", "coordinator", self.run_file]
        command += ["--json", "--events", self._event_file("coordinator")]
        self.start("coordinator", *command, *where, *words, environment=environment, fork=fork)
        self.until(lambda: len(self.events("coordinator", "listening")) > known, "the coordinator listens")
        listening = self.events("coordinator", "listening")[-1]
        self.address, self.invite = listening["address"], self.invite or listening["invite"]

    def peer(
        self,
        name: str,
        *words: str | Path,
        trainer: tuple[str, ...] = (),
        invite: str = "",
        home: str = "",
        environment: dict[str, str] | None = None,
        prepare: str = "",
        script: tuple[str | Path, ...] = (),
    ) -> None:
        """Start a peer with trainer.py; `words` are options of `wantrain peer`, `trainer` of the script.

        `prepare` is Python that changes its modules first; `script` is run by Python in place of trainer.py.
        """
        command = [sys.executable, *_entry(prepare), "peer", invite or self.invite, "--name", name, "--json"]
        where = ["--home", self.folder / (home or name)]
        where += [] if "--outbound-only" in words else ["--bind", self._where(name)]
        events = ["--events", self._event_file(name)]
        training = ["--", sys.executable, *(script or (TRAINER, self.folder, name, *trainer))]
        self.start(name, *command, *where, *events, *words, *training, environment=environment, fork=True)

    def wantrain(self, *words: str | Path, prepare: str = "") -> "subprocess.CompletedProcess[str]":
        """Run a wantrain command to its end; `prepare` is Python that changes its modules first."""
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **self.environment}
        command = [sys.executable, *_entry(prepare), *map(str, words)]
        if forked.AVAILABLE:
            return forked.run(command, env=environment, cwd=self.folder, timeout=DEADLINE_S)
        return subprocess.run(
            command, env=environment, cwd=self.folder, capture_output=True, text=True, timeout=DEADLINE_S, check=False
        )

    def signal(self, name: str, number: int, *, group: bool = False) -> None:
        """Send a signal to a process, or to its whole group."""
        pid = self._children.pid(name)
        (os.killpg if group else os.kill)(pid, number)

    def kill(self, name: str) -> None:
        """SIGKILL to a process's whole group."""
        self._children.kill(name)

    def pid(self, name: str) -> int:
        """Process id of the command itself."""
        return self._children.pid(name)

    def exit_code(self, name: str) -> int:
        """How a process ends; waits for it."""
        self.until(lambda: self._children.exit_code(name) is not None, f"{name} ends")
        code = self._children.exit_code(name)
        assert code is not None
        return code

    def log(self, name: str) -> str:
        """What a process and its trainer have printed."""
        return self._children.log(name).read_text(encoding="utf-8", errors="replace")

    def error(self, name: str) -> dict[str, Any]:
        """The error with which a command has ended: "error", "hint" and "code"."""
        return next(line for line in json_lines(self.log(name).encode()) if "error" in line)

    def pause(self) -> None:
        """Hold all trainers back; what is in flight is still decided."""
        (self.folder / "pause").touch()

    def resume(self) -> None:
        """Let them go on."""
        (self.folder / "pause").unlink()

    # ---- what happens

    def until(self, condition: Callable[[], T], what: str) -> T:
        """The condition's value once it is true.

        Raises:
            AssertionError: not within DEADLINE_S; with the ends of all logs.
        """
        deadline = time.monotonic() + DEADLINE_S
        while not (value := condition()):
            if time.monotonic() > deadline:
                raise AssertionError(f"not within {DEADLINE_S:.0f} s: {what}\n{self.story()}")
            time.sleep(POLL_S)
        return value

    def events(self, name: str, kind: str = "") -> list[Event]:
        """Events of a process so far, of one kind or of all."""
        known = self._events.setdefault(name, [])
        known += self._children.new_events(name)
        return [event for event in known if kind in ("", event["event"])]

    def commits(self, *, after: int = 0) -> list[Event]:
        """Commits that the coordinator has announced, with numbers above `after`: number, sync, contributors."""
        return [event for event in self.events("coordinator", "commit") if event["number"] > after]

    @property
    def head(self) -> int:
        """Number of the newest commit that was announced."""
        return max((event["number"] for event in self.commits()), default=0)

    def until_commits(self, count: int, *contributors: str, after: int | None = None) -> list[Event]:
        """Wait for so many commits with all of these contributors, after number `after` (the present head)."""
        start = self.head if after is None else after

        def found() -> list[Event]:
            commits = [e for e in self.commits(after=start) if set(contributors) <= set(e["contributors"])]
            return commits if len(commits) >= count else []

        return self.until(found, f"{count} commits after {start} with {', '.join(contributors) or 'anybody'}")

    def longest_pause_s(self, since_unix: float, *contributors: str) -> float:
        """The longest time between two commits that these are in, `since_unix` counted as the first."""
        commits = [event for event in self.commits() if set(contributors) <= set(event["contributors"])]
        times = [since_unix, *(e["time_unix"] for e in commits if e["time_unix"] > since_unix)]
        return max((after - before for before, after in pairwise(times)), default=0.0)

    def status(self) -> dict[str, Any]:
        """The coordinator's document; {} if it does not answer."""
        if self.lab is not None:
            return self._ask_in_lab(self.lab)
        try:
            return query(self.run_file, 5.0)
        except UnreachableError:
            return {}

    # ---- the end of every test

    def assert_parity(self, *names: str, rewound: bool = False) -> None:
        """All of these peers hold the head of the log with one chain and one state; training goes on afterwards.

        `rewound`: lines were given up, so that some that peers have announced are not in the log any more.
        """
        self.pause()

        def at_head() -> list[Event]:
            document = self.status()
            peers = [peer for peer in document.get("peers", []) if peer["name"] in names and peer["state"] == "member"]
            head = document["log"]["head"] if document else -1
            here = [peer for peer in peers if peer["log_number"] == peer["state_number"] == head]
            settled = len(here) == len(names) and not any(sync["attempt"] for sync in document["syncs"])
            return here if settled else []

        peers = self.until(at_head, f"{', '.join(names)} are at the head of the log")
        assert len({(peer["chain"], peer["state_digest"]) for peer in peers}) == 1, peers
        if not rewound:
            self.assert_one_history(*names)
        self.resume()

    def assert_one_history(self, *names: str) -> list[CommitRecord]:
        """The log is one unbroken chain, nothing is in it twice, and these peers applied just its updates."""
        with Store(store_path(self.run_file)) as store:
            genesis, lines, abandoned = store.genesis(), store.commits(1, store.head()), store.abandoned()
        assert genesis is not None
        assert not abandoned
        records = [_record(line) for _, line in lines]
        assert [record.number for record in records] == list(range(1, len(records) + 1))
        chain = genesis.chain
        for record in records:
            chain = next_link(chain, record.digest)
            assert record.chain == chain, record.number
        for stream in {record.sync.stream for record in records} if self.method != "noloco" else ():
            indices = [record.sync.index for record in records if record.sync.stream == stream]
            assert indices == list(range(1, len(indices) + 1)), stream
        for name in names:
            for event in self.events(name, "commit"):
                assert records[event["number"] - 1].digest.hex().startswith(event["digest"]), (name, event)
        return records

    def stop(self, *names: str) -> None:
        """Let all trainers finish; these peers and the coordinator must end with exit code 0."""
        (self.folder / "stop").touch()
        assert {name: self.exit_code(name) for name in names} == dict.fromkeys(names, 0), self.story()
        self._children.stop("coordinator")
        assert self.exit_code("coordinator") == 0, self.story()

    def steps(self, name: str) -> int:
        """How many inner steps a peer's present trainer has told of."""
        try:
            return int((self.folder / f"{name}.steps").read_text() or 0)
        except FileNotFoundError:
            return 0

    def _host(self, name: str) -> int:
        return self.hosts.setdefault(name, len(self.hosts))

    def _where(self, name: str) -> str:
        """What a process binds: its host, any port."""
        return "127.0.0.1:0" if self.lab is None else f"{self.lab.address(self._host(name))}:0"

    def _ask_in_lab(self, lab: Lab) -> dict[str, Any]:
        """The status as a process on the coordinator's host gets it: from outside the lab it cannot be reached."""
        if self._asker is None:
            command = [sys.executable, "-c", ASKER, str(self.run_file)]
            environment = {**os.environ, **self.environment}
            pipe = subprocess.PIPE
            self._asker = lab.popen(0, command, stdin=pipe, stdout=pipe, text=True, env=environment)
        assert self._asker.stdin is not None
        assert self._asker.stdout is not None
        self._asker.stdin.write("\n")
        self._asker.stdin.flush()
        document: dict[str, Any] = json.loads(self._asker.stdout.readline())
        return document

    def _event_file(self, name: str) -> Path:
        return self._children.event_file(name)

    def story(self) -> str:
        """The ends of all logs, for the message of a test that fails."""
        logs = sorted(self.folder.glob("*.log"))
        return "\n".join(f"--- {log.stem}\n{self._children.last_lines(log.stem, 15)}" for log in logs)


def _entry(prepare: str) -> list[str]:
    """Words after "python" that run wantrain's command line, with some Python before it."""
    return ["-c", f"{prepare}\nfrom wantrain.cli.main import main\nmain()"] if prepare else ["-m", "wantrain"]


def invite_in(text: str) -> str:
    """The first invite in what a command printed."""
    found = re.search(r"wantrain://[\w.:\[\]-]+/[\w-]+", text)
    assert found is not None, text
    return found[0]


def _record(line: bytes) -> CommitRecord:
    commit = unpack(Message("Commit", msgpack.unpackb(line)))
    assert isinstance(commit, Commit)
    return commit.records[0]
