"""Who has which samples: one order per data set and epoch, leased in spans to trainers; a pure core of the coordinator.

A reader (one trainer process) uses its spans in the order in which it got them, so one number says how far it is. What
a committed sync holds is confirmed; the rest of a reader that is gone is leased again. Every change goes out as rows,
which must be durable before the answer that rests on them is sent.
"""

import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from wantrain.errors import StoreError
from wantrain.peers.messages import MAX_DATA, MAX_SPANS, Drawn, Leased, Span, WantLease

SHARES = 8
"""A lease is at most one of so many parts of what each reader would have of an epoch if all were equally fast."""
MAX_LEASE = 2**32
"""Samples in one lease, whatever is asked for."""
KEPT_VOID = 4096
"""Readers of a data set that are known though their leases were given to others."""
KEPT_COMMITS = 4096
"""Commits whose samples are known: they are leased again if the log goes back to before them."""
_FIELDS = ("length", "seed", "epochs", "epoch", "next")

Rows: TypeAlias = dict[str, str | None]
"""What is to be written, by key; None: taken away."""
Piece: TypeAlias = tuple[int, int, int]
"""Epoch, first position and count: a Span as it is sorted and written."""
Done: TypeAlias = list[tuple[str, str, list[Piece]]]
"""What a commit has confirmed of one data set: peer, its reader in hexadecimal, and the samples in the order of use."""


@dataclass(slots=True)
class Lease:
    """What one reader was leased of one data set."""

    peer: str
    base: int = 0
    """Samples that its reader had got before, on a lease that was given to others."""
    confirmed: int = 0
    """Samples, from its first on, that are in committed syncs, and those of `base`."""
    spans: list[Piece] = field(default_factory=list)
    """All others, in the order in which it got and uses them."""
    answer: tuple[Piece, ...] = ()
    """What it got last."""
    serial: int = 0
    """Of the question that was answered with it."""
    void: bool = False
    """Whether it was given to others: what its reader got last, and whether it got that, is not known."""
    unused: int = 0
    """Samples that it has drawn and does not train on, as it waits for more."""

    @property
    def held(self) -> int:
        """Samples that are leased and not confirmed."""
        return sum(count for _, _, count in self.spans)

    @property
    def taken(self) -> int:
        """Samples that it was leased in all."""
        return self.confirmed + self.held


@dataclass(slots=True)
class DataSet:
    """One data set of the run. Positions below `next` of the epoch are leased, confirmed or in the pool."""

    name: str
    length: int
    seed: int
    epochs: int
    epoch: int = 0
    next: int = 0
    pool: list[Piece] = field(default_factory=list)
    """What came back, in order."""
    leases: dict[str, dict[bytes, Lease]] = field(default_factory=dict)
    """By peer and reader."""

    def of(self, peer: str, reader: bytes) -> Lease | None:
        """The lease of one reader."""
        return self.leases.get(peer, {}).get(reader)

    def all(self) -> Iterable[tuple[str, bytes, Lease]]:
        """All leases, as peer, reader and lease."""
        return [(peer, reader, lease) for peer, known in self.leases.items() for reader, lease in known.items()]

    @property
    def last_epoch(self) -> bool:
        """Whether nothing comes after this epoch."""
        return self.epochs > 0 and self.epoch + 1 >= self.epochs


@dataclass(frozen=True, slots=True)
class Back:
    """Samples came back and will be leased again, for the event log."""

    data: str
    peer: str
    samples: int
    why: str


class Leases:
    """The core: each method is an event at time `now` in seconds; `rows` takes out what has to be written.

    Args:
        rows: what was durable when this process started.
        patience_s: how long a reader may be unheard of until its leases may be given to others.

    Raises:
        StoreError: rows that this class has not written.
    """

    def __init__(self, rows: Mapping[str, str], patience_s: float, name_of: Callable[[str], str] = str) -> None:
        self.data: dict[str, DataSet] = {}
        self._patience_s = patience_s
        self._name_of = name_of
        self._heard: dict[tuple[str, bytes], float] = {}
        """When a reader was last named by its peer, or looked for in vain for the first time."""
        self._done: dict[int, dict[str, Done]] = {}
        """What each of the newest commits has confirmed, by data set."""
        self._changed: dict[str, None] = {}
        try:
            # Data sets first: a key is a list, and "data" comes before "done" and "lease".
            for key in sorted(rows):
                self._load(json.loads(key), json.loads(rows[key]))
        except (ValueError, TypeError, KeyError) as error:
            raise StoreError(
                f"the data leases cannot be read: {error!r}", hint="bring back run.db from a backup"
            ) from None

    # ---- events

    def reported(self, peer: str, reader: bytes, staged: Collection[bytes], *, busy: bool, now: float) -> list[Back]:
        """A peer names its trainer as reader, and whose contributions it has staged.

        What an earlier trainer of that peer held comes back, unless the peer is `busy` in a sync that may still commit.
        """
        for data in self.data.values():
            for known in data.leases.get(peer, ()):
                if known == reader or known in staged:
                    self._heard[peer, known] = now
        if not reader or busy:
            return []
        back = []
        for data in self.data.values():
            for other in [r for r in data.leases.get(peer, ()) if r != reader and r not in staged]:
                back.append(self._take_back(data, peer, other, "its trainer was started again"))
        return back

    def left(self, peer: str) -> list[Back]:
        """A peer has left for good: what it held comes back."""
        return [
            self._take_back(data, peer, reader, "it left")
            for data in self.data.values()
            for reader in list(data.leases.get(peer, ()))
        ]

    def committed(self, number: int, drawn: Mapping[str, Drawn]) -> None:
        """Commit `number` holds these contributions, by peer: what had been drawn for them is confirmed."""
        done: dict[str, Done] = {}
        for peer, used in drawn.items():
            for name, count in used.counts.items():
                data = self.data.get(name)
                lease = data.of(peer, used.reader) if data is not None else None
                if lease is None or count <= lease.confirmed:
                    continue
                pieces, lease.spans = _split(lease.spans, count - lease.confirmed)
                lease.confirmed += sum(piece[2] for piece in pieces)
                done.setdefault(name, []).append((peer, used.reader.hex(), pieces))
                self._touch("lease", name, peer, used.reader.hex())
        if done:
            self._done[number] = done
            self._touch("done", number)
        while len(self._done) > KEPT_COMMITS:
            oldest = next(iter(self._done))
            del self._done[oldest]
            self._touch("done", oldest)

    def rewound(self, after: int) -> list[Back]:
        """The commits after `after` are given up: what they held comes back.

        A reader that is still known has it again: it may never have heard of that commit, and contribute it once more.
        """
        back = []
        for number in sorted((n for n in self._done if n > after), reverse=True):
            for name, done in self._done.pop(number).items():
                freed = [piece for one in done for piece in self._unconfirmed(name, *one)]
                self._put_back(self.data[name], freed)
                if freed:
                    back.append(Back(name, "", _count(freed), f"commit {number} was given up"))
            self._touch("done", number)
        return back

    def _unconfirmed(self, name: str, peer: str, reader: str, pieces: list[Piece]) -> list[Piece]:
        """Give a reader what it had confirmed last; all of it if that reader is gone, or does not hold it any more."""
        lease = self.data[name].of(peer, bytes.fromhex(reader))
        count = _count(pieces)
        if lease is None or lease.void or lease.confirmed - count < lease.base:
            return pieces
        lease.confirmed -= count
        lease.spans[:0] = pieces
        self._touch("lease", name, peer, reader)
        return []

    def wanted(self, peer: str, want: WantLease, busy: Collection[str], now: float) -> tuple[Leased | None, list[Back]]:
        """A trainer asks for samples: the answer, or None if the question makes no sense, and what came back for it.

        Peers that are `busy` in a sync keep what they hold.
        """
        data = self.data.get(want.data)
        refusal = self._flaw(want, data)
        if refusal or not want.reader:
            return Leased(want.data, want.reader, want.serial, "refused", reason=refusal or "no reader is named"), []
        if data is None:
            data = self.data[want.data] = DataSet(want.data, want.length, want.seed, want.epochs)
            self._touch("data", want.data)
        lease = data.of(peer, want.reader)
        if lease is not None:
            self._heard[peer, want.reader] = now
        if lease is not None and lease.void and want.serial < lease.serial:
            return None, []
        if lease is None or lease.void:
            # The same question again: it may have, or get, what was granted to it before. No question has two grants.
            again = lease is not None and want.serial == lease.serial
            if again or (want.taken and want.left):
                reason = "its leases were given to others, as nothing was heard of it for too long"
                return Leased(want.data, want.reader, want.serial, "void", reason=reason), []
            lease = Lease(peer, base=want.taken, confirmed=want.taken)
        elif want.taken == lease.taken - _count(lease.answer) and lease.answer:
            return self._granted(want, lease.answer), []  # the answer got lost
        elif want.taken != lease.taken:
            return None, []
        lease.unused = want.unused if want.dry else 0
        pieces, back = self._take(data, peer, want, busy, now)
        if not pieces:
            answer, reason = self._nothing(data)
            return Leased(want.data, want.reader, want.serial, answer, reason=reason), back
        lease.spans += pieces
        lease.answer, lease.serial = tuple(pieces), want.serial
        data.leases.setdefault(peer, {})[want.reader] = lease
        self._heard[peer, want.reader] = now
        self._touch("lease", want.data, peer, want.reader.hex())
        return self._granted(want, pieces), back

    def _granted(self, want: WantLease, pieces: Iterable[Piece]) -> Leased:
        return Leased(want.data, want.reader, want.serial, "granted", tuple(Span(*piece) for piece in pieces))

    def _flaw(self, want: WantLease, data: DataSet | None) -> str:
        if data is None:
            if len(self.data) >= MAX_DATA:
                return f"the run has {MAX_DATA} data sets already, more are not allowed"
            return "" if 0 < want.length <= 2**62 else "it has no samples"
        ours, its = (data.length, data.seed, data.epochs), (want.length, want.seed, want.epochs)
        if ours == its:
            return ""
        return f"data set {want.data!r} of the run has {_in_words(*ours)}, this peer's has {_in_words(*its)}"

    def _nothing(self, data: DataSet) -> tuple[str, str]:
        holders = {self._name_of(peer): lease.held for peer, _, lease in data.all() if lease.held > lease.unused}
        if not holders:
            return "end", f"all {data.epochs} epochs of data set {data.name!r} are in the run"
        held = ", ".join(f"{name} ({samples})" for name, samples in list(holders.items())[:8])
        return "later", f"the last samples of data set {data.name!r} are with {held}, and may come back"

    # ---- what is leased next

    def _take(
        self, data: DataSet, peer: str, want: WantLease, busy: Collection[str], now: float
    ) -> tuple[list[Piece], list[Back]]:
        back = self._reclaim(data, busy, data.epoch, now)
        need = self._size(data, peer, want, now)
        pieces: list[Piece] = []
        while need > 0 and len(pieces) < MAX_SPANS:
            if data.pool:
                (piece,), rest = _split(data.pool[:1], need)
                data.pool[:1] = rest
            elif data.next < data.length:
                piece = (data.epoch, data.next, min(need, data.length - data.next))
                data.next += piece[2]
            elif more := self._reclaim(data, busy, data.epoch + 1, now):
                back += more
                continue
            elif data.last_epoch:
                break
            else:
                data.epoch, data.next = data.epoch + 1, 0
                continue
            pieces.append(piece)
            need -= piece[2]
        if pieces:
            self._touch("data", data.name)
        return pieces, back

    def _size(self, data: DataSet, peer: str, want: WantLease, now: float) -> int:
        """As much as is wanted, within a fair share of an epoch; less and less towards the end of the last one."""
        heard = {(other, reader) for other, reader, _ in data.all() if not self._silent(other, reader, now)}
        readers = len(heard | {(peer, want.reader)})
        size = min(want.samples, MAX_LEASE, max(want.least, -(-data.length // (SHARES * readers))))
        if data.epochs:
            rest = _count(data.pool) + data.length - data.next + (data.epochs - 1 - data.epoch) * data.length
            size = min(size, -(-rest // (2 * readers)))
        return max(size, 1)

    def _reclaim(self, data: DataSet, busy: Collection[str], before: int, now: float) -> list[Back]:
        """Take back what silent readers hold of epochs before `before`.

        While there is something else to lease they keep it: they may be cut off, train on, and come back.
        """
        back = []
        for peer, reader, lease in data.all():
            old = any(epoch < before for epoch, _, _ in lease.spans) or not lease.spans
            if old and not lease.void and peer not in busy and self._silent(peer, reader, now):
                back.append(self._make_void(data, reader, lease))
        return back

    def _make_void(self, data: DataSet, reader: bytes, lease: Lease) -> Back:
        """Put back what a silent reader holds. It may be heard of again, and is known by the serial of its question."""
        held, lease.confirmed = lease.held, lease.taken
        self._put_back(data, lease.spans)
        lease.spans, lease.answer, lease.unused, lease.void = [], (), 0, True
        self._touch("lease", data.name, lease.peer, reader.hex())
        void = [(peer, known) for peer, known, other in data.all() if other.void]
        if len(void) > KEPT_VOID:
            self._take_back(data, *void[0], "")
        return Back(data.name, lease.peer, held, "nothing was heard of it for too long")

    def _silent(self, peer: str, reader: bytes, now: float) -> bool:
        return now - self._heard.setdefault((peer, reader), now) >= self._patience_s

    def _take_back(self, data: DataSet, peer: str, reader: bytes, why: str) -> Back:
        lease = data.leases[peer].pop(reader)
        if not data.leases[peer]:
            del data.leases[peer]
        if not any(known.of(peer, reader) for known in self.data.values()):
            self._heard.pop((peer, reader), None)
        self._put_back(data, lease.spans)
        self._touch("lease", data.name, peer, reader.hex())
        return Back(data.name, peer, lease.held, why)

    def _put_back(self, data: DataSet, pieces: Iterable[Piece]) -> None:
        data.pool = merged([*data.pool, *pieces])
        self._touch("data", data.name)

    # ---- what is kept

    def rows(self) -> Rows:
        """What has changed since the last call, to be written."""
        if not self._changed:
            return {}
        changed, self._changed = self._changed, {}
        return {key: self._row(json.loads(key)) for key in changed}

    def _touch(self, *key: Any) -> None:
        self._changed[json.dumps(key)] = None

    def _row(self, key: Sequence[Any]) -> str | None:
        match key:
            case ["data", name]:
                data = self.data[name]
                fields = (data.length, data.seed, data.epochs, data.epoch, data.next, data.pool)
                return json.dumps(fields)
            case ["done", number]:
                return json.dumps(self._done[number]) if number in self._done else None
            case ["lease", name, peer, reader]:
                lease = self.data[name].of(peer, bytes.fromhex(reader))
                return (
                    None
                    if lease is None
                    else json.dumps((lease.base, lease.confirmed, lease.spans, lease.answer, lease.serial, lease.void))
                )
        raise AssertionError(key)

    def _load(self, key: list[Any], value: Any) -> None:
        match key:
            case ["data", str(name)]:
                length, seed, epochs, epoch, next_, pool = value
                self.data[name] = DataSet(name, length, seed, epochs, epoch, next_, _pieces(pool))
            case ["done", int(number)]:
                self._done[number] = {
                    name: [(str(peer), str(reader), _pieces(pieces)) for peer, reader, pieces in done]
                    for name, done in value.items()
                }
                self._done = dict(sorted(self._done.items()))
            case ["lease", str(name), str(peer), str(reader)]:
                base, confirmed, spans, answer, serial, void = value
                lease = Lease(peer, base, confirmed, _pieces(spans), tuple(_pieces(answer)), serial, void)
                self.data[name].leases.setdefault(peer, {})[bytes.fromhex(reader)] = lease
            case _:
                raise ValueError(f"unknown key {key}")

    def snapshot(self, number: int) -> dict[str, Any]:
        """What the first `number` commits have not used, for a checkpoint: JSON-able.

        By data set: length, seed, epochs; epoch and next, from where on nothing was leased; `open`, what was and is not
        in these commits, as [epoch, first, count].
        """
        return {name: self._open(data, number) for name, data in self.data.items()}

    def _open(self, data: DataSet, number: int) -> dict[str, Any]:
        pieces = [*data.pool]
        for _, _, lease in data.all():
            pieces += lease.spans
        for commit, done in self._done.items():
            if commit > number:
                pieces += [piece for _, _, of_reader in done.get(data.name, []) for piece in of_reader]
        return {**{key: getattr(data, key) for key in _FIELDS}, "open": [list(piece) for piece in merged(pieces)]}

    def figures(self) -> list[dict[str, Any]]:
        """Each data set for `wantrain status`: how far its epoch is, as shares of its samples, and who holds what."""
        rows = []
        for data in self.data.values():
            held = [(peer, lease.held) for peer, _, lease in data.all() if lease.held]
            # Of this epoch; what is left of earlier ones is with those who hold it.
            out = sum(_of_epoch(lease.spans, data.epoch) for _, _, lease in data.all())
            handed = data.next - _of_epoch(data.pool, data.epoch)
            rows.append(
                {
                    "name": data.name,
                    "length": data.length,
                    "seed": data.seed,
                    "epochs": data.epochs,
                    "epoch": data.epoch,
                    "leased": round(handed / data.length, 6),
                    "confirmed": round((handed - out) / data.length, 6),
                    "leases": [{"peer": self._name_of(peer), "samples": samples} for peer, samples in held],
                    "returned": _count(data.pool),
                }
            )
        return rows

    def restore(self, snapshot: Mapping[str, Any]) -> None:
        """Go on from a snapshot: a new run that starts from another one's checkpoint.

        Raises:
            ValueError: it is no snapshot; nothing has changed. Or there are data sets already.
        """
        if not isinstance(snapshot, Mapping):
            raise ValueError(f"a snapshot of leases is a map, not {type(snapshot).__name__}")
        if self.data or len(snapshot) > MAX_DATA:
            raise ValueError(f"{len(self.data)} data sets are known, {len(snapshot)} would come, at most {MAX_DATA}")
        found = {}
        for name, fields in snapshot.items():
            try:
                length, seed, epochs, epoch, next_ = (fields[key] for key in _FIELDS)
                pool = merged(_pieces(fields["open"]))
            except (TypeError, KeyError) as error:
                raise ValueError(f"data set {name!r} of a snapshot: {error!r}") from None
            data = DataSet(name, length, seed, epochs, epoch, next_, pool)
            numbers = (length, seed, epochs, epoch, next_)
            whole = all(isinstance(number, int) and 0 <= number <= 2**62 for number in numbers)
            if not whole or length < 1 or next_ > length or not all(_inside(piece, data) for piece in pool):
                raise ValueError(f"data set {name!r} of a snapshot has numbers that do not fit: {numbers}, {pool}")
            found[name] = data
        self.data = found
        for name in found:
            self._touch("data", name)


def merged(pieces: Iterable[Piece]) -> list[Piece]:
    """In order, and those that follow each other as one."""
    whole: list[Piece] = []
    for epoch, first, count in sorted(pieces):
        if whole and whole[-1][0] == epoch and whole[-1][1] + whole[-1][2] == first:
            whole[-1] = (epoch, whole[-1][1], whole[-1][2] + count)
        elif count:
            whole.append((epoch, first, count))
    return whole


def _split(pieces: Sequence[Piece], samples: int) -> tuple[list[Piece], list[Piece]]:
    """The first `samples` samples of the pieces (all, if they have fewer), and the rest."""
    taken: list[Piece] = []
    for k, (epoch, first, count) in enumerate(pieces):
        if count > samples:
            head = [(epoch, first, samples)] if samples else []
            return taken + head, [(epoch, first + samples, count - samples), *pieces[k + 1 :]]
        taken.append((epoch, first, count))
        samples -= count
    return taken, []


def _count(pieces: Iterable[Piece]) -> int:
    return sum(count for _, _, count in pieces)


def _of_epoch(pieces: Iterable[Piece], epoch: int) -> int:
    return _count(piece for piece in pieces if piece[0] == epoch)


def _pieces(rows: Any) -> list[Piece]:
    found = [(epoch, first, count) for epoch, first, count in rows]
    if not all(isinstance(number, int) and number >= 0 for piece in found for number in piece):
        raise ValueError(f"not spans: {rows}")
    return found


def _inside(piece: Piece, data: DataSet) -> bool:
    epoch, first, count = piece
    return epoch <= data.epoch and first + count <= (data.next if epoch == data.epoch else data.length)


def _in_words(length: int, seed: int, epochs: int) -> str:
    return f"{length} samples, seed {seed} and {epochs or 'endless'} epochs"
