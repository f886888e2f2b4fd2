"""The ring all-reduce as a pure core: sums of a chunk travel from neighbour to neighbour, then its mean does.

A chunk that contributor k owns starts at k+1, whose input goes to k+2, and so on; every peer on the way adds its own,
and the owner, who comes last, makes the mean. That goes round the contributors and then the receivers. A chunk's next
hop starts when the chunk is there: no phase waits for another. Each hop encodes the sum anew.
"""

from wantrain.transport.collective import (
    ASK_AT_MOST,
    AllReduce,
    Ask,
    Asked,
    ChunkReduced,
    Effect,
    ForwardPart,
    PartCame,
    Payload,
    Plan,
    Reduce,
    ResultCame,
    SendPart,
    SendResult,
)


class Ring(AllReduce):
    """One attempt of a ring all-reduce: the contributors in their order, after the last of them the receivers."""

    def __init__(self, me: str, plan: Plan) -> None:
        super().__init__(me, plan)
        around = (*plan.contributors, *plan.receivers)
        here = around.index(me)
        self._results_from, self._results_to = around[here - 1], around[(here + 1) % len(around)]
        chunks = range(len(self._owner))
        self._adds = me in self._weights and len(plan.contributors) > 1
        """Whether our input is to be added to those of others."""
        self._alone = me in self._weights and not self._adds
        if self._adds:
            self._parts_before, self._parts_from = plan.contributors[here - 2], plan.contributors[here - 1]
            self._parts_to = plan.contributors[(here + 1) % len(plan.contributors)]
            self._starts = {chunk for chunk in chunks if self._owner[chunk] == self._parts_from}
        else:
            self._parts_before = self._parts_from = self._parts_to = ""
            self._starts = set()
        self._parts_due = set(chunks) - self._starts if self._adds else set()
        self._results_due = {chunk for chunk in chunks if self._owner[chunk] != me}
        self._sums: dict[int, Payload] = {}
        """Sums that we have sent on, each until the mean shows that it has arrived."""

    @property
    def missing(self) -> int:
        """Chunks that still have to come in: sums to add to, and results, our own too."""
        return len(self._parts_due) + len(self._owner) - len(self._results)

    @property
    def waiting_for(self) -> tuple[str, ...]:
        """The neighbours from whom something is missing."""
        parts_from = [self._parts_from] if self._parts_due else []
        results_from = [self._results_from] if self._results_due else []
        return tuple(dict.fromkeys(parts_from + results_from))

    def _begin(self) -> list[Effect]:
        if self._alone:
            return [Reduce(chunk, ((self._divisor, None),), self._divisor) for chunk in range(len(self._owner))]
        return [SendPart(self._parts_to, chunk) for chunk in sorted(self._starts)]

    def _part(self, event: PartCame, now: float) -> list[Effect]:
        if event.source != self._parts_from or event.chunk not in self._parts_due:
            return []
        self._progress(now)
        self._parts_due.remove(event.chunk)
        owner = self._owner[event.chunk]
        weight = self._weights[event.source] if owner == self._parts_before else 1.0  # the first input comes unweighted
        final = owner == self._me
        inputs = ((weight, event.payload), (self._weights[self._me], None))
        return [Reduce(event.chunk, inputs, self._divisor if final else 1.0, final)]

    def _reduced(self, event: ChunkReduced) -> list[Effect]:
        if self._owner[event.chunk] != self._me:
            self._sums[event.chunk] = event.payload
            return [ForwardPart(self._parts_to, event.chunk, event.payload)]
        self._keep(event.chunk, event.payload, event.digest)
        return self._send_results([event.chunk])

    def _result(self, event: ResultCame, now: float) -> list[Effect]:
        if event.source != self._results_from or event.chunk not in self._results_due or not self._is_in(event.chunk):
            return []
        self._progress(now)
        self._results_due.remove(event.chunk)
        self._keep(event.chunk, event.payload, event.digest)
        self._sums.pop(event.chunk, None)
        return self._send_results([event.chunk])

    def _is_in(self, chunk: int) -> bool:
        """Whether our input has left for the chunk's owner: no mean can be true before it has."""
        return not self._adds or chunk in self._starts or chunk in self._sums

    def _send_results(self, chunks: list[int]) -> list[Effect]:
        to = self._results_to
        return [SendResult(to, c, self._results[c]) for c in chunks if to not in (self._me, self._owner[c])]

    def _asked(self, event: Asked) -> list[Effect]:
        effects: list[Effect] = []
        if event.source == self._parts_to:
            for chunk in sorted(set(event.parts)):
                if chunk in self._starts:
                    effects.append(SendPart(event.source, chunk))
                elif chunk in self._sums:
                    effects.append(ForwardPart(event.source, chunk, self._sums[chunk]))
        if event.source == self._results_to:
            effects += self._send_results(sorted(self._results.keys() & set(event.results)))
        return effects

    def _asks(self) -> list[Ask]:
        parts = sorted(self._parts_due)[:ASK_AT_MOST]
        results = sorted(filter(self._is_in, self._results_due))[:ASK_AT_MOST]
        asks: dict[str, tuple[list[int], list[int]]] = {}
        if parts:
            asks[self._parts_from] = (parts, [])
        if results:
            asks[self._results_from] = (asks.get(self._results_from, ([],))[0], results)
        return [Ask(peer, tuple(wanted[0]), tuple(wanted[1])) for peer, wanted in asks.items()]
