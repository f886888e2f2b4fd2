"""Every message between coordinator, peers and trainers, as frozen records that are checked when they arrive.

A record has no behaviour. `pack` turns one into a wire message, `unpack` turns a wire message from the network into a
record or raises WireError: unknown kind, missing or surplus field, wrong type, out of range. Nothing else parses.
"""

from dataclasses import dataclass, field
from typing import Annotated, Any, TypeAlias

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from wantrain.errors import WireError
from wantrain.transport.wire import MAX_BUFFERS, Buffer, Message

COORDINATOR = "coordinator"
"""The coordinator among the names of peers on a link."""
MAX_PEERS = 4096
MAX_TENSORS = 10_000
"""A manifest has to fit the header of one message, 1 MiB."""
MAX_RECORDS = 1024
"""Most commit records in one message; a peer that lacks more asks again."""
MAX_LEASES = 1 << 16
"""Letters for the leases that a run begins with: they share a message with the manifest."""
MAX_EXTRA = 1 << 18
"""Most characters that go with a request to save the state."""
MAX_CONFIG = 1 << 19
"""Most characters of a model's config: half of what the header of a message holds."""
MAX_PATHS = 64
"""Most measured paths in one report."""
MAX_UNREACHED = 256
"""Most peers that one report says it cannot reach."""
MAX_ASKED = 4096
"""Most chunks asked for in one message."""
MAX_DIGESTS = 16_384
"""Most digests of chunks in one message: half of what its header holds, enough for a stream of 8.6 G values."""
MAX_DATA = 16
"""Most data sets of one run."""
MAX_SPANS = 64
"""Most pieces of an epoch's order in one lease."""
MAX_NAME = 128
"""Most characters of a name, of whatever it is."""
MAX_TENSOR_NAME = 512
"""Most characters of a parameter's name, with those of the modules that it is in."""
MAX_DIMS = 16
"""Most dimensions of a tensor."""
MAX_COUNT = 2**62
"""Largest whole number in a message."""
MAX_VALUES = 64
"""Most numbers with names in one message."""

Name: TypeAlias = Annotated[str, Field(strict=True, max_length=MAX_NAME)]
PeerId: TypeAlias = Annotated[str, Field(strict=True, min_length=1, max_length=64)]
Text: TypeAlias = Annotated[str, Field(strict=True, max_length=4096)]
Digest: TypeAlias = Annotated[bytes, Field(strict=True, min_length=32, max_length=32)]
Key: TypeAlias = Annotated[bytes, Field(strict=True, min_length=32, max_length=32)]
Count: TypeAlias = Annotated[int, Field(strict=True, ge=0, le=MAX_COUNT)]
Finite: TypeAlias = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Measured: TypeAlias = Annotated[float, Field(strict=True, ge=0, le=1e15, allow_inf_nan=False)]
Flag: TypeAlias = Annotated[bool, Field(strict=True)]
Weight: TypeAlias = Annotated[float, Field(strict=True, gt=0, le=1e15, allow_inf_nan=False)]
Peers: TypeAlias = Annotated[tuple[PeerId, ...], Field(max_length=MAX_PEERS)]
Chunks: TypeAlias = Annotated[tuple[Count, ...], Field(max_length=MAX_ASKED)]
Moved: TypeAlias = Annotated[tuple[Count, ...], Field(min_length=1, max_length=MAX_BUFFERS)]
Values: TypeAlias = Annotated[dict[Name, Finite], Field(max_length=MAX_VALUES)]
Reader: TypeAlias = Annotated[bytes, Field(strict=True, max_length=8)]
"""Which trainer process reads leases, random; b"" is none. One that starts over from the run's state is another."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One trainable tensor of the run's model: name, shape, and dtype as torch prints it without the `torch.`."""

    name: Annotated[str, Field(strict=True, max_length=MAX_TENSOR_NAME)]
    shape: Annotated[tuple[Count, ...], Field(max_length=MAX_DIMS)]
    dtype: Annotated[str, Field(strict=True, max_length=32)]


Manifest: TypeAlias = Annotated[tuple[TensorSpec, ...], Field(max_length=MAX_TENSORS)]


@dataclass(frozen=True, slots=True)
class SyncId:
    """One try at one occurrence of a stream. Attempts only grow, also over restarts of the coordinator."""

    stream: Name
    index: Count
    attempt: Count

    def __str__(self) -> str:
        return f"{self.stream}#{self.index}.{self.attempt}"


@dataclass(frozen=True, slots=True)
class CommitRecord:
    """One line of the commit log: who was in sync (stream, index), with which weights, and what came out.

    `chain` is H(chain of the line before, digest); see `wantrain.peers.chain`.
    """

    number: Count
    sync: SyncId
    contributors: Peers
    weights: Annotated[tuple[Weight, ...], Field(max_length=MAX_PEERS)]
    digest: Digest
    chain: Digest
    steps: Count = 0
    """Inner steps of the run up to this sync, as its stream counts them."""
    pace_s: Measured = 0.0
    """Seconds of an inner step of the fastest contributor; 0 if unknown."""
    consensus: Flag = False
    """Of a gossip stream: everybody in it took over the mean itself, whereas a pair moves towards its mean."""


@dataclass(frozen=True, slots=True)
class Span:
    """Positions first … first + count - 1 of a data set's order in one epoch."""

    epoch: Count
    first: Count
    count: Count


@dataclass(frozen=True, slots=True)
class Drawn:
    """How many samples of its leases a trainer had drawn, by data set, when it made a contribution."""

    reader: Reader = b""
    counts: Annotated[dict[Name, Count], Field(max_length=MAX_DATA)] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class WantLease:
    """A trainer asks for samples; also a line of its peer's report, until it is answered."""

    data: Name
    length: Count
    seed: Count
    epochs: Count
    """How often the data set is gone through; 0: for ever. It is one for all, as length and seed are."""
    reader: Reader
    serial: Count
    """Which answer it waits for."""
    taken: Count
    """Samples that it was leased so far."""
    left: Count
    """Those of them that it has not drawn yet."""
    samples: Count
    """How many more it would like."""
    least: Count
    """How many it needs at least to go on without asking all the time."""
    unused: Count
    """How many it has drawn and not trained on: nobody waits for those if it has none left."""
    dry: Flag
    """Whether it has none left and was told that there may be none: nobody is to wait for its contribution."""


# ---- peer to coordinator


@dataclass(frozen=True, slots=True)
class Enroll:
    """First words of a newcomer, on a connection that was opened with an invite's key: who it is from now on."""

    invite: Annotated[bytes, Field(strict=True, max_length=2048)]
    identity_key: Key
    curve_key: Key
    name: Name
    proof: Annotated[bytes, Field(strict=True, min_length=64, max_length=64)]


@dataclass(frozen=True, slots=True)
class Examine:
    """`wantrain doctor` asks what somebody with this invite would find; nothing is used up and nobody joins."""

    version: Name
    invite: Annotated[bytes, Field(strict=True, max_length=2048)]
    codecs: Annotated[tuple[Name, ...], Field(max_length=64)]
    visitor_key: Key
    """CURVE public key that it will use towards members, drawn for this once."""
    address: Annotated[str, Field(strict=True, max_length=256)]
    """Where members are to dial it, "host:port"; "" if it can only dial out."""


@dataclass(frozen=True, slots=True)
class Hello:
    """A peer introduces itself after each (re)connection."""

    protocol: Count
    version: Name
    spec_digest: Annotated[bytes, Field(strict=True, max_length=32)]
    """Digest of the run spec that the peer holds, or b"" if it has none yet."""
    name: Name
    boot: Annotated[bytes, Field(strict=True, min_length=8, max_length=8)]
    """Random per process start: tells a restarted peer from two processes with one identity."""
    address: Annotated[str, Field(strict=True, max_length=256)]
    """Where other peers can dial it, "host:port"; "" if it can only dial out."""
    codecs: Annotated[tuple[Name, ...], Field(max_length=64)]
    initial: Flag = False
    """Whether it brings the state that the run is to begin with."""


@dataclass(frozen=True, slots=True)
class SyncReport:
    """What a peer holds of one sync. `phase`: ready, moving, done, or failed (the attempt cannot be completed there).

    READY and DONE are lines of the report.
    """

    stream: Name
    index: Count
    phase: Annotated[str, Field(strict=True, pattern="^(ready|moving|done|failed)$")]
    weight: Weight = 1.0
    norm: Finite = 0.0
    staged: Flag = True
    """Whether the peer holds an input of its own for it, or only receives."""
    attempt: Count = 0
    digest: Annotated[bytes, Field(strict=True, max_length=32)] = b""
    missing: Count = 0
    """Chunks that have not come in yet."""
    waiting_for: Peers = ()
    """From whom something is missing; once it has failed, those to blame, if that is known."""
    why: Annotated[str, Field(strict=True, max_length=256)] = ""
    """What is wrong with what they contribute, once it has failed."""
    drawn: Drawn = field(default_factory=Drawn)
    """What of the trainer's leases is in the input."""
    steps: Count = 0
    """Inner steps in the input since the stream was staged before."""


@dataclass(frozen=True, slots=True)
class LinkReport:
    """What a peer has measured on its way to another one; 0 where nothing is known."""

    rate_bytes_per_s: Measured
    rtt_s: Measured
    loss: Measured
    lanes: Count
    congestion: Name
    way: Annotated[str, Field(strict=True, pattern="^(both|out|in|)$")] = ""
    """Who has dialled whom: "out" if only the reporting peer's connection is up, "in" if only the other's."""


@dataclass(frozen=True, slots=True)
class Report:
    """Heartbeat and state in one: sent on every change and every heartbeat period, so a lost one does no harm."""

    boot: Annotated[bytes, Field(strict=True, min_length=8, max_length=8)]
    sequence: Count
    log_number: Annotated[int, Field(strict=True, ge=-1, le=2**62)]
    """Last commit applied; -1 while the peer holds no state of the run."""
    chain: Annotated[bytes, Field(strict=True, max_length=32)]
    state_number: Annotated[int, Field(strict=True, ge=-1, le=2**62)]
    state_digest: Annotated[bytes, Field(strict=True, max_length=32)]
    """Digest of the peer's state at log number state_number, or -1 and b""."""
    trainer: Annotated[str, Field(strict=True, pattern="^(none|starting|training|waiting|dry|done)$")]
    syncs: Annotated[tuple[SyncReport, ...], Field(max_length=256)]
    suspects: Annotated[dict[PeerId, Text], Field(max_length=MAX_PEERS)]
    eta_s: Finite
    """Seconds until the trainer is expected to be ready again; -1 if unknown."""
    waiting: Text
    """For whom or what the peer waits, in words; "" when it does not."""
    stats: Values
    """Numbers for `status`: step, loss, tokens, tokens_per_s, bytes_sent, bytes_received, pause_s, …"""
    view: Count = 0
    """The newest view that the peer knows; an older one than the run's is sent again."""
    paths: Annotated[dict[PeerId, LinkReport], Field(max_length=MAX_PATHS)] = field(default_factory=dict)
    """By the other peer: some of what was measured, others come with other reports."""
    unreached: Annotated[tuple[PeerId, ...], Field(max_length=MAX_UNREACHED)] = ()
    """Live peers to whom there is no connection in either direction, though one of the two can be dialled."""
    behind: Count = 0
    """Commits to the head of the log, if the peer catches up and does not gain on the run; else 0."""
    reader: Reader = b""
    """The trainer beside it, as a reader of leases."""
    wants: Annotated[tuple[WantLease, ...], Field(max_length=MAX_DATA)] = ()
    saved: Annotated[int, Field(strict=True, ge=-1, le=2**62)] = -1
    """Newest log number whose state the peer has on disk, -1 if none."""
    step_s: Measured = 0.0
    """Seconds that an inner step of its trainer takes lately; 0 if unknown."""
    revision: Count = 0
    """Of the newest Welcome that the peer knows. A report from before the coordinator's start says nothing to it."""
    leaving: Flag = False
    """Whether the peer leaves as soon as nothing is lost with it."""


@dataclass(frozen=True, slots=True)
class Genesis:
    """The first model of the run: its tensors and the digest of its initial state; answers Welcome.genesis.

    `leases` is JSON: how far another run had used its data, if its saved state is what this run begins with.
    """

    manifest: Manifest
    state_digest: Digest
    leases: Annotated[str, Field(strict=True, max_length=MAX_LEASES)] = ""


@dataclass(frozen=True, slots=True)
class WantRecords:
    """Ask for the commit log from line `first` on."""

    first: Count


@dataclass(frozen=True, slots=True)
class NotSaved:
    """The answer to SaveState of a peer that cannot save its state, at log number `number`."""

    number: Count
    reason: Text


@dataclass(frozen=True, slots=True)
class Leave:
    """A graceful goodbye; `reason` is for the log. Of another process than the one that takes part it means nothing."""

    boot: Annotated[bytes, Field(strict=True, min_length=8, max_length=8)]
    reason: Text


@dataclass(frozen=True, slots=True)
class WantStatus:
    """Ask for Status; from the owner of the run."""


@dataclass(frozen=True, slots=True)
class WantSave:
    """Ask for the state to be saved now, by some peer; from the owner of the run, answered by Status."""


# ---- coordinator to peer


@dataclass(frozen=True, slots=True)
class Enrolled:
    """The newcomer's own key is admitted from now on."""

    peer: PeerId


@dataclass(frozen=True, slots=True)
class Refused:
    """The answer is no. `code` is one word for programs, the rest is for people."""

    code: Name
    reason: Text
    hint: Text = ""


@dataclass(frozen=True, slots=True)
class Visitor:
    """Tells live peers that somebody may measure the way to them for some seconds; nothing else is heard from there."""

    curve_key: Key
    address: Annotated[str, Field(strict=True, max_length=256)]
    """Where to dial it, "" for nowhere."""
    seconds: Annotated[int, Field(strict=True, ge=1, le=60)]


@dataclass(frozen=True, slots=True)
class Member:
    """Where and who a live peer is. `current`: it holds the run's state and is in the view."""

    peer: PeerId
    name: Name
    address: Annotated[str, Field(strict=True, max_length=256)]
    curve_key: Key
    current: Flag


@dataclass(frozen=True, slots=True)
class Examined:
    """The answer to Examine. Who the members are is told only if the invite is good."""

    now_unix: Count
    """The coordinator's clock, seconds since 1970 (UTC)."""
    version: Name
    invite: Text
    """Why the invite is of no use, "" if it is good."""
    uses_left: Count
    missing_codecs: Annotated[tuple[Name, ...], Field(max_length=64)]
    """Codecs of the run that the asker does not have."""
    model_bytes: Count
    """Of the run's model in fp32; 0 while there is none."""
    members: Annotated[tuple[Member, ...], Field(max_length=MAX_PEERS)]
    apart: Annotated[dict[PeerId, Peers], Field(max_length=MAX_PEERS)]
    """Live peers that have no way to some others: each pair once, by one of the two; of very many pairs the first."""


@dataclass(frozen=True, slots=True)
class Welcome:
    """What a peer needs to take part; answers Hello."""

    peer: PeerId
    revision: Count
    """Grows with every Welcome of this run's coordinator; an older one that comes later is stale."""
    spec: Annotated[str, Field(strict=True, max_length=65536)]
    """The run spec as TOML, without secrets."""
    head: Annotated[int, Field(strict=True, ge=-1, le=2**62)]
    """Last committed log number; 0 is the initial state, -1 means that there is none yet."""
    chain: Annotated[bytes, Field(strict=True, max_length=32)]
    genesis: Annotated[bytes, Field(strict=True, max_length=32)]
    """chain[0], b"" if head is -1."""
    indices: Annotated[dict[Name, Count], Field(max_length=256)]
    """Last committed sync of every stream, at head."""
    manifest: Manifest
    steps: Annotated[dict[Name, Count], Field(max_length=256)] = field(default_factory=dict)
    paces_s: Annotated[dict[Name, Measured], Field(max_length=256)] = field(default_factory=dict)
    """`steps` and `pace_s` of the last line of every stream that has one."""


@dataclass(frozen=True, slots=True)
class WantHello:
    """The coordinator does not know this peer (it was restarted): please introduce yourself again."""


@dataclass(frozen=True, slots=True)
class WantGenesis:
    """This peer's trainer is asked to give the run its initial weights."""


@dataclass(frozen=True, slots=True)
class MayLeave:
    """A leaving peer need not stay for the sake of the state up to log number `number`: somebody who stays has it.

    What is said with a higher `revision` replaces it, in whatever order they come, and so does a Welcome with a higher
    one: who says Welcome may know of others by now, and the peer waits to be told again.
    """

    number: Annotated[int, Field(strict=True, ge=-1, le=2**62)]
    revision: Count
    heard: Count
    """`sequence` of this peer's last report that was heard. One from before the peer's connection to the coordinator
    last changed says that a former process may have said this: it does not count."""


@dataclass(frozen=True, slots=True)
class SaveState:
    """This peer is asked to save the run's state at log number `number`, or later; its reports say when it has.

    `extra` is JSON that goes with it: an object, or "".
    """

    number: Count
    extra: Annotated[str, Field(strict=True, max_length=MAX_EXTRA)] = ""


@dataclass(frozen=True, slots=True)
class View:
    """The live peers. `members` lists the view in order, then the peers that are still joining."""

    number: Count
    members: Annotated[tuple[Member, ...], Field(max_length=MAX_PEERS)]


@dataclass(frozen=True, slots=True)
class Start:
    """One attempt of a sync: who contributes in which order and with what weight, who only receives, who owns what.

    `shards[k]` is the number of consecutive chunks that contributor k owns, in contributor order, which is also the
    order of a ring.
    """

    sync: SyncId
    view: Count
    contributors: Peers
    weights: Annotated[tuple[Weight, ...], Field(max_length=MAX_PEERS)]
    receivers: Peers
    shards: Annotated[tuple[Count, ...], Field(max_length=MAX_PEERS)]
    topology: Annotated[str, Field(strict=True, pattern="^(direct|ring)$")] = "direct"
    consensus: Flag = False
    """See `CommitRecord.consensus`."""
    codec: Name = ""
    """Of the contributions if the run leaves it to each sync (`auto`), else ""."""


@dataclass(frozen=True, slots=True)
class Commit:
    """Lines of the commit log, in order, durable before this message was sent."""

    records: Annotated[tuple[CommitRecord, ...], Field(max_length=MAX_RECORDS)]
    head: Count
    revision: Count = 0
    """Of the newest Welcome or MayLeave to anybody. Below that of this peer's own newest Welcome, the lines may
    have been given up since: they do not count."""


@dataclass(frozen=True, slots=True)
class Abort:
    """The attempt is over without a trace; inputs stay staged for the next one."""

    sync: SyncId
    reason: Text


@dataclass(frozen=True, slots=True)
class Refetch:
    """The state that the receiver reported is not the run's.

    By `digest`, which stands at that log number, it finds out what of its state is false, and fetches that anew.
    Without one it fetches a fresh snapshot, if it still is at that number.
    """

    log_number: Count
    chain: Annotated[bytes, Field(strict=True, max_length=32)]
    reason: Text
    digest: Annotated[bytes, Field(strict=True, max_length=32)] = b""


@dataclass(frozen=True, slots=True)
class Leased:
    """Answers a WantLease; goes on to the trainer.

    `answer`: granted; later (nothing is left, but some may come back); end (it never will); void (the earlier leases
    were given to others); refused (another data set has this name).
    """

    data: Name
    reader: Reader
    serial: Count
    answer: Annotated[str, Field(strict=True, pattern="^(granted|later|end|void|refused)$")]
    spans: Annotated[tuple[Span, ...], Field(max_length=MAX_SPANS)] = ()
    reason: Text = ""


@dataclass(frozen=True, slots=True)
class StartOver:
    """What the receiver has staged for this sync cannot be used and never will: its trainer starts from the state."""

    stream: Name
    index: Count
    reason: Text


@dataclass(frozen=True, slots=True)
class Status:
    """The run as a JSON document, for `wantrain status`."""

    document: Annotated[str, Field(strict=True, max_length=1 << 20)]


# ---- peer to peer; the tensor bytes are the message's buffers: one for each chunk, in order


@dataclass(frozen=True, slots=True)
class Part:
    """A contributor's encoded chunks, or in a ring sums so far, to who adds them up. `codec` is that of the START."""

    sync: SyncId
    chunks: Moved
    codec: Name = ""


@dataclass(frozen=True, slots=True)
class Result:
    """Encoded chunks of the update, verbatim as their owner made them."""

    sync: SyncId
    chunks: Moved


@dataclass(frozen=True, slots=True)
class WantParts:
    """Chunks that should have come and have not: `parts` of the receiver's contribution, `results` that it owns."""

    sync: SyncId
    parts: Chunks
    results: Chunks


@dataclass(frozen=True, slots=True)
class WantState:
    """Ask for chunks of the state, by their number in the state layout."""

    chunks: Chunks


@dataclass(frozen=True, slots=True)
class StateChunk:
    """A chunk of fp32 state as it was after commit `number`, whose link of the chain is `chain`."""

    chunk: Count
    number: Count
    chain: Digest


@dataclass(frozen=True, slots=True)
class WantDigests:
    """Ask for the digests of all state chunks at log number `number`."""

    number: Count


@dataclass(frozen=True, slots=True)
class StateDigests:
    """BLAKE3 of all state chunks at log number `number`, one after another; b"" if they are not known (any more)."""

    number: Count
    digests: Annotated[bytes, Field(strict=True, max_length=32 * MAX_DIGESTS)]


@dataclass(frozen=True, slots=True)
class WantUpdate:
    """Ask for chunks of the update committed as `number`."""

    number: Count
    chunks: Chunks


@dataclass(frozen=True, slots=True)
class UpdateChunk:
    """A chunk of the update committed as `number`, encoded as it was moved."""

    number: Count
    chunk: Count


@dataclass(frozen=True, slots=True)
class Owed:
    """Chunk `chunk` of `chunks` of what a codec has dropped of the contributions of a peer that leaves; int8 blocks."""

    stream: Name
    chunk: Count
    chunks: Count


@dataclass(frozen=True, slots=True)
class NotHeld:
    """The answer to WantState (number -1) or WantUpdate when the asked peer does not hold it.

    `held` is the log number of its state, -1 if it has none: from that on it did hold the update, and no longer does.
    """

    number: Annotated[int, Field(strict=True, ge=-1, le=2**62)]
    held: Annotated[int, Field(strict=True, ge=-1, le=2**62)]


# ---- trainer and daemon, on one machine


@dataclass(frozen=True, slots=True)
class Attach:
    """A trainer process presents its model to the daemon beside it, or comes back when the connection had broken.

    It then names the memory that it shares with the daemon, per stream how many Granted it has received and which sync
    was adopted last, and which reader of leases it is: the daemon may be another process than before.
    """

    manifest: Manifest
    pid: Count
    boot: Annotated[bytes, Field(strict=True, min_length=8, max_length=8)]
    segment: Annotated[str, Field(strict=True, max_length=1024)] = ""
    received: Annotated[dict[Name, Count], Field(max_length=256)] = field(default_factory=dict)
    indices: Annotated[dict[Name, Count], Field(max_length=256)] = field(default_factory=dict)
    reader: Reader = b""


@dataclass(frozen=True, slots=True)
class Attached:
    """Where the shared memory is and what the streams are; `genesis`: write the initial weights first.

    `streams` are rows of `wantrain.optimizers.stream.Stream` as maps. For the layout see `shared_memory.py`.
    """

    peer: PeerId
    name: Name
    segment: Annotated[str, Field(strict=True, max_length=1024)]
    streams: tuple[dict[str, Any], ...]
    genesis: Flag
    run: Annotated[str, Field(strict=True, max_length=16)] = ""
    """The run's id, in hex."""
    wait_ceiling_s: Measured = 0.0
    """Of the run; 0 leaves it to the trainer."""


@dataclass(frozen=True, slots=True)
class GenesisWritten:
    """The initial values are in the `out` region of every stream but those of gradients."""


@dataclass(frozen=True, slots=True)
class Contribute:
    """The stream's `out` region is filled and the daemon's until Granted. `step` is the trainer's own count.

    `granted` counts the Granted messages for this stream that this trainer process had received when it filled the
    region: an unforeseen one (`start`) that crosses the Contribute makes what it holds worthless.
    """

    stream: Name
    serial: Count
    step: Count
    tokens: Count
    granted: Count
    drawn: Drawn = field(default_factory=Drawn)
    steps: Count = 0
    """Inner steps in it since the stream was staged before."""


@dataclass(frozen=True, slots=True)
class Granted:
    """The stream's regions are filled for the trainer (see `shared_memory.py` for what they hold by kind).

    `kind`: `start` (take over everything: first attach), `merge` (own contribution was in), `move` (it was not),
    `grad` (the mean gradient). `serial` repeats the Contribute that it answers, 0 for `start`. `index` is the stream's
    last applied sync, `global_step` the run's step count at it, `pace_s` seconds of an inner step of the fastest
    trainer, 0 if unknown.
    """

    stream: Name
    kind: Annotated[str, Field(strict=True, pattern="^(start|merge|move|grad)$")]
    serial: Count
    index: Count
    global_step: Count
    pace_s: Measured = 0.0
    count: Count = 0
    """Of the stream's grants to this trainer process: one that comes twice counts once."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """For whom or what the run waits, in words; for the trainer to show."""

    reason: Text


@dataclass(frozen=True, slots=True)
class Log:
    """Numbers from `swarm.log`."""

    values: Values


@dataclass(frozen=True, slots=True)
class Describe:
    """What the trainer's model is to other software, in files of the Hugging Face layout; kept with saved states."""

    config: Annotated[str, Field(strict=True, max_length=MAX_CONFIG)]
    """config.json, a JSON object."""
    generation_config: Annotated[str, Field(strict=True, max_length=MAX_CONFIG // 8)] = ""
    """generation_config.json, the same; "" if there is none."""
    prefix: Annotated[str, Field(strict=True, max_length=512)] = ""
    """With which the run's names of all tensors begin, and that layout's do not."""
    absent: Annotated[tuple[Annotated[str, Field(strict=True, max_length=512)], ...], Field(max_length=8)] = ()
    """Tensors of that layout which are not exchanged, frozen parameters and persistent buffers: the first few."""


@dataclass(frozen=True, slots=True)
class WantCommon:
    """A trainer asks for the run's common weights, to look at them; again with the same number until it has them."""

    serial: Count


@dataclass(frozen=True, slots=True)
class Common:
    """The common weights of all parameter streams at log number `number` lie in the file `path` (`common_memory.py`).

    The trainer removes the file. `round` counts the syncs of the first parameter stream that are in them, `global_step`
    is the run's step count at them. `flaw` says why there are none.
    """

    serial: Count
    path: Annotated[str, Field(strict=True, max_length=1024)]
    number: Count
    round: Count
    global_step: Count
    flaw: Text = ""


@dataclass(frozen=True, slots=True)
class LetGo:
    """The trainer lets go although it has not finished, and its process may go on: it is as gone as after a crash."""


@dataclass(frozen=True, slots=True)
class Detach:
    """The trainer has finished (`swarm.leave()`); the peer leaves the run gracefully."""

    reason: Text


@dataclass(frozen=True, slots=True)
class Detached:
    """The daemon has taken the trainer's leave; the process may exit."""


Record: TypeAlias = (
    Enroll | Hello | Examine | Examined | Visitor
    | Report | Genesis | WantRecords | NotSaved | Leave | WantStatus | WantSave | Enrolled | Refused | Welcome
    | MayLeave | SaveState | WantHello
    | WantGenesis | View | Start | Commit | Abort | Refetch | StartOver | Status | Part | Result
    | WantParts | WantState | StateChunk | WantDigests | StateDigests | WantUpdate | UpdateChunk | Owed | NotHeld
    | Attach | Attached | GenesisWritten | Contribute | Granted | Waiting | Log | Describe | Detach | Detached
    | WantLease | Leased
    | WantCommon | Common | LetGo
)  # fmt: skip

# A TypeAdapter takes no configuration for dataclasses, so each class carries it; it must be there before the adapters.
for _kind in (*Record.__args__, TensorSpec, SyncId, CommitRecord, SyncReport, Member, LinkReport, Span, Drawn):
    _kind.__pydantic_config__ = ConfigDict(extra="forbid")
_ADAPTERS: dict[str, TypeAdapter[Any]] = {kind.__name__: TypeAdapter(kind) for kind in Record.__args__}


def pack(record: Record, *buffers: Buffer) -> Message:
    """The wire message of a record, with the tensor bytes that travel beside it."""
    kind = type(record).__name__
    return Message(kind, _ADAPTERS[kind].dump_python(record), buffers)


def unpack(message: Message) -> Record:
    """The record in a message from the network.

    Raises:
        WireError: unknown kind, or fields that are missing, surplus, of the wrong type or out of range.
    """
    adapter = _ADAPTERS.get(message.kind)
    if adapter is None:
        raise WireError(f"unknown message kind {message.kind[:40]!r}")
    try:
        record: Record = adapter.validate_python(message.body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise WireError(f"{message.kind}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    return record


__all__ = [kind.__name__ for kind in Record.__args__] + [
    "CommitRecord", "Drawn", "LinkReport", "Manifest", "Member", "Record", "Span", "SyncId", "SyncReport",
    "TensorSpec",
    "pack", "unpack",
]  # fmt: skip
