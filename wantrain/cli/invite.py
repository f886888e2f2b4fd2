"""`wantrain invite`: one more invite to a run."""

import json
from pathlib import Path

import click

from wantrain.cli.options import Duration, json_option, run_file_argument


@click.command("invite")
@run_file_argument
@click.option("--uses", default=1, show_default=True, type=click.IntRange(1, 4096), help="Peers that may use it.")
@click.option("--expires", default="24h", show_default=True, type=Duration(), help="How long it is valid.")
@click.option("--address", metavar="HOST:PORT", help="Address of the coordinator.  [default: as in RUN.TOML]")
@json_option
def command(run_file: Path, uses: int, expires: float, address: str | None, as_json: bool) -> None:
    """Print a new invite to the run. The coordinator may be running or not.

    \b
    Example:
      wantrain invite run.toml --uses 4 --expires 7d
    """
    from wantrain.addresses import advertised_address, split_address
    from wantrain.config import store_path
    from wantrain.peers.coordinator_daemon import issue_invite, owned_run
    from wantrain.peers.store import Store

    spec, keys = owned_run(run_file)
    where = advertised_address(spec.coordinator.bind, address or spec.coordinator.advertise)
    with Store(store_path(run_file)) as store:
        invite = issue_invite(store, keys, spec.run, *split_address(where), uses=uses, expires_s=expires)
    result = {"invite": str(invite), "address": where, "uses": uses, "expires_unix": invite.expires_unix}
    click.echo(json.dumps(result) if as_json else str(invite))
