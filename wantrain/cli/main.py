"""The group `wantrain`: finds the commands, and turns every error into words, the next step and an exit code."""

import errno
import json
import os
import sys
from importlib import import_module, metadata
from itertools import takewhile
from typing import Any, NoReturn

import click

from wantrain.cli.options import JSON
from wantrain.cli.terminal import printable
from wantrain.errors import ConfigError, WantrainError

COMMANDS = ("init", "coordinator", "invite", "peer", "plan", "doctor", "status", "checkpoint", "bench", "local", "demo")
"""One module of this package each, imported when asked for. They import torch and sockets only when they run."""

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""


class Commands(click.Group):
    """Loads a command's module when it is used; reports errors of all of them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        command: click.Command = import_module(f"wantrain.cli.{name}").command
        return command

    def invoke(self, ctx: click.Context) -> Any:
        if sys.stdout is None:  # was closed by whoever has started this process
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115
        as_json = "--json" in takewhile(lambda word: word != "--", list(ctx.args))
        try:
            return super().invoke(ctx)
        except WantrainError as error:
            _report(ctx, error)
        except click.UsageError as error:
            if not as_json:
                raise
            where = error.ctx.command_path if error.ctx is not None else "wantrain"
            ctx.meta[JSON] = True
            _report(ctx, ConfigError(error.format_message(), hint=f"see {where} --help"))
        except OSError as error:
            if error.filename is None and error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise  # of a closed pipe, for example, of which click makes a quiet end
            where = "" if error.filename is None else f"{os.fsdecode(error.filename)}: "
            hint = "see that it is there, that you may use it and that there is room"
            _report(ctx, ConfigError(f"{where}{error.strerror}", hint=hint))
        except KeyboardInterrupt:
            ctx.exit(INTERRUPTED)


def _report(ctx: click.Context, error: WantrainError) -> NoReturn:
    if ctx.meta.get(JSON):
        kind, code = type(error).__name__, error.exit_code
        click.echo(json.dumps({"error": error.message, "hint": error.hint, "code": code, "kind": kind}))
    else:
        click.echo(f"error: {printable(error.message)}", err=True)
        if error.hint:
            click.echo(f"next: {printable(error.hint)}", err=True)
    ctx.exit(error.exit_code)


def _version(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        try:
            click.echo(f"wantrain {metadata.version('wantrain')}")
        except metadata.PackageNotFoundError:
            raise click.ClickException("this is a bare checkout without a version; install it first") from None
        ctx.exit()


@click.command(cls=Commands)
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_version, help="Print the version."
)
def main() -> None:
    """Train one model from many places over ordinary internet links.

    \b
    One machine starts a run:        wantrain init run.toml
                                     wantrain coordinator run.toml
    Every machine takes part:        wantrain peer 'INVITE' -- python train.py
    What it will need:               wantrain plan --params 125m --peers 4
    What it will meet there:         wantrain doctor 'INVITE'
    Anybody with run.toml looks on:  wantrain status run.toml
    All of it on this machine:       wantrain local train.py --peers 4
    With a model of its own:         wantrain demo
    """
