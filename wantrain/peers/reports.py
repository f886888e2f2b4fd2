"""What a peer tells the coordinator about itself: lines of its report, and when one is due at once; pure."""

from collections.abc import Mapping
from typing import Protocol, TypeAlias

from wantrain.peers.attempts import Attempt
from wantrain.peers.events import Staged
from wantrain.peers.messages import Drawn, LinkReport, SyncReport


def sync_line(stream: str, index: int, staged: Staged | None, attempt: Attempt | None) -> SyncReport | None:
    """The line of a stream whose next sync is `index`; None if nothing is staged and nothing moves."""
    if staged is None and attempt is None:
        return None
    weight, norm, drawn = (staged.weight, staged.norm, staged.drawn) if staged is not None else (1.0, 0.0, Drawn())
    here = staged is not None
    if attempt is None:
        steps = staged.steps if staged is not None else 0
        return SyncReport(stream, index, "ready", weight, norm, here, drawn=drawn, steps=steps)
    number = attempt.sync.attempt
    if attempt.done is not None:
        return SyncReport(stream, index, "done", weight, norm, here, number, digest=attempt.done.digest, drawn=drawn)
    if attempt.failed is not None:
        blamed, why = attempt.failed, attempt.why
        return SyncReport(stream, index, "failed", weight, norm, here, number, waiting_for=blamed, why=why, drawn=drawn)
    missing, waiting_for = attempt.core.missing, attempt.core.waiting_for
    return SyncReport(
        stream, index, "moving", weight, norm, here, number, missing=missing, waiting_for=waiting_for, drawn=drawn
    )


SyncKey: TypeAlias = tuple[str, int, int, str]


def sync_key(stream: str, index: int, staged: bool, attempt: Attempt | None) -> SyncKey | None:
    """What of the line of a stream is urgent, without making the line: stream, index, attempt and phase.

    That an attempt has begun here is no news to the coordinator. It hears of its progress with the heartbeats.
    """
    if attempt is not None and attempt.done is not None:
        return stream, index, attempt.sync.attempt, "done"
    if attempt is not None and attempt.failed is not None:
        return stream, index, attempt.sync.attempt, "failed"
    return (stream, index, 0, "ready") if staged else None


CHANGE = 0.2
"""A rate or round trip that differs by less, as a share, counts as the same: plans made from it stand."""
PATHS_TOLD = 16
"""Paths in one report: with many peers all of them in each would be most of what the coordinator reads."""


class Measurement(Protocol):
    """What was measured on the way to a peer."""

    @property
    def rate_bytes_per_s(self) -> float: ...
    @property
    def rtt_s(self) -> float: ...


def differs(known: Measurement, new: Measurement) -> bool:
    """Whether a new measurement is more than noise."""
    rate: bool = abs(new.rate_bytes_per_s - known.rate_bytes_per_s) > CHANGE * known.rate_bytes_per_s
    trip: bool = abs(new.rtt_s - known.rtt_s) > CHANGE * max(known.rtt_s, 1e-4)
    return rate or trip


class PathNews:
    """Which measured paths the next heartbeat tells: those that have changed, then those told longest ago."""

    def __init__(self) -> None:
        self._told: dict[str, LinkReport] = {}
        """As told last, the oldest first."""

    def choose(self, paths: Mapping[str, LinkReport]) -> dict[str, LinkReport]:
        """Some of the paths, by peer; from now on they count as told."""
        self._told = {peer: path for peer, path in self._told.items() if peer in paths}
        changed = [p for p, path in paths.items() if p not in self._told or differs(self._told[p], path)]
        unchanged = [peer for peer in self._told if peer not in set(changed)]
        chosen = {peer: paths[peer] for peer in (changed + unchanged)[:PATHS_TOLD]}
        for peer, path in chosen.items():
            self._told.pop(peer, None)
            self._told[peer] = path
        return chosen
