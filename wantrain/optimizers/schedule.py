"""Schedules: after how many inner steps a round of a stream ends, by rules that every trainer evaluates for itself.

A sync starts on readiness, not on a common clock, so no guarantee depends on all trainers finding the same number: they
arrive together where they do. What the rules have to know of the run, its steps and its fastest trainer, is in the log.
"""

import math
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Annotated, Any, Literal, Protocol

from wantrain.errors import ConfigError
from wantrain.optimizers.options import Range


@dataclass(frozen=True, slots=True)
class Moment:
    """Where a trainer is in a round, which began when the stream was last staged. Times without waiting."""

    made: int
    """Inner steps of the round that were made."""
    spent_s: float
    """Seconds that they took."""
    step_s: float
    """Seconds that an inner step takes here; 0 if unknown."""
    pace_s: float
    """Seconds that it takes the fastest trainer of the last sync; 0 if unknown."""
    lr: float
    """Inner learning rate, the largest of all parameter groups."""
    global_step: int
    """The run's step count at the start of the round."""


class Schedule(Protocol):
    """One rule."""

    options: Mapping[str, float]
    """All options of the rule with their defaults; see `RoundOptions`."""
    adapts: bool
    """Whether it is asked again after every step of the round; else once, before the first one."""

    def steps(self, every: int, options: Mapping[str, float], moment: Moment) -> int:
        """Inner steps of this round in all, >= 1; `every` is the stream's H."""


class Fixed:
    """H steps."""

    options: Mapping[str, float] = {}
    adapts = False

    def steps(self, every: int, options: Mapping[str, float], moment: Moment) -> int:
        return every


class Qsr:
    """max(H, floor((growth / lr)^2)), at most `cap`; H during warm-up (quadratic synchronization rule, 2310.14423)."""

    options: Mapping[str, float] = {"growth": 0.0175, "cap": 1000.0, "warmup": 0.0}
    adapts = False

    def steps(self, every: int, options: Mapping[str, float], moment: Moment) -> int:
        if moment.global_step < options["warmup"]:
            return every
        most = max(every, int(options["cap"]))
        if moment.lr * math.sqrt(most) <= options["growth"]:
            return most
        return min(most, max(every, math.floor((options["growth"] / moment.lr) ** 2)))


class Seconds:
    """As many steps as fit into `round_s` seconds of training, at least one."""

    options: Mapping[str, float] = {"round_s": 60.0}
    adapts = True

    def steps(self, every: int, options: Mapping[str, float], moment: Moment) -> int:
        return _fitting(options["round_s"], every, moment)


class Dynamic:
    """floor(v / v_max * H) for a trainer of speed v: as many as fit while the fastest makes H (arXiv 2401.09135).

    The fastest is that of the last sync's contributors, so the first round has H steps everywhere.
    """

    options: Mapping[str, float] = {}
    adapts = True

    def steps(self, every: int, options: Mapping[str, float], moment: Moment) -> int:
        return min(every, _fitting(every * moment.pace_s, every, moment))


def _fitting(budget_s: float, unknown: int, moment: Moment) -> int:
    """Steps that fit into a time; `unknown` while nothing is known of that time, or of how long a step takes."""
    if budget_s <= 0.0 or moment.step_s <= 0.0:
        return unknown
    # A fastest trainer whose steps have taken a little longer than the log says is to make H nevertheless.
    fitting = (budget_s - moment.spent_s) / moment.step_s + 1e-6
    return max(1, moment.made + max(0, math.floor(fitting)))


SCHEDULES: dict[str, Schedule] = {"fixed": Fixed(), "qsr": Qsr(), "seconds": Seconds(), "dynamic": Dynamic()}


def round_steps(name: str, every: int, options: Mapping[str, float], moment: Moment) -> int:
    """Inner steps of a round by the schedule `name`; the last round of the run is cut to the steps that remain."""
    steps = SCHEDULES[name].steps(every, options, moment)
    left = int(options.get("total", 0)) - moment.global_step
    return min(steps, left) if left > 0 else steps


# ---- in a method


@dataclass(frozen=True, slots=True)
class RoundOptions:
    """When a method of one parameter stream synchronizes; the base of such methods' options."""

    every: Annotated[int, Range(1, 10**9)] = 100
    """H: inner steps between two syncs, the least of them with `qsr`; 30 to 100 for small runs."""
    schedule: Literal["fixed", "qsr", "seconds", "dynamic"] = "fixed"
    """fixed: H steps; qsr: more, the lower the learning rate; seconds: as long; dynamic: fewer on slow peers."""
    growth: Annotated[float, Range(0, 10**6, open_low=True)] = 0.0175
    """qsr: H = (growth / inner learning rate)^2 where that is more than `every`."""
    cap: Annotated[int, Range(1, 10**9)] = 1000
    """qsr: most steps of a round."""
    warmup: Annotated[int, Range(0, 10**9)] = 0
    """qsr: steps of the run at whose start H is `every`: as many as the learning rate rises in."""
    round_s: Annotated[float, Range(0, 10**6, open_low=True)] = 60.0
    """seconds: how long a round lasts."""
    total: Annotated[int, Range(0, 10**9)] = 0
    """Inner steps of the run, at whose end there is a sync, whenever the last one was; 0: not known."""


def schedule_of(method: str, options: RoundOptions, weight: str) -> dict[str, Any]:
    """The fields `every`, `schedule` and `schedule_options` of a method's stream.

    Raises:
        ConfigError: an option of another schedule is set, the run ends before the first sync, or contributions of
            different length count alike.
    """
    rule = SCHEDULES[options.schedule]
    for field in fields(RoundOptions):
        value = getattr(options, field.name)
        foreign = field.name not in ("every", "schedule", "total", *rule.options)
        assert field.default is not MISSING
        if foreign and value != field.default:
            owner = next(name for name, other in SCHEDULES.items() if field.name in other.options)
            raise ConfigError(
                f'{method}: {field.name} is {value} with schedule = "{options.schedule}"; allowed: {field.default}, '
                "as it has no meaning there",
                hint=f'set schedule = "{owner}", or leave {field.name} out',
            )
    if 0 < options.total < options.every:
        raise ConfigError(
            f"{method}: every is {options.every}; allowed: at most total, which is {options.total}",
            hint="the run would end before its first sync: lower every",
        )
    if options.schedule == "dynamic" and weight != "tokens":
        raise ConfigError(
            f"{method}: weight is {weight!r} with schedule = \"dynamic\"; allowed: 'tokens'",
            hint="rounds of different length must not count alike",
        )
    chosen = {name: float(getattr(options, name)) for name in rule.options}
    if options.total:
        chosen["total"] = float(options.total)
    return {"every": options.every, "schedule": options.schedule, "schedule_options": tuple(sorted(chosen.items()))}
