"""Methods: named sets of streams; the table of them, and how a run spec's method becomes its streams."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

from wantrain.errors import ConfigError
from wantrain.optimizers.ddp import DdpOptions, ddp
from wantrain.optimizers.des_loc import DesLocOptions, des_loc
from wantrain.optimizers.diloco import DilocoOptions, diloco
from wantrain.optimizers.eager import EagerOptions, eager
from wantrain.optimizers.fedopt import FedAdagradOptions, FedAdamOptions, fedopt
from wantrain.optimizers.local_adam import LocalAdamOptions, local_adam
from wantrain.optimizers.local_sgd import LocalSgdOptions, local_sgd
from wantrain.optimizers.noloco import NolocoOptions, noloco
from wantrain.optimizers.options import nearest, read_options
from wantrain.optimizers.sparta import SpartaOptions, sparta
from wantrain.optimizers.stream import Stream, Wire
from wantrain.optimizers.streaming_diloco import StreamingDilocoOptions, streaming_diloco

Options = TypeVar("Options")


@dataclass(frozen=True, slots=True)
class Method(Generic[Options]):
    """One row of the table."""

    options: type[Options]
    """Frozen dataclass of the method's options, with defaults."""
    streams: Callable[[Options, Wire], tuple[Stream, ...]]
    """From the options and the run's way of moving values to the streams."""
    codec: str = "int8"
    """Codec of contributions if the run names none."""

    def build(self, name: str, values: Mapping[str, object], wire: Wire) -> tuple[Stream, ...]:
        return self.streams(read_options(self.options, name, values), wire)


METHODS: dict[str, Method[Any]] = {
    "ddp": Method(DdpOptions, ddp),
    "local-sgd": Method(LocalSgdOptions, local_sgd),
    "local-adam": Method(LocalAdamOptions, local_adam),
    "des-loc": Method(DesLocOptions, des_loc),
    "diloco": Method(DilocoOptions, diloco),
    "sparta": Method(SpartaOptions, sparta),
    "streaming-diloco": Method(StreamingDilocoOptions, streaming_diloco, codec="int4"),
    "eager": Method(EagerOptions, partial(eager, "eager")),
    "delayed": Method(EagerOptions, partial(eager, "delayed")),
    "fedadam": Method(FedAdamOptions, partial(fedopt, "adam")),
    "fedyogi": Method(FedAdamOptions, partial(fedopt, "yogi")),
    "fedadagrad": Method(FedAdagradOptions, partial(fedopt, "adagrad")),
    "noloco": Method(NolocoOptions, noloco, codec="fp32"),
}


def method(name: str) -> Method[Any]:
    """The method of that name.

    Raises:
        ConfigError: there is none.
    """
    if name not in METHODS:
        raise ConfigError(f"unknown method {name!r}", hint=nearest(name, METHODS))
    return METHODS[name]


def build(name: str, options: Mapping[str, object], wire: Wire) -> tuple[Stream, ...]:
    """The streams of the method `name`, with `options` over its defaults.

    Raises:
        ConfigError: unknown method or option, or a value of the wrong type or out of range.
    """
    return method(name).build(name, options, wire)
