"""The run spec: what run.toml may say, checked; every error names the option, the value and what is allowed."""

import ast
import hashlib
import inspect
import json
import textwrap
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args, get_origin

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo

from wantrain.addresses import split_address
from wantrain.errors import ConfigError
from wantrain.optimizers.method import METHODS, build, method
from wantrain.optimizers.options import nearest
from wantrain.optimizers.stream import Stream, Wire
from wantrain.transport.codec.names import AUTO, FORMATS, STAGES, down_of, format_of

DAY_S = 86400.0
"""Longest time that an option may name; more is a mistake in the unit."""

Seconds = Annotated[float, Field(gt=0, le=DAY_S)]


class Section(BaseModel):
    """A table of run.toml. Attribute docstrings become the comments of the template."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    @model_validator(mode="after")
    def _floors_below_ceilings(self) -> Self:
        for floor in type(self).model_fields:
            ceiling = floor.replace("_floor_", "_ceiling_")
            if ceiling != floor and getattr(self, floor) > getattr(self, ceiling):
                raise ValueError(
                    f"{floor} is {getattr(self, floor)}, allowed is at most {ceiling} = {getattr(self, ceiling)}"
                )
        return self


class RunSection(Section):
    """Which run this is."""

    name: str
    """Name of the run, for people; default: the file's name without its ending."""
    id: str
    """Identity of the run: 16 hex digits, drawn by `wantrain init`; no default."""
    owner: str
    """Ed25519 public key of the run's owner, who signs invites: 64 hex digits; no default."""

    @field_validator("name")
    @classmethod
    def _printable(cls, name: str) -> str:
        if not 1 <= len(name) <= 128 or not name.isprintable():
            raise ValueError(f"name is {name!r}, allowed are 1 to 128 printable characters")
        return name

    @field_validator("id", "owner")
    @classmethod
    def _hex(cls, text: str, info: ValidationInfo) -> str:
        digits = 16 if info.field_name == "id" else 64
        if len(text) != digits or set(text) - set("0123456789abcdef"):
            raise ValueError(f"{info.field_name} is {text!r}, allowed are {digits} lower-case hex digits")
        return text


class MethodSection(Section):
    """What is exchanged and how it is merged: the method's name; all other keys are options of that method."""

    name: str = "diloco"
    """Method: diloco, streaming-diloco, ddp, …; default "diloco". The keys below are the options of this method."""
    options: dict[str, bool | int | float | str] = {}
    """Options of the method, checked by `wantrain.optimizers.method.build`; default: the method's own."""

    @model_validator(mode="before")
    @classmethod
    def _split(cls, table: object) -> object:
        if not isinstance(table, Mapping):
            return table
        options = {key: value for key, value in table.items() if key != "name"}
        return {"options": options} | ({"name": table["name"]} if "name" in table else {})


class WireSection(Section):
    """How values are written on the wire."""

    codec: str = ""
    """Codec of contributions: fp32, bf16, int8, … (`wantrain bench codecs`), or auto; default "": the method's own."""
    down: str = ""
    """Codec of what comes back; default "": the same, or int8 where the contributions' has fewer than 8 bits."""
    topology: Literal["auto", "direct", "ring"] = "auto"
    """Way of the bytes: direct, ring, or auto to choose for each sync from what was measured; default "auto"."""

    @field_validator("codec", "down")
    @classmethod
    def _known(cls, codec: str, info: ValidationInfo) -> str:
        if codec == AUTO and info.field_name == "codec":
            return codec
        if codec:
            try:
                format_of(codec)
            except ConfigError as error:
                auto = f"{AUTO}, or " if info.field_name == "codec" else ""
                allowed = f"{auto}{', '.join(FORMATS)}, alone or with +{' or +'.join(STAGES)}"
                raise ValueError(f"{info.field_name} is {codec!r}, allowed is {allowed}") from error
        return codec

    @model_validator(mode="after")
    def _fit(self) -> Self:
        if self.down and format_of(self.down).error_feedback:
            raise ValueError(
                f"down is {self.down!r}, allowed is a codec without error feedback: nobody keeps what a mean loses"
            )
        return self

    def wire(self, default: str) -> Wire:
        """The same for a method whose own codec is `default`, with the way down filled in.

        Raises:
            ConfigError: a codec that cannot go around a ring.
        """
        codec = self.codec or default
        if self.topology == "ring" and codec == AUTO:
            raise ConfigError(
                "[wire] topology is 'ring' with codec 'auto', allowed are 'direct' and 'auto': it may choose fewer "
                "than 8 bits, and every hop of a ring encodes anew",
                hint='set codec = "int8" in [wire], or topology = "auto"',
            )
        if self.topology == "ring" and not (up := format_of(codec)).per_hop:
            raise ConfigError(
                f"[wire] topology is 'ring' with codec {codec!r}, allowed are codecs of 8 bits and more "
                f"({up.bits:g} here): every hop of a ring encodes anew",
                hint='set codec = "int8" in [wire], or topology = "auto"',
            )
        return Wire(codec, self.down or down_of(codec), self.topology)


class RobustSection(Section):
    """What contributions that are wrong, or lie, can do; all but the defaults need every contribution in one place."""

    merge: Literal["mean", "trimmed-mean", "median"] = "mean"
    """Average of the contributions: mean, trimmed-mean, or median of each value; default "mean"."""
    trim: Annotated[float, Field(ge=0, lt=0.5)] = 0.2
    """Share that trimmed-mean leaves out at each end, rounded up to whole contributors; 0 to 0.5, default 0.2."""
    clip: Literal["none", "median"] = "none"
    """Limit of a contribution's norm in each chunk: none, or the contributors' median norm; default "none"."""

    def applied(self, stream: Stream) -> Stream:
        """The stream with this average.

        Raises:
            ConfigError: it sums in a ring, or weighs contributions by what their senders claim.
        """
        stream = replace(stream, average=self.merge, trim=self.trim, clip=self.clip)
        if (self.merge, self.clip) == ("mean", "none"):
            return stream
        asked = f'merge = "{self.merge}" with clip = "{self.clip}"'
        if stream.gossip:
            raise ConfigError(
                f"[robust] {asked} and a method that exchanges in pairs: of two nobody can tell which is false",
                hint='set merge = "mean" and clip = "none" in [robust], or use another method',
            )
        if stream.topology == "ring":
            raise ConfigError(
                f'[robust] {asked} and topology = "ring": in a ring nobody sees more than sums of contributions',
                hint='set topology = "direct" or "auto" in [wire]',
            )
        if stream.weight != "equal":
            raise ConfigError(
                f'[robust] {asked} and weight = "{stream.weight}": weights are what peers claim, and a lie counts most',
                hint='set weight = "equal" in [method]',
            )
        return replace(stream, topology="direct")


class CoordinatorSection(Section):
    """Where the coordinator listens."""

    bind: str = "0.0.0.0:7700"
    """Address to listen on, host:port; port 0 takes a free one; default "0.0.0.0:7700"."""
    advertise: str = ""
    """Address that invites name, host:port; default "": this host's primary address and the port of bind."""

    @field_validator("bind", "advertise")
    @classmethod
    def _address(cls, address: str, info: ValidationInfo) -> str:
        if address or info.field_name == "bind":
            try:
                split_address(address, lowest_port=0 if info.field_name == "bind" else 1)
            except ConfigError as error:
                raise ValueError(f"{info.field_name}: {error.message}") from None
        return address


class SyncSection(Section):
    """How long a sync waits, and for whom."""

    quorum: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Share of the training members that must be ready before the grace time counts; 0 to 1, default 0.5."""
    grace_floor_s: Annotated[float, Field(ge=0, le=DAY_S)] = 2.0
    """Shortest grace time for late peers once there is a quorum, in seconds; default 2.0."""
    grace_ceiling_s: Annotated[float, Field(ge=0, le=DAY_S)] = 30.0
    """Longest grace time for late peers once there is a quorum, in seconds; default 30.0."""
    deadline_floor_s: Seconds = 10.0
    """Shortest time that an attempt may take to move its bytes, in seconds; default 10.0."""
    deadline_ceiling_s: Seconds = 600.0
    """Longest time that an attempt may take to move its bytes, in seconds; default 600.0."""
    wait_ceiling_s: Seconds = 120.0
    """A trainer that waited this long for a sync trains on alone until it comes, in seconds; default 120.0."""


class LivenessSection(Section):
    """When a silent peer counts as lost."""

    heartbeat_s: Seconds = 1.0
    """Time between two reports of a peer, in seconds; default 1.0."""
    suspect_floor_s: Seconds = 5.0
    """Shortest silence after which a peer is suspected, in seconds, above heartbeat_s; default 5.0."""
    suspect_ceiling_s: Seconds = 30.0
    """Longest silence that a peer may keep, in seconds; default 30.0."""

    @model_validator(mode="after")
    def _silence_longer_than_a_heartbeat(self) -> Self:
        if self.suspect_floor_s <= self.heartbeat_s:
            raise ValueError(
                f"suspect_floor_s is {self.suspect_floor_s}, allowed is more than heartbeat_s = {self.heartbeat_s}"
            )
        return self


class LogSection(Section):
    """What each peer keeps of the update log, for peers that catch up."""

    keep_mb: Annotated[int, Field(ge=1, le=1 << 20)] = 512
    """Budget of the update log, in MB per peer; default 512."""
    keep_updates: Annotated[int, Field(ge=1, le=1 << 20)] = 256
    """Most updates kept per peer, in entries; default 256."""


class CheckpointSection(Section):
    """When the state of the run is saved to the disk of one of the peers, in turns."""

    every: Annotated[int, Field(ge=0, le=10**9)] = 100
    """Commits from one saved state to the next; 0: only on demand, by `wantrain checkpoint save`; default 100."""
    keep: Annotated[int, Field(ge=1, le=10**6)] = 2
    """Saved states that each peer keeps; default 2."""


class RunSpec(Section):
    """A checked run.toml. The table [run] is the attribute `about`; `run` is the run's id, 8 bytes."""

    about: RunSection = Field(alias="run")
    method: MethodSection = MethodSection()
    wire: WireSection = WireSection()
    robust: RobustSection = RobustSection()
    coordinator: CoordinatorSection = CoordinatorSection()
    sync: SyncSection = SyncSection()
    liveness: LivenessSection = LivenessSection()
    log: LogSection = LogSection()
    checkpoint: CheckpointSection = CheckpointSection()

    @classmethod
    def parse(cls, text: str, source: str = "run.toml") -> Self:
        """The spec in `text`; `source` is named in errors, and its stem is the default of the run's name.

        Raises:
            ConfigError: not TOML, unknown section or option, wrong type, out of range, or refused by the method.
        """
        try:
            tables: dict[str, Any] = tomllib.loads(text)
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"{source} is not valid TOML: {error}", hint=f"correct {source} there") from None
        return cls.of(tables, source)

    @classmethod
    def of(cls, tables: dict[str, Any], source: str) -> Self:
        """The spec of these tables, as run.toml has them; for the rest see `parse`."""
        if isinstance(tables.get("run"), dict):
            tables["run"].setdefault("name", Path(source).stem)
        try:
            spec = cls.model_validate(tables)
        except ValidationError as error:
            raise _explain(source, error) from None
        try:
            _ = spec.streams
        except ConfigError as error:
            where = "" if error.message.startswith("[") else "[method] "
            raise ConfigError(f"{source}: {where}{error.message}", hint=error.hint) from None
        return spec

    @classmethod
    def load(cls, path: Path) -> Self:
        """The spec in a file.

        Raises:
            ConfigError: as `parse`, and if the file cannot be read.
        """
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            raise ConfigError(f"{path} not found", hint=f"make a new run with `wantrain init {path}`") from None
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path} cannot be read: {error}", hint="give the path of a run.toml") from None
        return cls.parse(text, str(path))

    @property
    def run(self) -> bytes:
        """The run's id, 8 bytes."""
        return bytes.fromhex(self.about.id)

    @property
    def name(self) -> str:
        """The run's name, for people."""
        return self.about.name

    @property
    def owner(self) -> bytes:
        """The owner's Ed25519 public key, 32 bytes."""
        return bytes.fromhex(self.about.owner)

    @property
    def streams(self) -> tuple[Stream, ...]:
        """The streams of the method, with the average of [robust].

        Raises:
            ConfigError: unknown method or option, wrong type or out of range, or they do not fit [robust].
        """
        return tuple(map(self.robust.applied, build(self.method.name, self.method.options, self.wiring)))

    @property
    def wiring(self) -> Wire:
        """How values are written, with the method's own codec where the spec names none.

        Raises:
            ConfigError: unknown method, or a codec that does not go with the topology.
        """
        return self.wire.wire(method(self.method.name).codec)

    @property
    def digest(self) -> bytes:
        """SHA-256 of what must agree between peers (run, owner, method, codecs), with the method's defaults filled in.

        The streams stand for the method, so that versions whose defaults differ do not take each other for equal.
        """
        agreed = {
            "run": self.about.id,
            "owner": self.about.owner,
            "method": self.method.name,
            "streams": [asdict(stream) for stream in self.streams],
        }
        return hashlib.sha256(json.dumps(agreed, sort_keys=True, separators=(",", ":")).encode()).digest()

    def to_toml(self) -> str:
        """The complete spec in canonical form, without comments and without secrets."""
        return "\n\n".join(
            "\n".join([f"[{section}]"] + [f"{_key(key)} = {_value(value)}" for key, value, _ in options])
            for section, _, options in self._tables()
        ) + "\n"  # fmt: skip

    def _tables(self) -> Iterator[tuple[str, str, list[tuple[str, Any, str]]]]:
        """Each section as (name, what it is, [(option, value, comment)]), in the order of the template."""
        for attribute, field in type(self).model_fields.items():
            section = getattr(self, attribute)
            options = []
            for key, option in type(section).model_fields.items():
                if key == "options":
                    options += [(name, value, "") for name, value in sorted(section.options.items())]
                else:
                    options.append((key, getattr(section, key), option.description or ""))
            yield field.alias or attribute, type(section).__doc__ or "", options


def template(
    name: str,
    run_id: str,
    owner: str,
    *,
    method: str = "diloco",
    codec: str = "",
    down: str = "",
    topology: str = "auto",
    bind: str = "0.0.0.0:7700",
    advertise: str = "",
) -> str:
    """The run.toml that `wantrain init` writes: every option with its default and one line of comment.

    Raises:
        ConfigError: a value that `RunSpec.parse` refuses.
    """
    values = {
        "run": {"name": name, "id": run_id, "owner": owner},
        "method": {"name": method},
        "wire": {"codec": codec, "down": down, "topology": topology},
        "coordinator": {"bind": bind, "advertise": advertise},
    }
    text = "\n".join(
        line
        for section, options in values.items()
        for line in [f"[{section}]", *(f"{key} = {_value(value)}" for key, value in options.items())]
    )
    lines = ["# A run of wantrain. Lines that start with # are comments.", ""]
    for section, what, options in RunSpec.parse(text, "the new run.toml")._tables():
        lines += [f"# {what}", f"[{section}]"]
        for key, value, comment in options + (_method_options(method) if section == "method" else []):
            lines += [f"# {comment}"] * bool(comment) + [f"{_key(key)} = {_value(value)}"]
        lines.append("")
    return "\n".join(lines)


def key_path(run_file: Path) -> Path:
    """Where the owner's secrets of a run lie: beside run.toml, as run.key."""
    return run_file.with_suffix(".key")


def store_path(run_file: Path) -> Path:
    """Where the coordinator's database of a run lies: beside run.toml, as run.db."""
    return run_file.with_suffix(".db")


def _method_options(method: str) -> list[tuple[str, Any, str]]:
    """The options of a method as (option, default, comment); comments are the docstrings under the fields."""
    kind = METHODS[method].options
    body: list[ast.stmt] = []
    for base in reversed(kind.__mro__[:-1]):
        definition = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0]
        assert isinstance(definition, ast.ClassDef)
        body += definition.body
    comments = {
        field.target.id: " ".join(str(below.value.value).split()).rstrip(".")
        for field, below in pairwise(body)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
    }
    return [(f.name, f.default, f"{comments[f.name]}; default {_value(f.default)}.") for f in fields(kind)]


def _key(key: str) -> str:
    """A TOML key, quoted where it must be."""
    bare = key and key.isascii() and key.replace("-", "").replace("_", "").isalnum()
    return key if bare else _value(key)


def _value(value: Any) -> str:
    """A TOML value; strings and booleans are written as in JSON, but DEL must be escaped too."""
    return repr(value) if isinstance(value, float) else json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _explain(source: str, error: ValidationError) -> ConfigError:
    """The first thing that is wrong, in words, with the value and what is allowed."""
    first = error.errors(include_url=False)[0]
    path = [str(part) for part in first["loc"]]
    sections: dict[str, Any] = {field.alias or name: field.annotation for name, field in RunSpec.model_fields.items()}
    if path[:2] == ["method", "options"]:
        path = ["method", *path[2:]]
    kind, value = first["type"], first["input"]
    if kind == "extra_forbidden":
        section = sections.get(path[0])
        if len(path) == 1 or section is None:
            return ConfigError(f"{source}: unknown section or option {path[0]!r}", hint=nearest(path[0], sections))
        known = nearest(path[1], section.model_fields)
        return ConfigError(f"{source}: [{path[0]}] unknown option {path[1]!r}", hint=known)
    if kind == "missing":
        return ConfigError(
            f"{source}: [{path[0]}] {path[1] if path[1:] else 'section'} is missing",
            hint="`wantrain init` writes a complete file with an id and an owner of its own",
        )
    if kind == "value_error":
        return ConfigError(f"{source}: [{path[0]}] {first['ctx']['error']}", hint=f"correct it in {source}")
    if len(path) == 1:
        return ConfigError(
            f"{source}: {path[0]} is {value!r}, allowed is a table [{path[0]}]", hint=f"correct it in {source}"
        )
    field = sections[path[0]].model_fields.get(path[1])
    return ConfigError(
        f"{source}: [{path[0]}] {path[1]} is {value!r}, allowed is {_allowed(field)}", hint=f"correct it in {source}"
    )


def _allowed(field: FieldInfo | None) -> str:
    """What a field takes, in words."""
    if field is None:
        return "a string, a number, true or false"
    if get_origin(field.annotation) is Literal:
        return " or ".join(map(repr, get_args(field.annotation)))
    words: dict[Any, str] = {str: "a string", int: "a whole number", float: "a number"}
    bounds = [
        f"{sign} {getattr(bound, name)}"
        for bound in field.metadata
        for name, sign in (("gt", "above"), ("ge", "at least"), ("lt", "below"), ("le", "at most"))
        if hasattr(bound, name)
    ]
    return f"{words[field.annotation]} {', '.join(bounds)}".rstrip()
