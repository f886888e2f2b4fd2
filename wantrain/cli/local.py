"""`wantrain local`: a whole run on this machine with the user's own training script."""

from pathlib import Path

import click

from wantrain.cli.options import json_option
from wantrain.errors import ConfigError


@click.command("local")
@click.argument("script", type=click.Path(path_type=Path))
@click.argument("arguments", metavar="[-- ARGUMENTS...]", nargs=-1, type=click.UNPROCESSED)
@click.option("--peers", default=4, show_default=True, type=click.IntRange(1, 64), help="How many peers.")
@click.option("--method", default="diloco", show_default=True, help="How peers train together; see [method].")
@click.option("--option", "given", multiple=True, metavar="NAME=VALUE", help="Option of the method; may be repeated.")
@click.option("--codec", default="", help="Values on the wire: fp32, bf16, int8, int4, …  [default: the method's own]")
@click.option("--max-restarts", default=0, show_default=True, type=click.IntRange(0), help="Of a script that fails.")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Directory for run.toml and all logs.")
@json_option
@click.pass_context
def command(
    ctx: click.Context,
    script: Path,
    arguments: tuple[str, ...],
    peers: int,
    method: str,
    given: tuple[str, ...],
    codec: str,
    max_restarts: int,
    out: Path | None,
    as_json: bool,
) -> None:
    """Train SCRIPT with several peers on this machine, each with a daemon of its own, as on as many machines.

    Options come before --, the script's own arguments after it, in which {i} stands for the peer's number. The run is
    over when all scripts have ended. Ctrl-C leaves cleanly.

    \b
    Example:
      wantrain local train.py --peers 8 --method diloco --option every=50 -- --lr 3e-4 --shard {i}
    """
    from wantrain.local_run import LocalOptions, run_local

    options = LocalOptions(
        script, arguments, peers, method, dict(map(method_option, given)), codec, max_restarts, out, as_json
    )  # fmt: skip
    ctx.exit(run_local(options))


def method_option(text: str) -> tuple[str, bool | int | float | str]:
    """An option of a method as run.toml would have it: true, 50, 0.7, or else a string."""
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise ConfigError(f"--option is {text!r}, allowed is NAME=VALUE", hint="for example --option every=50")
    if value in ("true", "false"):
        return name, value == "true"
    for kind in (int, float):
        try:
            return name, kind(value)
        except ValueError:
            continue
    return name, value
