"""nesterov: outer SGD with Nesterov momentum, DiLoCo's outer optimizer (arXiv 2311.08105, algorithm 1)."""

from collections.abc import Mapping

import torch
from torch import Tensor


class Nesterov:
    """b <- mu * b + delta; phi <- phi - lr * (delta + mu * b), as torch.optim.SGD(nesterov=True) has it.

    The first step is lr * (1 + mu) * delta, the steady gain lr / (1 - mu). Order of operations, each rounded to fp32:
    mu * b, + delta, mu * b, + delta, * lr, phi - it.
    """

    name = "nesterov"
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
        torch.mul(momentum, options["momentum"], out=scratch)
        scratch.add_(delta)
        scratch.mul_(options["lr"])
        phi.sub_(scratch)
