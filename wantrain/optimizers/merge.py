"""Merge rules: how the averaged difference of a sync becomes the next outer value; the table of them.

Every peer runs the same rule on the same bits, so a rule is single IEEE operations in fp32, each rounded once and in a
fixed order, element by element: any sub-range of the tensors gives the bits that the whole would give.
"""

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor

from wantrain.errors import ConfigError
from wantrain.optimizers.adaptive import adagrad, adam, yogi
from wantrain.optimizers.delayed_nesterov import DelayedNesterov
from wantrain.optimizers.heavy_ball import HeavyBall
from wantrain.optimizers.mean import Mean
from wantrain.optimizers.nesterov import Nesterov
from wantrain.optimizers.nonnegative_mean import NonnegativeMean
from wantrain.optimizers.pair_step import NoLoCo


class Merge(Protocol):
    """One outer rule; without state of its own."""

    name: str
    slots: tuple[str, ...]
    """Outer state besides phi: one fp32 tensor each, shaped like phi."""
    options: Mapping[str, float]
    """All options of the rule with their defaults."""

    def start(self, options: Mapping[str, float]) -> tuple[float, ...]:
        """What each slot is filled with at the start of a run."""

    def apply(
        self, phi: Tensor, delta: Tensor, state: tuple[Tensor, ...], options: Mapping[str, float], scratch: Tensor
    ) -> None:
        """Update phi and state in place.

        Args:
            phi: fp32[n], last committed value.
            delta: fp32[n], averaged difference phi - theta (descent sign); its content is lost.
            state: fp32[n] for each slot, in order.
            options: a value for each of the rule's options, and as `index` the number of the sync, from 1.
            scratch: fp32[n] of any content; its content is lost.
        """


MERGES: dict[str, Merge] = {
    rule.name: rule
    for rule in (
        Mean(),
        NonnegativeMean(),
        Nesterov(),
        HeavyBall(),
        adam(),
        yogi(),
        adagrad(),
        DelayedNesterov(),
        NoLoCo(),
    )
}


def merge(name: str) -> Merge:
    """The merge rule of that name.

    Raises:
        ConfigError: there is none.
    """
    if name not in MERGES:
        raise ConfigError(f"unknown merge rule {name!r}", hint=f"choose one of {', '.join(MERGES)}")
    return MERGES[name]
