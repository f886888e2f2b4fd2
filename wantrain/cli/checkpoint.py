"""`wantrain checkpoint`: lists, verifies and exports saved states of a run, and has one made now."""

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.table import Table
from rich.text import Text

from wantrain.cli.options import Duration, json_option, run_file_argument
from wantrain.cli.terminal import console, printable
from wantrain.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from wantrain.peers.checkpoint import Entry, Unusable

ASK_EVERY_S = 0.5
DAMAGED = CheckpointError.exit_code
_DIRECTORY = click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))


@click.group("checkpoint")
def command() -> None:
    """Saved states of a run. Peers keep them in their homes, under checkpoints/, or where --checkpoints says.

    \b
    Example:
      wantrain checkpoint save run.toml
      wantrain checkpoint ls ~/.local/state/wantrain/8f…/peer-1/checkpoints
    """


@command.command("ls")
@_DIRECTORY
@json_option
def ls(directory: Path, as_json: bool) -> None:
    """List the saved states in DIR, and what is unfinished or damaged there. Looks at manifests and sizes only.

    \b
    Example:
      wantrain checkpoint ls berlin/checkpoints
    """
    from wantrain.peers.checkpoint import entries

    found = [_row(entry) for entry in entries(directory)]
    if as_json:
        click.echo(json.dumps(found))
    else:
        _show(directory, found)


@command.command("verify")
@_DIRECTORY
@json_option
@click.pass_context
def verify(ctx: click.Context, directory: Path, as_json: bool) -> None:
    """Read all of the saved states in DIR and check every bit. Exit code 8 if one is damaged, or none is whole.

    What was never finished is named and does no harm: it is not loaded.

    \b
    Example:
      wantrain checkpoint verify berlin/checkpoints
    """
    from wantrain.peers.checkpoint import Entry, entries, scan

    found = []
    for entry in entries(directory):
        row = _row(entry)
        if isinstance(entry, Entry):
            try:
                scan(entry.path, entry.saved)
            except CheckpointError as error:
                row |= {"state": "damaged", "reason": error.message}
            else:
                row["state"] = "verified"
        found.append(row)
    if as_json:
        click.echo(json.dumps(found))
    else:
        _show(directory, found)
    states = [row["state"] for row in found]
    ctx.exit(DAMAGED if "damaged" in states or "verified" not in states else 0)


@command.command("export")
@_DIRECTORY
@click.argument("out", metavar="OUT", type=click.Path(path_type=Path))
@click.option("--dtype", type=click.Choice(["float32", "bfloat16", "float16"]), help="For all.  [default: the model's]")
@click.option("--hf", is_flag=True, help="Make OUT a directory that Hugging Face's from_pretrained loads.")
@click.option(
    "--config",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="With --hf: config.json of the model.  [default: what the trainers' model.config was]",
)
@click.option(
    "--shard-gb",
    default=5.0,
    show_default=True,
    type=click.FloatRange(min=0, min_open=True),
    help="With --hf: most GB of a file.",
)
@json_option
def export(
    directory: Path, out: Path, dtype: str | None, hf: bool, config: Path | None, shard_gb: float, as_json: bool
) -> None:
    """Write the model of the newest saved state in DIR, or of the one that DIR is, under the model's own names.

    OUT is a safetensors file, or with --hf a directory with the model's config as well.

    \b
    Example:
      wantrain checkpoint export berlin/checkpoints/000001200 model.safetensors --dtype bfloat16
      wantrain checkpoint export berlin/checkpoints my-model --hf
    """
    from wantrain.peers.checkpoint import newest, scan
    from wantrain.peers.export import export as write
    from wantrain.peers.hf_layout import export_hf

    if config is not None and not hf:
        raise ConfigError("--config is for --hf, which is not there", hint="add --hf, or leave --config out")
    entry = newest(directory)
    if entry is None:
        raise CheckpointError(
            f"no whole saved state is in {directory}", hint=f"see: wantrain checkpoint ls {directory}"
        )
    scan(entry.path, entry.saved)
    done: dict[str, Any] = {"number": entry.saved.number}
    if hf:
        text = None if config is None else _text(config)
        written = export_hf(entry.path, entry.saved, out, dtype, config=text, shard_bytes=int(shard_gb * 1e9))
        done |= {"tensors": written.tensors, "bytes": written.size_bytes, "directory": str(out)}
        done["files"] = list(written.files)
    else:
        tensors = write(entry.path, entry.saved, out, dtype)
        done |= {"tensors": tensors, "bytes": out.stat().st_size, "file": str(out)}
    if as_json:
        click.echo(json.dumps(done))
    else:
        click.echo(f"{out}: {done['tensors']} tensors of log number {done['number']}, {done['bytes']:,} bytes")


@command.command("save")
@run_file_argument
@click.option("--timeout", default="10m", show_default=True, type=Duration(), help="How long to wait for it.")
@json_option
def save(run_file: Path, timeout: float, as_json: bool) -> None:
    """Have the state of a run saved now, by one of its peers, and wait until it is on that peer's disk.

    With noloco all replicas come to one first, in an exchange of everybody: what is saved is the result of the run.

    \b
    Example:
      wantrain checkpoint save run.toml
    """
    from wantrain.peers.messages import WantSave
    from wantrain.peers.status import query

    deadline = time.monotonic() + timeout
    document: dict[str, Any] = query(run_file, min(timeout, 10.0), WantSave())
    wanted, trouble = document["log"]["head"], ""
    while wanted < 0 or document["saved"]["number"] < wanted:
        trouble = document["saved"]["trouble"] or document["reason"]
        if wanted < 0 or time.monotonic() >= deadline:
            what = f"log number {wanted} is not on disk after {timeout:g} s" if wanted >= 0 else "there is no state yet"
            raise CheckpointError(
                f"{what}" + (f": {trouble}" if trouble else ""), hint=f"see: wantrain status {run_file}"
            )
        time.sleep(ASK_EVERY_S)
        document = query(run_file, 10.0)
    saved = document["saved"]
    if as_json:
        click.echo(json.dumps({"number": saved["number"], "name": saved["name"]}))
    else:
        click.echo(printable(f"{saved['name']} has saved the state at log number {saved['number']}"))


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} cannot be read as text: {error}", hint="name another config.json") from None


def _row(entry: "Entry | Unusable") -> dict[str, Any]:
    from wantrain.peers.checkpoint import Unusable

    if isinstance(entry, Unusable):
        state = "unfinished" if entry.path.name.startswith(".") else "damaged"
        return {"path": str(entry.path), "state": state, "reason": entry.flaw}
    saved = entry.saved
    return {
        "path": str(entry.path),
        "state": "complete",
        "run": saved.run.hex(),
        "number": saved.number,
        "chain": saved.chain.hex(),
        "bytes": sum(file.size_bytes for file in saved.files.values()),
        "saved_unix": saved.saved_unix,
        "version": saved.version,
    }


def _show(directory: Path, rows: list[dict[str, Any]]) -> None:
    if not rows:
        click.echo(f"nothing is in {directory}")
        return
    table = Table()
    for column in ("log", "run", "saved at", "MB", "state", "where"):
        table.add_column(column, overflow="fold", justify="right" if column in ("log", "MB") else "left")
    for row in rows:
        at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(row["saved_unix"])) if "saved_unix" in row else ""
        size = f"{row['bytes'] / 1e6:,.1f}" if "bytes" in row else ""
        state = row["state"] + (f": {row['reason']}" if row.get("reason") else "")
        cells = (row.get("number", ""), row.get("run", ""), at, size, state, row["path"])
        table.add_row(*(Text(printable(cell)) for cell in cells))
    console().print(table)
