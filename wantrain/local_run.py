"""A run on this machine with the user's own training script: coordinator and peers as processes on the loopback."""

import contextlib
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from json import dumps
from pathlib import Path
from typing import Any

from rich.console import Console

from wantrain.config import RunSpec
from wantrain.demo import display
from wantrain.demo.processes import Children, json_lines, nothing_left_in_memory, terminated_like_ctrl_c
from wantrain.errors import ConfigError, UnreachableError
from wantrain.new_run import create_local_run
from wantrain.peers.status import query

PEERS_MOST = 64
POLL_S = 0.3
START_TIMEOUT_S = 60.0
"""For the coordinator, which imports no PyTorch."""
LEAVE_PATIENCE_S = 60.0
"""How long the peers may take to leave after Ctrl-C."""
INTERRUPTED = 130
TOLD = {
    "coordinator": ("joined", "lost", "left", "abort", "refused", "rejected"),
    "peer": ("current", "trainer-exit", "left"),
}
"""Events that are shown as they happen."""


@dataclass(frozen=True, slots=True)
class LocalOptions:
    """What `wantrain local` was asked for."""

    script: Path
    arguments: tuple[str, ...] = ()
    """Of the script; in each of them {i} stands for the peer's number, from 0."""
    peers: int = 4
    method: str = "diloco"
    options: Mapping[str, bool | int | float | str] | None = None
    """Of the method."""
    codec: str = ""
    """Of contributions; "": the method's own."""
    max_restarts: int = 0
    out: Path | None = None
    """Folder for run.toml, logs and summary; None: runs/local-<time> below the working directory."""
    json: bool = False
    """Print nothing but the summary, as JSON."""


def run_local(options: LocalOptions) -> int:
    """Run it until all scripts have ended; 0 if all ended well, else the exit code of the first peer that did not.

    Raises:
        ConfigError: an option out of range, no such script, or a folder that is already in use.
        UnreachableError: the coordinator did not start.
    """
    if not 1 <= options.peers <= PEERS_MOST:
        raise ConfigError(f"--peers is {options.peers}, allowed is 1 to {PEERS_MOST}", hint="try --peers 4")
    if not options.script.is_file():
        raise ConfigError(f"{options.script} not found", hint="give the path of a training script that Python can run")
    folder = (options.out or Path("runs") / f"local-{datetime.now():%Y%m%d-%H%M%S}").resolve()
    spec = create_local_run(
        folder / "run.toml",
        name="local",
        method=options.method,
        codec=options.codec,
        options=options.options or {},
    )
    shown = display.make(json=options.json, title="wantrain local")
    with terminated_like_ctrl_c(), nothing_left_in_memory(folder), Children(folder) as children:
        local = LocalRun(options, spec, folder, children, shown)
        try:
            local.run()
        except KeyboardInterrupt:
            local.leave()
        finally:
            shown.close()
    summary = local.summary()
    text = dumps(summary)
    (folder / "summary.json").write_text(text + "\n", encoding="utf-8")
    if options.json:
        print(text)
    else:
        _tell(summary)
    if local.interrupted:
        return INTERRUPTED
    return next((code if code > 0 else 1 for code in local.exit_codes.values() if code), 0)


class LocalRun:
    """One run, from the first process to the last."""

    def __init__(
        self, options: LocalOptions, spec: RunSpec, folder: Path, children: Children, shown: display.Display
    ) -> None:
        self.options = options
        self.folder = folder
        self.run_file = folder / "run.toml"
        self.peers = [f"peer-{number}" for number in range(options.peers)]
        self.exit_codes: dict[str, int] = {}
        """Of the peers that have ended."""
        self.interrupted = False
        self.codec = spec.streams[0].codec
        self.status: dict[str, Any] = {}
        self._children = children
        self._display = shown
        self._begun = time.monotonic()

    @property
    def time_s(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._begun

    def run(self) -> None:
        """Start everything and watch it until all peers have ended.

        Raises:
            UnreachableError: the coordinator did not start, or ended.
        """
        self._children.wantrain("coordinator", "coordinator", str(self.run_file), "--json")
        line = self._children.wait_for("coordinator", "listening", START_TIMEOUT_S)
        if line is None:
            raise self._without_coordinator("did not start")
        for number, name in enumerate(self.peers):
            self._start(name, number, line["invite"])
        self._watch()
        self._children.stop("coordinator")

    def leave(self) -> None:
        """After Ctrl-C: let all peers finish what is in flight and leave. Another one ends them at once."""
        self.interrupted = True
        self._display.event(self.time_s, "leaving; Ctrl-C again ends all processes at once")
        try:
            for name in self.peers:
                if self._children.started(name):
                    self._children.interrupt(name)
            deadline_s = self.time_s + LEAVE_PATIENCE_S
            while not self._look() and self.time_s < deadline_s:
                time.sleep(POLL_S)
            if self._children.started("coordinator"):
                self._children.stop("coordinator")
        except KeyboardInterrupt:
            pass  # whoever holds the children kills them

    def _start(self, name: str, number: int, invite: str) -> None:
        arguments = [word.replace("{i}", str(number)) for word in self.options.arguments]
        threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, (os.cpu_count() or 1) // self.options.peers))
        where = ["--name", name, "--home", str(self.folder / name), "--bind", "127.0.0.1:0", "--json"]
        self._children.wantrain(
            name,
            *("peer", invite, *where, "--max-restarts", str(self.options.max_restarts)),
            *("--", sys.executable, str(self.options.script.resolve()), *arguments),
            environment={"OMP_NUM_THREADS": threads},
        )

    def _watch(self) -> None:
        while not self._look():
            if self._children.exit_code("coordinator") is not None:
                raise self._without_coordinator("ended")
            time.sleep(POLL_S)

    def _look(self) -> bool:
        """Look once at everything; whether all peers have ended."""
        for name in ["coordinator", *self.peers]:
            told = TOLD["coordinator" if name == "coordinator" else "peer"]
            for line in self._children.new_events(name):
                if line.get("event") in told:
                    who = line.get("name", "") if name == "coordinator" else name
                    reason = f": {line['reason']}" if line.get("reason") else ""
                    self._display.event(self.time_s, f"{who} {line['event']}{reason}".strip())
        with contextlib.suppress(UnreachableError):  # it may be busy; whether it still runs is looked at elsewhere
            self.status = query(self.run_file, 2.0)
        for name in self.peers:
            code = self._children.exit_code(name) if self._children.started(name) else 0
            if code is not None and name not in self.exit_codes:
                self.exit_codes[name] = code
                if code:
                    end = self._children.last_lines(name)
                    self._display.event(self.time_s, f"{name} ended with exit code {code}:\n{end}")
        head = int(self.status.get("log", {}).get("head", 0))
        self._display.update(self.time_s, "training" if head > 0 else "starting", 0, self.status)
        return len(self.exit_codes) == len(self.peers)

    def _without_coordinator(self, what: str) -> UnreachableError:
        return UnreachableError(
            f"the coordinator {what}:\n{self._children.last_lines('coordinator')}",
            hint=f"see {self._children.log('coordinator')}",
        )

    def summary(self) -> dict[str, Any]:
        """What became of it."""
        stats = {peer["name"]: peer.get("stats", {}) for peer in self.status.get("peers", [])}
        keys = ("step", "round", "loss", "tokens", "bytes_sent", "pause_s")
        return {
            "ok": not self.interrupted and not any(self.exit_codes.values()),
            "folder": str(self.folder),
            "method": self.options.method,
            "codec": self.codec,
            "time_s": round(self.time_s, 1),
            "commits": max(0, int(self.status.get("log", {}).get("head", 0))),
            "peers": [
                {
                    "name": name,
                    "exit_code": self.exit_codes.get(name),
                    **{key: stats[name][key] for key in keys if key in stats.get(name, {})},
                    **(self._why(name) if self.exit_codes.get(name) else {}),
                }
                for name in self.peers
            ],
        }

    def _why(self, name: str) -> dict[str, str]:
        """Why a peer failed, in its own words: the error that it ended with, else the end of its log."""
        log = self._children.log(name)
        said: dict[str, Any] = next((line for line in reversed(json_lines(log.read_bytes())) if "error" in line), {})
        error = said.get("error") or self._children.last_lines(name)
        return {"error": str(error), "hint": str(said.get("hint") or f"see {log}")}


def _tell(summary: dict[str, Any]) -> None:
    console = Console()
    lines = [f"{summary['commits']} commits in {summary['time_s']:.0f} s, {summary['method']}, {summary['codec']}"]
    for peer in summary["peers"]:
        loss = f", loss {peer['loss']:.4f}" if "loss" in peer else ""
        sent_mb = peer.get("bytes_sent", 0.0) / 1e6
        how = "ended well" if peer["exit_code"] == 0 else f"exit code {peer['exit_code']}"
        lines.append(f"{peer['name']}: {int(peer.get('step', 0))} steps{loss}, {sent_mb:.1f} MB sent, {how}")
        if "error" in peer:
            lines += [f"  error: {peer['error']}", f"  next: {peer['hint']}"]
    lines.append(f"Logs, events and run.toml: {summary['folder']}")
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
