"""What a peer's daemon counts: from its events, its trainer's contributions, and what it measures anyway; pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from wantrain.metrics.families import PEER
from wantrain.metrics.ledger import Ledger
from wantrain.transport.link import LinkStats

_COUNTED = {
    "catching-up": "wantrain_catchups_total",
    "trainer-exit": "wantrain_trainer_exits_total",
    "saved": "wantrain_checkpoints_total",
    "save-failed": "wantrain_checkpoint_failures_total",
}
_NUMBERED = {"dropped": "wantrain_dropped_messages_total", "rejected": "wantrain_rejected_messages_total"}
_GAUGES = {
    "step": "wantrain_step",
    "round": "wantrain_round",
    "tokens": "wantrain_tokens",
    "peak_bytes": "wantrain_memory_peak_bytes",
    "tensor_bytes": "wantrain_memory_tensor_bytes",
    "model_bytes": "wantrain_model_bytes",
    "fetched_bytes": "wantrain_fetched_bytes_total",
    "pause_s": "wantrain_wait_seconds_total",
}
"""Of a peer's report."""
_LINKS = (
    "wantrain_sent_bytes_total",
    "wantrain_received_bytes_total",
    "wantrain_link_bytes_per_second",
    "wantrain_link_rtt_seconds",
    "wantrain_link_loss_ratio",
)


@dataclass(frozen=True, slots=True)
class Measured:
    """What a daemon knows at one time."""

    stats: Mapping[str, float]
    """Of the peer's report."""
    links: Mapping[str, LinkStats]
    """What the link has counted, by peer."""
    names: Mapping[str, str]
    """Of the peers whose links are told of, by peer."""
    step_s: float
    """Of an inner step; 0 if unknown."""
    global_step: int
    log_number: int
    """Newest applied line of the log; -1 for none."""
    members: int
    """Of the view, this peer included if it is in it."""

    @property
    def round(self) -> int:
        """Syncs of the first parameter stream that were applied."""
        return int(self.stats.get("round", 0))


class PeerMeter:
    """Counts into `ledger`. Times are monotonic seconds."""

    def __init__(self) -> None:
        self.ledger = Ledger(PEER)
        self._contributed_at: dict[str, float] = {}
        self._started_at: dict[str, float] = {}
        self._committed_at: dict[str, float] = {}

    def contributed(self, stream: str, now: float) -> None:
        """The trainer has handed over a stream."""
        self._contributed_at[stream] = now
        self._committed_at.pop(stream, None)

    def event(self, event: str, details: Mapping[str, Any], now: float) -> None:
        """Something has happened, as it is told in the event log."""
        ledger = self.ledger
        stream = str(details.get("stream") or str(details.get("sync", "")).rpartition("#")[0])
        match event:
            case "start":
                ledger.add("wantrain_attempts_total", stream)
                self._took("gather", self._contributed_at.pop(stream, None), now)
                self._started_at[stream] = now
            case "abort":
                ledger.add("wantrain_aborts_total", stream)
            case "commit":
                ledger.add("wantrain_commits_total", stream)
                ledger.add("wantrain_update_bytes_total", amount=float(details["bytes"]))
                self._took("move", self._started_at.pop(stream, None), now)
                self._committed_at[stream] = now
            case "granted":
                self._took("answer", self._committed_at.pop(stream, None), now)
            case _ if event in _COUNTED:
                ledger.add(_COUNTED[event])
            case _ if event in _NUMBERED:
                ledger.add(_NUMBERED[event], amount=float(details.get("times", 1)))

    def _took(self, stage: str, since: float | None, now: float) -> None:
        if since is not None:
            self.ledger.observe("wantrain_sync_seconds", now - since, stage)

    def measured(self, measured: Measured) -> None:
        """What is known now."""
        for key, name in _GAUGES.items():
            if key in measured.stats:
                self.ledger.put(name, measured.stats[key])
        self.ledger.put("wantrain_step_seconds", measured.step_s)
        self.ledger.put("wantrain_global_step", float(measured.global_step))
        self.ledger.put("wantrain_log_number", float(measured.log_number))
        self.ledger.put("wantrain_view_members", float(measured.members))
        self.ledger.clear(*_LINKS)
        for peer, name in measured.names.items():
            known = measured.links.get(peer, LinkStats())
            values = (known.bytes_sent, known.bytes_received, known.rate_bytes_per_s, known.rtt_s, known.loss)
            for family, value in zip(_LINKS, values, strict=True):
                self.ledger.put(family, float(value), peer, name)
