"""What comes out of a simulated run: the common model round by round, and what each worker has done."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from wantrain.optimizers.fragment import mask_of
from wantrain.optimizers.mask import between
from wantrain.optimizers.mask_indices import indices
from wantrain.optimizers.stream import Stream
from wantrain.peers.engine import Engine
from wantrain.peers.layout import stream_tensors, tensor_elements
from wantrain.peers.messages import CommitRecord, Manifest


@dataclass(frozen=True, slots=True)
class Round:
    """The common weights phi after a sync of the method's first stream of parameters.

    Where peers exchange in pairs it is the mean of what all of them hold, when each has made one more exchange.
    """

    index: int
    """Of the sync, from 1; 0 is the state at the beginning."""
    step: int
    """Inner steps that a worker of usual pace has made by then."""
    time_s: float
    """Virtual time since training began."""
    contributors: tuple[str, ...]
    """Names of those whose work is in it: "w0" is worker 0."""
    loss: float | None
    """What `evaluate` said of phi; None where it was not asked."""


@dataclass(slots=True)
class WorkerResult:
    """One worker."""

    name: str
    losses: list[float] = field(default_factory=list)
    """What `step` has returned, one for each of its inner steps."""
    step_times_s: list[float] = field(default_factory=list)
    """Virtual time since training began at which each inner step was over, waits for others included."""
    waited_s: float = 0.0
    """Virtual time that it has waited for others."""
    sync_bytes: int = 0
    """Bytes that its peer has sent to others: contributions and means as their codecs write them."""
    served_bytes: int = 0
    """Bytes of state and updates that it has sent to those who join or catch up."""
    ended: str = "training"
    """finished, left or killed."""
    state_dict: dict[str, Tensor] = field(default_factory=dict)
    """phi as its peer held it at the end; {} if it was killed."""
    number: int = -1
    """Log number of that: the last commit in it."""


@dataclass(slots=True)
class Result:
    """A simulated run."""

    rounds: list[Round]
    workers: list[WorkerResult]
    commits: list[CommitRecord]
    """The commit log: every sync of every stream, with its contributors and digests."""
    state_dict: dict[str, Tensor]
    """phi at the end, fp32, under the model's names, without frozen tensors and buffers; in gossip runs the mean."""
    aborts: list[str]
    """Why attempts at a sync were given up; they were repeated."""
    rejected: list[str]
    """Which contributions were left out of a sync as something must be wrong with them, and why."""
    saved: Any = field(repr=False, default=None)
    """For `train(resume=...)`."""

    @property
    def losses(self) -> list[float]:
        """What `evaluate` said, round by round."""
        return [entry.loss for entry in self.rounds if entry.loss is not None]

    @property
    def sync_bytes(self) -> int:
        """Bytes of contributions and means that all peers have sent together."""
        return sum(worker.sync_bytes for worker in self.workers)


def phi_of(engine: Engine, streams: Sequence[Stream], manifest: Manifest) -> dict[str, Tensor]:
    """A copy of phi, fp32, tensor by tensor."""
    ends = list(accumulate(map(tensor_elements, manifest)))
    places = dict(zip([tensor.name for tensor in manifest], zip([0, *ends], ends, strict=False), strict=True))
    values = {tensor.name: torch.zeros(tensor.shape) for tensor in manifest}
    for stream in streams:
        if stream.state != "param":
            continue
        phi, first, mask = engine.phi(stream.name), 0, mask_of(stream.fragment)
        for tensor in stream_tensors(stream, manifest):
            begin, end = places[tensor.name]
            last = first + (end - begin if mask is None else between(*mask, begin, end))
            if mask is None:
                values[tensor.name].copy_(phi[first:last].view(tensor.shape))
            else:
                values[tensor.name].put_(indices(*mask, begin, end), phi[first:last])
            first = last
    return values
