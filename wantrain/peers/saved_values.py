"""Whole tensors of a model out of a saved state's file, and into a stream's vector, whatever the fragments are."""

from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from wantrain.optimizers.mask import below
from wantrain.optimizers.mask_indices import indices
from wantrain.peers.layout import tensor_elements
from wantrain.peers.messages import TensorSpec
from wantrain.peers.saved_state import PHI, SavedState, SavedStream, spans


class SavedValues:
    """What a saved state holds, by tensor of its model.

    Args:
        file: its tensor file, opened by safetensors.
        saved: its manifest.
    """

    def __init__(self, file: Any, saved: SavedState) -> None:
        self._file = file
        self._keys = {(span.stream, span.slot, span.name): span.key for span in spans(saved.streams, saved.model)}
        self._starts = starts(saved.model)
        self._whole = {(stream.state, name): stream for stream in saved.streams for name in stream.tensors}
        self._masked: dict[str, list[SavedStream]] = {}
        for stream in saved.streams:
            if stream.mask is not None:
                self._masked.setdefault(stream.state, []).append(stream)

    def read(self, tensor: TensorSpec, state: str, slot: str = PHI, slots: Sequence[str] = ()) -> Tensor | None:
        """fp32[elements] of one of the model's tensors.

        Args:
            tensor: which.
            state: of what the streams are.
            slot: which of theirs.
            slots: those that they need to have if it is another than `phi`.

        Returns:
            None if no stream of that state covers it, or not with these slots.

        Raises:
            SafetensorError: the file cannot be read.
        """
        whole = self._whole.get((state, tensor.name))
        holders = [whole] if whole is not None else self._masked.get(state, [])
        if not holders or (holders[0].mask is not None and len(holders) < holders[0].mask[1]):
            return None  # some of its values are nowhere
        if slot != PHI and any(holder.slots != tuple(slots) for holder in holders):
            return None
        if whole is not None:
            values: Tensor = self._file.get_tensor(self._keys[whole.name, slot, tensor.name]).reshape(-1)
            return values
        out = torch.empty(tensor_elements(tensor))
        for holder in holders:
            where, first, last = _place(holder, self._starts[tensor.name], tensor)
            out[where] = self._file.get_slice(self._keys[holder.name, slot, ""])[first:last]
        return out


def starts(model: Sequence[TensorSpec]) -> dict[str, int]:
    """Where each tensor begins among all coordinates of the model, by name."""
    ends = accumulate(map(tensor_elements, model))
    return {tensor.name: end - tensor_elements(tensor) for tensor, end in zip(model, ends, strict=True)}


def pieces(stream: SavedStream, model: Sequence[TensorSpec]) -> Iterator[tuple[TensorSpec, Tensor | None, int, int]]:
    """Each tensor of a stream, which of its elements (None: all), and first and last place in the stream's vector."""
    if stream.mask is not None:
        for tensor, start in zip(model, starts(model).values(), strict=True):
            yield tensor, *_place(stream, start, tensor)
        return
    shapes = {tensor.name: tensor for tensor in model}
    first = 0
    for name in stream.tensors:
        last = first + tensor_elements(shapes[name])
        yield shapes[name], None, first, last
        first = last


def _place(stream: SavedStream, start: int, tensor: TensorSpec) -> tuple[Tensor, int, int]:
    assert stream.mask is not None
    stop = start + tensor_elements(tensor)
    where = indices(*stream.mask, start, stop)
    return where, below(*stream.mask, start), below(*stream.mask, stop)
