"""A new run: its run.toml and the owner's run.key, written together."""

import secrets
from collections.abc import Mapping
from pathlib import Path

from wantrain.config import RunSpec, key_path, store_path, template
from wantrain.errors import ConfigError
from wantrain.transport.auth import RunKeys


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
    keys_file = key_path(run_file)
    if store_path(run_file).exists():
        raise ConfigError(
            f"{store_path(run_file)} holds the log of a run", hint="choose another file, or move that one away first"
        )
    for path in (run_file, keys_file):
        if path.exists() and not force:
            raise ConfigError(f"{path} exists already", hint="choose another file, or replace run and keys by --force")
    keys = RunKeys.create()
    text = template(
        name or run_file.stem,
        secrets.token_hex(8),
        keys.owner_public.hex(),
        method=method,
        codec=codec,
        down=down,
        topology=topology,
        bind=bind,
        advertise=advertise,
    )
    try:
        keys.save(keys_file)
        run_file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{run_file} cannot be written: {error}", hint="choose a directory that exists") from None
    return RunSpec.load(run_file)


def create_local_run(
    run_file: Path, *, name: str, method: str, codec: str, options: Mapping[str, bool | int | float | str]
) -> RunSpec:
    """Like `create_run`, on a free port of the loopback, with options of the method.

    Raises:
        ConfigError: as there, or an option that the method refuses.
    """
    spec = create_run(run_file, name=name, method=method, codec=codec, bind="127.0.0.1:0")
    section = spec.method.model_copy(update={"options": {**spec.method.options, **options}})
    text = spec.model_copy(update={"method": section}).to_toml()
    spec = RunSpec.parse(text, run_file.name)
    run_file.write_text(text, encoding="utf-8")
    return spec
