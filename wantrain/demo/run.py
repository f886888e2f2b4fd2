"""The local run behind `wantrain demo`: starts coordinator and peers as processes, kills one, adds one, and judges."""

import signal
import sys
import time
from dataclasses import dataclass
from datetime import datetime
from json import dumps
from pathlib import Path

from rich.console import Console

from wantrain.config import RunSpec
from wantrain.demo import display, plot, report
from wantrain.demo.processes import Children, json_lines, nothing_left_in_memory, terminated_like_ctrl_c
from wantrain.demo.report import STALL_S, Json, Recording
from wantrain.errors import ConfigError, UnreachableError, WantrainError
from wantrain.new_run import create_local_run
from wantrain.optimizers.stream import lead
from wantrain.peers.status import query

EVERY = 20
"""Inner steps per round. Few and small steps: what more peers add shows early, and the demo ends within minutes."""
BATCH = 4
"""Windows of CONTEXT bytes per inner step."""
CONTEXT = 128
ROUNDS = 24
PEERS_MOST = 16
ROUNDS_LEAST_WITH_CHURN = 10
"""Fewer leave a newcomer no time to start, fetch the state and contribute."""
KILL_AT, JOIN_AT = 0.4, 0.55
"""Shares of the rounds."""
POLL_S = 0.3
START_TIMEOUT_S = 120.0
"""From the start to the first commit; several PyTorch imports share the cores."""
COMPARE_TIMEOUT_S = 600.0
ROUND_OPTION = {"ddp": "resync", "sparta": "parts"}
"""The option that sets the period of a method's parameter stream, which counts the rounds, if it is not `every`."""
TOLD = {
    "coordinator": {
        "joined": "joined",
        "lost": "lost",
        "left": "left",
        "abort": "sync tried again",
        "refused": "refused",
    },
    "peer": {"current": "holds the run's state", "behind": "is behind", "trainer-exit": "trainer ended"},
}


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """What `wantrain demo` was asked for."""

    peers: int = 4
    rounds: int | None = None
    """None: the default of the demo."""
    method: str = "diloco"
    codec: str = ""
    """"": the method's own."""
    churn: bool = True
    """Kill a peer in the middle of a sync and let a newcomer join."""
    seed: int = 0
    out: Path | None = None
    """Folder for logs and report; None: runs/demo-<time> below the working directory."""
    json: bool = False
    """Print nothing but the summary, as JSON."""


class DemoError(WantrainError):
    """The demo cannot go on; the message is a sentence for the user."""


def run_demo(options: DemoOptions) -> int:
    """Run the demo; 0 if it passed, 1 if not.

    Raises:
        ConfigError: an option out of range, or a folder that is already in use.
    """
    if not 2 <= options.peers <= PEERS_MOST:
        raise ConfigError(f"--peers is {options.peers}, allowed is 2 to {PEERS_MOST}", hint="try --peers 4")
    least = ROUNDS_LEAST_WITH_CHURN if options.churn else 1
    if options.rounds is not None and options.rounds < least:
        raise ConfigError(
            f"--rounds is {options.rounds}, allowed is at least {least}", hint="give more rounds, or --no-churn"
        )
    folder = (options.out or Path("runs") / f"demo-{datetime.now():%Y%m%d-%H%M%S}").resolve()
    spec = write_run_file(folder / "run.toml", options)
    shown = display.make(json=options.json)
    with terminated_like_ctrl_c(), nothing_left_in_memory(folder), Children(folder) as children:
        demo = Demo(options, spec, folder, children, shown)
        try:
            demo.run()
        except DemoError as failure:
            demo.recording.failure = str(failure)
        finally:
            shown.close()
    summary = report.write(demo.recording, folder)
    return _tell(options, demo.recording, summary, folder)


class Demo:
    """One run of the demo, from the first process to the last evaluation."""

    def __init__(
        self, options: DemoOptions, spec: RunSpec, folder: Path, children: Children, shown: display.Display
    ) -> None:
        self.options = options
        self.spec = spec
        self.folder = folder
        self.children = children
        self.display = shown
        self.rounds = options.rounds or ROUNDS
        self.run_file = folder / "run.toml"
        self.peers = [f"peer-{number}" for number in range(1, options.peers + 1)]
        self.doomed = self.peers[-1] if options.churn else None
        self.kill_round = max(1, round(KILL_AT * self.rounds))
        self.join_round = round(JOIN_AT * self.rounds)
        self.invite = ""
        self._begun = time.monotonic()
        self._begun_unix = time.time()
        self._head = 0
        self._progress_s = 0.0
        self.recording = Recording(
            {
                "peers": options.peers,
                "rounds": self.rounds,
                "every": EVERY,
                "batch": BATCH,
                "context": CONTEXT,
                "method": options.method,
                "codec": options.codec,
                "seed": options.seed,
                "killed": None,
                "newcomer": None,
            }
        )

    @property
    def time_s(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._begun

    def run(self) -> None:
        """Start everything, watch it to the end, compare.

        Raises:
            DemoError: a process ended early, or nothing was committed for too long.
        """
        self.display.update(0.0, "starting", self.rounds, {})
        first = lead(self.spec.streams)
        assert first is not None, "every method has a stream of parameters"
        own = (first.gossip and not first.last) or first.adopt == "mix" or first.answer == "eager"
        self.recording.settings |= {
            "lead": first.name,
            "gossip": first.gossip,
            "common": not own,
            "merged": bool(first.last),
            "ahead": first.answer != "result",
            "codec": first.codec,
        }
        self._start_coordinator()
        for name in self.peers:
            self._start_peer(name)
        try:
            while not self._step():
                time.sleep(POLL_S)
            self._final_status()
        finally:
            self._take_events()
            self.recording.events.sort(key=lambda line: float(line["time_s"]))
        self.children.stop("coordinator")
        self._compare()

    def _start_coordinator(self) -> None:
        self._wantrain("coordinator", "coordinator", str(self.run_file), "--json")
        line = self.children.wait_for("coordinator", "listening", START_TIMEOUT_S)
        if line is None:
            raise DemoError(f"the coordinator did not start:\n{self.children.last_lines('coordinator')}")
        self.invite = line["invite"]

    def _start_peer(self, name: str) -> None:
        number = int(name.rpartition("-")[2])
        trainer = [sys.executable, "-m", "wantrain.demo.train", *self._data_options(number - 1)]
        trainer += ["--rounds", str(self.rounds)]
        if number == 1:
            trainer += ["--evaluate", "--save", str(self.folder / "phi.npy")]
        # The engine's own switch: the daemon kills its process group in the middle of this sync.
        doom = {"WANTRAIN_KILL_AT": f"{self.recording.lead}#{self.kill_round}:moving"} if name == self.doomed else {}
        where = ["--name", name, "--home", str(self.folder / name), "--bind", "127.0.0.1:0", "--json"]
        self._wantrain(name, "peer", self.invite, *where, "--", *trainer, environment=doom)

    def _data_options(self, shard: int) -> list[str]:
        shards = self.options.peers + 1  # one is kept for the newcomer
        given = {"shard": shard, "shards": shards, "seed": self.options.seed, "batch": BATCH}
        return [word for key, value in given.items() for word in (f"--{key}", str(value))]

    def _wantrain(self, name: str, *words: str, environment: dict[str, str] | None = None) -> None:
        self.children.wantrain(name, *words, environment=environment)

    def _step(self) -> bool:
        """Look once at everything; whether all peers have finished.

        Raises:
            DemoError: as in `run`.
        """
        self._take_events()
        self._take_status()
        self._take_exits()
        status = self.recording.status
        head = int(status.get("log", {}).get("head", 0))
        if head > self._head:
            self._head, self._progress_s = head, self.time_s
        limit_s = STALL_S if self._head else START_TIMEOUT_S
        if self.time_s - self._progress_s > limit_s:
            reason = status.get("reason") or "no reason known"
            raise DemoError(f"the run stalled: no commit for {limit_s:.0f} s after commit {self._head} ({reason})")
        if (
            self.options.churn
            and self.recording.settings["newcomer"] is None
            and self.join_round <= display.current_round(status) < self.rounds
        ):
            self._join()
        self.display.update(self.time_s, "training" if self._head else "starting", self.rounds, status)
        return all(self.children.exit_code(name) is not None for name in self.peers)

    def _take_events(self) -> None:
        for name in ["coordinator", *self.peers]:
            told = TOLD["coordinator" if name == "coordinator" else "peer"]
            for line in self.children.new_events(name):
                at = round(float(line.pop("time_unix", time.time())) - self._begun_unix, 3)
                self.recording.events.append({"time_s": at, "from": name, **line})
                if line.get("event") in told:
                    who = line.get("name", "") if name == "coordinator" else name
                    reason = f": {line['reason']}" if line.get("reason") else ""
                    self.display.event(at, f"{who} {told[line['event']]}{reason}".strip())

    def _take_status(self) -> None:
        try:
            self.recording.sample(self.time_s, query(self.run_file, 2.0))
        except UnreachableError as error:
            if self.children.exit_code("coordinator") is not None:
                raise DemoError(f"the coordinator ended:\n{self.children.last_lines('coordinator')}") from error

    def _take_exits(self) -> None:
        for name in self.peers:
            code = self.children.exit_code(name)
            if code is None or name == self.recording.settings["killed"]:
                continue
            if name == self.doomed and code == -signal.SIGKILL:
                self.children.kill(name)  # what may be left of its group
                self.recording.settings["killed"] = name
                self._note("killed", name, self.kill_round)
                self.display.event(self.time_s, f"{name} killed in the middle of the sync of round {self.kill_round}")
            elif code != 0:
                raise DemoError(f"{name} ended with exit code {code}:\n{self.children.last_lines(name)}")
            elif name == self.doomed:
                raise DemoError(f"{name} should have been killed in round {self.kill_round} and was not")

    def _join(self) -> None:
        name = f"peer-{self.options.peers + 1}"
        now = display.current_round(self.recording.status)
        self.recording.settings["newcomer"] = name
        self.peers.append(name)
        self._note("joins", name, now)
        self.display.event(self.time_s, f"{name} starts with the same invite, after round {now}")
        self._start_peer(name)

    def _note(self, event: str, peer: str, index: int) -> None:
        """An event of the demo itself."""
        line = {"time_s": round(self.time_s, 3), "from": "demo", "event": event, "peer": peer, "round": index}
        self.recording.events.append(line)

    def _final_status(self) -> None:
        """Ask until the coordinator has the last report of every live peer; what it then lacks is judged as it is."""
        deadline_s = self.time_s + 5.0
        while not report.parity(self.recording)[0] and self.time_s < deadline_s:
            time.sleep(POLL_S)
            self._take_status()

    def _compare(self) -> None:
        """Train one peer alone for the same steps and evaluate both results on the same held-out text."""
        steps = self.rounds * EVERY
        words = ["--alone", str(steps), "--compare", str(self.folder / "phi.npy"), *self._data_options(0)]
        self.children.start("alone", [sys.executable, "-m", "wantrain.demo.train", *words])
        self.display.event(self.time_s, f"training one peer alone for the same {steps} steps, to compare")
        deadline_s = self.time_s + COMPARE_TIMEOUT_S
        while self.children.exit_code("alone") is None and self.time_s < deadline_s:
            self.display.update(self.time_s, "training one peer alone", self.rounds, self.recording.status)
            time.sleep(POLL_S)
        if self.children.exit_code("alone") != 0:
            raise DemoError(f"the comparison did not finish:\n{self.children.last_lines('alone')}")
        self.recording.losses = json_lines(self.children.log("alone").read_bytes())[-1]


def write_run_file(path: Path, options: DemoOptions) -> RunSpec:
    """Write run.toml and run.key as `wantrain init` does, with the demo's period and a free port on the loopback.

    Raises:
        ConfigError: unknown method or codec.
    """
    chosen = {ROUND_OPTION.get(options.method, "every"): EVERY}
    if options.method == "noloco":
        chosen["total"] = EVERY * (options.rounds or ROUNDS)
    return create_local_run(path, name="demo", method=options.method, codec=options.codec, options=chosen)


def _tell(options: DemoOptions, recording: Recording, summary: Json, folder: Path) -> int:
    """Print the result; the exit code."""
    console = Console(stderr=options.json)
    missing = ""
    try:
        plot.draw(recording, summary, folder / "report.png")
    except ConfigError as error:
        missing = f"report.png was left out: {error}"
    if options.json:
        print(dumps(summary))
    else:
        console.print(report.text(summary), markup=False, highlight=False, soft_wrap=True)
        console.print(f"Report, logs and events: {folder}", markup=False, highlight=False, soft_wrap=True)
    if missing:
        console.print(missing, markup=False, highlight=False, soft_wrap=True)
    return 0 if summary["ok"] else 1
