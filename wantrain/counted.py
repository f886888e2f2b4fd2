"""What a trainer has counted, as it goes into a checkpoint of the user's own and comes back from it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from wantrain.errors import CheckpointError


@dataclass(frozen=True, slots=True)
class Counted:
    """Counts of earlier trainer processes, which this one continues."""

    own_steps: int = 0
    tokens: int = 0

    @classmethod
    def of(cls, state: Mapping[str, Any], run: str) -> Self:
        """Those in a state that `Swarm.state_dict` gave.

        Raises:
            CheckpointError: it is of another run than `run`, or no such state.
        """
        keys = ("run", "own_steps", "tokens")
        absent = [key for key in keys if not isinstance(state, Mapping) or key not in state]
        if absent:
            raise CheckpointError(
                f"this is no state of a trainer: {', '.join(absent)} not in it",
                hint="give what swarm.state_dict() gave",
            )
        if state["run"] != run:
            raise CheckpointError(
                f"the state is of run {state['run']!r}, this trainer takes part in {run!r}",
                hint="to go on in another run, keep model and optimizer and leave out swarm.load_state_dict",
            )
        for key in keys[1:]:
            if not isinstance(state[key], int) or isinstance(state[key], bool) or state[key] < 0:
                raise CheckpointError(f"{key} in the state is {state[key]!r}, allowed are whole numbers >= 0")
        return cls(state["own_steps"], state["tokens"])
