"""The coordinator of a simulated run: the real core, a link in memory, and a store that forgets nothing."""

from collections import deque
from collections.abc import Callable
from typing import Any

from wantrain.config import RunSpec
from wantrain.peers import coordinator as co
from wantrain.peers.coordinator_daemon import run_facts
from wantrain.peers.memory_store import MemoryStore
from wantrain.peers.messages import COORDINATOR, Record, pack, unpack
from wantrain.sim.timeline import Timeline
from wantrain.transport.link import Received
from wantrain.transport.memory_link import MemoryHub, MemoryLink
from wantrain.transport.wire import Message

TICK_S = 0.5
"""As for peers: what must happen at once does so when a message comes."""
KEY = bytes(32)
"""Of everybody; nothing is encrypted in memory."""


class VirtualCoordinator:
    """Its process.

    Args:
        timeline: virtual time.
        hub: where the peers are linked.
        spec: the run's.
        store: what an earlier process has written.
        on_event: hears what the coordinator announces.
    """

    def __init__(
        self,
        timeline: Timeline,
        hub: MemoryHub,
        spec: RunSpec,
        store: MemoryStore,
        on_event: Callable[[str, dict[str, Any]], None],
    ) -> None:
        self.core = co.Coordinator(run_facts(spec), store.begin())
        self._timeline = timeline
        self._store = store
        self._on_event = on_event
        self._link = MemoryLink(hub, COORDINATOR, spec.run)
        self._work_at_s: set[float] = set()
        """Times for which a look at the link is planned."""
        self._packed: tuple[Record, Message] | None = None

    def start(self) -> None:
        """Begin to tick."""
        self._tick()

    def soon(self, in_s: float) -> None:
        """A message is on its way here."""
        at_s = self._timeline.now() + in_s
        if at_s not in self._work_at_s:
            self._work_at_s.add(at_s)
            self._timeline.after(in_s, self._work)

    def _work(self) -> None:
        self._work_at_s = {at_s for at_s in self._work_at_s if at_s > self._timeline.now()}
        for event in self._link.poll(0.0):
            if isinstance(event, Received):
                self._handle(co.FromPeer(event.source, unpack(event.message), KEY))

    def _tick(self) -> None:
        self._work()
        self._handle(co.Tick())
        self._timeline.after(TICK_S, self._tick)

    def _handle(self, event: co.CoordinatorEvent) -> None:
        events = deque([event])
        while events:
            for effect in self.core.handle(events.popleft(), self._timeline.now()):
                match effect:
                    case co.Send(to, record):
                        self._link.send(to, self._message(record))
                    case co.Announce(name, details):
                        self._on_event(name, details)
                    case _:
                        self._store.write(effect)
                        events.append(co.Stored())

    def _message(self, record: Record) -> Message:
        """The record packed; once for all who get the same one after another."""
        if self._packed is None or self._packed[0] is not record:
            self._packed = (record, pack(record))
        return self._packed[1]
