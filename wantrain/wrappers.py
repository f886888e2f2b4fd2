"""What is wrapped around a model (DDP, torch.compile, FSDP2): the model inside and its parameters' names."""

from typing import Any

from torch import nn

from wantrain.errors import ConfigError

_IN_NAMES = ("_orig_mod", "_checkpoint_wrapped_module")
"""What torch.compile and activation checkpointing add to the names of parameters."""


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside DistributedDataParallel, DataParallel and torch.compile, whose parameters have their own names.

    Raises:
        ConfigError: it is in the older FullyShardedDataParallel, which does not tell which part of what a rank holds.
    """
    if any(_is(module, "FullyShardedDataParallel") for module in model.modules()):
        raise ConfigError(
            "the model is in FullyShardedDataParallel, of which a run cannot be made",
            hint="shard it with torch.distributed.fsdp.fully_shard (FSDP2)",
        )
    while True:
        if isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
            model = model.module
        elif isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            model = inner
        else:
            return model


def plain_name(name: str) -> str:
    """A parameter's name without what wrappers add, so that peers may wrap or not, as they like."""
    return ".".join(part for part in name.split(".") if part not in _IN_NAMES)


class FullyShardedParts:
    """The modules of a model that `fully_shard` has been applied to."""

    def __init__(self, model: nn.Module) -> None:
        self._parts: list[Any] = [module for module in model.modules() if _is(module, "FSDPModule")]

    def reshard(self) -> None:
        """Have the shards as parameters: after a forward without a backward gathered copies are in their place."""
        for part in self._parts:
            part.reshard()


def _is(module: nn.Module, name: str) -> bool:
    """By name, as importing the class takes long."""
    return any(kind.__name__ == name for kind in type(module).__mro__)
