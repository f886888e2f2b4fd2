"""What of a model a stream covers, in elements and chunks; equal on every peer, as only the manifest decides."""

import math
from collections.abc import Sequence

from wantrain.errors import ConfigError
from wantrain.optimizers.fragment import mask_of, members
from wantrain.optimizers.mask import between
from wantrain.optimizers.stream import Stream
from wantrain.peers.messages import TensorSpec
from wantrain.transport.partition import chunk_bounds


def tensor_elements(tensor: TensorSpec) -> int:
    """Number of values in a tensor."""
    return math.prod(tensor.shape)


def stream_tensors(stream: Stream, manifest: Sequence[TensorSpec]) -> tuple[TensorSpec, ...]:
    """The tensors of a stream's fragment, in manifest order.

    Raises:
        ConfigError: the fragment is not known, or the model cannot be cut this way.
    """
    tensors = tuple((tensor.name, tuple(tensor.shape)) for tensor in manifest)
    return tuple(manifest[position] for position in members(stream.fragment, tensors))


def check_streams(streams: Sequence[Stream], manifest: Sequence[TensorSpec]) -> None:
    """Make sure that a model can be exchanged by these streams: each parameter in exactly one of every state.

    Raises:
        ConfigError: it cannot.
    """
    for state in dict.fromkeys(stream.state for stream in streams if stream.held):
        holders: dict[str, Stream] = {}
        parts: dict[str, set[tuple[int, int]]] = {tensor.name: set() for tensor in manifest}
        for stream in streams:
            mask = mask_of(stream.fragment)
            for tensor in stream_tensors(stream, manifest) if stream.state == state else ():
                other, found = holders.setdefault(tensor.name, stream), parts[tensor.name]
                if found and (mask is None or mask in found or mask[1] not in {count for _, count in found}):
                    raise ConfigError(
                        f"{tensor.name} is in two streams of {state}: {other.name} and {stream.name}",
                        hint="give [method] fragments that do not overlap",
                    )
                found.add(mask or (0, 1))
        if absent := [name for name, found in parts.items() if len(found) < max((n for _, n in found), default=1)]:
            raise ConfigError(
                f"no stream of {state} covers {', '.join(absent[:3])}" + (", …" if absent[3:] else ""),
                hint="give [method] fragments that cover the whole model",
            )


def stream_elements(stream: Stream, manifest: Sequence[TensorSpec]) -> int:
    """Length of a stream's vector in elements."""
    elements = sum(map(tensor_elements, stream_tensors(stream, manifest)))
    mask = mask_of(stream.fragment)
    return elements if mask is None else between(*mask, 0, elements)


def manifest_bytes(manifest: Sequence[TensorSpec]) -> int:
    """Size of a model in fp32, in bytes."""
    return 4 * sum(map(tensor_elements, manifest))


def stream_chunks(stream: Stream, manifest: Sequence[TensorSpec]) -> int:
    """Chunks of a stream's vector."""
    return len(chunk_bounds(stream_elements(stream, manifest)))


def manifest_difference(run: Sequence[TensorSpec], mine: Sequence[TensorSpec], limit: int = 8) -> list[str]:
    """In words, how a model differs from the run's: names, shapes, dtypes, order; at most `limit` lines and a count."""
    ours = {tensor.name: tensor for tensor in mine}
    theirs = {tensor.name: tensor for tensor in run}
    lines = [f"missing here: {t.name} {list(t.shape)} {t.dtype}" for t in run if t.name not in ours]
    lines += [f"not in the run: {t.name} {list(t.shape)} {t.dtype}" for t in mine if t.name not in theirs]
    for tensor in run:
        other = ours.get(tensor.name)
        if other is not None and other != tensor:
            lines.append(
                f"{tensor.name}: the run has {list(tensor.shape)} {tensor.dtype}, "
                f"this model {list(other.shape)} {other.dtype}"
            )
    if not lines and tuple(run) != tuple(mine):
        lines.append("the same tensors in another order")
    return lines[:limit] + ([f"and {len(lines) - limit} more"] if len(lines) > limit else [])
