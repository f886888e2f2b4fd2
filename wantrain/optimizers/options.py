"""Options of a method: a frozen dataclass whose annotations say what is allowed, read from plain values."""

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from wantrain.errors import ConfigError

Options = TypeVar("Options")


@dataclass(frozen=True, slots=True)
class Range:
    """Allowed numbers, for use in `Annotated`: between `low` and `high`, which are in it unless said to be open."""

    low: float
    high: float
    open_low: bool = False
    open_high: bool = False

    def __contains__(self, value: float) -> bool:
        above = value > self.low if self.open_low else value >= self.low
        below = value < self.high if self.open_high else value <= self.high
        return above and below

    def __str__(self) -> str:
        return f"{'>' if self.open_low else '>='} {self.low} and {'<' if self.open_high else '<='} {self.high}"


def read_options(kind: type[Options], method: str, values: Mapping[str, object]) -> Options:
    """An instance of the options dataclass `kind`, with its defaults where `values` says nothing.

    Raises:
        ConfigError: unknown option, or a value of the wrong type or out of range.
    """
    hints = get_type_hints(kind, include_extras=True)
    defaults = {field.name: field.default for field in fields(kind)}  # type: ignore[arg-type]
    for name in values:
        if name not in hints:
            raise ConfigError(f"method {method} has no option {name!r}", hint=nearest(name, hints))
    read = {name: _read(f"{method}: {name}", hints[name], value, defaults[name]) for name, value in values.items()}
    return kind(**read)


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint for a name that is not known: the nearest that is, and all of them."""
    names = list(known)
    close = difflib.get_close_matches(name, names, n=1)
    return (f"did you mean {close[0]!r}? " if close else "") + f"known: {', '.join(names)}"


def _read(where: str, hint: Any, value: object, default: object) -> object:
    """The value as its annotation `hint` wants it: bool, Literal of strings, or Annotated[int or float, Range]."""
    if hint is bool:
        if isinstance(value, bool):
            return value
        raise ConfigError(f"{where} is {value!r}; allowed: true or false", hint=f"the default is {default}")
    if get_origin(hint) is Literal:
        choices = get_args(hint)
        if isinstance(value, str) and value in choices:
            return value
        raise ConfigError(f"{where} is {value!r}; allowed: {', '.join(choices)}", hint=nearest(str(value), choices))
    kind, allowed = get_args(hint)
    accepted = (int,) if kind is int else (int, float)
    if isinstance(value, accepted) and not isinstance(value, bool) and value in allowed:
        return kind(value)
    what = "a whole number" if kind is int else "a number"
    raise ConfigError(f"{where} is {value!r}; allowed: {what} {allowed}", hint=f"the default is {default}")
