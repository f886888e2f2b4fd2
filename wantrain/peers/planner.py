"""How the bytes of a stream's next attempt go: topology, order, shards, codec, from what was measured; pure."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from wantrain.optimizers.stream import Stream
from wantrain.peers.codec_choice import CodecChoice, coding_s, slack_s
from wantrain.peers.link_table import LinkTable
from wantrain.transport.codec.names import AUTO, AUTO_CODECS, bits, format_of
from wantrain.transport.cost import Choice, choose, slowest_message_s

Plan = Callable[[tuple[str, ...], tuple[str, ...], bool], Choice]
"""(contributors in view order, receivers, whether only the direct topology may be used) to the choice."""


@dataclass(slots=True)
class Planner:
    """Plans the attempts of one stream.

    Args:
        stream: its topology and codecs.
        elements: length of its vector.
        chunks: of that vector.
        table: what was measured.
        step_s: how long an inner step takes these peers, in seconds, 0 if unknown; read if the codec is `auto`.
    """

    stream: Stream
    elements: int
    chunks: int
    table: LinkTable
    step_s: Callable[[tuple[str, ...]], float] = lambda _: 0.0
    _known: tuple[object, dict[str, Choice]] | None = None
    """What was planned from, and the plans, by codec of the way up."""
    _codec: CodecChoice = field(default_factory=CodecChoice)
    _passed: dict[str, int] = field(default_factory=dict)
    """How often in a row each peer was left out because no owner reached it: the more often, the sooner it is in."""

    def plan(self, contributors: tuple[str, ...], receivers: tuple[str, ...], direct: bool) -> Choice:
        """The plan for these peers; the same object while nothing has changed."""
        key = (contributors, receivers, direct, self.table.version)
        up = self.stream.codec
        if self._known is None or self._known[0] != key:
            ups = AUTO_CODECS if up == AUTO else (up,)
            self._known = (key, {codec: self._choose(contributors, receivers, direct, codec) for codec in ups})
        plans = self._known[1]
        choice = self._with_codec(plans, contributors) if up == AUTO else plans[up]
        if self._passed or len(choice.contributors) < len(contributors):
            inside, self._known = set(choice.contributors), None
            self._passed = {peer: self._passed.get(peer, 0) + 1 for peer in contributors if peer not in inside}
        return choice

    def together(self, contributors: tuple[str, ...]) -> int:
        """How many of them a plan would have: fewer than all, if not all can meet."""
        return len(self._choose(contributors, (), True, self.stream.codecs[1]).contributors) if contributors else 0

    def took(self, codec: str, predicted_s: float, time_s: float) -> None:
        """An exchange with contributions in this codec has taken `time_s` seconds; `predicted_s` is from its plan."""
        if codec:
            self._codec.took(codec, self._least_s(codec, predicted_s), time_s)

    def _least_s(self, codec: str, predicted_s: float) -> float:
        return predicted_s and max(predicted_s, coding_s(codec, self.elements))

    def _with_codec(self, plans: dict[str, Choice], contributors: tuple[str, ...]) -> Choice:
        """The plan of the codec that this attempt had best have."""
        predicted_s = [self._least_s(codec, plan.predicted_s) for codec, plan in plans.items()]
        codec, reason = self._codec.choose(predicted_s, slack_s(self.stream, self.step_s(contributors)))
        plan = plans[codec]
        return replace(plan, codec=codec, reason=f"{plan.reason}; {reason}")

    def _choose(self, contributors: tuple[str, ...], receivers: tuple[str, ...], direct: bool, up: str) -> Choice:
        down = self.stream.codecs[1]
        peers = frozenset((*contributors, *receivers))
        chunk_bytes = max(bits(up), bits(down)) * self.elements / 8 / max(self.chunks, 1)
        choice = choose(
            "direct" if direct or self.stream.gossip else self.stream.topology,
            contributors,
            receivers,
            chunks=self.chunks,
            up_bytes=bits(up) * self.elements / 8,
            down_bytes=bits(down) * self.elements / 8,
            links=self.table.paces,
            reach=self.table.reach,
            passed=self._passed,
            per_hop=format_of(up).per_hop and not format_of(up).error_feedback,
        )
        return replace(choice, slowest_s=slowest_message_s(peers, self.table.paces, chunk_bytes))
