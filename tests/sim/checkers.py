"""The guarantees as checks over everything that coordinator, peers and trainers do in a simulated run."""

from collections import defaultdict
from collections.abc import Sequence

from tests.sim.symbols import Contribution, SumOf, SymbolicTensors, Violation
from wantrain.peers.messages import CommitRecord


class Checkers:
    """Agreement, all or nothing, surviving inputs; liveness is checked at the end of a run by the world.

    Args:
        gossip: whether every peer has a state of its own, so that equal history does not mean equal state.
    """

    def __init__(self, *, gossip: bool = False) -> None:
        self.gossip = gossip
        self.entered: dict[str, tuple[int, int]] = {}
        """Gossip, by peer: the log number and the index at which its state began, or was read from its disk."""
        self.own_lines: dict[str, set[bytes]] = defaultdict(set)
        """Gossip, by peer: the links of the lines that it has applied since."""
        self.durable: dict[int, CommitRecord] = {}
        """The commit log as it stands on the coordinator's disk, by number."""
        self.chains: dict[bytes, CommitRecord] = {}
        """Every line that was ever durable, by its link of the chain."""
        self.syncs: dict[tuple[str, int, int], int] = {}
        self.state_at: dict[bytes, tuple[str, dict[str, tuple[str, ...]]]] = {}
        self.update_at: dict[bytes, tuple[str, tuple[SumOf, ...]]] = {}
        self.taken: dict[tuple[str, int], int] = {}
        """(stream, inner step) -> number of the commit that took it in."""
        self.used: dict[tuple[str, tuple[bytes, str, int, int]], int] = {}
        self.commits_of: dict[str, int] = defaultdict(int)
        self.commits = 0
        self.rewinds = 0
        self.saves = 0

    # ---- the coordinator's disk

    def committed(self, record: CommitRecord) -> None:
        """A line became durable. Guarantee 2: each sync commits once."""
        if record.number in self.durable:
            raise Violation(f"commit {record.number} was made twice")
        if record.number != len(self.durable) + 1:
            raise Violation(f"commit {record.number} follows {len(self.durable)}")
        key = self._key(record)
        if key in self.syncs:
            raise Violation(f"sync {key} was committed as {self.syncs[key]} and as {record.number}")
        self.syncs[key] = record.number
        self.durable[record.number] = record
        self.chains[record.chain] = record
        self.commits += 1
        for peer in record.contributors:
            self.commits_of[peer] += 1

    def _key(self, record: CommitRecord) -> tuple[str, int, int]:
        """A sync; pairs that know nothing of each other may have the same index."""
        return record.sync.stream, record.sync.index, record.sync.attempt if self.gossip else 0

    def rewound(self, after: int) -> None:
        """Lines were given up because nobody held them any more."""
        self.rewinds += 1
        for number in [n for n in self.durable if n > after]:
            record = self.durable.pop(number)
            del self.syncs[self._key(record)]
        self.taken = {step: number for step, number in self.taken.items() if number <= after}

    # ---- peers

    def saved(self, who: str, chain: bytes, chunks: tuple[str, ...], *, wanted: bool) -> None:
        """A peer has saved its state. Guarantee 1 holds for what is on disk, too, whatever happened meanwhile.

        `wanted`: by the coordinator, and not only by the peer itself at its end.
        """
        self.saves += 1
        if self.gossip:
            if (last := self.chains.get(chain)) is None:
                return  # the initial state, which all have in common
            lines = [r for r in self.durable.values() if r.number <= last.number and who in r.contributors]
            if wanted and not (lines and max(lines, key=lambda r: r.number).consensus):
                raise Violation(f"{who} has saved a state of its own, which is not where all replicas have come to one")
            return
        first, known = self.state_at.get(chain, ("", {}))
        if known and sum(known.values(), ()) != chunks and not any(chunk.startswith("!") for chunk in chunks):
            raise Violation(f"{who} has saved another state than {first} had with the same history")

    def applied(self, who: str, record: CommitRecord, payloads: Sequence[SumOf]) -> None:
        """A peer applied an update. Guarantees 1 and 2."""
        known = self.chains.get(record.chain)
        if known is None:
            raise Violation(f"{who} applied {record.sync} which was never committed")
        if known != record:
            raise Violation(f"{who} applied {record}, committed was {known}")
        if who in record.contributors and record.sync.index > self.entered.get(who, (0, 0))[1]:
            self.own_lines[who].add(record.chain)
        if not payloads:
            return
        first, update = self.update_at.setdefault(record.chain, (who, tuple(payloads)))
        if update != tuple(payloads):
            raise Violation(f"{who} and {first} applied different updates as {record.number}")
        if first == who:
            self._whole(record, update)

    def _whole(self, record: CommitRecord, update: tuple[SumOf, ...]) -> None:
        """All chunks hold the recorded contributors, each once, whole; no inner step counts twice.

        In a ring each chunk is summed in another order, beginning with another peer.
        """
        inputs = update[0].inputs
        for payload in update:
            if len(payload.inputs) != len(inputs) or set(payload.inputs) != set(inputs) or not payload.final:
                raise Violation(f"update {record.number}: chunks differ in what is in them: {update}")
        names = sorted((contribution.who.split("/")[0], weight) for weight, contribution in inputs)
        if names != sorted(zip(record.contributors, record.weights, strict=True)):
            raise Violation(f"update {record.number} has {inputs}, recorded were {record.contributors}")
        for _, contribution in inputs:
            for step in contribution.steps:
                taken = self.taken.setdefault((record.sync.stream, step), record.number)
                if taken != record.number:
                    raise Violation(f"step {step} of {contribution.who} is in commits {taken} and {record.number}")

    def state(self, who: str, chain: bytes, tensors: SymbolicTensors) -> None:
        """Guarantee 1: equal history means equal state, bit for bit."""
        if self.gossip:
            return
        state = {name: tuple(phi) for name, phi in tensors.phi.items()}
        first, known = self.state_at.setdefault(chain, (who, state))
        if known != state:
            raise Violation(f"{who} and {first} have the same history and different states")

    def contributes(self, who: str, sync: tuple[bytes, str, int, int], contribution: Contribution) -> None:
        """Guarantee 3: every attempt of a sync uses the same input."""
        if self.used.setdefault((who, sync), contribution.ident) != contribution.ident:
            raise Violation(f"{who} used different inputs for attempts of {sync[1]}#{sync[2]}")

    # ---- gossip

    def enters(self, who: str, number: int, index: int) -> None:
        """A peer's state begins anew: another's at this number of the log, or its own as it was saved there."""
        self.entered[who] = number, index
        self.own_lines[who] = set()

    def both_or_neither(self, who: str) -> None:
        """Guarantees 1 and 2 per exchange: whoever is at rest has applied every line that its state is in, no other."""
        number, index = self.entered.get(who, (0, 0))
        later = [r for r in self.durable.values() if r.number > number and r.sync.index > index]
        expected = {record.chain: record for record in later if who in record.contributors}
        if expected.keys() != self.own_lines[who]:
            missing = [str(record.sync) for chain, record in expected.items() if chain not in self.own_lines[who]]
            surplus = [str(self.chains[chain].sync) for chain in self.own_lines[who] - expected.keys()]
            raise Violation(f"{who} has not applied {missing}, and applied {surplus} without being in it")
