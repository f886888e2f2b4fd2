"""A link whose other end is what a test puts in and takes out."""

from collections.abc import Sequence

from wantrain.peers.messages import Contribute, unpack
from wantrain.transport.link import LinkEvent


class Wire:
    """A link to a scripted daemon."""

    def __init__(self) -> None:
        self.events: list[LinkEvent] = []
        self.sent: list[object] = []

    def send(self, _: str, message: Sequence[object]) -> bool:
        self.sent.append(unpack(message))  # type: ignore[arg-type]
        return True

    def poll(self, _: float) -> list[LinkEvent]:
        events, self.events = self.events, []
        return events

    def close(self, linger_s: float = 0.0) -> None:
        pass

    @property
    def contributions(self) -> int:
        return sum(isinstance(record, Contribute) for record in self.sent)
