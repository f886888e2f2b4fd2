"""A look at the run's common weights: the request to the daemon, what it gave, and what has to wait meanwhile."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from wantrain.errors import ConfigError, WantrainError
from wantrain.peers.common_memory import take_vectors
from wantrain.peers.messages import Common, Granted


@dataclass(frozen=True, slots=True)
class Evaluated:
    """Which of the run's common weights these are."""

    round: int
    """Syncs of the run that are in them."""
    global_step: int
    """The run's step count at them."""
    number: int
    """Log number of the newest update in them; 0 is the initial state."""


class Look:
    """At most one at a time."""

    def __init__(self) -> None:
        self.serial = 0
        """Of the last request."""
        self.answer: Common | None = None
        self.active = False
        """Whether the model must stay as it is: it is being looked at, or what is to be looked at was asked for."""
        self.put_off: list[Granted] = []
        """Results that came meanwhile."""
        self._asking = False

    def ask(self) -> None:
        """A new request begins."""
        self.serial += 1
        self.answer, self.active, self._asking = None, True, True

    def came(self, record: Common) -> None:
        """An answer has come; to a request that is over, or asked twice, it is not needed."""
        if self._asking and self.answer is None and record.serial == self.serial:
            self.answer = record
        elif record.path:
            Path(record.path).unlink(missing_ok=True)

    def take(self, elements: Mapping[str, int]) -> dict[str, Tensor]:
        """fp32[elements] of each stream of weights, from the answer's file, which is gone then.

        Raises:
            WantrainError: the daemon could not lay them down, or the file is not what was said.
        """
        assert self.answer is not None
        if self.answer.flaw:
            raise WantrainError(f"the peer daemon could not give the common weights: {self.answer.flaw}")
        return take_vectors(Path(self.answer.path), elements)

    def over(self) -> None:
        """The request is over."""
        self.answer, self.active, self._asking = None, False, False

    def released(self) -> list[Granted]:
        """What was put off, once the model may change again."""
        if self.active or not self.put_off:
            return []
        released, self.put_off = self.put_off, []
        return released

    def refuse(self, what: str) -> None:
        """Allow nothing that would change what is being looked at.

        Raises:
            ConfigError: it is being looked at.
        """
        if self.active:
            raise ConfigError(
                f"{what} within `with swarm.evaluating()`, where the model holds the run's weights and not its own",
                hint="end the with statement first",
            )
