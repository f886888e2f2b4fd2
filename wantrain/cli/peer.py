"""`wantrain peer`: takes part in a run with a training command."""

from pathlib import Path

import click

from wantrain.cli.options import Duration, Rate, events_option, json_option, listening_options, metrics_option
from wantrain.errors import ConfigError

FOLDER = click.Path(path_type=Path, file_okay=False)


@click.command("peer")
@click.argument("invite")
@click.argument("training_command", metavar="[-- COMMAND...]", nargs=-1, type=click.UNPROCESSED)
@click.option("--name", help="Name of this peer, for people.")
@click.option("--home", type=click.Path(path_type=Path, file_okay=False), help="Where this peer keeps its identity.")
@listening_options
@click.option(
    "--max-restarts", default=3, show_default=True, type=click.IntRange(0), help="Restarts of a command that fails."
)
@click.option(
    "--give-up", default="300s", show_default=True, type=Duration(), help="How long to try to reach the run at first."
)
@click.option("--max-upload", type=Rate(), metavar="RATE", help='Limit of all that this peer sends, such as "50mbit".')
@click.option("--max-upload-per-peer", type=Rate(), metavar="RATE", help="Limit of what it sends to any one peer.")
@click.option("--checkpoints", type=FOLDER, help="Where this peer saves the run's state.  [default: in its home]")
@click.option("--resume", type=FOLDER, help="Begin with this saved state of the run instead of one at home.")
@click.option("--initial", type=FOLDER, help="Let a new run begin with this saved state of another one.")
@click.option("--device", default="cpu", show_default=True, help="Where chunks are encoded: cpu, cuda, cuda:1, …")
@click.option(
    "--track", multiple=True, metavar="NAME[:TEXT]", help="Also write its numbers to tensorboard, wandb or trackio."
)
@metrics_option
@click.option(
    "--until-exit",
    "owner",
    type=click.IntRange(2),
    metavar="PID",
    help="Without COMMAND: leave when that process ends.",
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
    bind: str | None,
    advertise: str | None,
    interface: str | None,
    outbound_only: bool,
    max_restarts: int,
    give_up: float,
    max_upload: float | None,
    max_upload_per_peer: float | None,
    checkpoints: Path | None,
    resume: Path | None,
    initial: Path | None,
    device: str,
    track: tuple[str, ...],
    metrics: str,
    owner: int | None,
    events: Path | None,
    as_json: bool,
) -> None:
    """Join the run that INVITE names and run COMMAND, restarted if it fails. Ctrl-C leaves cleanly.

    Without COMMAND the peer waits for scripts that are started by hand, or for the cells of a notebook, one at a time:
    it prints the line `export WANTRAIN_DAEMON=…` that they need.

    \b
    Example:
      wantrain peer 'wantrain://…' --name berlin -- python train.py --batch 8
      wantrain peer 'wantrain://…' --max-upload 50mbit -- python train.py
      wantrain peer 'wantrain://…'
      wantrain peer 'wantrain://…' --outbound-only -- python train.py
      wantrain peer 'wantrain://…' --device cuda:0 -- python train.py
      wantrain peer 'wantrain://…' --bind 0.0.0.0:7701 --advertise home.example.org:7701 -- python train.py
      wantrain peer 'wantrain://…' --initial old-run/000001200 -- python train.py
      wantrain peer 'wantrain://…' --track tensorboard:logs --track wandb:my-project -- python train.py
      wantrain peer 'wantrain://…' --metrics 9464 -- python train.py
    """
    from wantrain.cli.events import EventPrinter
    from wantrain.interfaces import peer_bind
    from wantrain.metrics.endpoint import metrics_address
    from wantrain.peers.messages import MAX_NAME
    from wantrain.tracking.trackers import check
    from wantrain.transport.auth import Invite

    if owner is not None and training_command:
        raise ConfigError("--until-exit is for a peer without a training command", hint="leave one of the two out")
    if name is not None and (len(name) > MAX_NAME or not name.isprintable()):
        raise ConfigError(
            f"--name is {name[:40]!r}, of {len(name)} characters, allowed are up to {MAX_NAME} printable ones",
            hint="give a shorter or plainer one, or leave it out: then it is the host's",
        )
    where = peer_bind(bind, interface, advertise, outbound_only=outbound_only)
    check(track)
    if metrics:
        metrics_address(metrics)
    Invite.parse(invite)  # a typing error is told of before PyTorch is loaded, which takes a while
    from wantrain.peers.daemon import serve
    from wantrain.peers.monitor import Watch
    from wantrain.peers.own_states import Wishes

    with EventPrinter(as_json=as_json, file=events) as on_event:
        code = serve(
            invite,
            training_command,
            name=name,
            home=home,
            bind=where,
            advertise=advertise,
            max_restarts=max_restarts,
            give_up_s=give_up,
            max_upload_bytes_per_s=max_upload,
            max_upload_per_peer_bytes_per_s=max_upload_per_peer,
            wishes=Wishes(checkpoints, resume, initial),
            device=device,
            watch=Watch(track, metrics),
            owner=owner,
            on_event=on_event,
        )
    ctx.exit(code)
