"""What a run on this machine shows: a live table on a terminal, plain lines elsewhere, nothing with --json."""

from typing import Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from wantrain.demo.report import Json
from wantrain.peers.presence import waits_or_went

EVENTS_SHOWN = 8
REFRESH_PER_S = 4


class Display(Protocol):
    """Where the run says what happens; `event` is for things worth a line of their own."""

    def event(self, time_s: float, text: str) -> None: ...

    def update(self, time_s: float, phase: str, rounds: int, status: Json) -> None:
        """`rounds`: how many there will be; 0 if nobody knows."""

    def close(self) -> None: ...


class Silent:
    """For --json: stdout carries the summary and nothing else."""

    def event(self, time_s: float, text: str) -> None:
        pass

    def update(self, time_s: float, phase: str, rounds: int, status: Json) -> None:
        pass

    def close(self) -> None:
        pass


class Plain:
    """For pipes and log files: one line per event and per round."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._round = 0

    def event(self, time_s: float, text: str) -> None:
        self.console.print(f"{time_s:6.1f} s  {text}", markup=False, highlight=False, soft_wrap=True)

    def update(self, time_s: float, phase: str, rounds: int, status: Json) -> None:
        now = current_round(status)
        if now != self._round:
            self._round = now
            held_out = held_out_loss(status)
            shown = "" if held_out is None else f", held-out loss {held_out:.3f}"
            members = sum(peer["state"] == "member" for peer in status["peers"])
            self.event(time_s, f"round {_of(now, rounds)}, {members} members{shown}")

    def close(self) -> None:
        pass


class Terminal:
    """For people: a table that is drawn again a few times a second."""

    def __init__(self, console: Console, title: str) -> None:
        self._title = title
        self._events: list[str] = []
        self._live = Live(console=console, refresh_per_second=REFRESH_PER_S, transient=False)
        self._live.start()
        self._last: tuple[float, str, int, Json] = (0.0, "starting", 0, {})

    def event(self, time_s: float, text: str) -> None:
        self._events.append(f"{time_s:6.1f} s  {text}")
        self._draw()

    def update(self, time_s: float, phase: str, rounds: int, status: Json) -> None:
        self._last = (time_s, phase, rounds, status)
        self._draw()

    def close(self) -> None:
        self._live.stop()

    def _draw(self) -> None:
        time_s, phase, rounds, status = self._last
        self._live.update(screen(time_s, phase, rounds, status, self._events, self._title))


def screen(
    time_s: float, phase: str, rounds: int, status: Json, events: list[str], title: str = "wantrain demo"
) -> Group:
    """The whole picture at one moment."""
    header = Text.assemble(
        (title, "bold"),
        f"   round {_of(current_round(status), rounds)}   {time_s:.0f} s   ",
        (phase, "cyan"),
    )
    held_out = held_out_loss(status)
    if held_out is not None:
        header.append(f"   held-out loss {held_out:.3f}", "bold green")
    table = Table(expand=True, box=None, pad_edge=False, header_style="dim")
    for column, justify in (("peer", "left"), ("state", "left"), ("step", "right"), ("train loss", "right"),
                            ("tokens/s", "right"), ("sent MB", "right")):  # fmt: skip
        table.add_column(column, justify="right" if justify == "right" else "left", no_wrap=True)
    table.add_column("sync", no_wrap=True)
    table.add_column("waiting for", ratio=1)
    syncing = {name: sync for sync in status.get("syncs", []) for name in sync.get("ready", [])}
    for peer in status.get("peers", []):
        stats = peer.get("stats", {})
        sync = syncing.get(peer["name"])
        table.add_row(
            peer["name"],
            Text(peer["state"], {"member": "green", "joining": "yellow", "lost": "red"}.get(peer["state"], "dim")),
            _number(stats.get("step"), "d"),
            _number(stats.get("loss"), ".3f"),
            _number(stats.get("tokens_per_s"), ",.0f"),
            _number(stats.get("bytes_sent", 0) / 1e6, ".1f"),
            f"{sync['index']} {sync['phase']}" if sync else "",
            Text(waits_or_went(peer), "dim"),
        )
    lines = [Text(line, "dim") for line in events[-EVENTS_SHOWN:]]
    return Group(header, Text(), table, Text(status.get("reason") or "", "yellow"), *lines)


def _of(now: int, rounds: int) -> str:
    return f"{min(now, rounds)}/{rounds}" if rounds else str(now)  # a late contribution may have a sync after the last


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(int(value) if form == "d" else value, form)


def current_round(status: Json) -> int:
    """The last round that any peer has adopted; 0 before the first."""
    return max((int(peer.get("stats", {}).get("round", 0)) for peer in status.get("peers", [])), default=0)


def held_out_loss(status: Json) -> float | None:
    """The held-out loss that was logged last, in nats per byte."""
    found = [peer["stats"] for peer in status.get("peers", []) if "heldout" in peer.get("stats", {})]
    return max(found, key=lambda stats: stats.get("heldout_round", 0))["heldout"] if found else None


def make(*, json: bool, title: str = "wantrain demo") -> Display:
    """The display that fits where stdout goes."""
    console = Console()
    if json:
        return Silent()
    return Terminal(console, title) if console.is_terminal else Plain(console)
