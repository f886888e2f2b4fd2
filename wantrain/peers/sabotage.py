"""For churn tests and the demo: a peer that kills itself, without a word, at a chosen moment of a sync.

WANTRAIN_KILL_AT="param#10:moving" kills the peer's whole process group (daemon and trainer) with SIGKILL when sync 10
of stream `param`, or the next one in which it sends any bytes, has begun and others wait for them, right before the
first are handed to the network. Later would be left to chance: all that one owner needs of a small model fits into one
message.
WANTRAIN_KILL_AT="param#10:moving daemon" kills the daemon alone.

WANTRAIN_KILL_COORDINATOR_AT="8:persist" kills the coordinator at commit 8: before it is written (persist), after that
and before anybody is told (persisted), or when the first peer has been told (send).
"""

import os
import re
import signal

from wantrain.errors import ConfigError
from wantrain.peers.messages import Commit, Part, Record, Result

VARIABLE = "WANTRAIN_KILL_AT"
COORDINATOR_VARIABLE = "WANTRAIN_KILL_COORDINATOR_AT"


class KillSwitch:
    """Looks at what is sent and ends the process group when the moment has come."""

    def __init__(self, moment: str) -> None:
        found = re.fullmatch(r"([\w-]+)#(\d+):moving( daemon)?", moment)
        if found is None:
            raise ConfigError(f"{VARIABLE} is {moment!r}", hint='use a value such as "param#10:moving"')
        self._stream, self._index = found[1], int(found[2])
        self._alone = found[3] is not None

    @classmethod
    def from_environment(cls) -> "KillSwitch | None":
        """The switch that the environment asks for, if any."""
        moment = os.environ.get(VARIABLE)
        return cls(moment) if moment else None

    def sending(self, record: Record) -> None:
        """A record is about to be handed to the network."""
        if not isinstance(record, Part | Result) or record.sync.stream != self._stream:
            return
        if record.sync.index >= self._index:
            os.kill(os.getpid(), signal.SIGKILL) if self._alone else os.killpg(os.getpgrp(), signal.SIGKILL)


class CoordinatorKillSwitch:
    """Looks at what the coordinator is about to do and ends its process when the moment has come."""

    def __init__(self, moment: str) -> None:
        found = re.fullmatch(r"(\d+):(persist|persisted|send)", moment)
        if found is None:
            raise ConfigError(f"{COORDINATOR_VARIABLE} is {moment!r}", hint='use a value such as "8:persist"')
        self._number, self._moment = int(found[1]), found[2]

    @classmethod
    def from_environment(cls) -> "CoordinatorKillSwitch | None":
        """The switch that the environment asks for, if any."""
        moment = os.environ.get(COORDINATOR_VARIABLE)
        return cls(moment) if moment else None

    def at(self, moment: str, number: int) -> None:
        """It is at this moment of commit `number`."""
        if (moment, number) == (self._moment, self._number):
            os.kill(os.getpid(), signal.SIGKILL)

    def sent(self, record: Record) -> None:
        """A record was handed to the network."""
        if isinstance(record, Commit):
            self.at("send", record.head)
