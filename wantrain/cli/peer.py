"""`wantrain peer`: takes part in a run with a training command."""

from pathlib import Path

import click

from wantrain.cli.options import Duration, events_option, json_option


@click.command("peer")
@click.argument("invite")
@click.argument("training_command", metavar="-- COMMAND...", nargs=-1, required=True, type=click.UNPROCESSED)
@click.option("--name", help="Name of this peer, for people.")
@click.option("--home", type=click.Path(path_type=Path, file_okay=False), help="Where this peer keeps its identity.")
@click.option("--bind", default="0.0.0.0:0", show_default=True, metavar="HOST:PORT", help="Address to listen on.")
@click.option("--advertise", metavar="HOST:PORT", help="Address where other peers reach this one.")
@click.option(
    "--max-restarts", default=3, show_default=True, type=click.IntRange(0), help="Restarts of a command that fails."
)
@click.option(
    "--give-up", default="300s", show_default=True, type=Duration(), help="How long to try to reach the run at first."
)
@events_option
@json_option
@click.pass_context
def command(
    ctx: click.Context,
    invite: str,
    training_command: tuple[str, ...],
    name: str | None,
    home: Path | None,
    bind: str,
    advertise: str | None,
    max_restarts: int,
    give_up: float,
    events: Path | None,
    as_json: bool,
) -> None:
    """Join the run that INVITE names and run COMMAND, restarted if it fails. Ctrl-C leaves cleanly.

    \b
    Example:
      wantrain peer 'wantrain://…' --name berlin -- python train.py --batch 8
    """
    from wantrain.cli.events import EventPrinter
    from wantrain.transport.auth import Invite

    Invite.parse(invite)  # a typing error is told of before PyTorch is loaded, which takes a while
    from wantrain.peers.daemon import serve

    with EventPrinter(as_json=as_json, file=events) as on_event:
        code = serve(
            invite,
            training_command,
            name=name,
            home=home,
            bind=bind,
            advertise=advertise,
            max_restarts=max_restarts,
            give_up_s=give_up,
            on_event=on_event,
        )
    ctx.exit(code)
