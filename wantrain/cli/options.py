"""Options that several commands share: --json, durations, the run file, the events file and metrics."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from wantrain.errors import ConfigError

JSON = "wantrain.json"
"""Key in the click context's shared `meta`: whether the command was asked for JSON."""

LONGEST_S = 10 * 365 * 86400.0
"""Ten years: a longer duration is a mistake in the unit."""

LOWEST_RATE, HIGHEST_RATE = 1e5 / 8, 1e12 / 8
"""Bytes per second: below the one a run cannot get on, beyond the other it is a mistake in the unit."""

_UNITS_BYTES_PER_S = {"k": 125.0, "m": 125e3, "g": 125e6}
_UNITS_S = {"ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


class Duration(click.ParamType):  # type: ignore[type-arg]  # generic only in newer versions of click
    """Seconds, written as "90s", "15m", "24h" or "7d"."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        found = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)(ms|[smhd])", str(value))
        seconds = float(found[1]) * _UNITS_S[found[2]] if found else 0.0
        if not 0 < seconds <= LONGEST_S:
            where = f"{param.opts[0]} is " if param else ""
            raise ConfigError(
                f"{where}{value!r}, allowed is a duration above 0 and of at most 3650d",
                hint='write a number and a unit: "90s", "15m", "24h" or "7d"',
            )
        return seconds


class Rate(click.ParamType):  # type: ignore[type-arg]  # generic only in newer versions of click
    """Bytes per second, written in bits as links are sold: "50mbit", "1.5gbit" or "800kbit"."""

    name = "rate"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        found = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)([kmg])bit", str(value))
        rate = float(found[1]) * _UNITS_BYTES_PER_S[found[2]] if found else 0.0
        if not LOWEST_RATE <= rate <= HIGHEST_RATE:
            where = f"{param.opts[0]} is " if param else ""
            raise ConfigError(
                f"{where}{value!r}, allowed is a rate from 100kbit to 1000gbit",
                hint='write a number and a unit, per second: "800kbit", "50mbit" or "1.5gbit"',
            )
        return rate


def _remember(ctx: click.Context, param: click.Parameter, value: bool) -> bool:
    ctx.meta[JSON] = value
    return value


json_option = click.option(
    "--json", "as_json", is_flag=True, is_eager=True, callback=_remember, help="Print JSON instead of text, errors too."
)
run_file_argument = click.argument(
    "run_file", metavar="RUN.TOML", type=click.Path(path_type=Path, dir_okay=False), default="run.toml"
)
events_option = click.option(
    "--events", type=click.Path(path_type=Path, dir_okay=False), help="Append every event to this file, as JSON lines."
)
metrics_option = click.option(
    "--metrics", default="", metavar="HOST:PORT", help="Serve metrics for Prometheus there; HOST may be left out."
)
_bind = click.option("--bind", metavar="HOST:PORT", help="Address to listen on.  [default: 0.0.0.0:0, any free port]")
_advertise = click.option("--advertise", metavar="HOST:PORT", help="Address where other peers reach this one.")
interface_option = click.option("--interface", metavar="NAME", help="Listen at the address of this network interface.")
_outbound_only = click.option("--outbound-only", is_flag=True, help="Listen nowhere: this peer only dials out.")


def listening_options(command: Callable[..., None]) -> Callable[..., None]:
    """Where a peer listens and what it tells others: bind, advertise, interface and outbound_only."""
    return _bind(_advertise(interface_option(_outbound_only(command))))
