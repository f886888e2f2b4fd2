"""What a coordinator has written, in memory instead of in a database: for runs within one process; pure."""

from dataclasses import dataclass, field

from wantrain.peers.commit_log import History
from wantrain.peers.coordinator_events import (
    Persist,
    PersistCommit,
    PersistDropGenesis,
    PersistGenesis,
    PersistLeases,
    PersistRewind,
    PersistView,
)
from wantrain.peers.messages import CommitRecord, Manifest


@dataclass(slots=True)
class MemoryStore:
    """Same content as `wantrain.peers.store.Store`, as far as the coordinator's core is concerned."""

    epoch: int = 0
    view: int = 0
    manifest: Manifest = ()
    chain0: bytes = b""
    records: list[CommitRecord] = field(default_factory=list)
    leases: dict[str, str] = field(default_factory=dict)
    members: tuple[str, ...] = ()

    def begin(self) -> History:
        """What a coordinator that starts now finds; every start is an epoch of its own."""
        self.epoch += 1
        records, leases = tuple(self.records), dict(self.leases)
        return History(self.epoch, self.view, self.manifest, self.chain0, records, leases, members=self.members)

    def write(self, effect: Persist) -> None:
        """Keep it."""
        match effect:
            case PersistGenesis(manifest, _, chain, rows):
                self.manifest, self.chain0 = manifest, chain
                self._change(rows)
            case PersistDropGenesis():
                self.manifest, self.chain0 = (), b""
            case PersistCommit(record, rows):
                self.records.append(record)
                self._change(rows)
            case PersistRewind(after, _, rows):
                del self.records[after:]
                self._change(rows)
            case PersistView(number, members):
                self.view, self.members = number, members
            case PersistLeases(rows):
                self._change(rows)

    def _change(self, rows: dict[str, str | None]) -> None:
        for key, value in rows.items():
            if value is None:
                self.leases.pop(key, None)
            else:
                self.leases[key] = value
