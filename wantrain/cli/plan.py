"""`wantrain plan`: what a run will need of links, memory and disk, before there is one."""

import json
import re
from typing import Any

import click

from wantrain.cli.local import method_option
from wantrain.cli.options import Duration, Rate, json_option
from wantrain.cli.terminal import console
from wantrain.errors import ConfigError

_UNITS = {"": 1.0, "k": 1e3, "m": 1e6, "b": 1e9, "t": 1e12}


class Count(click.ParamType):  # type: ignore[type-arg]  # generic only in newer versions of click
    """A number of values, written "125m", "1.5b" or "125000000"."""

    name = "count"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        found = re.fullmatch(r"([0-9]{1,15}(?:\.[0-9]{1,9})?)([kmbt]?)", str(value).lower())
        count = float(found[1]) * _UNITS[found[2]] if found else 0.0
        if not 1000 <= count <= 1e13:
            where = f"{param.opts[0]} is " if param else ""
            raise ConfigError(
                f"{where}{value!r}, allowed is a number from 1k to 10t",
                hint='write it like "125m", "1.5b" or 125000000',
            )
        return round(count)


@click.command("plan")
@click.option("--params", required=True, type=Count(), help='Trainable values of the model, such as "125m" or "7b".')
@click.option("--peers", default=4, show_default=True, type=click.IntRange(1, 256), help="How many peers.")
@click.option("--method", default="diloco", show_default=True, help="How peers train together; see the README.")
@click.option("--option", "given", multiple=True, metavar="NAME=VALUE", help="Option of the method; may be repeated.")
@click.option("--codec", default="", help="Codec of contributions.  [default: the method's own]")
@click.option("--down", default="", help="Codec of what comes back.  [default: the same, int8 for less than 8 bits]")
@click.option("--topology", default="auto", show_default=True, help="Way of the bytes: auto, direct, ring.")
@click.option("--link", default="100mbit", show_default=True, type=Rate(), help="Each peer's line, up and down.")
@click.option("--rtt", default="100ms", show_default=True, type=Duration(), help="Round trip between any two.")
@click.option(
    "--tokens-per-s", default=20000.0, show_default=True, type=click.FloatRange(1e-3, 1e12), help="Of one peer, alone."
)
@click.option("--step-tokens", default="65536", show_default=True, type=Count(), help="Of one inner step of one peer.")
@json_option
def command(
    params: int, peers: int, method: str, given: tuple[str, ...], codec: str, down: str, topology: str,
    link: float, rtt: float, tokens_per_s: float, step_tokens: int, as_json: bool,
) -> None:  # fmt: skip
    """Say what each peer of a run will send, wait, and need of memory and disk, by the formulas that the run uses.

    Times are those of the cost model by which syncs are planned: good to a factor. Encoding and the spread of the
    peers' speeds are not in them.

    \b
    Example:
      wantrain plan --params 125m --peers 4 --codec int4 --link 100mbit --rtt 100ms --tokens-per-s 20000
      wantrain plan --params 7b --peers 8 --method streaming-diloco --option every=100 --link 1gbit
    """
    from wantrain.plan import Wanted, plan
    from wantrain.plan_text import words

    options = dict(map(method_option, given))
    wanted = Wanted(
        params, peers, method, link, rtt, tokens_per_s, step_tokens, codec, down, topology, options
    )  # fmt: skip
    found = plan(wanted)
    if as_json:
        click.echo(json.dumps(found.document()))
    else:
        width = max(len(name) for name, _ in words(found))
        for name, text in words(found):
            console().print(f"{name:<{width}}  {text}", soft_wrap=True, markup=False, highlight=False)
