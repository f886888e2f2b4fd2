"""Streaming DiLoCo: fragments of the model in turns, each mixed in while training goes on (arXiv 2501.18512)."""

from dataclasses import dataclass
from typing import Annotated, Literal

from wantrain.errors import ConfigError
from wantrain.optimizers.options import Range
from wantrain.optimizers.stream import MOST_STREAMS, Stream, Wire


@dataclass(frozen=True, slots=True)
class StreamingDilocoOptions:
    """Options of `streaming-diloco`; defaults are the paper's where it has some."""

    every: Annotated[int, Range(1, 10**9)] = 100
    """H: inner steps between two syncs of a fragment; the fragments take turns within it."""
    fragments: Annotated[int, Range(1, MOST_STREAMS)] = 4
    """P: into how many fragments the blocks go; the paper has 3 blocks in each."""
    split: Literal["strided", "sequential", "balanced"] = "strided"
    """Block l goes to fragment l mod P, runs of blocks go together (what is in no block makes one more fragment in both
    cases), or whole tensors of any place so that all are about as large."""
    delay: Annotated[int, Range(0, 10**9)] = 1
    """tau: inner steps for which training goes on while a fragment is under way; the paper advises at most 5."""
    overdue: Literal["wait", "continue"] = "wait"
    """What a trainer does when the delay is over and the result is not there: wait, or go on until it comes."""
    alpha: Annotated[float, Range(0, 1, open_high=True)] = 0.5
    """Share of its own weights that a peer keeps when it takes over a result after a delay; 0: none."""
    outer_lr: Annotated[float, Range(0, 1000, open_low=True)] = 0.4
    """Learning rate of the outer SGD."""
    momentum: Annotated[float, Range(0, 1, open_high=True)] = 0.9
    """mu of the outer SGD; the steady gain is outer_lr / (1 - momentum)."""
    late: Literal["rebase", "adopt"] = "rebase"
    """A peer that missed a sync takes over the others' movement and keeps its own progress, or drops it."""
    weight: Literal["equal", "tokens"] = "equal"
    """What a contribution counts: as much as any other, or by the tokens it was trained on."""


def streaming_diloco(options: StreamingDilocoOptions, wire: Wire) -> tuple[Stream, ...]:
    """One stream for each fragment p, each as in DiLoCo every H steps, at steps spread evenly over them.

    Algorithm 2 of the paper: delta_i = phi_p - theta_i,p; phi_p <- OuterSGD(phi_p, mean of delta_i); tau steps later at
    most theta_i,p <- alpha * theta_i,p + (1 - alpha) * phi_p. phi_p is the outer result, never the mixed value, and the
    next delta is taken against it. Offsets are ours: round((p + 1) * H / n) for n fragments in all.

    Raises:
        ConfigError: the delay is longer than the time between two syncs of a fragment, or that is too short for a turn
            of every fragment.
    """
    cuts = [f"{options.split}:{p}/{options.fragments}" for p in range(options.fragments)]
    if options.split != "balanced":
        cuts.append("rest")
    if options.every < len(cuts):
        raise ConfigError(
            f"streaming-diloco: every is {options.every}; allowed: at least one step for each of {len(cuts)} fragments",
            hint="raise every, or lower fragments",
        )
    if options.delay > options.every:
        raise ConfigError(
            f"streaming-diloco: delay is {options.delay}; allowed: a whole number >= 0 and <= every, "
            f"which is {options.every}",
            hint="the next sync of a fragment begins when the last one is over: raise every, or lower delay",
        )
    return tuple(
        Stream(
            name=f"param-{cut if cut == 'rest' else p}",
            fragment=cut,
            every=options.every,
            offset=round((p + 1) * options.every / len(cuts)) % options.every,
            delay=options.delay,
            overdue=options.overdue,
            adopt="mix" if options.delay else "rebase",
            alpha=options.alpha,
            merge="nesterov",
            merge_options=(("lr", options.outer_lr), ("momentum", options.momentum)),
            codec=wire.codec,
            down=wire.down,
            topology=wire.topology,
            late=options.late,
            weight=options.weight,
        )
        for p, cut in enumerate(cuts)
    )
