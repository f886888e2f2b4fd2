"""The direct all-reduce as a pure core: every contributor sends each shard to its owner, owners send the means to all.

Two hops and exactly two quantizations.
"""

from wantrain.transport.collective import (
    ASK_AT_MOST,
    AllReduce,
    Ask,
    Asked,
    ChunkReduced,
    Effect,
    PartCame,
    Payload,
    Plan,
    Reduce,
    ResultCame,
    SendPart,
    SendResult,
)


class Direct(AllReduce):
    """One attempt of a direct all-reduce; the order of the contributors is the order of the sum."""

    def __init__(self, me: str, plan: Plan) -> None:
        super().__init__(me, plan)
        self._others = tuple(peer for peer in (*plan.contributors, *plan.receivers) if peer != me)
        self._shards: dict[str, list[int]] = {peer: [] for peer in plan.contributors}
        for chunk, owner in enumerate(self._owner):
            self._shards[owner].append(chunk)
        mine = self._shards.get(me, [])
        self._parts: dict[int, dict[str, Payload]] = {chunk: {} for chunk in mine}
        """Of the chunks that are still to be summed here."""
        self._parts_due = {peer: len(mine) for peer in plan.contributors if peer != me}
        self._results_due = {peer: len(chunks) for peer, chunks in self._shards.items()}

    @property
    def missing(self) -> int:
        """Chunks that still have to come in: parts for our shard, and results, our own too."""
        return sum(self._parts_due.values()) + sum(self._results_due.values())

    @property
    def waiting_for(self) -> tuple[str, ...]:
        """Peers from whom something is missing, in contributor order."""
        return tuple(peer for peer, parts in self._parts_due.items() if parts or self._results_due[peer])

    def _begin(self) -> list[Effect]:
        effects: list[Effect] = []
        if self._me in self._weights:
            # Start with the next owner and take one chunk of each in turn: no owner gets everybody's bytes at once.
            turn = self._contributors.index(self._me) + 1
            owners = [*self._contributors[turn:], *self._contributors[: turn - 1]]
            for k in range(max(map(len, self._shards.values()))):
                effects += [SendPart(owner, self._shards[owner][k]) for owner in owners if k < len(self._shards[owner])]
        for chunk in tuple(self._parts):
            effects += self._reduce_if_full(chunk)
        return effects

    def _part(self, event: PartCame, now: float) -> list[Effect]:
        parts = self._parts.get(event.chunk)
        if parts is None or event.source not in self._parts_due or event.source in parts:
            return []
        self._progress(now)
        self._parts_due[event.source] -= 1
        parts[event.source] = event.payload
        return self._reduce_if_full(event.chunk)

    def _reduce_if_full(self, chunk: int) -> list[Effect]:
        if len(self._parts[chunk]) < len(self._parts_due):
            return []
        parts = self._parts.pop(chunk)
        return [Reduce(chunk, tuple((self._weights[p], parts.get(p)) for p in self._contributors), self._divisor)]

    def _reduced(self, event: ChunkReduced) -> list[Effect]:
        self._keep(event.chunk, event.payload, event.digest)
        self._results_due[self._me] -= 1
        return [SendResult(peer, event.chunk, event.payload) for peer in self._others]

    def _result(self, event: ResultCame, now: float) -> list[Effect]:
        known = 0 <= event.chunk < len(self._owner) and event.chunk not in self._results
        if not known or event.source == self._me or self._owner[event.chunk] != event.source:
            return []
        self._progress(now)
        self._keep(event.chunk, event.payload, event.digest)
        self._results_due[event.source] -= 1
        return []

    def _asked(self, event: Asked) -> list[Effect]:
        if event.source not in self._others:
            return []
        effects: list[Effect] = []
        if self._me in self._weights:
            theirs = self._shards.get(event.source, ())
            effects += [SendPart(event.source, chunk) for chunk in sorted(set(event.parts).intersection(theirs))]
        ours = self._results.keys() & self._shards.get(self._me, ())
        results = sorted(ours.intersection(event.results))
        return effects + [SendResult(event.source, chunk, self._results[chunk]) for chunk in results]

    def _asks(self) -> list[Ask]:
        asks = []
        for peer in self.waiting_for:
            parts = [chunk for chunk, came in self._parts.items() if peer not in came]
            results = [chunk for chunk in self._shards[peer] if chunk not in self._results]
            asks.append(Ask(peer, tuple(parts[:ASK_AT_MOST]), tuple(results[:ASK_AT_MOST])))
        return asks
