"""delayed-nesterov: momentum that moves only at every N-th sync, from the differences kept since (arXiv 2401.09135)."""

from collections.abc import Mapping

import torch
from torch import Tensor


class DelayedNesterov:
    """Buf <- Buf + delta; phi <- phi - lr * (share * mu * m + delta / N), and at every N-th sync instead

        m <- mu * m + Buf / N; phi <- phi - lr * ((1 - share * N + share) * mu * m + delta / N); Buf <- 0

    In the paper each sync is one peer's. Syncs are counted from the start of the run. With N = 1 it is `nesterov`, bit
    for bit. Each operation is rounded to fp32, in the order written.
    """

    name = "delayed-nesterov"
    slots: tuple[str, ...] = ("momentum", "buffer")
    options: Mapping[str, float] = {"lr": 0.7, "momentum": 0.9, "share": 0.0, "wait": 4.0}

    def start(self, options: Mapping[str, float]) -> tuple[float, ...]:
        return 0.0, 0.0

    def apply(
        self, phi: Tensor, delta: Tensor, state: tuple[Tensor, ...], options: Mapping[str, float], scratch: Tensor
    ) -> None:
        momentum, buffer = state
        wait, share, mu = options["wait"], options["share"], options["momentum"]
        buffer.add_(delta)
        delta.div_(wait)
        if options["index"] % wait:
            factor = share * mu
        else:
            momentum.mul_(mu)
            buffer.div_(wait)
            momentum.add_(buffer)
            buffer.zero_()
            factor = (1.0 - share * wait + share) * mu
        torch.mul(momentum, factor, out=scratch)
        scratch.add_(delta)
        scratch.mul_(options["lr"])
        phi.sub_(scratch)
