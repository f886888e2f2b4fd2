"""Averages: how the contributions to a chunk become one value before the outer rule sees it; the table of them.

The plain weighted mean is a sum that the engine takes as contributions come; the rules here see all of them at once, so
they need the direct topology, where one peer has every contribution to a chunk. They count every contribution alike:
what a peer claims about its own (weight, norm) is not used.
"""

from typing import Protocol

from torch import Tensor

from wantrain.errors import ConfigError
from wantrain.optimizers.coordinate_median import CoordinateMedian
from wantrain.optimizers.plain_mean import PlainMean
from wantrain.optimizers.trimmed_mean import TrimmedMean

CLIPS = ("none", "median")
"""What the norm of a contribution to a chunk may be limited to, before it is averaged."""


class Average(Protocol):
    """One rule; without state of its own."""

    name: str

    def combine(self, rows: Tensor, trim: float, out: Tensor) -> None:
        """Average over the contributors, element by element.

        Args:
            rows: fp32[k, n], k >= 1 contributions, all finite; their content is lost.
            trim: share of the contributions, 0 to under 0.5, that a rule leaves out at each end; others ignore it.
            out: fp32[n], not part of `rows`.
        """


AVERAGES: dict[str, Average] = {rule.name: rule for rule in (PlainMean(), TrimmedMean(), CoordinateMedian())}


def average(name: str) -> Average:
    """The rule of that name.

    Raises:
        ConfigError: there is none.
    """
    if name not in AVERAGES:
        raise ConfigError(f"unknown average {name!r}", hint=f"choose one of {', '.join(AVERAGES)}")
    return AVERAGES[name]
