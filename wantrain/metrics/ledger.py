"""What a daemon has counted so far, by metric and labels; pure. A snapshot of it may be read by another thread."""

from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from wantrain.metrics.families import BOUNDS_S, Family

Labels: TypeAlias = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Distribution:
    """A histogram: how many values fell into each bucket, the last one without a bound, and their sum."""

    counts: tuple[int, ...] = (0,) * (len(BOUNDS_S) + 1)
    total: float = 0.0

    def with_value(self, value: float) -> "Distribution":
        counts = list(self.counts)
        counts[bisect_left(BOUNDS_S, value)] += 1
        return Distribution(tuple(counts), self.total + value)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All values at one time; nothing in it changes any more."""

    values: Mapping[str, Mapping[Labels, float]] = field(default_factory=dict)
    distributions: Mapping[str, Mapping[Labels, Distribution]] = field(default_factory=dict)

    def flat(self) -> dict[str, float]:
        """Sums over all labels, by names without their "wantrain_"; of a histogram sum and count."""
        numbers = {name: sum(rows.values()) for name, rows in self.values.items()}
        for name, rows in self.distributions.items():
            for labels, row in rows.items():
                where = "_".join((name, *labels))
                numbers |= {f"{where}_sum": row.total, f"{where}_count": float(sum(row.counts))}
        return {name.removeprefix("wantrain_"): number for name, number in numbers.items()}


class Ledger:
    """Values of these families; those without labels are 0 at first."""

    def __init__(self, families: Iterable[Family]) -> None:
        self._families = {family.name: family for family in families}
        self._values: dict[str, dict[Labels, float]] = {
            name: {} if family.labels else {(): 0.0}
            for name, family in self._families.items()
            if family.kind != "histogram"
        }
        self._distributions: dict[str, dict[Labels, Distribution]] = {
            name: {} for name, family in self._families.items() if family.kind == "histogram"
        }

    def add(self, name: str, *labels: str, amount: float = 1.0) -> None:
        """Count something that has happened."""
        rows = self._values[self._checked(name, labels)]
        rows[labels] = rows.get(labels, 0.0) + amount

    def put(self, name: str, value: float, *labels: str) -> None:
        """A gauge's value now, or a total that is counted elsewhere."""
        self._values[self._checked(name, labels)][labels] = value

    def observe(self, name: str, value: float, *labels: str) -> None:
        """One more value of a histogram."""
        rows = self._distributions[self._checked(name, labels)]
        rows[labels] = rows.get(labels, Distribution()).with_value(value)

    def clear(self, *names: str) -> None:
        """Forget all rows of metrics with labels, before those that hold now are put."""
        for name in names:
            self._values[name].clear()

    def snapshot(self) -> Snapshot:
        """A copy of all values."""
        values = {name: dict(rows) for name, rows in self._values.items()}
        return Snapshot(values, {name: dict(rows) for name, rows in self._distributions.items()})

    def _checked(self, name: str, labels: Labels) -> str:
        assert len(labels) == len(self._families[name].labels), (name, labels)
        return name
