"""What a run will need before there is one: bytes, times, memory and disk, by the formulas that a run itself uses.

A model is known by its number of parameters only, so it stands for a GPT of `BLOCKS` equal blocks with a tenth of its
values outside of them: that is what fragments are cut from. All links are alike, and a sync has them for itself.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from wantrain.bench.traffic import shard_shares, traffic
from wantrain.config import CheckpointSection, LogSection, RunSpec, template
from wantrain.optimizers.merge import merge
from wantrain.optimizers.method import build
from wantrain.optimizers.stream import Stream, lead
from wantrain.peers.findings import PROCESS_BYTES
from wantrain.peers.layout import manifest_bytes, stream_elements
from wantrain.peers.messages import Manifest, TensorSpec
from wantrain.peers.residual import Residual
from wantrain.peers.shared_memory import segment_bytes
from wantrain.transport.codec import codec
from wantrain.transport.codec.names import bits, format_of
from wantrain.transport.cost import MESSAGE_S, Pace, choose
from wantrain.transport.partition import chunk_bounds, chunk_elements
from wantrain.transport.reach import Reach

DAY_S = 86400.0
BLOCKS = 24
OUTSIDE = 0.1
"""Share of the values that are in no block: embeddings, mostly."""
WAITING_SHARE = 0.05
"""A period is useful from where waiting takes at most this share of the time."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is planned for."""

    params: int
    """Trainable values of the model."""
    peers: int
    method: str
    link_bytes_per_s: float
    """Of each peer's line, in each direction."""
    rtt_s: float
    """Between any two peers."""
    tokens_per_s: float
    """Of one peer while it does not wait."""
    step_tokens: int
    """Tokens of one inner step of one peer."""
    codec: str = ""
    """"" for the method's own."""
    down: str = ""
    topology: str = "auto"
    options: Mapping[str, bool | int | float | str] | None = None
    """Of the method."""


@dataclass(frozen=True, slots=True)
class StreamPlan:
    """One stream; bytes are those of the peer that sends most."""

    name: str
    every: int
    """Inner steps between two syncs."""
    delay: int | None
    """Inner steps that training goes on while a sync is under way; None: until it is over."""
    codec: str
    down: str
    topology: str
    elements: int
    sent_bytes: int
    """Sent by a peer for one sync; it receives about as much."""
    sync_s: float
    """From the start of a sync until everybody has its result."""
    wait_s: float
    """Of that, what training waits."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run will need, of each peer."""

    wanted: Wanted
    model_bytes: int
    """In fp32."""
    streams: tuple[StreamPlan, ...]
    step_s: float
    """Of an inner step."""
    bytes_per_day: int
    """Sent by a peer."""
    line_share: float
    """Part of the time that the lines are in use; 1 and more: they cannot keep up."""
    waiting_share: float
    """Part of the time that training waits."""
    shortest_every: int | None
    """Inner steps between two syncs of the first parameter stream from which on at most `WAITING_SHARE` of the time is
    waited and the lines keep up; None where every step is a sync."""
    memory_bytes: int
    """Of the daemon: tensors, the update log, Python and PyTorch. Shared memory is part of it."""
    shared_bytes: int
    """In /dev/shm."""
    log_bytes: int
    """Of the update log, in memory."""
    state_bytes: int
    """One saved state."""
    disk_bytes: int
    """In the peer's home: saved states, and the one that is being written."""

    def document(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


def plan(wanted: Wanted) -> Plan:
    """What these come to.

    Raises:
        ConfigError: unknown method, option or codec, or ones that do not fit each other.
    """
    how = {"method": wanted.method, "codec": wanted.codec, "down": wanted.down, "topology": wanted.topology}
    spec = RunSpec.parse(template("plan", "0" * 16, "0" * 64, **how), "the plan")
    rows = build(wanted.method, {**spec.method.options, **(wanted.options or {})}, spec.wiring)
    manifest = stand_in(wanted.params)
    step_s = wanted.step_tokens / wanted.tokens_per_s
    streams = tuple(_stream(row, stream_elements(row, manifest), wanted, step_s) for row in rows)
    busy_s = sum(stream.sync_s / stream.every for stream in streams)
    wait_s = sum(stream.wait_s / stream.every for stream in streams)
    per_step = sum(stream.sent_bytes / stream.every for stream in streams)
    memory = Memory.of(rows, manifest)
    return Plan(
        wanted=wanted,
        model_bytes=manifest_bytes(manifest),
        streams=streams,
        step_s=step_s,
        bytes_per_day=round(per_step * DAY_S / (step_s + wait_s)),
        line_share=busy_s / (step_s + wait_s),
        waiting_share=wait_s / (step_s + wait_s),
        shortest_every=_shortest(rows, streams, step_s),
        memory_bytes=memory.tensor_bytes + memory.log_bytes + PROCESS_BYTES,
        shared_bytes=memory.shared_bytes,
        log_bytes=memory.log_bytes,
        state_bytes=memory.state_bytes,
        disk_bytes=(CheckpointSection().keep + 1) * memory.state_bytes,
    )


def stand_in(params: int) -> Manifest:
    """A model of so many values: `BLOCKS` blocks of two tensors each, and the rest."""
    per_tensor = int((1 - OUTSIDE) * params / BLOCKS / 2)
    inside = [TensorSpec(f"block.{k}.{name}", (per_tensor,), "float32") for k in range(BLOCKS) for name in "ab"]
    return (TensorSpec("embedding", (params - 2 * BLOCKS * per_tensor,), "float32"), *inside)


@dataclass(frozen=True, slots=True)
class Memory:
    """What a daemon holds, as `Engine.expected_bytes` counts it, and the update log."""

    state_bytes: int
    """The run's state: phi and outer state."""
    shared_bytes: int
    """The segment that it shares with its trainer."""
    tensor_bytes: int
    """All tensors, those two included."""
    log_bytes: int

    @staticmethod
    def of(streams: Sequence[Stream], manifest: Manifest) -> "Memory":
        elements = {stream.name: stream_elements(stream, manifest) for stream in streams}
        state = scratch = ahead = residuals = 0
        for stream in streams:
            count, up = elements[stream.name], stream.codecs[0]
            slots = len(merge(stream.merge).slots)
            state += 4 * count * (1 + slots) if stream.held else 0
            if stream.answer != "result":
                ahead += 4 * count * (1 + (slots if stream.answer == "eager" else 0))
            if format_of(up).error_feedback:
                residuals += Residual(codec(up), chunk_bounds(count)).full_bytes
            scratch = max(scratch, 8 * chunk_elements(count))
        shared = segment_bytes(elements)
        return Memory(state, shared, state + shared + scratch + ahead + residuals, _log_bytes(streams, elements))


def _log_bytes(streams: Sequence[Stream], elements: Mapping[str, int]) -> int:
    """Of the update log when it is full, with its default limits; at least one update is kept."""
    limits = LogSection()
    sizes = [_bytes(elements[stream.name], stream.codecs[1]) for stream in streams]
    rates = [1 / stream.every for stream in streams]
    usual = sum(size * rate for size, rate in zip(sizes, rates, strict=True)) / sum(rates)
    return max(max(sizes), round(min(limits.keep_mb * 2**20, limits.keep_updates * usual)))


def _bytes(elements: int, name: str) -> int:
    return math.ceil(elements * bits(name) / 8)


def _stream(stream: Stream, elements: int, wanted: Wanted, step_s: float) -> StreamPlan:
    up, down = stream.codecs
    delay = _delay(stream)
    topology, sent_bytes, sync_s = "", 0, 0.0
    if wanted.peers > 1:
        topology, sent_bytes, sync_s = _sync(stream.topology, elements, up, down, wanted)
    wait_s = 0.0 if delay is None else max(0.0, sync_s - delay * step_s)
    return StreamPlan(stream.name, stream.every, delay, up, down, topology, elements, sent_bytes, sync_s, wait_s)


def _delay(stream: Stream) -> int | None:
    """Inner steps between contribution and the first one that would wait for the result."""
    if stream.overdue == "continue":
        return None
    return stream.every if stream.answer != "result" else stream.delay


def _sync(topology: str, elements: int, up: str, down: str, wanted: Wanted) -> tuple[str, int, float]:
    """Topology, bytes that the busiest sender sends, and seconds of one sync."""
    peers = tuple(f"peer-{k}" for k in range(wanted.peers))
    bounds = chunk_bounds(elements)
    up_bytes, down_bytes = _bytes(elements, up), _bytes(elements, down)
    pace = Pace(wanted.link_bytes_per_s, wanted.rtt_s)
    if topology == "pair":
        sent = (up_bytes + down_bytes) / 2  # see `bench.traffic`; both hops, each its half
        return "pair", math.ceil(sent), wanted.rtt_s + sent / pace.rate_bytes_per_s + (2 + len(bounds)) * MESSAGE_S
    choice = choose(
        topology,
        peers,
        (),
        chunks=len(bounds),
        up_bytes=up_bytes,
        down_bytes=down_bytes,
        links={(a, b): pace for a in peers for b in peers if a != b},
        reach=Reach(),
        per_hop=format_of(up).per_hop,
    )
    moved = traffic(
        choice.topology, choice.contributors, shard_shares(elements, bounds, choice.shards), up_bytes, down_bytes
    )
    sent = max(sum(size for (source, _), size in moved.items() if source == peer) for peer in peers)
    return choice.topology, math.ceil(sent), choice.predicted_s


def _shortest(rows: Sequence[Stream], streams: Sequence[StreamPlan], step_s: float) -> int | None:
    """All periods are scaled alike: by what waiting may take, and by what the lines can carry."""
    first = lead(rows)
    if first is None or any(not row.held for row in rows):
        return None
    # Who is answered at once waits for the sync before: not at all if the lines keep up.
    plain = [stream for row, stream in zip(rows, streams, strict=True) if row.answer == "result"]
    wait_s = sum(stream.wait_s / stream.every for stream in plain)
    busy_s = sum(stream.sync_s / stream.every for stream in streams)
    factor = max(wait_s * (1 / WAITING_SHARE - 1), busy_s) / step_s
    return max(1, first.delay, math.ceil(first.every * factor))
