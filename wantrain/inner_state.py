"""What the inner optimizer keeps for each parameter (moments, momentum), as far as the run exchanges it."""

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from wantrain.errors import ConfigError

STEP = "step"
"""Where optimizers count the steps that a parameter has seen."""


class InnerState:
    """The state of a torch optimizer by parameter and key, such as `exp_avg` of Adam or `momentum_buffer` of SGD.

    An optimizer makes its state at its first step. Where there is none yet it is made by a step with gradients,
    learning rate and weight decay of 0, which changes no weight and leaves all zero (after
    torch.distributed.checkpoint). The step count becomes the run's: a newcomer's moments are as old as everybody's.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> None:
        self._parameters = dict(parameters)
        self._optimizer = optimizer

    def prepare(self, keys: Collection[str]) -> None:
        """Have state under these keys for every parameter.

        Raises:
            ConfigError: the optimizer does not keep it, or not a real number for each of the parameter's.
        """
        if not keys:
            return
        trained = {id(p) for group in self._optimizer.param_groups for p in group["params"]}
        absent = [name for name, p in self._parameters.items() if id(p) not in trained]
        if absent:
            raise ConfigError(
                f"the run exchanges {', '.join(sorted(keys))}, and {absent[0]} is not among the optimizer's parameters",
                hint="give join the optimizer of all parameters, or freeze those that are not trained",
            )
        if fresh := [p for p in self._parameters.values() if not self._optimizer.state.get(p)]:
            _make_state(self._optimizer, fresh)
        for name, parameter in self._parameters.items():
            state = self._optimizer.state[parameter]
            for key in sorted(keys):
                value = state.get(key)
                if not isinstance(value, Tensor) or value.shape != parameter.shape or value.is_complex():
                    kept = ", ".join(
                        k for k, v in state.items() if isinstance(v, Tensor) and v.shape == parameter.shape
                    )
                    raise ConfigError(
                        f"the run exchanges {key}, which {type(self._optimizer).__name__} does not keep for {name}",
                        hint=f"it keeps {kept or 'nothing of that shape'}: take another optimizer, or another method",
                    )

    def value(self, parameter: nn.Parameter, key: str) -> Tensor:
        """The state itself, shaped like the parameter; `prepare` has found it."""
        value: Tensor = self._optimizer.state[parameter][key]
        return value

    def count(self, step: int) -> None:
        """Let every parameter have seen `step` steps."""
        for parameter in self._parameters.values():
            counted = self._optimizer.state[parameter].get(STEP)
            if isinstance(counted, Tensor):
                counted.fill_(step)
            elif counted is not None:
                self._optimizer.state[parameter][STEP] = step


@torch.no_grad()
def _make_state(optimizer: torch.optim.Optimizer, fresh: Collection[nn.Parameter]) -> None:
    """One step, of these parameters only, with gradients, learning rate and weight decay of 0."""
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
        counted = optimizer.state[parameter].get(STEP)
        if isinstance(counted, Tensor):
            counted.zero_()
