"""`wantrain demo`: a whole run on this machine, with a peer that is killed and one that joins."""

from pathlib import Path

import click

from wantrain.cli.options import json_option


@click.command("demo")
@click.option("--peers", default=4, show_default=True, type=click.IntRange(1, 16), help="Peers at the start.")
@click.option("--rounds", type=click.IntRange(1), help="Rounds to train.  [default: the demo's choice]")
@click.option("--method", default="diloco", show_default=True, help="How peers train together; see the README.")
@click.option("--codec", default="", help="Values on the wire: fp32, bf16, int8, int4, …  [default: the method's own]")
@click.option("--no-churn", is_flag=True, help="Kill no peer and let none join.")
@click.option("--seed", default=0, show_default=True, type=int, help="Seed of the model and the data.")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Directory for logs and the report.")
@json_option
@click.pass_context
def command(
    ctx: click.Context,
    peers: int,
    rounds: int | None,
    method: str,
    codec: str,
    no_churn: bool,
    seed: int,
    out: Path | None,
    as_json: bool,
) -> None:
    """Train a small language model with several peers on this machine, kill one, let one join, and report.

    \b
    Example:
      wantrain demo --peers 4 --codec int8 --out runs/first
    """
    from wantrain.demo.run import DemoOptions, run_demo

    options = DemoOptions(
        peers=peers,
        rounds=rounds,
        method=method,
        codec=codec,
        churn=not no_churn,
        seed=seed,
        out=out,
        json=as_json,
    )
    ctx.exit(run_demo(options))
