"""What a saved state is: its manifest, checked when it is read, and where in its tensor file each tensor lies; pure.

The tensor file is a safetensors file. Each stream but those of gradients has phi and its outer state ("slots"), one
after another and each in the order of the stream's tensors, so that a vector lies in one piece and can be written as it
lies in memory. A tensor is called `<stream>.<slot>.<name in the model>`, such as `param.phi.encoder.weight`; where the
stream has a mask, a slot is one vector, called `<stream>.<slot>`. All values are fp32.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from blake3 import blake3
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from wantrain.errors import CheckpointError
from wantrain.optimizers.mask import between
from wantrain.peers.layout import tensor_elements
from wantrain.peers.messages import Count, Describe, Digest, Manifest, Name, TensorSpec

PHI = "phi"
"""Name of the slot that holds the committed value itself."""
STATE_FILE = "state.safetensors"
MANIFEST_FILE = "manifest.json"
MAX_MANIFEST_BYTES = 1 << 24
"""A manifest has up to 10,000 tensors of some hundred bytes."""
MAX_HEADER_BYTES = 1 << 26
_LENGTH_BYTES = 8
"""A safetensors file begins with the length of its header, u64."""
_ALIGN_BYTES = 8
_F32_BYTES = 4

Run = Annotated[bytes, Field(min_length=8, max_length=8)]


class _Part(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, ser_json_bytes="hex", val_json_bytes="hex"
    )


class SavedFile(_Part):
    """A file of a saved state: its size in bytes, and the BLAKE3 of what is in it."""

    size_bytes: Count
    blake3: Digest


class SavedStream(_Part):
    """A stream: what of the parameters it is, its slots, `phi` first, and the tensors that each covers, in order."""

    name: Name
    state: Name
    """`param`, or what the inner optimizer keeps for each of them."""
    slots: Annotated[tuple[Name, ...], Field(min_length=1, max_length=16)]
    tensors: Annotated[tuple[Annotated[str, Field(max_length=512)], ...], Field(max_length=10_000)]
    """Those that it covers wholly; none if it has a mask."""
    mask: tuple[Count, Annotated[int, Field(ge=1, le=10_000)]] | None = None
    """Which part of how many it covers of all coordinates, see `wantrain.optimizers.mask`."""


class SavedState(_Part):
    """The manifest of a saved state: which place in which run's history it is, and what its files must be like."""

    format: Literal[2]
    """Of the two files; another one is refused."""
    version: Name
    """Of wantrain."""
    run: Run
    spec_digest: Digest
    number: Count
    """Log number: the last commit that is in the state."""
    chain: Digest
    """Link of the digest chain at `number`."""
    genesis: Digest
    """chain[0]: which initial state the history began with."""
    indices: Annotated[dict[Name, Count], Field(max_length=256)]
    """Last sync of every stream, at `number`."""
    streams: Annotated[tuple[SavedStream, ...], Field(max_length=256)]
    model: Manifest
    state_digest: Digest
    """SHA-256 over the state's chunks, as peers compare it."""
    files: Annotated[dict[Name, SavedFile], Field(max_length=16)]
    saved_unix: Annotated[float, Field(ge=0)]
    extra: dict[str, Any]
    """For other parts of the run, by their name."""
    described: Describe | None = None
    """What the model is to other software, if the trainer has said so."""

    def encoded(self) -> bytes:
        """The bytes of manifest.json, with a digest of themselves: one form for one content."""
        body = self.model_dump(mode="json", exclude=None if self.described else {"described"})
        return _json({**body, "digest": blake3(_json(body)).hexdigest()})

    @classmethod
    def decoded(cls, data: bytes, source: str) -> Self:
        """The manifest in `data`; `source` is named in errors.

        Raises:
            CheckpointError: it is not what `encoded` writes, down to the last bit, or does not fit together.
        """
        try:
            body = json.loads(data)
            digest = body.pop("digest", None) if isinstance(body, dict) else None
            found = cls.model_validate_json(_json(body))
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            raise damaged(source, f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None
        except (ValueError, RecursionError) as error:
            raise damaged(source, f"it is not JSON: {error}") from None
        if digest != blake3(_json(body)).hexdigest() or found.encoded() != data:
            raise damaged(source, "its digest is not that of what is in it")
        found._check(source)
        return found

    def _check(self, source: str) -> None:
        shapes = {tensor.name: tensor for tensor in self.model}
        names = [stream.name for stream in self.streams]
        if set(self.files) != {STATE_FILE}:
            raise damaged(source, f"its files are {sorted(self.files)}, allowed is {STATE_FILE} alone")
        if len(shapes) != len(self.model) or len(set(names)) != len(names) or not set(names) <= set(self.indices):
            raise damaged(source, "a tensor or stream is named twice, or a stream has no index")
        for stream in self.streams:
            if stream.slots[0] != PHI or len(set(stream.slots)) != len(stream.slots):
                raise damaged(source, f"stream {stream.name} has the slots {', '.join(stream.slots)}")
            if stream.mask is not None and (stream.tensors or stream.mask[0] >= stream.mask[1]):
                raise damaged(source, f"stream {stream.name} has the mask {stream.mask}")
            if unknown := [name for name in stream.tensors if name not in shapes]:
                raise damaged(source, f"stream {stream.name} has a tensor {unknown[0]!r} that the model has not")
        if self.files[STATE_FILE].size_bytes != state_bytes(self.streams, self.model):
            raise damaged(source, f"{STATE_FILE} is said to have {self.files[STATE_FILE].size_bytes:,} bytes")


@dataclass(frozen=True, slots=True)
class Span:
    """One tensor in the file: bytes begin … end of the data after the header."""

    key: str
    stream: str
    slot: str
    name: str
    """In the model; "" for a whole vector."""
    shape: tuple[int, ...]
    begin: int

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def end(self) -> int:
        return self.begin + _F32_BYTES * self.elements


def spans(streams: Sequence[SavedStream], model: Sequence[TensorSpec]) -> Iterator[Span]:
    """Every tensor of the file, in its order."""
    shapes = {tensor.name: tuple(tensor.shape) for tensor in model}
    begin = 0
    for stream in streams:
        for slot in stream.slots:
            names: Sequence[str] = stream.tensors if stream.mask is None else ("",)
            for name in names:
                shape = shapes[name] if name else (vector_elements(stream, model),)
                span = Span(f"{stream.name}.{slot}{name and '.' + name}", stream.name, slot, name, shape, begin)
                yield span
                begin = span.end


def vector_elements(stream: SavedStream, model: Sequence[TensorSpec]) -> int:
    """Length of phi of a stream, and of each other slot, in elements."""
    if stream.mask is not None:
        return between(*stream.mask, 0, sum(map(tensor_elements, model)))
    shapes = {tensor.name: tensor for tensor in model}
    return sum(tensor_elements(shapes[name]) for name in stream.tensors)


def header(entries: Sequence[tuple[str, str, Sequence[int], int, int]], metadata: Mapping[str, str]) -> bytes:
    """The front of a safetensors file, padded so that what follows is aligned.

    Args:
        entries: for each tensor its key, dtype in the words of safetensors ("F32"), shape, and where in the data after
            the header it begins and ends, in bytes; without gaps.
        metadata: text by name, for readers.

    Raises:
        CheckpointError: two tensors have one key.
    """
    table: dict[str, Any] = {"__metadata__": dict(metadata)}
    for key, dtype, shape, begin, end in entries:
        if key in table:
            raise CheckpointError(f"two tensors would be called {key!r} in one file", hint="rename one in the model")
        table[key] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGN_BYTES)
    return len(text).to_bytes(_LENGTH_BYTES, "little") + text


def state_header(streams: Sequence[SavedStream], model: Sequence[TensorSpec]) -> bytes:
    """The front of state.safetensors; it depends on streams and model only."""
    entries = [(span.key, "F32", span.shape, span.begin, span.end) for span in spans(streams, model)]
    return header(entries, {"format": "pt"})


def state_bytes(streams: Sequence[SavedStream], model: Sequence[TensorSpec]) -> int:
    """Size of state.safetensors."""
    values = sum(len(stream.slots) * vector_elements(stream, model) for stream in streams)
    return len(state_header(streams, model)) + _F32_BYTES * values


def initial_difference(saved: SavedState, model: Sequence[TensorSpec], limit: int = 8) -> list[str]:
    """In words, why a model cannot begin with a saved state: names and shapes; at most `limit` lines and a count.

    dtypes and order may differ: what is saved is fp32, and taken by name.
    """
    params = [stream for stream in saved.streams if stream.state == "param"]
    covered = {name for stream in params for name in stream.tensors}
    covered |= {tensor.name for tensor in saved.model for stream in params[:1] if stream.mask is not None}
    theirs = {tensor.name: tensor for tensor in saved.model if tensor.name in covered}
    ours = {tensor.name: tensor for tensor in model}
    lines = [f"not in the model: {t.name} {list(t.shape)}" for t in theirs.values() if t.name not in ours]
    lines += [f"not in the saved state: {t.name} {list(t.shape)}" for t in model if t.name not in theirs]
    lines += [
        f"{name}: the saved state has {list(theirs[name].shape)}, the model {list(tensor.shape)}"
        for name, tensor in ours.items()
        if name in theirs and theirs[name].shape != tensor.shape
    ]
    return lines[:limit] + ([f"and {len(lines) - limit} more"] if len(lines) > limit else [])


def damaged(source: object, reason: str) -> CheckpointError:
    """The error for a saved state that cannot be used."""
    return CheckpointError(
        f"{source} cannot be used: {reason}", hint="use another one; `wantrain checkpoint ls` lists them"
    )


def _json(body: object) -> bytes:
    return json.dumps(body, separators=(",", ":"), sort_keys=True, allow_nan=False).encode()
