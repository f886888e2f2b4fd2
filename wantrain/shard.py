"""What a trainer draws its samples from: data sets by name, in the run's order as far as this trainer was leased it."""

import itertools
import operator
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any, SupportsIndex

from torch.utils.data import default_collate

from wantrain.errors import ConfigError
from wantrain.peers.messages import MAX_COUNT, MAX_DATA, MAX_NAME, Drawn, Leased, WantLease
from wantrain.peers.supply import Supply
from wantrain.permutation import Permutation


class Shards:
    """The data sets of one trainer process, and how far it is in each."""

    def __init__(self) -> None:
        self._reader = os.urandom(8)
        self._supplies: dict[str, Supply] = {}
        self._orders: dict[str, Permutation] = {}
        """The order that was used last, by data set."""
        self._epochs: dict[str, int] = {}

    def open(self, name: str, length: int, seed: int, epochs: int | None) -> Supply:
        """The supply of a data set; the same one if it is opened again.

        Raises:
            ConfigError: an argument that cannot be used, or another data set was opened under this name.
        """
        seed, epochs = _whole("seed", seed), None if epochs is None else _whole("epochs", epochs)
        _check(name, length, seed, epochs)
        known = self._supplies.get(name)
        if known is None:
            if len(self._supplies) >= MAX_DATA:
                raise ConfigError(f"shard: {MAX_DATA} data sets are open, more are not allowed", hint="join some")
            known = self._supplies[name] = Supply(name, length, seed, epochs or 0, self._reader)
        if (known.length, known.seed, known.epochs) != (length, seed, epochs or 0):
            raise ConfigError(
                f"shard: data set {name!r} was opened with {known.length} samples, seed {known.seed} and "
                f"{known.epochs or 'endless'} epochs, now with {length}, {seed} and {epochs or 'endless'}",
                hint="give this one another name",
            )
        return known

    def questions(self, now: float) -> list[WantLease]:
        """What is to be asked of the coordinator now; for errors see `Supply.ask`."""
        asked = (supply.ask(now) for supply in self._supplies.values())
        return [want for want in asked if want is not None]

    def leased(self, record: Leased, now: float) -> None:
        """An answer has come."""
        if (supply := self._supplies.get(record.data)) is not None:
            supply.leased(record, now)

    def stepped(self) -> None:
        """An inner step was made with what was drawn so far."""
        for supply in self._supplies.values():
            supply.stepped()

    def restart(self) -> None:
        """The weights were replaced by the run's: what was drawn and not committed is nobody's progress any more."""
        self._reader = os.urandom(8)
        for supply in self._supplies.values():
            supply.restart(self._reader)

    @property
    def drawn(self) -> Drawn:
        """What of the leases the weights contain."""
        if not self._supplies:
            return Drawn()
        return Drawn(self._reader, {name: supply.settled for name, supply in self._supplies.items()})

    def index(self, supply: Supply, epoch: int, position: int) -> int:
        """The sample at a position of the run's order in an epoch."""
        if self._epochs.get(supply.data) != epoch:
            self._epochs[supply.data] = epoch
            self._orders[supply.data] = Permutation(supply.length, supply.seed, epoch)
        return self._orders[supply.data].index(position)

    def own_order(self, supply: Supply) -> Iterator[int]:
        """Samples for ever in an order of this process's own: for a trainer that has lost the run."""
        seed = int.from_bytes(self._reader, "big")
        for epoch in itertools.count():
            order = Permutation(supply.length, seed, epoch)
            yield from map(order.index, range(supply.length))


def samples(dataset: Any, draw: Callable[[int], list[int]], batch: int | None) -> Iterator[Any]:
    """The samples that `draw` names until it names none; in batches as a DataLoader makes them, if asked for.

    Args:
        dataset: where they are.
        draw: the next samples, at most so many.
        batch: samples at once; None: single.
    """
    while drawn := draw(batch or 1):
        several = [dataset[index] for index in drawn]
        if batch is None:
            yield from several
        else:
            yield default_collate(several)


def repeated(dataset: Iterable[Any], epochs: int | None) -> Iterator[Any]:
    """What has no length and indices (a DataLoader), as it is, again and again: each peer goes through all of it.

    Raises:
        ConfigError: it can be read only once, or it is empty.
    """
    if isinstance(dataset, Iterator):
        raise ConfigError(
            f"shard: a {type(dataset).__name__} can be read only once", hint="pass what it was made from, not iter(…)"
        )
    return _passes(dataset, epochs)


def _passes(dataset: Iterable[Any], epochs: int | None) -> Iterator[Any]:
    for _ in itertools.count() if epochs is None else range(epochs):
        empty = True
        for sample in dataset:
            empty = False
            yield sample
        if empty:
            raise _empty()


def _check(name: str, length: int, seed: int, epochs: int | None) -> None:
    if not length:
        raise _empty()
    if not isinstance(name, str) or not 0 < len(name) <= MAX_NAME or not name.isprintable():
        said = f"{name[:40]!r} has {len(name)} characters" if isinstance(name, str) else f"is {name!r}"
        raise ConfigError(
            f"shard: the name {said}, allowed are 1 to {MAX_NAME} printable ones", hint="give the data set another name"
        )
    if not 0 <= seed <= MAX_COUNT:
        raise ConfigError(
            f"shard: seed is {seed}, allowed is 0 to 2**62", hint="leave it out, or give a smaller number"
        )
    if epochs is not None and not 1 <= epochs <= MAX_COUNT:
        raise ConfigError(f"shard: epochs is {epochs}, allowed is 1 to 2**62", hint="leave it out to go on for ever")


def _whole(option: str, value: SupportsIndex) -> int:
    """The number as a plain int, whatever kind of integer it is: numpy's and torch's cannot be sent."""
    try:
        return operator.index(value)
    except (TypeError, RuntimeError):
        raise ConfigError(f"shard: {option} is {value!r}, allowed are integers", hint=f"pass int({option})") from None


def _empty() -> ConfigError:
    return ConfigError("shard: the dataset is empty", hint="check what it was made from")
