"""mean: every contribution counts alike; only with clipped norms is it a defence, and then a weak one."""

from torch import Tensor


class PlainMean:
    """(x_1 + … + x_k) / k: added in the given order, then divided."""

    name = "mean"

    def combine(self, rows: Tensor, trim: float, out: Tensor) -> None:
        out.copy_(rows[0])
        for row in rows[1:]:
            out.add_(row)
        if len(rows) > 1:
            out.div_(len(rows))
