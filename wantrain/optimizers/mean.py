"""mean: phi <- phi - lr * delta; with lr 1, phi becomes the mean of the contributors (FedAvg, arXiv 1602.05629)."""

from collections.abc import Mapping

from torch import Tensor


class Mean:
    """Plain outer SGD: phi <- phi - lr * delta."""

    name = "mean"
    slots: tuple[str, ...] = ()
    options: Mapping[str, float] = {"lr": 1.0}

    def start(self, options: Mapping[str, float]) -> tuple[float, ...]:
        return ()

    def apply(
        self, phi: Tensor, delta: Tensor, state: tuple[Tensor, ...], options: Mapping[str, float], scratch: Tensor
    ) -> None:
        if options["lr"] != 1.0:
            delta.mul_(options["lr"])
        phi.sub_(delta)
