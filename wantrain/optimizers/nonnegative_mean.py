"""nonnegative-mean: the mean, never below 0: for averages of squares, which lossy codecs could take there."""

from collections.abc import Mapping

from torch import Tensor


class NonnegativeMean:
    """phi <- max(0, phi - delta)."""

    name = "nonnegative-mean"
    slots: tuple[str, ...] = ()
    options: Mapping[str, float] = {}

    def start(self, options: Mapping[str, float]) -> tuple[float, ...]:
        return ()

    def apply(
        self, phi: Tensor, delta: Tensor, state: tuple[Tensor, ...], options: Mapping[str, float], scratch: Tensor
    ) -> None:
        phi.sub_(delta)
        phi.clamp_(min=0.0)
