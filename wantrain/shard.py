"""The order in which a peer's trainer sees its data."""

import hashlib
from collections.abc import Iterable, Iterator
from typing import Any

import torch

from wantrain.errors import ConfigError


def shuffled(dataset: Any, peer: str, seed: int) -> Iterator[Any]:
    """Samples for ever: of a dataset with `len` and indices in a random order of the peer's own, new in every pass.

    Peers see different orders of the whole, not disjoint parts of it. Anything else that can be iterated over again
    (a DataLoader) is passed through as it is, again and again.

    Args:
        dataset: where the samples are.
        peer: id of the peer.
        seed: of the run's data; seed, peer and pass decide the order.

    Raises:
        ConfigError: an empty dataset, or one that can be read only once.
    """
    if hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__"):
        if not len(dataset):
            raise _empty()
        return _indexed(dataset, peer, seed)
    if isinstance(dataset, Iterator):
        raise ConfigError(
            f"shard: a {type(dataset).__name__} can be read only once", hint="pass what it was made from, not iter(…)"
        )
    return _repeated(dataset)


def _indexed(dataset: Any, peer: str, seed: int) -> Iterator[Any]:
    number = 0
    while True:
        digest = hashlib.sha256(f"{seed}/{number}/{peer}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
        for index in torch.randperm(len(dataset), generator=generator):
            yield dataset[int(index)]
        number += 1


def _repeated(dataset: Iterable[Any]) -> Iterator[Any]:
    while True:
        empty = True
        for sample in dataset:
            empty = False
            yield sample
        if empty:
            raise _empty()


def _empty() -> ConfigError:
    return ConfigError("shard: the dataset is empty", hint="check what it was made from")
