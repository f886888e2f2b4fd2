"""For churn tests and the demo: a peer that kills itself, without a word, at a chosen moment of a sync.

WANTRAIN_KILL_AT="param#10:moving" kills the peer's whole process group (daemon and trainer) with SIGKILL right after
the first chunk of its contribution to sync 10 of stream `param` was handed to the network.
"""

import os
import re
import signal

from wantrain.errors import ConfigError
from wantrain.peers.messages import Part, Record

VARIABLE = "WANTRAIN_KILL_AT"


class KillSwitch:
    """Looks at what is sent and ends the process group when the moment has come."""

    def __init__(self, moment: str) -> None:
        found = re.fullmatch(r"([\w-]+)#(\d+):moving", moment)
        if found is None:
            raise ConfigError(f"{VARIABLE} is {moment!r}", hint='use a value such as "param#10:moving"')
        self._stream, self._index = found[1], int(found[2])

    @classmethod
    def from_environment(cls) -> "KillSwitch | None":
        """The switch that the environment asks for, if any."""
        moment = os.environ.get(VARIABLE)
        return cls(moment) if moment else None

    def sent(self, record: Record) -> None:
        """A record was handed to the network."""
        if isinstance(record, Part) and (record.sync.stream, record.sync.index) == (self._stream, self._index):
            os.killpg(os.getpgrp(), signal.SIGKILL)
