"""What a peer tells the coordinator about itself: lines of its report, and when one is due at once; pure functions."""

from collections.abc import Iterable
from dataclasses import replace

from wantrain.peers.attempts import Attempt
from wantrain.peers.events import Staged
from wantrain.peers.messages import Report, SyncReport


def sync_line(stream: str, index: int, staged: Staged | None, attempt: Attempt | None) -> SyncReport | None:
    """The line of a stream whose next sync is `index`; None if nothing is staged and nothing moves."""
    if staged is None and attempt is None:
        return None
    weight, norm = (staged.weight, staged.norm) if staged is not None else (1.0, 0.0)
    line = SyncReport(stream, index, "ready", weight, norm, staged is not None)
    if attempt is None:
        return line
    line = replace(line, attempt=attempt.sync.attempt)
    if attempt.done is not None:
        return replace(line, phase="done", digest=attempt.done.digest)
    if attempt.failed is not None:
        return replace(line, phase="failed", waiting_for=attempt.failed)
    return replace(line, phase="moving", missing=attempt.core.missing, waiting_for=attempt.core.waiting_for)


def urgent(
    log_number: int, trainer: str, lines: Iterable[SyncReport], suspects: Iterable[str], state_number: int
) -> object:
    """What of a report is worth sending at once when it changes; the rest can wait for the next heartbeat."""
    syncs = tuple((line.stream, line.index, line.attempt, line.phase) for line in lines)
    return log_number, trainer, syncs, tuple(suspects), state_number


def urgent_in(report: Report) -> object:
    """`urgent` of a report that was sent."""
    return urgent(report.log_number, report.trainer, report.syncs, report.suspects, report.state_number)
