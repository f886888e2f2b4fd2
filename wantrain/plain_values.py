"""Values as JSON holds them, and back: options of optimizers, the state of schedulers, single numbers of tensors.

JSON has no tuples and no keys but strings. So a dictionary with others is written as a list of pairs under `pairs`, and
what is read becomes like the value in whose place it goes.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from wantrain.errors import ConfigError

PAIRS = "\0pairs"


def plain(value: Any, where: str) -> Any:
    """The value as JSON holds it; all floats come back as they were.

    Args:
        value: None, a bool, number, string, tensor of one number, or lists, tuples and dictionaries of such.
        where: what it is, for the error.

    Raises:
        ConfigError: it is something else.
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Tensor) and not value.dim() and not value.is_complex():
        return value.item()
    if isinstance(value, (list, tuple)):
        return [plain(one, where) for one in value]
    if isinstance(value, Mapping):
        if all(isinstance(key, str) and key != PAIRS for key in value):
            return {key: plain(one, f"{where}.{key}") for key, one in value.items()}
        return {PAIRS: [[plain(key, where), plain(one, f"{where}[{key!r}]")] for key, one in value.items()]}
    raise ConfigError(
        f"{where} is of type {type(value).__name__}, which cannot be saved without pickle",
        hint="allowed are numbers, strings, lists, tuples and dictionaries; save the rest in a way of your own",
    )


def alike(saved: Any, current: Any) -> Any:
    """What `plain` gave, as a value like `current`: a tuple, a tensor (filled in place), a dictionary of its kind."""
    if isinstance(current, Tensor):
        with torch.no_grad():
            return current.fill_(saved)
    if isinstance(saved, list):
        before = current if isinstance(current, (list, tuple)) else ()
        values = [alike(one, before[k] if k < len(before) else None) for k, one in enumerate(saved)]
        return tuple(values) if isinstance(current, tuple) else values
    if isinstance(saved, dict):
        there = current if isinstance(current, Mapping) else {}
        pairs = saved[PAIRS] if PAIRS in saved else list(saved.items())
        found = {key: alike(one, there.get(key)) for key, one in pairs}
        return type(current)(found) if isinstance(current, dict) and type(current) is not dict else found
    return saved
