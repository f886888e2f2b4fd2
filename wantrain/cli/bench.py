"""`wantrain bench`: measures on this machine: all-reduces against gloo and raw sockets, codecs, and what peers do."""

import json
from collections.abc import Sequence
from typing import Any

import click

from wantrain.cli.options import json_option
from wantrain.cli.terminal import console
from wantrain.errors import ConfigError


@click.group("bench")
def command() -> None:
    """Measure: an all-reduce against others, codecs, outer steps, trainer, coordinator. Progress goes to stderr.

    \b
    Examples:
      wantrain bench allreduce --peers 2 --size-mb 64 --codec int8
      wantrain bench codecs --codec int4 --codec e3m0
      wantrain bench outer --rule nesterov --codec int4
      wantrain bench trainer --every 20
      wantrain bench coordinator --peers 8,64,512
    """


@command.command("allreduce")
@click.option("--peers", default=2, show_default=True, type=click.IntRange(1, 64), help="Peers, one process each.")
@click.option(
    "--size-mb",
    default=64.0,
    show_default=True,
    type=click.FloatRange(0.001, 4096.0),
    help="Size of the fp32 vector in MB (1,000,000 bytes).",
)
@click.option("--codec", default="int8", show_default=True, help="Codec of the way up.")
@click.option("--down", default="", help="Codec of the way down.  [default: what goes with --codec]")
@click.option("--topology", default="direct", show_default=True, help="direct, ring or pair.")
@click.option("--encrypt/--plain", default=True, show_default=True, help="CURVE, or nothing; --plain on loopback only.")
@click.option("--lab", default="", help="Run in the network lab, for example 'rate=100mbit,rtt=100ms,loss=0.1%'.")
@click.option("--congestion", default="", help="TCP's default on the lab's hosts, such as reno.  [default: as here]")
@click.option("--repeat", default=5, show_default=True, type=click.IntRange(1, 100), help="All-reduces that count.")
@click.option(
    "--settle",
    default=0,
    show_default=True,
    type=click.IntRange(0, 100),
    help="All-reduces of wantrain before all others: over a far link the number of its connections grows at first.",
)
@click.option("--against", default="gloo,raw", show_default=True, help="What else is run in turn: gloo, raw, or none.")
@click.option(
    "--timeout",
    default=120.0,
    show_default=True,
    type=click.FloatRange(1.0, 3600.0),
    help="Longest that one all-reduce may take, in seconds.",
)
@json_option
def allreduce(
    peers: int, size_mb: float, codec: str, down: str, topology: str, encrypt: bool, lab: str, congestion: str,
    repeat: int, settle: int, against: str, timeout: float, as_json: bool,
) -> None:  # fmt: skip
    """Time an all-reduce of one fp32 vector: wantrain, gloo (fp32) and plain TCP sockets moving the same bytes.

    They take turns in one run; the figures are medians. Every result is compared with the mean that was to be
    expected. The raw sockets only move bytes: they are what the wire can do.

    \b
    Examples:
      wantrain bench allreduce --peers 4 --size-mb 64 --codec fp32 --plain
      wantrain bench allreduce --codec int4 --down int8 --lab 'rate=100mbit,rtt=100ms,loss=0.1%' --repeat 3
    """
    from wantrain.bench.allreduce import Options, measure
    from wantrain.bench.tables import allreduce_table

    contestants = tuple(name for name in against.split(",") if name not in ("", "none"))
    options = Options(
        peers=peers, size_mb=size_mb, codec=codec, down=down, topology=topology,
        encrypt=encrypt, lab=lab, congestion=congestion, repeat=repeat, settle=settle, against=contestants,
        timeout_s=timeout,
    )  # fmt: skip
    _show(document := measure(options, _progress), allreduce_table(document), as_json)


@command.command("codecs")
@click.option(
    "--codec", "codecs", multiple=True, help="A codec to measure; may be given more than once.  [default: all]"
)
@click.option(
    "--elements", default=2**22, show_default=True, type=click.IntRange(1, 2**30), help="Length of the vector."
)
@click.option(
    "--seconds", default=0.2, show_default=True, type=click.FloatRange(0.001, 60.0), help="How long each timing lasts."
)
@json_option
def codecs(codecs: Sequence[str], elements: int, seconds: float, as_json: bool) -> None:
    """Print error, bits and speed of each codec beside what is expected of it.

    \b
    Example:
      wantrain bench codecs --codec int8 --codec int4+zstd
    """
    from wantrain.bench.codecs import measure, table
    from wantrain.transport.codec import CODECS

    rows = measure(codecs or tuple(CODECS), elements, seconds)
    _show(rows, table(rows), as_json)


@command.command("outer")
@click.option("--rule", "rules", multiple=True, help="An outer rule; may be given more than once.  [default: all]")
@click.option(
    "--codec", "codecs", multiple=True, default=("fp32", "int8", "int4"), show_default=True, help="A codec; likewise."
)
@click.option(
    "--elements", default=10**6, show_default=True, type=click.IntRange(1, 2**30), help="Values in the fragment."
)
@click.option(
    "--seconds", default=0.5, show_default=True, type=click.FloatRange(0.001, 60.0), help="How long each timing lasts."
)
@json_option
def outer(rules: Sequence[str], codecs: Sequence[str], elements: int, seconds: float, as_json: bool) -> None:
    """Time what a peer computes for each sync of a fragment: the outer step, encoding, decoding.

    \b
    Example:
      wantrain bench outer --rule nesterov --rule adam --codec int8
    """
    from wantrain.bench.outer import measure, table
    from wantrain.optimizers.merge import MERGES

    rows = measure(rules or tuple(MERGES), codecs, elements, seconds)
    _show(rows, table(rows, elements), as_json)


@command.command("trainer")
@click.option("--every", default=20, show_default=True, type=click.IntRange(1, 10**6), help="Inner steps of a round.")
@click.option("--rounds", default=10, show_default=True, type=click.IntRange(1, 10**6), help="Rounds.")
@click.option("--delay", default=0, show_default=True, type=click.IntRange(0), help="Steps made during an exchange.")
@click.option("--device", default="cpu", show_default=True, help="Where the model is: cpu, cuda, cuda:1, …")
@json_option
def trainer(every: int, rounds: int, delay: int, device: str, as_json: bool) -> None:
    """Time what hooks, staging and adoption cost the loop that trains the demo's model, beside that loop alone.

    \b
    Examples:
      wantrain bench trainer --every 20
      wantrain bench trainer --every 20 --delay 5 --device cuda
    """
    from wantrain.bench.trainer import measure, table

    _show(row := measure(every, rounds, _progress, device=device, delay=delay), table(row), as_json)


@command.command("coordinator")
@click.option("--peers", default="8,64,512,4096", show_default=True, help="Numbers of simulated peers.")
@click.option(
    "--syncs", default=3, show_default=True, type=click.IntRange(1, 1000), help="Syncs to take the median of."
)
@json_option
def coordinator(peers: str, syncs: int, as_json: bool) -> None:
    """Time the coordinator's core with simulated peers: messages, bytes and seconds for each sync.

    \b
    Example:
      wantrain bench coordinator --peers 8,64,512
    """
    from wantrain.bench.coordinator import measure, table

    counts = [int(text) if text.strip().isdecimal() and len(text) < 9 else 0 for text in peers.split(",")]
    if 0 in counts:
        raise ConfigError(f"--peers is {peers!r}, allowed are whole numbers above 0", hint="--peers 8,64,512")
    rows = measure(counts, syncs, _progress)
    _show(rows, table(rows), as_json)


def _progress(line: str) -> None:
    click.echo(line, err=True)


def _show(document: Any, table: Any, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(document))
    else:
        console().print(table)
