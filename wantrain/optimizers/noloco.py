"""NoLoCo: gossip in random pairs, every peer with weights and momentum of its own (arXiv 2506.10911)."""

from dataclasses import dataclass
from typing import Annotated

from wantrain.errors import ConfigError
from wantrain.optimizers.options import Range
from wantrain.optimizers.stream import Stream, Wire

WHOLE_VALUES = ("fp32", "bf16")
"""Formats that bear weights as they are. There is no common phi that a difference could be taken to."""


@dataclass(frozen=True, slots=True)
class NolocoOptions:
    """Options of `noloco`. The paper's: every 50, alpha 0.5, beta 0.7, gamma as beta; inner gradients clipped to 1."""

    every: Annotated[int, Range(1, 10**9)] = 50
    """H: inner steps between two exchanges of a peer."""
    alpha: Annotated[float, Range(0, 1, open_high=True)] = 0.5
    """Momentum of each peer's own outer steps."""
    beta: Annotated[float, Range(0, 1000, open_low=True)] = 0.7
    """Weight of the pair's mean outer gradient."""
    gamma: Annotated[float, Range(0, 1000, open_low=True)] = 0.7
    """Pull towards the pair's mean; under 2 * (1 - alpha**2), or the replicas fly apart."""
    total: Annotated[int, Range(0, 10**9)] = 0
    """Inner steps of the run, after which all replicas come to their mean in one exchange; 0: not known."""


def noloco(options: NolocoOptions, wire: Wire) -> tuple[Stream, ...]:
    """One stream, exchanged in pairs that are drawn at random; a peer without a partner takes the step alone.

    d_i <- alpha d_i + beta mean_j(theta_j - phi_j) + gamma (mean_j phi_j - phi_i); phi_i <- phi_i + d_i;
    theta_i <- phi_i: the paper's outer step, with means over the pair. The mean of all phi_i follows heavy ball on the
    mean outer gradient.

    Raises:
        ConfigError: the replicas would fly apart, the codec is too coarse for weights, or the run would end in a round.
    """
    if options.total % options.every:
        raise ConfigError(
            f"noloco: total is {options.total}; allowed: a multiple of every, which is {options.every}, or 0",
            hint="the run ends with an exchange of everybody",
        )
    bound = 2 * (1 - options.alpha**2)
    if options.gamma >= bound:
        raise ConfigError(
            f"noloco: gamma is {options.gamma}; allowed with alpha = {options.alpha}: a number < {bound:.4g}, which is "
            "2 * (1 - alpha**2): beyond it the replicas move apart by themselves",
            hint="lower gamma or alpha; the paper's are 0.7 and 0.5",
        )
    for codec in (wire.codec, wire.down or wire.codec):
        if codec.partition("+")[0] not in WHOLE_VALUES:
            raise ConfigError(
                f"noloco: codec is {codec!r}; allowed: {' or '.join(WHOLE_VALUES)}, as peers exchange weights and not "
                "differences to a value that both hold",
                hint='leave codec out of [wire], or set it to "fp32"; bf16 loses what moves a weight by under 0.2 %',
            )
    return (
        Stream(
            name="param",
            every=options.every,
            merge="noloco",
            merge_options=(("alpha", options.alpha), ("beta", options.beta), ("gamma", options.gamma)),
            codec=wire.codec,
            down=wire.down,
            topology="pair",
            last=options.total // options.every,
        ),
    )
