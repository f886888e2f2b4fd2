"""A new run: its run.toml and the owner's run.key, written together."""

import secrets
from collections.abc import Mapping
from pathlib import Path

from wantrain.config import RunSpec, key_path, store_path, template
from wantrain.errors import ConfigError
from wantrain.transport.auth import RunKeys

BESIDE = (".key", ".db", ".lock", ".address")
"""Endings of what lies beside a run.toml."""


def create_run(
    run_file: Path,
    *,
    name: str | None = None,
    method: str = "diloco",
    codec: str = "",
    down: str = "",
    topology: str = "auto",
    bind: str = "0.0.0.0:7700",
    advertise: str = "",
    force: bool = False,
) -> RunSpec:
    """Write `run_file` with a fresh run id, and the run's secrets beside it (mode 0600).

    Args:
        name: the run's name; None takes the file's, without its ending.
        force: replace an existing run.toml and its keys. A run.db is never replaced: it is the log of a run.

    Raises:
        ConfigError: a file is there already, cannot be written, or a value is not allowed.
    """
    _refuse_another_run(run_file, force=force)
    keys, text = _draft(
        name or run_file.stem,
        method=method,
        codec=codec,
        down=down,
        topology=topology,
        bind=bind,
        advertise=advertise,
    )
    _write(run_file, keys, text)
    return RunSpec.load(run_file)


def create_local_run(
    run_file: Path, *, name: str, method: str, codec: str, options: Mapping[str, bool | int | float | str]
) -> RunSpec:
    """Write run.toml and run.key of a run on a free port of the loopback, in a directory that is made if need be.

    Raises:
        ConfigError: a value that is not allowed, or an option that the method refuses: nothing is made then; or the
            directory holds a run, or cannot be written.
    """
    if run_file.exists():
        raise ConfigError(f"{run_file.parent} already holds a run", hint="name another folder with --out")
    _refuse_another_run(run_file, force=False)
    keys, text = _draft(name, method=method, codec=codec, bind="127.0.0.1:0")
    spec = RunSpec.parse(text, run_file.name)
    section = spec.method.model_copy(update={"options": {**spec.method.options, **options}})
    text = spec.model_copy(update={"method": section}).to_toml()
    spec = RunSpec.parse(text, run_file.name)
    try:
        run_file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{run_file.parent} cannot be made: {error}", hint="choose another directory") from None
    _write(run_file, keys, text)
    return spec


def _refuse_another_run(run_file: Path, *, force: bool) -> None:
    """Refuse to write over another run's files.

    Raises:
        ConfigError: its log is there, or, without `force`, its run.toml or its keys; or the name is that of one of the
            files beside a run.toml.
    """
    if run_file.suffix in BESIDE:
        raise ConfigError(
            f"{run_file} would be one of the files beside a run file", hint=f"name it {run_file.with_suffix('.toml')}"
        )
    if store_path(run_file).exists():
        raise ConfigError(
            f"{store_path(run_file)} holds the log of a run", hint="choose another file, or move that one away first"
        )
    for path in (run_file, key_path(run_file)):
        if path.exists() and not force:
            raise ConfigError(f"{path} exists already", hint="choose another file, or replace run and keys by --force")


def _draft(name: str, **values: str) -> tuple[RunKeys, str]:
    """New keys, and the run.toml of a run that they own; `values` are those of `template`."""
    keys = RunKeys.create()
    return keys, template(name, secrets.token_hex(8), keys.owner_public.hex(), **values)


def _write(run_file: Path, keys: RunKeys, text: str) -> None:
    """Make both files.

    Raises:
        ConfigError: one cannot be written.
    """
    mark = secrets.token_hex(4)
    draft = run_file.with_name(f".{run_file.name}.{mark}")
    key_draft = run_file.with_name(f".{key_path(run_file).name}.{mark}")
    try:
        for path in (run_file, key_path(run_file)):
            if path.is_dir():
                raise IsADirectoryError(f"{path} is a directory")
        draft.write_text(text, encoding="utf-8")
        keys.save(key_draft)
        draft.replace(run_file)
        key_draft.replace(key_path(run_file))
    except (OSError, ConfigError) as error:
        for left in (draft, key_draft):
            left.unlink(missing_ok=True)
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{run_file} cannot be written: {error}", hint="choose a directory that exists") from None
