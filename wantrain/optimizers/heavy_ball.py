"""heavy-ball: outer SGD with Polyak momentum, as torch.optim.SGD(nesterov=False) has it."""

from collections.abc import Mapping

import torch
from torch import Tensor


class HeavyBall:
    """b <- mu * b + delta; phi <- phi - lr * b.

    The first step is lr * delta, the steady gain lr / (1 - mu). Order of operations, each rounded to fp32: mu * b,
    + delta, * lr, phi - it.
    """

    name = "heavy-ball"
    slots: tuple[str, ...] = ("momentum",)
    options: Mapping[str, float] = {"lr": 0.7, "momentum": 0.9}

    def start(self, options: Mapping[str, float]) -> tuple[float, ...]:
        return (0.0,)

    def apply(
        self, phi: Tensor, delta: Tensor, state: tuple[Tensor, ...], options: Mapping[str, float], scratch: Tensor
    ) -> None:
        (momentum,) = state
        momentum.mul_(options["momentum"])
        momentum.add_(delta)
        torch.mul(momentum, options["lr"], out=scratch)
        phi.sub_(scratch)
