"""noloco: the outer step of a peer with momentum of its own, towards the mean of a pair (arXiv 2506.10911)."""

from collections.abc import Mapping

import torch
from torch import Tensor


class NoLoCo:
    """The rule of a pair, with one value on the wire: v_j = (gamma / beta) phi_j - (phi_j - theta_j).

    As beta mean(theta - phi) + gamma mean(phi) = beta mean(v), the step of peer i is d_i <- alpha d_i +
    beta (mean v - (gamma / beta) phi_i); phi_i <- phi_i + d_i. With gamma = beta, v_j is theta_j.
    """

    name = "noloco"
    slots: tuple[str, ...] = ("momentum",)
    options: Mapping[str, float] = {"alpha": 0.5, "beta": 0.7, "gamma": 0.7}

    def start(self, options: Mapping[str, float]) -> tuple[float, ...]:
        return (0.0,)

    def offer(self, phi: Tensor, delta: Tensor, options: Mapping[str, float], out: Tensor) -> None:
        """out <- v, what a peer sends. All are fp32[n]; delta is phi - theta."""
        if options["gamma"] == options["beta"]:
            torch.sub(phi, delta, out=out)
        else:
            torch.mul(phi, options["gamma"] / options["beta"], out=out)
            out.sub_(delta)

    def apply(
        self, phi: Tensor, delta: Tensor, state: tuple[Tensor, ...], options: Mapping[str, float], scratch: Tensor
    ) -> None:
        """One step; see `merge.Merge`. What it gets as `delta` is the mean of v over the group."""
        (momentum,) = state
        momentum.mul_(options["alpha"])
        if options["gamma"] == options["beta"]:
            delta.sub_(phi)
        else:
            torch.mul(phi, options["gamma"] / options["beta"], out=scratch)
            delta.sub_(scratch)
        delta.mul_(options["beta"])
        momentum.add_(delta)
        phi.add_(momentum)

    def agree(self, phi: Tensor, mean: Tensor, state: tuple[Tensor, ...], options: Mapping[str, float]) -> None:
        """All replicas become one: phi <- (beta / gamma) mean of v, d <- 0.

        That is a plain outer step of rate beta / gamma from the mean of all phi; with gamma = beta, the mean of theta.
        """
        (momentum,) = state
        if options["gamma"] == options["beta"]:
            phi.copy_(mean)
        else:
            torch.mul(mean, options["beta"] / options["gamma"], out=phi)
        momentum.zero_()
