"""The update log of a peer: committed updates as they were moved, kept for others within a byte budget."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from wantrain.peers.messages import CommitRecord
from wantrain.transport.collective import Payload


@dataclass(frozen=True, slots=True)
class Entry:
    """A committed update: its line of the commit log and its chunks, encoded."""

    record: CommitRecord
    payloads: tuple[Payload, ...]
    size_bytes: int


class UpdateLog:
    """The newest entries whose sizes fit the budget; the newest of all is kept whatever its size.

    Args:
        keep_bytes: budget in bytes.
        keep_updates: most entries.
    """

    def __init__(self, keep_bytes: int, keep_updates: int) -> None:
        self._keep_bytes = keep_bytes
        self._keep_updates = keep_updates
        self._entries: OrderedDict[int, Entry] = OrderedDict()
        self._size_bytes = 0

    def append(self, record: CommitRecord, payloads: Sequence[Payload], size_bytes: int) -> None:
        """Add an entry; the oldest go while the budget is exceeded."""
        known = self._entries.pop(record.number, None)
        self._size_bytes -= known.size_bytes if known is not None else 0
        self._entries[record.number] = Entry(record, tuple(payloads), size_bytes)
        self._size_bytes += size_bytes
        while len(self._entries) > 1 and (
            self._size_bytes > self._keep_bytes or len(self._entries) > self._keep_updates
        ):
            _, oldest = self._entries.popitem(last=False)
            self._size_bytes -= oldest.size_bytes

    def get(self, number: int) -> Entry | None:
        """The entry committed as `number`, if it is still held."""
        return self._entries.get(number)

    def clear(self) -> None:
        """Forget everything (the history was not the run's)."""
        self._entries.clear()
        self._size_bytes = 0
