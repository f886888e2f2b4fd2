"""What the trainer beside a peer has asked of the run's data and not been answered yet; pure."""

from wantrain.peers.messages import MAX_DATA, Leased, WantLease


class Wants:
    """Lines of a peer's report. A trainer asks again until it is answered, so that none of this need be kept."""

    def __init__(self) -> None:
        self.reader = b""
        """The trainer as a reader of leases; b"" while there is none."""
        self.dry = False
        """Whether the trainer has nothing left to train on, for now."""
        self._open: dict[str, WantLease] = {}

    @property
    def lines(self) -> tuple[WantLease, ...]:
        """The open questions, one for each data set."""
        return tuple(self._open.values())

    @property
    def open(self) -> list[tuple[bytes, str, int]]:
        """Reader, data set and serial of each."""
        return [(want.reader, want.data, want.serial) for want in self._open.values()] if self._open else []

    def forget(self) -> None:
        """The trainer is gone."""
        self.reader, self.dry, self._open = b"", False, {}

    def resumed(self, reader: bytes) -> None:
        """A trainer has outlived its daemon: it holds leases, and may not ask for more for as long as they last."""
        self.forget()
        self.reader = reader

    def asked(self, want: WantLease) -> None:
        """The trainer asks. Under a new id it is a new reader, and what it asked before is void."""
        if want.reader != self.reader:
            self.forget()
            self.reader = want.reader
        if want.data in self._open or len(self._open) < MAX_DATA:
            self._open[want.data] = want
        self.dry = want.dry

    def answered(self, record: Leased) -> bool:
        """The coordinator answers; whether this is an answer to an open question."""
        want = self._open.get(record.data)
        if want is None or (want.reader, want.serial) != (record.reader, record.serial):
            return False
        del self._open[record.data]
        self.dry = self.dry and record.answer == "later"
        return True

    def in_words(self) -> str:
        """What the trainer waits for, or ""."""
        names = [repr(want.data) for want in self._open.values() if want.left == 0]
        return f"for samples of data set {', '.join(names)} from the coordinator" if names else ""
