"""adam, yogi, adagrad: outer steps scaled by each value's own second moment (FedOpt, arXiv 2003.00295, algorithm 2)."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

LARGEST = torch.finfo(torch.float32).max


class Adaptive:
    """m <- beta1 * m + (1 - beta1) * delta; v <- second(v, delta^2); phi <- phi - lr * m / (sqrt(v) + scale).

    The paper ascends along D = -delta; here m has the other sign. v begins at scale^2, which the paper allows as the
    least, there is no bias correction, and v stays finite whatever comes. Order of operations, each rounded to fp32:
    beta1 * m, (1 - beta1) * delta, their sum; delta * delta and v as its function says; sqrt(v), + scale; lr * m, / it,
    phi - it.

    Args:
        name: of the rule.
        second: changes v in place from v, delta^2 (its content is lost), beta2 and scratch memory, all fp32[n].
    """

    slots: tuple[str, ...] = ("momentum", "second")

    def __init__(self, name: str, second: Callable[[Tensor, Tensor, float, Tensor], None], **more: float) -> None:
        self.name = name
        self.options: Mapping[str, float] = {"lr": 0.01, "beta1": 0.9, "scale": 1e-3, **more}
        self._second = second

    def start(self, options: Mapping[str, float]) -> tuple[float, ...]:
        return 0.0, options["scale"] ** 2

    def apply(
        self, phi: Tensor, delta: Tensor, state: tuple[Tensor, ...], options: Mapping[str, float], scratch: Tensor
    ) -> None:
        momentum, second = state
        momentum.mul_(options["beta1"])
        torch.mul(delta, 1.0 - options["beta1"], out=scratch)
        momentum.add_(scratch)
        delta.mul_(delta)
        self._second(second, delta, options.get("beta2", 0.0), scratch)
        second.clamp_(max=LARGEST)
        torch.sqrt(second, out=scratch)
        scratch.add_(options["scale"])
        torch.mul(momentum, options["lr"], out=delta)
        delta.div_(scratch)
        phi.sub_(delta)


def adam() -> Adaptive:
    """v <- beta2 * v + (1 - beta2) * delta^2."""

    def second(v: Tensor, square: Tensor, beta2: float, scratch: Tensor) -> None:
        v.mul_(beta2)
        square.mul_(1.0 - beta2)
        v.add_(square)

    return Adaptive("adam", second, beta2=0.99)


def yogi() -> Adaptive:
    """v <- v - (1 - beta2) * delta^2 * sign(v - delta^2): grows as Adam's does and shrinks more slowly."""

    def second(v: Tensor, square: Tensor, beta2: float, scratch: Tensor) -> None:
        torch.sub(v, square, out=scratch)
        scratch.sign_()
        square.mul_(1.0 - beta2)
        square.mul_(scratch)
        v.sub_(square)

    return Adaptive("yogi", second, beta2=0.99)


def adagrad() -> Adaptive:
    """v <- v + delta^2."""

    def second(v: Tensor, square: Tensor, beta2: float, scratch: Tensor) -> None:
        v.add_(square)

    return Adaptive("adagrad", second)
