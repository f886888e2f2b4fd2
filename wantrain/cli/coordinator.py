"""`wantrain coordinator`: admits peers and records what is committed."""

from pathlib import Path

import click

from wantrain.cli.options import (
    Duration,
    events_option,
    interface_option,
    json_option,
    metrics_option,
    run_file_argument,
)


@click.command("coordinator")
@run_file_argument
@click.option("--bind", metavar="HOST:PORT", help="Address to listen on.  [default: as in RUN.TOML]")
@click.option("--advertise", metavar="HOST:PORT", help="Address that invites name.  [default: as in RUN.TOML]")
@interface_option
@click.option("--uses", default=16, show_default=True, type=click.IntRange(1, 4096), help="Uses of the first invite.")
@click.option("--expires", default="24h", show_default=True, type=Duration(), help="Validity of the first invite.")
@metrics_option
@events_option
@json_option
def command(
    run_file: Path,
    bind: str | None,
    advertise: str | None,
    interface: str | None,
    uses: int,
    expires: float,
    metrics: str,
    events: Path | None,
    as_json: bool,
) -> None:
    """Run the coordinator until Ctrl-C; it prints an invite. It may be stopped and started again at any time.

    \b
    Example:
      wantrain coordinator run.toml --advertise train.example.org:7700
      wantrain coordinator run.toml --interface eth1
      wantrain coordinator run.toml --metrics 127.0.0.1:9463
    """
    from wantrain.cli.events import EventPrinter
    from wantrain.peers.coordinator_daemon import serve

    with EventPrinter(as_json=as_json, file=events) as on_event:
        serve(
            run_file,
            bind=bind,
            advertise=advertise,
            interface=interface,
            uses=uses,
            expires_s=expires,
            metrics=metrics,
            on_event=on_event,
        )
