"""`scripts/netlab`: run a command on every host of a lab, and check that the lab's links behave as they should."""

import json
import os
import re
import selectors
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from typing import Any, NoReturn

import click

from wantrain.errors import ConfigError, WantrainError
from wantrain.lab.check import measure
from wantrain.lab.lab import Lab
from wantrain.lab.shape import EXAMPLE, Shape, parse_rate

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""

Change = tuple[float, int, int, Shape]
"""After how many seconds which direction gets which shape."""


class _Group(click.Group):
    """Errors as words, the next step and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except WantrainError as error:
            click.echo(f"error: {error.message}", err=True)
            if error.hint:
                click.echo(f"next: {error.hint}", err=True)
            ctx.exit(error.exit_code)
        except KeyboardInterrupt:
            ctx.exit(INTERRUPTED)


@click.command(cls=_Group, context_settings={"max_content_width": 120})
def netlab() -> None:
    """Hosts in network namespaces of this machine, joined by links with the rate, delay and loss you choose.

    Needs root and Linux. Nothing is left behind, whatever ends it.
    """


@netlab.command(context_settings={"ignore_unknown_options": True})
@click.option("--hosts", type=int, default=2, show_default=True, help="How many hosts, 1 to 64.")
@click.option("--shape", default="", help=f"Every link, each direction: {EXAMPLE!r}; rtt covers both directions.")
@click.option("--at", "changes", multiple=True, metavar="S:A-B:SHAPE", help="After S seconds, change A to B (one way).")
@click.option("--upload", "uploads", multiple=True, metavar="K=RATE", help="Cap on all that host K sends.")
@click.option("--congestion", default="", help="TCP's default on the hosts: cubic, bbr …; else this machine's.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of losses and jitter.")
@click.option("--stats", is_flag=True, help="At the end, print what each link carried and lost, on stderr.")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def run(
    hosts: int,
    shape: str,
    changes: tuple[str, ...],
    uploads: tuple[str, ...],
    congestion: str,
    seed: int,
    stats: bool,
    command: tuple[str, ...],
) -> None:
    """Run COMMAND on all hosts at once; output is prefixed with the host, the exit code is the worst of all.

    In COMMAND, {host} is the host's number, {address} its address, {address0}, {address1} … those of hosts 0, 1 … The
    environment has WANTRAIN_LAB_HOST, WANTRAIN_LAB_ADDRESS and WANTRAIN_LAB_PEERS (all addresses in the order of hosts,
    with commas).

    \b
    netlab run --hosts 3 --shape 'rate=100mbit,rtt=100ms,loss=0.1%' -- python node.py --me {host} --first {address0}
    netlab run --shape rtt=50ms --at 10:0-1:down --at 20:0-1:rtt=50ms -- ./talk.sh     (0 cannot reach 1 for 10 s)
    netlab run --hosts 4 --upload 0=20mbit --stats -- sh -c 'echo $WANTRAIN_LAB_PEERS'
    """
    planned = sorted((_change(text) for text in changes), key=lambda change: change[0])
    with Lab(hosts, Shape.parse(shape) if shape else Shape(), seed, congestion) as lab:
        for _, source, destination, _ in planned:
            lab.check(source, destination)
        for text in uploads:
            lab.limit(*_upload(text))
        code = _run(lab, command, planned)
        if stats:
            for (source, destination), pair in sorted(lab.stats().items()):
                click.echo(
                    f"{source} > {destination}: {pair.size_bytes / 1e6:.3f} MB in {pair.packets} packets, "
                    f"{pair.lost} lost, {pair.dropped} dropped by a full queue",
                    err=True,
                )
    sys.exit(code)


@netlab.command()
@click.option("--seconds", type=click.FloatRange(0.5, 600), default=3.0, show_default=True, help="Measured per row.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of losses and jitter.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead of a table.")
def check(seconds: float, seed: int, as_json: bool) -> None:
    """Plain TCP over known shapes, beside what such links carried elsewhere. Takes a minute and a half.

    Loss-based control swings for long on a lossy link: expect its rows within a factor of two, others within a fifth.

    \b
    netlab check
    netlab check --seconds 20 --json
    """
    rows = []
    if not as_json:
        click.echo(f"{'Mbit/s over':36}{'TCP':>7}{'streams':>9}{'expected':>10}{'measured':>10}{'switch CPU':>12}")
    for row in measure(seconds, seed):
        rows.append(asdict(row))
        if not as_json:
            case = row.case
            figures = row.why_not or f"{row.mbit_per_s:10.1f}{row.switch_cpu:12.0%}"
            click.echo(
                f"{case.shape:36}{case.congestion:>7}{case.streams:9}{case.expected_mbit_per_s:10.0f}{figures:>10}"
            )
    if as_json:
        click.echo(json.dumps({"seconds": seconds, "seed": seed, "rows": rows}))


def _change(text: str) -> Change:
    found = re.fullmatch(r"([0-9]{1,6}(?:\.[0-9]{1,3})?):([0-9]{1,2})-([0-9]{1,2}):(.+)", text)
    if found is None:
        raise ConfigError(f"--at is {text!r}, allowed is SECONDS:FROM-TO:SHAPE", hint="write it like 10:0-1:down")
    return float(found[1]), int(found[2]), int(found[3]), Shape.parse(found[4])


def _upload(text: str) -> tuple[int, float]:
    """A host and its limit in bytes per second."""
    host, equals, rate = text.partition("=")
    try:
        if equals and host.isdecimal():
            return int(host), parse_rate(rate)
    except ConfigError as error:
        raise ConfigError(f"--upload is {text!r}: {error.message}", hint="write it like 0=50mbit") from None
    raise ConfigError(f"--upload is {text!r}, allowed is HOST=RATE", hint="write it like 0=50mbit")


def _run(lab: Lab, command: tuple[str, ...], planned: list[Change]) -> int:
    """Run it on all hosts, change links when it is time; the worst exit code, 128 + n for signal n."""
    addresses = [lab.address(host) for host in range(lab.hosts)]
    children = []
    with selectors.DefaultSelector() as ready:
        for host, address in enumerate(addresses):
            told = {"host": str(host), "address": address, **{f"address{k}": at for k, at in enumerate(addresses)}}
            environment = {f"WANTRAIN_LAB_{key}": told[key.lower()] for key in ("HOST", "ADDRESS")}
            child = lab.popen(
                host,
                [_filled(argument, told) for argument in command],
                env={**os.environ, **environment, "WANTRAIN_LAB_PEERS": ",".join(addresses)},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )
            children.append(child)
            assert child.stdout is not None
            ready.register(child.stdout, selectors.EVENT_READ, [host, b""])
        begin_s = time.monotonic()
        while ready.get_map():
            while planned and time.monotonic() >= begin_s + planned[0][0]:
                _, source, destination, shape = planned.pop(0)
                lab.shape(source, destination, shape)
            for key, _ in ready.select(max(0.0, begin_s + planned[0][0] - time.monotonic()) if planned else None):
                data = os.read(key.fd, 65536)
                host, rest = key.data
                *lines, key.data[1] = (rest + data).split(b"\n")
                if not data:
                    ready.unregister(key.fileobj)
                    lines += [key.data[1]] if key.data[1] else []
                for line in lines:
                    click.echo(b"[%d] %s" % (host, line))
    for child in children:
        with child:  # waits, and closes its output
            pass
    return max(code if code >= 0 else 128 - code for code in (child.returncode for child in children))


def _filled(argument: str, told: dict[str, str]) -> str:
    """The argument with {host}, {address} and {addressK} filled in; all other braces stay."""
    return re.sub(r"\{(host|address[0-9]*)\}", lambda found: told.get(found[1], found[0]), argument)


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _interrupt)  # the same clean end as after Ctrl-C
    netlab(prog_name="netlab")
