"""`wantrain init`: a new run's run.toml and run.key."""

import json
from pathlib import Path

import click

from wantrain.cli.options import json_option, run_file_argument


@click.command("init")
@run_file_argument
@click.option("--name", help="Name of the run, for people.  [default: the file's name]")
@click.option("--method", default="diloco", show_default=True, help="How peers train together; see the README.")
@click.option(
    "--codec",
    default="",
    help="Values on the wire: fp32, bf16, int8, int4, rms0.35+zstd, …; auto: by what each link can hide.  "
    "[default: the method's own]",
)
@click.option("--down", default="", help="Codec of what comes back.  [default: the same, int8 for less than 8 bits]")
@click.option("--topology", default="auto", show_default=True, help="Way of the bytes: auto, direct, ring.")
@click.option("--advertise", default="", metavar="HOST:PORT", help="Address that invites name.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    help="Port to listen on.  [default: the one that --advertise names, else 7700]",
)
@click.option("--force", is_flag=True, help="Replace a run.toml and its keys; peers of the old run are refused then.")
@json_option
def command(
    run_file: Path,
    name: str | None,
    method: str,
    codec: str,
    down: str,
    topology: str,
    advertise: str,
    port: int | None,
    force: bool,
    as_json: bool,
) -> None:
    """Make a new run: RUN.TOML to edit, and the owner's secrets beside it.

    \b
    Example:
      wantrain init run.toml --name english --advertise train.example.org:7700
      wantrain init run.toml --codec auto
    """
    from wantrain.addresses import split_address
    from wantrain.config import key_path
    from wantrain.new_run import create_run

    if port is None:
        port = split_address(advertise)[1] if advertise else 7700
    spec = create_run(
        run_file,
        name=name,
        method=method,
        codec=codec,
        down=down,
        topology=topology,
        bind=f"0.0.0.0:{port}",
        advertise=advertise,
        force=force,
    )
    if as_json:
        click.echo(json.dumps({"run": spec.about.id, "file": str(run_file), "key": str(key_path(run_file))}))
        return
    click.echo(f"wrote {run_file} (every option with its default) and {key_path(run_file)} (secret: keep it)")
    click.echo(f"next: wantrain coordinator {run_file}")
