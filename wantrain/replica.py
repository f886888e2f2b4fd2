"""The trainer's copy of the model: what is copied between its parameters and the memory shared with the daemon."""

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor, nn

from wantrain.errors import ConfigError
from wantrain.inner_state import InnerState
from wantrain.optimizers.fragment import mask_of
from wantrain.optimizers.mask import between
from wantrain.optimizers.stream import Stream
from wantrain.peers.layout import stream_tensors
from wantrain.peers.messages import MAX_TENSORS, Manifest, TensorSpec
from wantrain.peers.shared_memory import Segment
from wantrain.piece import Piece


class Replica:
    """The parameters of a model that require gradients, tied ones once; of any real dtype, on any device.

    Frozen parameters and buffers (as batch norm has them) are not exchanged: each peer keeps its own.

    Args:
        model: whose parameters they are.
        optimizers: that train them.

    Raises:
        ConfigError: there are no such parameters, or too many, or one has complex numbers.
    """

    def __init__(self, model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        named = {plain_name(name): p for name, p in model.named_parameters() if p.requires_grad}
        if not named:
            raise ConfigError("the model has no parameter that requires a gradient", hint="check requires_grad")
        if len(named) > MAX_TENSORS:
            raise ConfigError(
                f"the model has {len(named)} tensors to train, allowed are {MAX_TENSORS}",
                hint="fuse small parameters, or freeze some",
            )
        for name, parameter in named.items():
            if parameter.is_complex():
                raise ConfigError(f"{name} has dtype {parameter.dtype}", hint="use real ones, see torch.view_as_real")
        self.manifest: Manifest = tuple(
            TensorSpec(name, tuple(p.shape), str(p.dtype).removeprefix("torch.")) for name, p in named.items()
        )
        self._parameters = named
        self._inner = InnerState(named, optimizers)
        self._streams: dict[str, Stream] = {}
        ends = list(accumulate(parameter.numel() for parameter in named.values()))
        self._places = dict(zip(named, zip([0, *ends], ends, strict=False), strict=True))
        """First and last coordinate of each parameter in the model."""
        self._copied: set[str] = set()
        """Streams whose values were last made equal to what was granted."""
        self._views: dict[str, list[Piece]] = {}

    def bind(self, segment: Segment, streams: Sequence[Stream]) -> None:
        """Lay each stream's parameters out in its regions of the segment, in manifest order.

        Raises:
            ConfigError: the optimizer does not keep what a stream exchanges.
        """
        self._streams = {stream.name: stream for stream in streams}
        self._inner.prepare({stream.state for stream in streams} - {"param", "grad"})
        for name, stream in self._streams.items():
            views = self._views[name] = []
            first, mask = 0, mask_of(stream.fragment)
            for tensor in stream_tensors(stream, self.manifest):
                begin, end = self._places[tensor.name]
                last = first + (end - begin if mask is None else between(*mask, begin, end))
                parameter = self._parameters[tensor.name]
                out, given = segment.out(name)[first:last], segment.given(name)[first:last]
                if mask is None:
                    views.append(Piece(parameter, out.view_as(parameter), given.view_as(parameter), None))
                else:
                    views.append(Piece(parameter, out, given, (*mask, begin, end)))
                first = last

    def release(self) -> None:
        """Let go of the segment's regions."""
        self._views.clear()

    @torch.no_grad()
    def write(self, stream: str) -> None:
        """Copy what the stream exchanges into its `out` as fp32; a gradient that is None counts as 0.

        Values of a narrower dtype that were copied from `given` began at it rounded. What was rounded off is added
        again: it is no movement of this trainer's, and phi would lose it.
        """
        grads = self._streams[stream].state == "grad"
        for piece in self._views[stream]:
            parameter, out, given = piece.parameter, piece.out, piece.given
            source = parameter.grad if grads else self._value(stream, parameter)
            if source is None:
                out.zero_()
                continue
            out.copy_(piece.of(source))
            if stream in self._copied and source.dtype in (torch.bfloat16, torch.float16):
                # In this order what has not moved gives `given` exactly.
                out.sub_(given.to(source.dtype)).add_(given)

    @torch.no_grad()
    def adopt(self, stream: str, kind: str, *, stepped: bool) -> None:
        """Take over what was granted, in place: autograd and the optimizer keep their tensors and state.

        Args:
            stream: its name.
            kind: start, merge, move or grad; see `shared_memory.py` for the rule of each.
            stepped: whether inner steps were made since `write`.
        """
        rule = self._streams[stream]
        if kind == "start" and not rule.held:
            return  # no mean gradient to be had: the step is made with the own one
        mixes = kind == "merge" and rule.adopt == "mix"
        moves = kind == "move" and rule.late == "rebase"
        if kind == "grad" or mixes or moves or (kind == "merge" and stepped):
            self._copied.discard(stream)
        else:
            self._copied.add(stream)
        for piece in self._views[stream]:
            parameter, out, given = piece.parameter, piece.out, piece.given
            if kind == "grad":
                if parameter.grad is not None:
                    piece.put(parameter.grad, given)
                elif given.any():  # some other peer's step has used it
                    parameter.grad = torch.zeros_like(parameter)
                    piece.put(parameter.grad, given)
                continue
            value = self._value(stream, parameter)
            if mixes:
                mixed = piece.of(value).to(torch.float32, copy=True).mul_(rule.alpha)
                piece.put(value, mixed.add_(given.to(mixed.device).mul(1.0 - rule.alpha)))
            elif moves or (kind == "merge" and stepped):
                moved = piece.of(value).to(torch.float32, copy=True)
                moved.sub_(out.to(moved.device)).add_(given.to(moved.device))
                piece.put(value, moved.clamp_(min=0.0) if rule.nonnegative else moved)
            else:
                piece.put(value, given)

    def begin_at(self, step: int) -> None:
        """The run's step count where this trainer begins: what the optimizer counts goes on from there."""
        if any(stream.state not in ("param", "grad") for stream in self._streams.values()):
            self._inner.count(step)

    def _value(self, stream: str, parameter: nn.Parameter) -> Tensor:
        """What a stream that is held exchanges of a parameter."""
        state = self._streams[stream].state
        return parameter if state == "param" else self._inner.value(parameter, state)


def plain_name(name: str) -> str:
    """A parameter's name without what torch.compile adds, so that peers may compile or not, as they like."""
    return ".".join(part for part in name.split(".") if part != "_orig_mod")
