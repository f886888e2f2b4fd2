"""`wantrain doctor`: checks, before anything is downloaded, what a peer started here would meet."""

import json
from dataclasses import asdict
from pathlib import Path

import click
from rich.text import Text

from wantrain.cli.options import json_option, listening_options
from wantrain.cli.terminal import console, printable

STYLES = {"ok": "green", "warn": "yellow", "fail": "red"}


@click.command("doctor")
@click.argument("invite")
@listening_options
@click.option(
    "--home", type=click.Path(path_type=Path, file_okay=False), help="Where the peer would keep its identity."
)
@click.option("--size-mb", type=click.FloatRange(0, 10**7), default=0.0, help="Model in fp32.  [default: the run's]")
@click.option("--device", default="cpu", show_default=True, help="As for `wantrain peer`: cpu, cuda, cuda:1, …")
@json_option
@click.pass_context
def command(
    ctx: click.Context,
    invite: str,
    bind: str | None,
    advertise: str | None,
    interface: str | None,
    outbound_only: bool,
    home: Path | None,
    size_mb: float,
    device: str,
    as_json: bool,
) -> None:
    """Check whether a peer started here could take part in the run that INVITE names, and how it reaches the others.

    The invite is not used up and nobody waits for it. Exit code 0: a peer will take part, though there may be
    warnings; 1: something fails.

    \b
    Example:
      wantrain doctor 'wantrain://…' && wantrain peer 'wantrain://…' -- python train.py
      wantrain doctor 'wantrain://…' --outbound-only --size-mb 2400
    """
    from wantrain.interfaces import peer_bind
    from wantrain.peers.doctor import Doctor

    where = peer_bind(bind, interface, advertise, outbound_only=outbound_only)
    doctor = Doctor(invite, where, advertise, home, round(size_mb * 1e6), device)
    for number, finding in enumerate(doctor.run(), start=1):
        if not as_json:
            line = Text.assemble(f"{number:2} ", (f"{finding.level:<4}", STYLES[finding.level]), f" {finding.check}: ")
            console().print(line + Text(printable(finding.text)), soft_wrap=True)
            if finding.next:
                console().print(Text(f"        next: {printable(finding.next)}"), soft_wrap=True)
    failed = any(finding.level == "fail" for finding in doctor.findings)
    if as_json:
        lines = [{"number": k, **asdict(finding)} for k, finding in enumerate(doctor.findings, start=1)]
        click.echo(json.dumps({"findings": lines, "code": int(failed)}))
    ctx.exit(int(failed))
