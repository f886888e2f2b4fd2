"""Who comes, goes, fails or trains at another pace in a simulated run, and when; data only.

Times are in steps: of the time that a worker of usual pace takes for one, from the moment in which training begins.
Workers are named by their number, from 0; who joins gets the next one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from wantrain.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Join:
    """A newcomer starts: it fetches the run's state and trains with the others."""

    at: float
    pace: float = 1.0
    """Steps that it makes in the time of one usual step."""


@dataclass(frozen=True, slots=True)
class Leave:
    """A worker takes its leave: what it has in flight is finished."""

    at: float
    worker: int


@dataclass(frozen=True, slots=True)
class Kill:
    """A worker and its daemon are gone without a word: at a time, or in the middle of a sync."""

    worker: int
    at: float = -1.0
    sync: int = 0
    """From 1: right before the first bytes of it that others wait for leave this worker."""
    stream: str = ""
    """To which that sync belongs; "": the first one of parameters."""


@dataclass(frozen=True, slots=True)
class Pace:
    """From now on a worker is faster or slower."""

    at: float
    worker: int
    pace: float
    """Steps that it makes in the time of one usual step."""


@dataclass(frozen=True, slots=True)
class Restart:
    """All trainers end and start again from what their peers hold, which go on; what was not contributed is lost.

    Each stops as soon as it has counted so many steps of the run, and all begin anew once no sync is under way.
    """

    step: int


Churn: TypeAlias = Join | Leave | Kill | Pace | Restart


def check(churn: Sequence[Churn], workers: int) -> None:
    """See that a schedule can be carried out.

    Raises:
        ConfigError: no such worker, or a time, pace or sync that cannot be.
    """
    workers += sum(isinstance(change, Join) for change in churn)
    if sum(isinstance(change, Restart) for change in churn) > 1:
        raise ConfigError("churn: several Restarts, allowed is one", hint="resume a run for another one")
    for change in churn:
        if isinstance(change, Restart):
            if not change.step >= 1:
                raise ConfigError(f"churn: {change}: step is {change.step}, allowed is 1 and more", hint="a sync's")
            continue
        if not isinstance(change, Join) and not 0 <= change.worker < workers:
            raise ConfigError(
                f"churn: {change}: there is no such worker, they are 0 to {workers - 1}",
                hint="those who join are numbered on, in the order of the list",
            )
        if isinstance(change, Kill):
            if (change.at >= 0) == (change.sync >= 1):
                raise ConfigError(f"churn: {change}: allowed is either at >= 0 or sync >= 1", hint="give one of them")
        elif not change.at >= 0:
            raise ConfigError(f"churn: {change}: at is {change.at}, allowed is 0 and more", hint="0 is the start")
        if isinstance(change, Join | Pace) and not 0.01 <= change.pace <= 100:
            raise ConfigError(f"churn: {change}: pace is {change.pace}, allowed is 0.01 to 100", hint="1 is the usual")
