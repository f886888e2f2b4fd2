"""eager, delayed: DiLoCo whose syncs have a whole round to arrive in (arXiv 2502.12996, eager updates)."""

from dataclasses import dataclass
from typing import Annotated, Literal

from wantrain.optimizers.options import Range
from wantrain.optimizers.stream import Stream, Wire


@dataclass(frozen=True, slots=True)
class EagerOptions:
    """Options of `eager` and `delayed`. The paper's for both, with a low outer rate: every 30, outer_lr 0.4."""

    every: Annotated[int, Range(1, 10**9)] = 30
    """H: inner steps between two syncs, for which each of them may be under way."""
    outer_lr: Annotated[float, Range(0, 1000, open_low=True)] = 0.4
    """Learning rate of the outer SGD."""
    momentum: Annotated[float, Range(0, 1, open_high=True)] = 0.9
    """mu of the outer SGD; the steady gain is outer_lr / (1 - momentum)."""
    nesterov: bool = True
    """Nesterov momentum; false for heavy ball."""
    late: Literal["rebase", "adopt"] = "rebase"
    """A contribution that missed its sync is added to the peer's next one, or dropped."""
    weight: Literal["equal", "tokens"] = "equal"
    """What a contribution counts: as much as any other, or by the tokens it was trained on."""


def eager(answer: str, options: EagerOptions, wire: Wire) -> tuple[Stream, ...]:
    """One stream: D_m,t = s_m,t - theta_m every H steps; phi_t+1 <- OuterSGD(phi_t, mean of D_m,t-1).

    `delayed`: the next round starts from s_m,t+1 = phi_t+1. `eager`: from phi_t+1 + psi_m, where psi_m is driven by
    (D_m,t - D_m,t-1) / M through the same OuterSGD, so that each peer steps with D_t-1 + (D_m,t - D_m,t-1) / M while
    phi is common. A sync that is not over at the end of the next round is waited for. psi_m is this peer's own: it
    is 0 when its trainer begins at phi, and lives as long.
    """
    return (
        Stream(
            name="param",
            every=options.every,
            answer=answer,
            merge="nesterov" if options.nesterov else "heavy-ball",
            merge_options=(("lr", options.outer_lr), ("momentum", options.momentum)),
            codec=wire.codec,
            down=wire.down,
            topology=wire.topology,
            late=options.late,
            weight=options.weight,
        ),
    )
