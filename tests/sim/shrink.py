"""The least plan that still fails: faults, machines and whims of the network are taken away as long as it does."""

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TypeVar

from tests.sim.network import Weather
from tests.sim.plan import Fault, Plan
from wantrain.optimizers.stream import Stream

MOST_TRIED = 600
"""Plans that are played; each takes a fraction of a second."""

Item = TypeVar("Item")


def same_failure(one: str, other: str) -> bool:
    """Whether two failures are of the same kind: they differ in nothing but names and numbers."""
    return bool(other) and _kind(one) == _kind(other)


def _kind(failure: str) -> str:
    head = re.split(r"[:{\[(]", failure.replace("Violation:", "Violation"), maxsplit=1)[0]
    return re.sub(r"[0-9.]+|\b[ap][0-9]+\b", "#", head)


def shrink(plan: Plan, fails: Callable[[Plan], bool]) -> tuple[Plan, int]:
    """Take the first simpler plan that still fails, and go on from there until none does.

    Returns:
        the least plan found, and how many were played.
    """
    tried = 0
    found = True
    while found:
        found = False
        for simpler in simpler_plans(plan):
            if tried >= MOST_TRIED:
                return plan, tried
            tried += 1
            if fails(simpler):
                plan, found = simpler, True
                break
    return plan, tried


def simpler_plans(plan: Plan) -> Iterator[Plan]:
    """Plans that are a little simpler than this one, the most promising first."""
    half = len(plan.faults) // 2
    if half > 1:
        yield replace(plan, faults=plan.faults[half:])
        yield replace(plan, faults=plan.faults[:half])
    for faults in _without_one(plan.faults):
        yield replace(plan, faults=faults)
    if plan.trial:
        yield replace(plan, trial="")
    if plan.late_joins_s:
        yield replace(plan, late_joins_s=plan.late_joins_s[1:])
    if len(plan.joins_s) > 1:
        yield replace(plan, joins_s=plan.joins_s[:-1])
    if plan.weather != Weather():
        yield replace(plan, weather=Weather())
        for name, value in (("loss", 0.0), ("duplicate", 0.0), ("spike", 0.0)):
            if getattr(plan.weather, name) != value:
                yield replace(plan, weather=replace(plan.weather, **{name: value}))
    if plan.refuse_send:
        yield replace(plan, refuse_send=0.0)
    if plan.redial_s:
        yield replace(plan, redial_s=0.0)
    if plan.wait_ceiling_s is not None:
        yield replace(plan, wait_ceiling_s=None)
    if len(plan.streams) > 1:
        yield from (replace(plan, streams=streams) for streams in _without_one(plan.streams))
    plain = tuple(Stream(s.name, s.state, every=s.every, topology="direct") for s in plan.streams)
    if plain != plan.streams:
        yield replace(plan, streams=plain)
    last_s = max((fault.at_s for fault in plan.faults), default=0.0)
    for faulty_s in (last_s + 1.0, last_s + 5.0):
        if faulty_s < plan.faulty_s:
            yield replace(plan, faulty_s=faulty_s)
    for k, fault in enumerate(plan.faults):
        for smaller in _smaller(fault):
            yield replace(plan, faults=(*plan.faults[:k], smaller, *plan.faults[k + 1 :]))


def _without_one(items: tuple[Item, ...]) -> Iterator[tuple[Item, ...]]:
    return (items[:k] + items[k + 1 :] for k in range(len(items)))


def _smaller(fault: Fault) -> Iterator[Fault]:
    if fault.back_s > 0.1:
        yield replace(fault, back_s=0.1)
    for name in ("peer", "other", "amount"):
        if getattr(fault, name):
            yield replace(fault, **{name: 0})
    if fault.amount > 1:
        yield replace(fault, amount=fault.amount // 2)
    if fault.at_s != round(fault.at_s):
        yield replace(fault, at_s=float(round(fault.at_s)))
