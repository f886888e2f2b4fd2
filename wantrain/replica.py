"""The trainer's copy of the model: what is copied between its parameters and the memory shared with the daemon."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import accumulate
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from wantrain.copy_order import CopyOrder, Mark, Queues, Work
from wantrain.cuda_queues import CudaQueues, PinnedPages
from wantrain.errors import ConfigError
from wantrain.inner_state import InnerState
from wantrain.local_shard import Extent, Spot, held, local_box, spots, whole, whole_gradient
from wantrain.optimizers.fragment import mask_of
from wantrain.optimizers.stream import Stream
from wantrain.peers.layout import stream_elements, stream_tensors
from wantrain.peers.messages import MAX_DIMS, MAX_TENSOR_NAME, MAX_TENSORS, Manifest, TensorSpec
from wantrain.piece import Change, Piece, mix, move, move_nonnegative, take
from wantrain.wrappers import FullyShardedParts, plain_name, unwrapped


class Regions(Protocol):
    """Memory with two vectors for each stream, as `shared_memory.Segment` is."""

    def out(self, stream: str) -> Tensor: ...

    def given(self, stream: str) -> Tensor: ...

    def whole(self) -> Tensor: ...


class Replica:
    """The parameters of a model that require gradients, tied ones once; of any real dtype, on any device.

    Frozen parameters and buffers (as batch norm has them) are not exchanged: each peer keeps its own.

    Args:
        model: whose parameters they are.
        optimizers: that train them.
        queues: of a device that has any; None for one whose copies are made at once.

    Raises:
        ConfigError: there are no such parameters, or too many, or one has complex numbers, no shape yet, too many
            dimensions or too long a name.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizers: Sequence[torch.optim.Optimizer],
        queues: Callable[[torch.device], Queues | None] = lambda d: CudaQueues(d) if d.type == "cuda" else None,
    ) -> None:
        self.model = model = unwrapped(model)
        self._sharded = FullyShardedParts(model)
        self._sharded.reshard()
        named = {plain_name(name): p for name, p in model.named_parameters() if p.requires_grad}
        if not named:
            raise ConfigError("the model has no parameter that requires a gradient", hint="check requires_grad")
        if len(named) > MAX_TENSORS:
            raise ConfigError(
                f"the model has {len(named)} tensors to train, allowed are {MAX_TENSORS}",
                hint="fuse small parameters, or freeze some",
            )
        for name, parameter in named.items():
            if len(name) > MAX_TENSOR_NAME:
                raise ConfigError(
                    f"the name of a parameter has {len(name)} characters, allowed are {MAX_TENSOR_NAME}: {name[:80]}…",
                    hint="give the modules that it is in shorter names",
                )
            if isinstance(parameter, UninitializedParameter):
                raise ConfigError(
                    f"{name} has no shape yet, as lazy modules have none before they are used",
                    hint="run one forward pass before wantrain.join, with inputs as in training",
                )
            if parameter.dim() > MAX_DIMS:
                raise ConfigError(
                    f"{name} has {parameter.dim()} dimensions, allowed are {MAX_DIMS}", hint="flatten some of them"
                )
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
        self._boxes = {name: local_box(name, parameter) for name, parameter in named.items()}
        """The part of each that is here."""
        self._writes = set(named)
        """Those whose part here is this rank's to write."""
        self._copied: set[str] = set()
        """Streams whose values were last made equal to what was granted."""
        self._views: dict[str, list[Piece]] = {}
        self._queues = queues
        self._orders: dict[torch.device, CopyOrder] = {}
        """Of devices that copy behind the host's back."""
        self._marks: dict[str, list[Mark]] = {}
        """Per stream: where what was written last ends."""
        self._pages: PinnedPages | None = None

    def bind(self, segment: Regions, streams: Sequence[Stream]) -> None:
        """Lay each stream's parameters out in its regions of the segment, in manifest order.

        Raises:
            ConfigError: the optimizer does not keep what a stream exchanges.
        """
        self.release()
        if any(parameter.is_cuda for parameter in self._parameters.values()) and len(memory := segment.whole()):
            self._pages = PinnedPages(memory)
        self._streams = {stream.name: stream for stream in streams}
        self._inner.prepare({stream.state for stream in streams} - {"param", "grad"})
        for name in self._streams:
            self._views[name] = self._pieces(name, segment.out(name), segment.given(name), self._boxes)

    def _pieces(self, stream: str, out: Tensor, given: Tensor, boxes: Mapping[str, Extent]) -> list[Piece]:
        """A stream's parameters, or these boxes of them, with their places in two vectors of its length."""
        pieces: list[Piece] = []
        for spot in self._spots(stream):
            box = boxes[spot.name]
            here, mask = spot.part(out, box)
            there, _ = spot.part(given, box)
            parameter, writes = self._parameters[spot.name], spot.name in self._writes
            pieces.append(Piece(parameter, held(here), held(there), mask, writes))
        return pieces

    def _spots(self, stream: str) -> list[Spot]:
        """Where the tensors of a stream are in its vector."""
        rule = self._streams[stream]
        tensors = [(tensor.name, tuple(tensor.shape)) for tensor in stream_tensors(rule, self.manifest)]
        return spots(tensors, self._places, mask_of(rule.fragment))

    def release(self) -> None:
        """Let go of the segment's regions, when no copy is under way any more."""
        for order in self._orders.values():
            order.finish()
        self._marks.clear()
        if self._pages is not None:
            self._pages.close()
            self._pages = None
        self._views.clear()

    @torch.no_grad()
    def write(self, stream: str) -> None:
        """Copy what the stream exchanges into its `out` as fp32; a gradient that is None counts as 0.

        From a device with queues that may last until `staged`, and until `before_step` nothing else may change it.
        """
        grads = self._streams[stream].state == "grad"
        work: dict[torch.device, list[Work]] = {}
        for piece in self._views[stream]:
            source = whole_gradient(piece.parameter) if grads else self._value(stream, piece.parameter)
            if not piece.writes:
                continue
            if source is None:
                piece.out.zero_()
                continue
            job = partial(piece.stage, source, again=stream in self._copied)
            work.setdefault(source.device, []).append(job)
        self._marks[stream] = []
        for device, jobs in work.items():
            if (order := self._order(device)) is not None:
                self._marks[stream].append(order.read(jobs, kept=not grads))
            else:
                _do(device, jobs)

    def staged(self, stream: str, *, wait: bool) -> bool:
        """Whether what was written last is in the stream's `out` by now; `wait` until it is."""
        for mark in self._marks.get(stream, ()) if wait else ():
            mark.synchronize()
        return all(mark.query() for mark in self._marks.get(stream, ()))

    def before_step(self) -> None:
        """Parameters (and what optimizers keep) are changed from now on: what reads them is to come first."""
        for order in self._orders.values():
            order.before_change()

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
        moves = kind == "move" and rule.late == "rebase"
        change: Change = take
        if kind == "merge" and rule.adopt == "mix":
            change = mix(rule.alpha)
        elif moves or (kind == "merge" and stepped):
            change = move_nonnegative if rule.nonnegative else move
        if kind == "grad" or change is not take:
            self._copied.discard(stream)
        else:
            self._copied.add(stream)
        self._sharded.reshard()
        work: dict[torch.device, list[Work]] = {}
        for piece in self._views[stream]:
            parameter = piece.parameter
            if kind == "grad":
                if parameter.grad is None:
                    if not piece.given.any():
                        continue  # no other peer's step has used it
                    parameter.grad = torch.zeros_like(parameter)
                target: Tensor = parameter.grad
            else:
                target = self._value(stream, parameter)
            work.setdefault(target.device, []).append(partial(piece.adopt, target, change))
        for device, jobs in work.items():
            if (order := self._order(device)) is not None:
                order.write(jobs)
            else:
                _do(device, jobs)

    # ---- the run's common weights, to look at

    @property
    def elements(self) -> dict[str, int]:
        """Length of the vector of each stream of weights."""
        rules = (rule for rule in self._streams.values() if rule.state == "param")
        return {rule.name: stream_elements(rule, self.manifest) for rule in rules}

    @torch.no_grad()
    def show(self, vectors: Mapping[str, Tensor]) -> list[Tensor]:
        """Put other weights into the parameters, rounded to their dtype; what they were, for `put_back`.

        Args:
            vectors: fp32[elements] of each stream of weights.
        """
        return self._show(
            [p for name, vector in vectors.items() for p in self._pieces(name, vector, vector, self._boxes)]
        )

    @torch.no_grad()
    def _show(self, pieces: Sequence[Piece]) -> list[Tensor]:
        """Put what is `given` to these pieces into the parameters; what they were."""
        for order in self._orders.values():
            order.finish()  # what is under way reads and writes what the parameters are now
        self._sharded.reshard()
        own = [parameter.detach().clone() for parameter in self._parameters.values()]
        work: dict[torch.device, list[Work]] = {}
        for piece in pieces:
            target: Tensor = piece.parameter
            work.setdefault(target.device, []).append(partial(piece.adopt, target, take))
        for device, jobs in work.items():
            _do(device, jobs)
        return own

    @torch.no_grad()
    def put_back(self, own: Sequence[Tensor]) -> None:
        """Make the parameters what they were before `show`."""
        self._sharded.reshard()
        for parameter, value in zip(self._parameters.values(), own, strict=True):
            parameter.copy_(value)

    def named(self, vectors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The same weights as fp32 tensors on the CPU, by the manifest's names and shaped as there."""
        found = {tensor.name: torch.empty(tensor.shape) for tensor in self.manifest}
        names = {id(parameter): name for name, parameter in self._parameters.items()}
        boxes = {tensor.name: whole(tensor.shape) for tensor in self.manifest}
        for stream, vector in vectors.items():
            for piece in self._pieces(stream, vector, vector, boxes):
                piece.adopt(found[names[id(piece.parameter)]], take)
        return found

    def begin_at(self, step: int) -> None:
        """The run's step count where this trainer begins: what the optimizer counts goes on from there."""
        if any(stream.state not in ("param", "grad") for stream in self._streams.values()):
            self._inner.count(step)

    def _order(self, device: torch.device) -> CopyOrder | None:
        if device not in self._orders and (queues := self._queues(device)) is not None:
            self._orders[device] = CopyOrder(queues)
        return self._orders.get(device)

    def _value(self, stream: str, parameter: nn.Parameter) -> Tensor:
        """What a stream that is held exchanges of a parameter."""
        state = self._streams[stream].state
        return parameter if state == "param" else self._inner.value(parameter, state)


def _do(device: torch.device, jobs: Sequence[Work]) -> None:
    """Copy, and be done with it."""
    for job in jobs:
        job()
    if device.type != "cpu":
        torch.get_device_module(device).synchronize(device)
