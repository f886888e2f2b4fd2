"""A contribution that was answered before its sync is decided: its copy, and a guess at what it will come to.

With `answer = "delayed"` or `"eager"` in its stream a trainer that contributes goes on at once from the state at hand.
Its memory is its own again then, so the contribution has to lie somewhere else until a sync has taken it in.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from wantrain.optimizers.merge import Merge
from wantrain.transport.memory import big


class Ahead:
    """Of one stream on one peer; all tensors are fp32 on the CPU.

    The guess of `eager` is the outer rule on the peer's own share of the mean: as the rule is linear, what it has added
    to phi for the sync before is in phi by now, and falls out. So its private state is that of the rule alone, and
    what a trainer starts from is phi after D_mean(1) … D_mean(t-1) and D_own(t) * share in the place of D_mean(t)
    (arXiv 2502.12996, eager updates). With a share of 1 that is phi after sync t, bit for bit.

    Args:
        elements: length of the stream's vector.
        rule: its outer rule, linear in the difference.
        eager: whether there is a guess.
    """

    def __init__(self, elements: int, rule: Merge, *, eager: bool) -> None:
        self.values = big(elements)
        """The contribution in use."""
        self._rule = rule
        self._eager = eager
        self._private = tuple(big(elements) for _ in rule.slots) if eager else ()
        self._owed = False
        """Whether what `values` holds was in no sync, and belongs to the next contribution."""
        self._orphaned = False
        """Whether the trainer that has made it is gone: what was in no sync is lost with it."""

    @property
    def size_bytes(self) -> int:
        return 4 * self.values.numel() * (1 + len(self._private))

    def take(self, values: Tensor) -> Tensor:
        """Take in fp32[elements] of a contribution, on top of what is owed; what is to be sent of it."""
        if self._owed:
            self.values.add_(values)
        else:
            self.values.copy_(values)
        self._owed = self._orphaned = False
        return self.values

    def settle(self, *, keep: bool) -> None:
        """What is in use is decided; `keep`: no sync has it, and it is to be in the next contribution."""
        self._owed = keep and not self._orphaned

    def trainer_left(self) -> None:
        """The next contribution is another trainer's, who starts from phi: nothing is private yet."""
        self._orphaned = True
        self._owed = False
        self._begin()

    def forget(self) -> None:
        """The history that this comes from is over, and that of the contribution in use with it."""
        self._owed, self._orphaned = False, True
        self._begin()

    def _begin(self) -> None:
        for slot in self._private:
            slot.zero_()

    def answer(
        self,
        phi: Tensor,
        given: Tensor,
        bounds: Sequence[tuple[int, int]],
        share: float,
        options: Mapping[str, float],
        scratch: tuple[Tensor, Tensor],
    ) -> None:
        """Fill `given` with what the trainer goes on from: phi, and with `eager` the guess on top.

        Args:
            phi: fp32[elements].
            given: fp32[elements].
            bounds: the stream's chunks.
            share: what of the mean this peer's contribution will be, > 0 and at most 1.
            options: of the rule.
            scratch: two fp32 tensors of the length of a chunk or more.
        """
        given.copy_(phi)
        for start, stop in bounds if self._eager else ():
            part, other = (tensor[: stop - start] for tensor in scratch)
            torch.mul(self.values[start:stop], share, out=part)
            private = tuple(slot[start:stop] for slot in self._private)
            self._rule.apply(given[start:stop], part, private, {**options, "index": 1.0}, other)
