"""The metrics that daemons have: name, kind, labels and what each says; data only. docs/metrics.md lists them."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Family:
    """One metric. Names end in their unit: `_seconds`, `_bytes`, and `_total` for what only grows."""

    name: str
    kind: str
    """`counter`, `gauge` or `histogram`."""
    help: str
    labels: tuple[str, ...] = ()


BOUNDS_S = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
"""Upper bounds of the buckets of every histogram, in seconds."""

_COMMITS = Family("wantrain_commits_total", "counter", "Syncs that were committed.", ("stream",))
_ABORTS = Family("wantrain_aborts_total", "counter", "Attempts at a sync that were given up.", ("stream",))
_ATTEMPTS = "Attempts at a sync that were begun"
_VIEW = Family("wantrain_view_members", "gauge", "Peers that hold the run's state.")
_LOG = Family("wantrain_log_number", "gauge", "Newest line of the commit log that is known here.")
_DROPPED = Family("wantrain_dropped_messages_total", "counter", "Messages that were not valid and were dropped.")
_SAVED = Family("wantrain_checkpoints_total", "counter", "Saved states that are on disk.")
_NOT_SAVED = Family("wantrain_checkpoint_failures_total", "counter", "Saved states that could not be written.")

PEER = (
    Family("wantrain_step", "gauge", "Inner steps of the present training process."),
    Family("wantrain_global_step", "gauge", "The run's step count, as the trainer has it."),
    Family("wantrain_round", "gauge", "Syncs of the first parameter stream that were applied."),
    Family("wantrain_tokens", "gauge", "Tokens that the present training process has been trained on, if it counts."),
    Family("wantrain_step_seconds", "gauge", "What an inner step takes lately; 0 if unknown."),
    _COMMITS,
    _ABORTS,
    Family("wantrain_attempts_total", "counter", f"{_ATTEMPTS} with this peer.", ("stream",)),
    Family(
        "wantrain_sync_seconds",
        "histogram",
        "Parts of a sync: gather (from contribution to start), move (from the last start to the commit), answer (from "
        "the commit until the trainer is told).",
        ("stage",),
    ),
    Family("wantrain_wait_seconds_total", "counter", "Time from contributions until their answers."),
    Family("wantrain_update_bytes_total", "counter", "Committed updates that were applied, as encoded."),
    Family("wantrain_sent_bytes_total", "counter", "Bytes sent to a peer.", ("peer", "name")),
    Family("wantrain_received_bytes_total", "counter", "Bytes received from a peer.", ("peer", "name")),
    Family("wantrain_link_bytes_per_second", "gauge", "Measured rate towards a peer.", ("peer", "name")),
    Family("wantrain_link_rtt_seconds", "gauge", "Measured round trip to a peer.", ("peer", "name")),
    Family(
        "wantrain_link_loss_ratio", "gauge", "Share of TCP segments sent again to a peer, lately.", ("peer", "name")
    ),
    Family("wantrain_catchups_total", "counter", "How often this peer fell behind the log and caught up."),
    Family("wantrain_fetched_bytes_total", "counter", "State and updates that were fetched to catch up."),
    Family("wantrain_memory_peak_bytes", "gauge", "Most memory that the daemon has had, shared memory included."),
    Family("wantrain_memory_tensor_bytes", "gauge", "Memory for tensors: state, scratch, buffers and shared memory."),
    Family("wantrain_model_bytes", "gauge", "Size of the model in fp32."),
    _VIEW,
    _LOG,
    Family("wantrain_trainer_exits_total", "counter", "How often the training process has ended."),
    _DROPPED,
    Family("wantrain_rejected_messages_total", "counter", "Messages whose tensor bytes could not be used."),
    _SAVED,
    _NOT_SAVED,
    Family("wantrain_tracker_drops_total", "counter", "Points that a tracker was too slow for.", ("tracker",)),
)

COORDINATOR = (
    _COMMITS,
    _ABORTS,
    Family("wantrain_attempts_total", "counter", "Attempts at a sync that are over, committed or not.", ("stream",)),
    Family(
        "wantrain_sync_seconds",
        "histogram",
        "Parts of a committed sync: gather (first contribution to start), move (from there to the commit).",
        ("stage",),
    ),
    _VIEW,
    Family("wantrain_view_number", "gauge", "Number of the view."),
    _LOG,
    Family("wantrain_peers", "gauge", "Peers by state.", ("state",)),
    Family("wantrain_joins_total", "counter", "Peers that came or came back."),
    Family("wantrain_leaves_total", "counter", "Peers that took their leave."),
    Family("wantrain_suspicions_total", "counter", "Peers that were given up: silent, unreachable or frozen."),
    Family("wantrain_rejections_total", "counter", "Contributions that could not be used."),
    Family(
        "wantrain_rewinds_total", "counter", "How often the log went back, as nobody had its newest lines any more."
    ),
    Family("wantrain_data_epoch", "gauge", "Epoch of a data set.", ("data",)),
    Family("wantrain_data_leased_ratio", "gauge", "Share of the epoch that was leased to trainers.", ("data",)),
    Family("wantrain_data_confirmed_ratio", "gauge", "Share of the epoch that is in commits.", ("data",)),
    Family("wantrain_data_leases", "gauge", "Leases that are held.", ("data",)),
    Family("wantrain_data_returns_total", "counter", "How often samples came back from a peer that was gone."),
    _SAVED,
    _NOT_SAVED,
    _DROPPED,
)
