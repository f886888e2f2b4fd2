"""What the coordinator counts: from its events, and from its core now and then; pure."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from wantrain.metrics.families import COORDINATOR
from wantrain.metrics.ledger import Ledger
from wantrain.peers.coordinator import Coordinator

_COUNTED = {
    "joined": "wantrain_joins_total",
    "left": "wantrain_leaves_total",
    "lost": "wantrain_suspicions_total",
    "rejected": "wantrain_rejections_total",
    "rewind": "wantrain_rewinds_total",
    "samples-back": "wantrain_data_returns_total",
    "saved": "wantrain_checkpoints_total",
    "save-failed": "wantrain_checkpoint_failures_total",
}


class CoordinatorMeter:
    """Counts into `ledger`."""

    def __init__(self) -> None:
        self.ledger = Ledger(COORDINATOR)

    def event(self, event: str, details: Mapping[str, Any]) -> None:
        """Something has happened, as it is told in the event log."""
        stream = str(details.get("sync", "")).rpartition("#")[0]
        if event in ("commit", "abort"):
            self.ledger.add(f"wantrain_{event}s_total", stream)
            self.ledger.add("wantrain_attempts_total", stream)
        if event == "commit":
            self.ledger.observe("wantrain_sync_seconds", details["gather_s"], "gather")
            self.ledger.observe("wantrain_sync_seconds", details["move_s"], "move")
        elif event in _COUNTED:
            self.ledger.add(_COUNTED[event])

    def measured(self, core: Coordinator, dropped: int) -> None:
        """What is known now; `dropped`: messages that were not valid, in all."""
        ledger = self.ledger
        ledger.put("wantrain_view_members", float(len(core.membership.members)))
        ledger.put("wantrain_view_number", float(core.membership.view))
        ledger.put("wantrain_log_number", float(core.head))
        ledger.put("wantrain_dropped_messages_total", float(dropped))
        ledger.clear("wantrain_peers")
        for state, count in Counter(known.state for known in core.membership.peers.values()).items():
            ledger.put("wantrain_peers", float(count), str(state))
        for row in core.leases.figures():
            ledger.put("wantrain_data_epoch", float(row["epoch"]), row["name"])
            ledger.put("wantrain_data_leased_ratio", row["leased"], row["name"])
            ledger.put("wantrain_data_confirmed_ratio", row["confirmed"], row["name"])
            ledger.put("wantrain_data_leases", float(len(row["leases"])), row["name"])
