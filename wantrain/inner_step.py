"""When an inner step begins and ends, as the hooks of one or several optimizers tell it."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from wantrain.errors import ConfigError


def in_order(optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer]) -> tuple[torch.optim.Optimizer, ...]:
    """One optimizer, or several in the order in which they step, as several; of wrapped ones what is in them.

    Raises:
        ConfigError: none, or one twice.
    """
    several = tuple(map(stepping, (optimizer,) if isinstance(optimizer, torch.optim.Optimizer) else optimizer))
    if not several or len({id(one) for one in several}) != len(several):
        raise ConfigError(
            f"{len(several)} optimizers, allowed are 1 and more, each once",
            hint="give those that train the model, in the order in which they step",
        )
    return several


def stepping(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """The optimizer that really steps: accelerate and Lightning wrap it in an object that has no hooks of its own."""
    while not hasattr(optimizer, "_optimizer_step_post_hooks"):
        inner = getattr(optimizer, "optimizer", None)
        if not isinstance(inner, torch.optim.Optimizer):
            raise ConfigError(
                f"{type(optimizer).__name__} is no torch.optim.Optimizer whose steps can be followed",
                hint="give join the optimizer that is in it",
            )
        optimizer = inner
    return optimizer


class InnerSteps:
    """Calls `before` ahead of the first optimizer's step and `after` behind the last one's, in each inner step.

    A step that does not happen (a GradScaler has found an infinite gradient) is none: of one optimizer nothing is
    called, of several the inner step is over when an earlier one of them steps again. Where the optimizer gets its
    gradients from a closure, as Lightning gives it one, `before` is called when that has been through once.

    Args:
        optimizers: in the order in which they step.
        before: gradients are there, and no optimizer has stepped.
        after: all have.
    """

    def __init__(
        self, optimizers: Sequence[torch.optim.Optimizer], before: Callable[[], None], after: Callable[[], None]
    ) -> None:
        self._places = {id(optimizer): place for place, optimizer in enumerate(optimizers)}
        self._before, self._after = before, after
        self._under_way = False
        self._stepped = -1
        """Place of the last optimizer that has stepped in the inner step under way."""
        self._hooks: list[Any] = []
        for optimizer in optimizers:
            self._hooks += [
                optimizer.register_step_pre_hook(self._begins),
                optimizer.register_step_post_hook(self._ended),
            ]

    def close(self) -> None:
        """Call nothing any more."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def _begins(
        self, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        if self._under_way and self._places[id(optimizer)] <= self._stepped:
            self._over()
        if self._under_way:
            return None
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)  # args[0] is the optimizer
        if closure is None:
            self._begin()
            return None

        def closed() -> Any:
            loss = closure()
            self._begin()
            return loss

        if "closure" in kwargs:
            return args, {**kwargs, "closure": closed}
        return (args[0], closed, *args[2:]), kwargs

    def _begin(self) -> None:
        if not self._under_way:
            self._under_way = True
            self._before()

    def _ended(self, optimizer: torch.optim.Optimizer, *_: object) -> None:
        self._begin()  # of a closure that was not called
        self._stepped = self._places[id(optimizer)]
        if self._stepped == len(self._places) - 1:
            self._over()

    def _over(self) -> None:
        self._under_way, self._stepped = False, -1
        self._after()


def refuse_scaled(optimizers: Sequence[torch.optim.Optimizer]) -> None:
    """See that gradients are what they seem: a fused optimizer divides them by the GradScaler's scale only in its step.

    Raises:
        ConfigError: they are still multiplied by it.
    """
    if any(getattr(optimizer, "grad_scale", None) is not None for optimizer in optimizers):
        raise ConfigError(
            "the gradients that are to be exchanged are still multiplied by the GradScaler's scale",
            hint="call scaler.unscale_(optimizer) before scaler.step(optimizer)",
        )
