"""What the inner optimizer keeps for each parameter (moments, momentum), as far as the run exchanges it."""

from collections.abc import Collection, Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from wantrain.errors import ConfigError

STEP = "step"
"""Where optimizers count the steps that a parameter has seen."""
MU_PRODUCT = "mu_product"
"""Where torch's NAdam keeps the product of the momenta of all of them."""


class InnerState:
    """The state of torch optimizers by parameter and key, such as `exp_avg` of Adam or `momentum_buffer` of SGD.

    An optimizer makes its state at its first step. Where there is none yet it is made by a step with gradients,
    learning rate and weight decay of 0, which changes no weight and leaves all zero (after
    torch.distributed.checkpoint). The step count becomes the run's: a newcomer's moments are as old as everybody's. So
    does NAdam's product of momenta, which follows from it; other numbers that an optimizer keeps cannot be had.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], optimizers: Sequence[torch.optim.Optimizer]) -> None:
        self._parameters = dict(parameters)
        self._owners = {
            id(parameter): optimizer
            for optimizer in optimizers
            for group in optimizer.param_groups
            for parameter in group["params"]
        }

    def prepare(self, keys: Collection[str]) -> None:
        """Have state under these keys for every parameter.

        Raises:
            ConfigError: the optimizer does not keep it, or not a real number for each of the parameter's; or it keeps
                a count of another name, which a newcomer would not have.
        """
        if not keys:
            return
        absent = [name for name, p in self._parameters.items() if id(p) not in self._owners]
        if absent:
            raise ConfigError(
                f"the run exchanges {', '.join(sorted(keys))}, and {absent[0]} is not among the optimizer's parameters",
                hint="give join the optimizer of all parameters, or freeze those that are not trained",
            )
        fresh = [p for p in self._parameters.values() if not self._state(p)]
        for optimizer in {id(owner): owner for owner in self._owners.values()}.values():
            if own := [p for p in fresh if self._owners[id(p)] is optimizer]:
                make_state(optimizer, own)
        for name, parameter in self._parameters.items():
            self._check(name, parameter, sorted(keys))

    def _check(self, name: str, parameter: nn.Parameter, keys: Sequence[str]) -> None:
        state, owner = self._state(parameter), type(self._owners[id(parameter)]).__name__
        for key in keys:
            value = state.get(key)
            if not isinstance(value, Tensor) or value.shape != parameter.shape or value.is_complex():
                kept = ", ".join(k for k, v in state.items() if isinstance(v, Tensor) and v.shape == parameter.shape)
                raise ConfigError(
                    f"the run exchanges {key}, which {owner} does not keep for {name}",
                    hint=f"it keeps {kept or 'nothing of that shape'}: take another optimizer, or another method",
                )
        numbers = (int, float, Tensor) if parameter.dim() else (int, float)
        for key, value in state.items():
            single = isinstance(value, numbers) and (not isinstance(value, Tensor) or value.dim() == 0)
            if single and key not in (STEP, MU_PRODUCT):
                raise ConfigError(
                    f"the run exchanges {', '.join(keys)}, and {owner} keeps {key} for {name}, too: nobody could "
                    f"tell a newcomer what that is by now; allowed are {STEP} and {MU_PRODUCT}",
                    hint="take another optimizer, such as AdamW, or another method",
                )

    def value(self, parameter: nn.Parameter, key: str) -> Tensor:
        """The state itself, shaped like the parameter; `prepare` has found it."""
        value: Tensor = self._state(parameter)[key]
        return value

    def count(self, step: int) -> None:
        """Let every parameter have seen `step` steps."""
        for parameter in self._parameters.values():
            _count(self._owners[id(parameter)], parameter, step)

    def _state(self, parameter: nn.Parameter) -> dict[str, Any]:
        state: dict[str, Any] = self._owners[id(parameter)].state[parameter]
        return state


@cache
def mu_product(steps: int, beta1: float, momentum_decay: float, dtype: torch.dtype) -> float:
    """NAdam's product of momenta after so many steps, as torch computes it: in `dtype`, one factor after another.

    mu_t = beta1 * (1 - 0.96^(t * momentum_decay) / 2) (Dozat 2016, and torch.optim.NAdam).
    """
    product = torch.ones((), dtype=dtype)
    for step in range(1, steps + 1):
        last = product.item()
        product *= beta1 * (1.0 - 0.5 * (0.96 ** (step * momentum_decay)))
        if product.item() == last:
            break  # as small as it becomes
    return product.item()


def _count(optimizer: torch.optim.Optimizer, parameter: nn.Parameter, steps: int) -> None:
    """Let a parameter have seen so many steps."""
    state = optimizer.state[parameter]
    counted, product = state.get(STEP), state.get(MU_PRODUCT)
    if isinstance(counted, Tensor):
        counted.fill_(steps)
    elif counted is not None:
        state[STEP] = steps
    if isinstance(product, Tensor):
        group = next(g for g in optimizer.param_groups if any(one is parameter for one in g["params"]))
        product.fill_(mu_product(steps, group["betas"][0], group["momentum_decay"], product.dtype))


@torch.no_grad()
def make_state(optimizer: torch.optim.Optimizer, fresh: Collection[nn.Parameter]) -> None:
    """Have an optimizer make its state for these parameters: one step of only them, with gradients, learning rate and
    weight decay of 0."""
    every = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    gradients = [parameter.grad for parameter in every]
    options: list[dict[str, Any]] = [
        {key: group[key] for key in ("lr", "weight_decay") if key in group} for group in optimizer.param_groups
    ]
    wanted = {id(parameter) for parameter in fresh}
    try:
        for parameter in every:
            parameter.grad = torch.zeros_like(parameter) if id(parameter) in wanted else None
        for group, values in zip(optimizer.param_groups, options, strict=True):
            group.update({k: torch.zeros_like(v) if isinstance(v, Tensor) else 0.0 for k, v in values.items()})
        optimizer.step()
    finally:
        for group, values in zip(optimizer.param_groups, options, strict=True):
            group.update(values)
        for parameter, gradient in zip(every, gradients, strict=True):
            parameter.grad = gradient
    for parameter in fresh:
        _count(optimizer, parameter, 0)
