"""`wantrain status`: who takes part, what is in flight and who is late, and what was committed last."""

import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click
from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from wantrain.cli.options import Duration, json_option, run_file_argument
from wantrain.cli.terminal import console, printable
from wantrain.errors import UnreachableError
from wantrain.peers.presence import takes_part, waits_or_went

WATCH_PERIOD_S = 1.0
SHOWN_COMMITS = 8
SHOWN_LINKS = 12


@click.command("status")
@run_file_argument
@click.option("--watch", is_flag=True, help="Go on until Ctrl-C, asking every second.")
@click.option("--timeout", default="5s", show_default=True, type=Duration(), help="How long to wait for an answer.")
@json_option
@click.pass_context
def command(ctx: click.Context, run_file: Path, watch: bool, timeout: float, as_json: bool) -> None:
    """Show the state of a run. Without its coordinator: what the database beside RUN.TOML says, and exit code 4.

    \b
    Example:
      wantrain status run.toml --watch
    """
    document = _ask(run_file, timeout)
    if as_json:
        while True:
            click.echo(json.dumps(document))
            if not watch:
                break
            time.sleep(WATCH_PERIOD_S)
            document = _ask(run_file, timeout)
    elif watch:
        with Live(_render(document), console=console(), auto_refresh=False) as live:
            while True:
                live.update(_render(document), refresh=True)
                time.sleep(WATCH_PERIOD_S)
                document = _ask(run_file, timeout)
    else:
        console().print(_render(document))
    ctx.exit(document.get("code", 0))


def _ask(run_file: Path, timeout_s: float) -> dict[str, Any]:
    """The coordinator's document; if it does not answer, one with "error", "hint", "code" and what run.db says."""
    from wantrain.peers.status import query

    try:
        document: dict[str, Any] = query(run_file, timeout_s)
    except UnreachableError as error:
        return {
            "error": error.message,
            "hint": error.hint or f"start it with `wantrain coordinator {run_file}`",
            "code": error.exit_code,
        } | _recorded(run_file)
    return document


def _recorded(run_file: Path) -> dict[str, Any]:
    """The last commit number and members in run.db; nothing if there is none."""
    from wantrain.config import store_path
    from wantrain.peers.store import Store

    if not store_path(run_file).exists():
        return {}
    with Store(store_path(run_file)) as store:
        number, members = store.last_view()
        names = {row.peer: row.name for row in store.peers()}
        return {
            "log": {"head": store.head()},
            "view": {"number": number, "members": members},
            "peers": [{"peer": peer, "name": names.get(peer, "")} for peer in members],
        }


def _render(document: dict[str, Any]) -> RenderableType:
    if "error" in document:
        return _offline(document)
    run, coordinator, log, view = (document.get(key, {}) for key in ("run", "coordinator", "log", "view"))
    head = Text()
    head.append(printable(f"{run.get('name', '?')} ({run.get('id', '?')})"), "bold")
    head.append(printable(f"  {run.get('method', '?')}, {_codecs(run)}  protocol {run.get('protocol', '?')}"))
    head.append(
        printable(f"\ncoordinator {coordinator.get('address', '?')}, up {_seconds(coordinator.get('uptime_s'))}")
    )
    head.append(
        f", start {coordinator.get('epoch', '?')}\nlog {log.get('head', '?')}, chain {str(log.get('chain', '?'))[:16]}"
    )
    head.append(f"  view {view.get('number', '?')} with {len(view.get('members', []))} members")
    if document.get("replica_spread") is not None:
        head.append(f"\nreplicas differ by {document['replica_spread']:.3g} (standard deviation of a weight)")
    if coordinator.get("dropped"):
        head.append(
            f"\n{coordinator['dropped']} messages dropped by the coordinator: garbage, or not admitted", "yellow"
        )
    if left_out := document.get("left_out"):
        rows = ", ".join(f"{number} {name}" for name, number in left_out.items())
        head.append(printable(f"\nnot shown, as it is too much for one answer: {rows}"), "yellow")
    for peer in document.get("peers", []):
        if guilty := peer.get("rejected"):
            head.append(printable(f"\nrejected {guilty['times']} times: {peer['name']}: {guilty['reason']}"), "red")
    saved = document.get("saved", {})
    if saved.get("number", -1) >= 0:
        head.append(printable(f"\nstate at log number {saved['number']} is on the disk of {saved.get('name', '?')}"))
    if saved.get("trouble"):
        head.append(printable(f"\nnot saved: {saved['trouble']}"), "yellow")
    if document.get("reason"):
        head.append(printable(f"\nwaiting: {document['reason']}"), "yellow")
    parts: list[RenderableType] = [head, _peers(document.get("peers", []))]
    if document.get("syncs"):
        parts.append(_syncs(document["syncs"]))
    if document.get("data"):
        parts.append(_data(document["data"]))
    if document.get("links"):
        parts.append(_links(document["links"]))
    if document.get("relayed"):
        parts.append(_relayed(document["relayed"]))
    if document.get("commits"):
        newest = sorted(document["commits"], key=lambda commit: -int(commit.get("number", 0)))
        parts.append(_commits(newest[:SHOWN_COMMITS]))
    return Group(*parts)


def _codecs(run: dict[str, Any]) -> str:
    """The codec, or those of both ways where they differ."""
    up = run.get("codec", "?")
    return f"{up} up, {run['down']} down" if run.get("down", up) != up else str(up)


def _offline(document: dict[str, Any]) -> RenderableType:
    text = Text(printable(document["error"]), "red")
    text.append(printable(f"\nnext: {document['hint']}"), "default")
    if "log" in document:
        names = ", ".join(peer["name"] or peer["peer"] for peer in document["peers"]) or "none"
        text.append(f"\nlast commit on record: {document['log']['head']}", "default")
        text.append(printable(f"\nmembers of view {document['view']['number']}: {names}"), "default")
    return text


def _peers(peers: list[dict[str, Any]]) -> Table:
    columns = ["peer", "id", "state", "log", "trainer", "step", "loss", "tokens/s", "sent", "memory", "seen", "waiting"]
    rows = []
    for peer in peers:
        stats = peer.get("stats", {})
        rows.append(
            [
                peer.get("name"),
                str(peer.get("peer", ""))[:8],
                str(peer.get("state", "")) + (" (late)" if takes_part(peer) and peer.get("late") else ""),
                peer.get("log_number"),
                peer.get("trainer"),
                _number(stats.get("step"), ",.0f"),
                _number(stats.get("loss"), ".4f"),
                _number(stats.get("tokens_per_s"), ",.0f"),
                _bytes(stats.get("bytes_sent")),
                _memory(stats),
                _seconds(peer.get("last_seen_s")),
                waits_or_went(peer),
            ]
        )
    return _table("peers", columns, rows, right={"log", "step", "loss", "tokens/s", "sent", "memory", "seen"})


def _syncs(syncs: list[dict[str, Any]]) -> Table:
    rows = [
        [
            f"{sync.get('stream')}#{sync.get('index')}" + (f".{sync['attempt']}" if sync.get("attempt") else ""),
            sync.get("phase"),
            _seconds(sync.get("age_s")),
            ", ".join(sync.get("ready", [])),
            ", ".join(sync.get("waiting_for", [])),
            sync.get("reason"),
        ]
        # Of many streams only a few have anything to show.
        for sync in [one for one in syncs if one.get("ready") or one.get("attempt")] or syncs[:1]
    ]
    return _table("in flight", ["sync", "phase", "age", "ready", "late", "why"], rows, right={"age"})


def _data(sets: list[dict[str, Any]]) -> Table:
    rows = [
        [
            data.get("name"),
            f"{data.get('length', 0):,}",
            data.get("epoch", 0) + 1 if not data.get("epochs") else f"{data.get('epoch', 0) + 1} of {data['epochs']}",
            f"{100 * data.get('leased', 0):.1f} %",
            f"{100 * data.get('confirmed', 0):.1f} %",
            ", ".join(f"{lease.get('peer')} {lease.get('samples', 0):,}" for lease in data.get("leases", [])),
            data.get("returned") or "",
        ]
        for data in sets
    ]
    columns = ["data set", "samples", "epoch", "leased", "in commits", "leases", "returned"]
    return _table("data", columns, rows, right={"samples", "epoch", "leased", "in commits", "returned"})


def _links(links: list[dict[str, Any]]) -> Table:
    """The slowest first: it is the one that a sync waits for."""
    rows = [
        [
            link.get("from"),
            link.get("to"),
            _rate(link.get("rate_bytes_per_s")),
            f"{1e3 * link['rtt_s']:.3g} ms" if link.get("rtt_s") else "",
            f"{100 * link.get('loss', 0):.2g} %",
            link.get("lanes") or "",
            link.get("congestion"),
            link.get("way"),
        ]
        for link in sorted(links, key=lambda link: float(link.get("rate_bytes_per_s") or "inf"))[:SHOWN_LINKS]
    ]
    columns = ["from", "to", "rate", "round trip", "loss", "connections", "congestion", "way"]
    more = f", the slowest {SHOWN_LINKS} of {len(links)}" if len(links) > SHOWN_LINKS else ""
    return _table(f"links{more}", columns, rows, right={"rate", "round trip", "loss", "connections"})


def _relayed(pairs: list[dict[str, Any]]) -> Table:
    rows = [
        [" and ".join(pair.get("pair", [])), pair.get("why"), ", ".join(pair.get("through", [])) or "nobody"]
        for pair in pairs[:SHOWN_LINKS]
    ]
    more = f", {SHOWN_LINKS} of {len(pairs)}" if len(pairs) > SHOWN_LINKS else ""
    return _table(f"pairs that exchange through others{more}", ["pair", "why", "through"], rows, right=set())


def _commits(commits: list[dict[str, Any]]) -> Table:
    rows = [
        [
            commit.get("number"),
            f"{commit.get('stream')}#{commit.get('index')}.{commit.get('attempt')}",
            ", ".join(commit.get("contributors", [])),
            _seconds(commit.get("gather_s")),
            _precisely(commit.get("move_s")),
            _precisely(commit.get("predicted_s") or None),
            commit.get("topology"),
            commit.get("codec"),
            _seconds(commit.get("age_s")),
            str(commit.get("digest", ""))[:16],
        ]
        for commit in commits
    ]
    columns = ["log", "sync", "contributors", "gathered in", "moved in", "expected", "by", "codec", "age", "digest"]
    return _table("last commits", columns, rows, right={"log", "gathered in", "moved in", "expected", "age"})


def _table(title: str, columns: Iterable[str], rows: list[list[Any]], right: set[str]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold")
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable("" if cell is None else cell)) for cell in row))
    return table


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _seconds(value: float | None) -> str:
    if value is None:
        return ""
    if value < 120:
        return f"{value:.1f} s"
    return f"{value / 60:.0f} min" if value < 7200 else f"{value / 3600:.1f} h"


def _memory(stats: dict[str, float]) -> str:
    """The daemon's peak, and how many times the model (in fp32) its tensors take."""
    if not stats.get("model_bytes"):
        return _bytes(stats.get("peak_bytes"))
    return f"{_bytes(stats.get('peak_bytes'))} ({stats.get('tensor_bytes', 0) / stats['model_bytes']:.1f}x)"


def _precisely(value: float | None) -> str:
    """Seconds, or milliseconds of what takes less than one."""
    return f"{1000 * value:.0f} ms" if value is not None and value < 1 else _seconds(value)


def _rate(bytes_per_s: float | None) -> str:
    """A rate as links are sold, in bits."""
    if not bytes_per_s:
        return "unknown"
    bits = 8 * bytes_per_s
    return f"{bits / 1e9:.3g} Gbit/s" if bits >= 1e9 else f"{bits / 1e6:.3g} Mbit/s"


def _bytes(value: float | None) -> str:
    if value is None:
        return ""
    scale, unit = next(((s, u) for s, u in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")) if value >= s), (1.0, "B"))
    return f"{value / scale:.3g} {unit}"
