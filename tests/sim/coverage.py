"""What simulated runs have reached: transitions of the real cores, and which rows of their tables none has."""

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any, TypeAlias, get_args

from wantrain.peers import coordinator_events, events, membership, rounds
from wantrain.peers import messages as m
from wantrain.peers.coordinator import Coordinator
from wantrain.peers.participant import Participant
from wantrain.peers.rounds import Round

Transition: TypeAlias = tuple[str, Hashable, str, tuple[str, ...], Hashable]
"""Which core, its state, the event, the kinds of effects in order of first appearance, the state after."""

FROM_COORDINATOR = (
    m.Welcome, m.View, m.Start, m.Abort, m.Commit, m.WantGenesis, m.WantHello, m.Refetch, m.Waiting, m.Refused,
    m.Leased, m.StartOver, m.MayLeave,
)  # fmt: skip
FROM_PEERS = (m.Part, m.Result, m.WantParts, m.WantState, m.WantUpdate, m.StateChunk, m.UpdateChunk, m.NotHeld)
TO_COORDINATOR = (m.Hello, m.Report, m.Genesis, m.WantRecords, m.Leave)


NOT_SIMULATED = {
    ("coordinator", "SaveWanted"),  # a command of the owner
    ("participant", "InitialUnusable"),  # an option of `wantrain peer`
    ("participant", "SavedUnusable"),  # a simulated disk keeps what is written or has nothing
}
"""Rows that unit and process tests reach."""


def rows() -> set[tuple[str, str]]:
    """The rows of the transition tables: (core and, where it has phases, its phase; event or record)."""
    table = {(f"round {phase.value}", event.__name__) for phase, event in rounds._TABLE}
    own = {event.__name__ for event in get_args(events.Event)} - {"FromPeer"}
    table |= {("participant", name) for name in own | {r.__name__ for r in (*FROM_COORDINATOR, *FROM_PEERS)}}
    outside = {event.__name__ for event in get_args(coordinator_events.CoordinatorEvent)} - {"FromPeer"}
    table |= {("coordinator", name) for name in outside | {record.__name__ for record in TO_COORDINATOR}}
    table |= {("membership", event.__name__) for event in get_args(membership.MembershipEvent)}
    return table - NOT_SIMULATED


def never_reached(transitions: Iterable[Transition]) -> list[str]:
    """Rows that are in none of the transitions, in words."""
    seen = {(f"{core} {state}" if core == "round" else core, event) for core, state, event, _, _ in transitions}
    return sorted(f"{where}: {event}" for where, event in rows() - seen)


def summary(transitions: Iterable[Transition]) -> str:
    """How many distinct transitions each core has made, in one line."""
    counts = Counter(transition[0] for transition in transitions)
    return f"{sum(counts.values())} distinct transitions: " + ", ".join(f"{n} of {core}s" for core, n in counts.items())


class Reached:
    """Notes every transition that the cores of one run make, if it is `on`."""

    def __init__(self, *, on: bool) -> None:
        self._on = on
        self.transitions: set[Transition] = set()

    def watch_participant(self, core: Participant) -> None:
        """Note what this participant does from now on."""
        self._watch("participant", core, lambda event: _participant(core))

    def watch_coordinator(self, core: Coordinator) -> None:
        """Note what this coordinator, its membership and its rounds do from now on."""
        watched: Mapping[str, Round] = {}

        def state(event: object) -> str:
            nonlocal watched
            if core.rounds is not watched:
                watched = core.rounds
                for current in watched.values():
                    self._watch("round", current, lambda event, current=current: current.phase.value)
            return _coordinator(core)

        self._watch("coordinator", core, state)
        peers = core.membership.peers
        self._watch("membership", core.membership, lambda e: peers[e.peer].state if _peer(e) in peers else "")

    def _watch(self, name: str, core: Any, state: Callable[[Any], Hashable]) -> None:
        """Note what a core does: its state before, seen with the event in mind, what happens, and its state after."""
        if not self._on:
            return
        handle, note = core.handle, self.transitions.add

        def watched(event: object, now: float) -> list[object]:
            before = state(event)
            effects = handle(event, now)
            note((name, before, _kind(event), _kinds(effects), state(event)))
            return effects

        core.handle = watched


def _kind(event: object) -> str:
    said = isinstance(event, events.FromPeer | coordinator_events.FromPeer)
    return type(event.record if said else event).__name__


def _peer(event: object) -> str:
    return getattr(event, "peer", "")


def _kinds(effects: list[object]) -> tuple[str, ...]:
    return tuple(dict.fromkeys([type(effect).__name__ for effect in effects])) if effects else ()


def _coordinator(core: Coordinator) -> str:
    if core.head < 0:
        return "empty"
    return "trouble" if core.trouble else "writing" if core.log.writing else "running"


def _participant(core: Participant) -> tuple[str, str, str]:
    """Where a participant stands: in the history, in its attempts, and with its trainer."""
    welcome = core._welcome
    if welcome is None:
        history = "unknown"
    elif core.applied < 0:
        history = "empty" if welcome.head < 0 else "fetching"
    else:
        history = "complete" if core.complete else "replaying"
    attempt = ""
    for running in core._attempts.running.values():
        attempt = "failed" if running.failed is not None else "done" if running.done is not None else "moving"
    return history, attempt, core._mine.trainer_state
