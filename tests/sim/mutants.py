"""Bugs planted on purpose, one class each: what the checkers must catch. A world is run with one of them in place."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from tests.sim.data import SimReader
from tests.sim.symbols import PartOf, SumOf
from tests.sim.world import CheckedPeer, CheckedTensors, SimCoordinator, SimPeer, SimTrainer, World
from wantrain.peers import coordinator as co
from wantrain.peers.commit_log import History
from wantrain.peers.common import CommonCopy
from wantrain.peers.contributions import Contributions
from wantrain.peers.coordinator import Coordinator, RunFacts
from wantrain.peers.effects import Effect, Settle
from wantrain.peers.events import Event, TrainerResumed
from wantrain.peers.leases import Leases
from wantrain.peers.messages import CommitRecord, Drawn, Member
from wantrain.peers.participant import Participant, PeerFacts
from wantrain.peers.syncs import Syncs
from wantrain.transport.digest import next_link


class _AppliesBeforeCommit(Participant):
    """Applies an update as soon as it holds all of it."""

    def _react(self, event: Event, now: float) -> list[Effect]:
        effects = super()._react(event, now)
        for attempt in list(self._attempts.running.values()):
            if attempt.done is not None and self.complete:
                start, digest = attempt.start, attempt.done.digest
                chain = next_link(self.chain, digest)
                record = CommitRecord(self.applied + 1, start.sync, start.contributors, start.weights, digest, chain)
                self._recovery.learn([record], record.number)
                effects += self._advance(now)
        return effects


class _MergeAsMove(Contributions):
    """Tells the trainer that its contribution was not in the sync when it was."""

    def decide(self, record: CommitRecord) -> list[Effect]:
        effects = super().decide(record)
        for stage in self._stages.values():
            stage.taken = False
        return effects


class _MoveAsMerge(Contributions):
    """Tells the trainer that its contribution was in the sync when it was not."""

    def decide(self, record: CommitRecord) -> list[Effect]:
        effects = super().decide(record)
        for stage in self._stages.values():
            stage.taken = stage.decided
        return effects


class _KeepsErrorTooEarly(Contributions):
    """Takes every commit for one that holds its own contribution, and keeps that one's error."""

    def decide(self, record: CommitRecord) -> list[Effect]:
        staged = record.sync.stream in self._stages
        return [replace(e, taken=True) if staged and isinstance(e, Settle) else e for e in super().decide(record)]


class _ChangesWhatItSaves(Participant):
    """Applies updates while its state is being saved."""

    def _react(self, event: Event, now: float) -> list[Effect]:
        self._saving.holds = False
        return super()._react(event, now)


class _MixesLogNumbers(CheckedPeer):
    """Shows its trainer phi as it was when each chunk was copied."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._common = _CopiesOnce()


class _CopiesOnce(CommonCopy):
    def changed(self, stream: str) -> None:
        pass


class _MixesUpErrors(Participant):
    def __init__(self, facts: PeerFacts) -> None:
        super().__init__(facts)
        self._mine.__class__ = _KeepsErrorTooEarly


class _CountsTwice(Participant):
    def __init__(self, facts: PeerFacts) -> None:
        super().__init__(facts)
        self._mine.__class__ = _MergeAsMove


class _Loses(Participant):
    def __init__(self, facts: PeerFacts) -> None:
        super().__init__(facts)
        self._mine.__class__ = _MoveAsMerge


class _ForgetsTheFormerDaemon(Participant):
    """Takes what a killed daemon of its own had offered for something that no sync can have taken in."""

    def _react(self, event: Event, now: float) -> list[Effect]:
        if isinstance(event, TrainerResumed):
            unused = {name: replace(mark, used=-1) for name, mark in event.held.marks.items()}
            event = replace(event, held=replace(event.held, marks=unused))
        return super()._react(event, now)


class _DiesAlone(SimPeer):
    """Leaves its trainer alive at every crash."""

    core_class = _ForgetsTheFormerDaemon

    def die(self, *, seen: bool, spare: bool = False) -> None:
        super().die(seen=seen, spare=True)


class _SumsRetryTwice(CheckedTensors):
    """Sums the parts of an aborted attempt into the next one."""

    def reduce(
        self,
        stream: str,
        chunk: int,
        inputs: Sequence[tuple[float, PartOf | SumOf | None]],
        divisor: float,
        final: bool,
    ) -> SumOf:
        before: dict[tuple[str, int], SumOf] = self.__dict__.setdefault("before", {})
        index = self._peer.shell.core.indices[stream]
        kept = before.get((stream, chunk))
        whole = super().reduce(stream, chunk, inputs, divisor, final)
        before[stream, chunk] = replace(whole, chunk=index)
        return replace(whole, inputs=kept.inputs + whole.inputs) if kept is not None and kept.chunk == index else whole


class _KeepsItsCodec(CheckedTensors):
    """Writes and reads all contributions in the codec of the first attempt."""

    def use_codec(self, stream: str, codec: str) -> None:
        super().use_codec(stream, self.up[stream] or codec)


class _WrongReference(CheckedTensors):
    """Moves the reference for differences when an update is applied, not when the trainer is given it."""

    def apply(self, stream: str, payloads: Sequence[SumOf], skip: frozenset[int], index: int) -> None:
        super().apply(stream, payloads, skip, index)
        if stream in self.phi and stream in self.regions.given:
            self.regions.given[stream] = tuple(self.phi[stream])


class _OverwritesInput(SimPeer):
    """An abort replaces what is staged (as error feedback would that is written too early)."""

    def note(self, event: str, details: dict[str, Any]) -> None:
        super().note(event, details)
        if event == "abort" and self.tensors is not None:
            staged = self.tensors._staged
            for stream in staged:
                staged[stream] = replace(staged[stream], ident=next(self.tensors._idents))


class _ForgetsLog(SimCoordinator):
    """A restarted coordinator does not read the commit log."""

    def history(self) -> History:
        return replace(super().history(), records=())


class _AnnouncesTooEarly(SimCoordinator):
    """A commit is announced before it is on disk, and a crash forgets it."""

    def _perform(self, effect: co.CoordinatorEffect) -> co.CoordinatorEvent | None:
        if isinstance(effect, co.PersistCommit) and self.crash_after is not None:
            return co.Stored()
        return super()._perform(effect)


class _SaysNothing(Participant):
    """Waits, and does not know for what."""

    def waiting(self, now: float) -> str:
        return ""


class _StartsOver(Participant):
    """Fetches the state anew whenever somebody joins, so that both have the same."""

    def _viewed(self, members: Sequence[Member], now: float) -> list[Effect]:
        joins = any(not member.current and member.peer not in self.members for member in members)
        effects = super()._viewed(members, now)
        return effects + (self._reset("somebody joins") if joins and self.complete else [])


class _WaitsForEver(Coordinator):
    """Has no bound on how long it waits for those who are late."""

    def __init__(self, facts: RunFacts, history: History) -> None:
        super().__init__(replace(facts, policy=replace(facts.policy, grace_ceiling_s=3600.0)), history)


class _NeverSuspects(Coordinator):
    """Takes nobody for lost, and lets nobody's stall end an attempt."""

    def __init__(self, facts: RunFacts, history: History) -> None:
        policy = replace(facts.policy, suspect_floor_s=3600.0, suspect_ceiling_s=3600.0, deadline_floor_s=3600.0)
        super().__init__(replace(facts, policy=replace(policy, deadline_ceiling_s=3600.0)), history)


class _GivesToFew(Syncs):
    """Lets a peer commit what most of the others do not get."""

    def open(self) -> None:
        super().open()
        for current in self.rounds.values():
            current._gives_to_few = lambda behind: ""


class _GoesAheadOfAll(Coordinator):
    def __init__(self, facts: RunFacts, history: History) -> None:
        super().__init__(facts, history)
        self._casting.cut_off = dict
        self._syncs.__class__ = _GivesToFew
        if self.rounds:
            self._syncs.open()


class _HasNoPatience(Coordinator):
    """Gives the samples of a trainer that lives to others, as soon as it has no others."""

    def __init__(self, facts: RunFacts, history: History) -> None:
        super().__init__(facts, history)
        self.leases._patience_s = 0.0


class _ConfirmsAll(Leases):
    """Takes all that a contributor was leased for used."""

    def committed(self, number: int, drawn: Mapping[str, Drawn]) -> None:
        super().committed(number, {p: Drawn(d.reader, dict.fromkeys(d.counts, 2**62)) for p, d in drawn.items()})


class _CountsTooMuch(Coordinator):
    def __init__(self, facts: RunFacts, history: History) -> None:
        super().__init__(facts, history)
        self.leases.__class__ = _ConfirmsAll


class _ForgetsLeases(SimCoordinator):
    """A restarted coordinator does not read what was leased."""

    def history(self) -> History:
        return replace(super().history(), leases={})


class _SameReader(SimReader):
    def restart(self, *, within_a_step: bool) -> None:
        pass


class _CountsOn(SimPeer):
    """A trainer's weights become the run's again, and it counts on in what it has drawn."""

    def new_trainer(self) -> SimTrainer:
        trainer = super().new_trainer()
        trainer.reader = _SameReader(self.world.data)
        return trainer


def _peers(**parts: type) -> type[World]:
    """A world whose peers have these parts."""
    return type("MutantWorld", (World,), {"peer_class": type("MutantPeer", (SimPeer,), parts)})


def _coordinator(kind: type[SimCoordinator]) -> type[World]:
    return type("MutantWorld", (World,), {"coordinator_class": kind})


MUTANTS: dict[str, type[World]] = {
    "applies before the commit": _peers(core_class=_AppliesBeforeCommit),
    "treats a merge as a move": _peers(core_class=_CountsTwice),
    "treats a move as a merge": _peers(core_class=_Loses),
    "forgets what its former daemon had offered": type("MutantWorld", (World,), {"peer_class": _DiesAlone}),
    "sums a retry's parts twice": _peers(tensors_class=_SumsRetryTwice),
    "writes parts in the codec of an earlier attempt": _peers(tensors_class=_KeepsItsCodec),
    "takes the difference to a phi that the weights were not moved by": _peers(tensors_class=_WrongReference),
    "overwrites a staged input before the commit": type("MutantWorld", (World,), {"peer_class": _OverwritesInput}),
    "changes its state while it saves it": _peers(core_class=_ChangesWhatItSaves),
    "keeps the error of a contribution that is in no update": _peers(core_class=_MixesUpErrors),
    "shows weights of several log numbers": _peers(shell_class=_MixesLogNumbers),
    "forgets the commit log on restart": _coordinator(_ForgetsLog),
    "announces a commit before it is durable": _coordinator(_AnnouncesTooEarly),
    "does not say why it waits": _peers(core_class=_SaysNothing),
    "starts over when somebody joins": _peers(core_class=_StartsOver),
    "waits for the late without a bound": _coordinator(type("_Sim", (SimCoordinator,), {"core_class": _WaitsForEver})),
    "never suspects the frozen": _coordinator(type("_Sim", (SimCoordinator,), {"core_class": _NeverSuspects})),
    "commits what most do not get": _coordinator(type("_Sim", (SimCoordinator,), {"core_class": _GoesAheadOfAll})),
    "gives away what others hold": _coordinator(type("_Sim", (SimCoordinator,), {"core_class": _HasNoPatience})),
    "takes all that was leased for used": _coordinator(type("_Sim", (SimCoordinator,), {"core_class": _CountsTooMuch})),
    "forgets the leases on restart": _coordinator(_ForgetsLeases),
    "is the same reader when it starts over": type("MutantWorld", (World,), {"peer_class": _CountsOn}),
}

CAUGHT_BY = {
    "shows weights of several log numbers": "shows ",
    "does not say why it waits": "nobody says why",
    "starts over when somebody joins": "join: ",
    "waits for the late without a bound": "hang: ",
    "never suspects the frozen": "freeze: ",
    "commits what most do not get": "isolated: ",
    "gives away what others hold": "sample ",
    "takes all that was leased for used": "count as used",
    "forgets the leases on restart": "sample ",
    "is the same reader when it starts over": "count as used",
}
"""What the failure says where it matters which checker has found it."""
