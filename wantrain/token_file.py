"""A file of tokens as a data set: windows of equal length, read from disk as they are used."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wantrain.errors import ConfigError


class TokenFile:
    """Windows over a file of tokens, for `swarm.shard`.

    Sample i is a pair of int64 tensors of shape [block]: tokens i·block … and the same shifted by one, the targets.
    Windows do not overlap; what is left at the end is not used. The file is mapped, not loaded.

    Args:
        path: a one-dimensional .npy file, or plain integers one after another.
        dtype: of plain integers, as numpy names it ("uint16", "uint32", …); a .npy file says its own.
        block: tokens in one window, > 0.

    Raises:
        ConfigError: the file cannot be read, or does not hold a window of such integers.
    """

    def __init__(self, path: str | Path, dtype: str = "uint16", *, block: int) -> None:
        if block < 1:
            raise ConfigError(f"TokenFile: block is {block}, allowed are 1 and more")
        self.block = block
        self._tokens = _mapped(Path(path), dtype)
        if len(self) < 1:
            raise ConfigError(
                f"{path} holds {len(self._tokens)} tokens, a window needs {block + 1}", hint="make block smaller"
            )

    def __len__(self) -> int:
        return max(0, len(self._tokens) - 1) // self.block

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if not 0 <= index < len(self):
            raise IndexError(f"window {index} of {len(self)}")
        start = index * self.block
        window = torch.from_numpy(self._tokens[start : start + self.block + 1].astype(np.int64))
        return window[:-1], window[1:]


def _mapped(path: Path, dtype: str) -> "np.ndarray[Any, Any]":
    try:
        if path.suffix == ".npy":
            tokens: np.ndarray[Any, Any] = np.load(path, mmap_mode="r", allow_pickle=False)
        else:
            tokens = np.memmap(path, dtype=np.dtype(dtype), mode="r")
    except (OSError, TypeError, ValueError) as error:
        raise ConfigError(
            f"{path} cannot be read as {dtype} tokens: {error}", hint="check the path, and dtype as numpy names it"
        ) from None
    if tokens.ndim != 1 or tokens.dtype.kind not in "iu":
        raise ConfigError(
            f"{path} holds {tokens.dtype} in {tokens.ndim} dimensions, allowed are integers in one",
            hint="write the token ids one after another",
        )
    return tokens
