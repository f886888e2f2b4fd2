"""The table of trackers, and how `--track NAME:TEXT` becomes one."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from wantrain.errors import ConfigError
from wantrain.tracking import jsonl, tensorboard, trackio, wandb
from wantrain.tracking.feed import Feed
from wantrain.tracking.tracker import Load, Source

ALWAYS = "jsonl"


@dataclass(frozen=True, slots=True)
class Kind:
    """One row of the table."""

    load: Load
    text: str
    """What may follow the name after a colon."""


TRACKERS: dict[str, Kind] = {
    "tensorboard": Kind(tensorboard.load, "DIR"),
    "wandb": Kind(wandb.load, "PROJECT"),
    "trackio": Kind(trackio.load, "PROJECT"),
}
"""All but the one that is always there. Its package is an extra of the same name."""


def check(wanted: Sequence[str]) -> None:
    """Whether these are trackers.

    Raises:
        ConfigError: one is not.
    """
    for one in wanted:
        name, colon, text = one.partition(":")
        if name not in TRACKERS or (colon and not text):
            allowed = ", ".join(f"{known} or {known}:{kind.text}" for known, kind in TRACKERS.items())
            raise ConfigError(f"--track is {one!r}, allowed is {allowed}", hint="for example: --track tensorboard")


def feeds(wanted: Sequence[str], source: Source) -> list[Feed]:
    """A feed for each of these and for the JSON lines, not started.

    Args:
        wanted: as in `--track`: "tensorboard", "wandb:PROJECT", …; the same twice counts once.
        source: whose numbers.

    Raises:
        ConfigError: an unknown tracker, or its package is not installed.
    """
    check(wanted)
    made = [Feed(ALWAYS, jsonl.load(source, ""))]
    for one in dict.fromkeys(wanted):
        name, _, text = one.partition(":")
        load = partial(TRACKERS[name].load, source, text)
        try:
            made.append(Feed(one, load()))
        except ImportError as error:
            raise ConfigError(
                f"--track {one}: {name} cannot be imported: {error}", hint=f"pip install 'wantrain[{name}]'"
            ) from None
    return made
