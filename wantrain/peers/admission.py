"""How a peer gets into a run: reach the coordinator, enroll if it is new, say hello, get the run spec."""

import os
import time
from collections.abc import Callable
from typing import Any

from wantrain import __version__
from wantrain.clock import Clock, MonotonicClock
from wantrain.errors import InviteError, RefusedError, UnreachableError, WireError
from wantrain.peers.messages import COORDINATOR, Enroll, Enrolled, Hello, Refused, Waiting, Welcome, pack, unpack
from wantrain.peers.place import Place
from wantrain.transport.auth import Invite, enroll_proof
from wantrain.transport.codec import CODECS
from wantrain.transport.link import Connected, Disconnected, Dropped, Link, LinkEvent, Received
from wantrain.transport.wire import PROTOCOL_VERSION

SAY_FIRST_S, SAY_LAST_S = 2.0, 30.0
"""A peer that cannot reach the coordinator says so after this long, then less and less often."""
AGAIN_S = 2.0
"""How often a question without an answer is asked again."""
IDENTITY_PATIENCE_S = 60.0
"""How long to wait for a former process of this peer to count as dead, before another live one is certain."""


def other_protocol(reason: str) -> RefusedError:
    """The error for a coordinator whose messages were dropped because their protocol version is another."""
    return RefusedError(
        f"the coordinator speaks another protocol: {reason} (wantrain {__version__})",
        hint="install the same version of wantrain on both sides",
    )


class Admission:
    """The conversation until Welcome. `events` that came with it are left for whoever goes on.

    Args:
        link: this peer's link; it listens already.
        address: where other peers reach this one, "" if they cannot.
        say: gets events for people.
        clock: tells how long the peer has waited.
    """

    def __init__(
        self,
        link: Link,
        invite: Invite,
        place: Place,
        address: str,
        say: Callable[[dict[str, Any]], None],
        clock: Clock | None = None,
        *,
        initial: bool = False,
    ) -> None:
        self.events: list[LinkEvent] = []
        self.hello = Hello(
            PROTOCOL_VERSION, __version__, b"", place.name, os.urandom(8), address, tuple(sorted(CODECS)), initial
        )
        self._link = link
        self._invite = invite
        self._place = place
        self._say = say
        self._clock = clock or MonotonicClock()
        self._enrolling = not place.enrolled
        self._up = False
        self._asked_at = 0.0
        self._in_use = ""
        self._why = "no answer"

    def run(self, give_up_s: float) -> Welcome:
        """Talk until the run's Welcome.

        Raises:
            InviteError: the invite is not (or no longer) good.
            RefusedError: the run refuses this peer, or another process uses its identity for the shorter of give_up_s
                and 60 s.
            UnreachableError: no coordinator for give_up_s seconds.
        """
        self._connect()
        started_at = self._clock.now()
        say_at, pause_s = started_at + SAY_FIRST_S, SAY_FIRST_S
        while True:
            now = self._clock.now()
            waited_s = now - started_at
            if self._in_use and waited_s > min(give_up_s, IDENTITY_PATIENCE_S):
                raise RefusedError(self._in_use, hint="stop the other process, or give this one its own --home")
            if waited_s > give_up_s:
                raise self._unreachable(give_up_s)
            if now >= say_at:
                pause_s = min(2 * pause_s, SAY_LAST_S)
                say_at = now + pause_s
                reason = self._in_use or f"no coordinator at {self._invite.address} yet: {self._why}"
                self._say({"event": "waiting", "reason": f"{reason}; trying again", "waited_s": round(waited_s, 1)})
            if self._up and now - self._asked_at >= AGAIN_S:
                self._ask(now)
            events = self._link.poll(0.1)
            for k, event in enumerate(events):
                welcome = self._take(event)
                if welcome is not None:
                    self.events = events[k + 1 :]
                    return welcome

    def _connect(self) -> None:
        invite = self._invite
        client_key = invite.curve_key_pair() if self._enrolling else None
        self._up = False
        self._link.disconnect(COORDINATOR)
        self._link.connect(COORDINATOR, invite.address, invite.server_key, client_key=client_key)

    def _ask(self, now: float) -> None:
        self._asked_at = now
        if not self._enrolling:
            self._link.send(COORDINATOR, pack(self.hello))
            return
        invite, identity = self._invite, self._place.identity
        proof = enroll_proof(identity, invite.run, invite.secret)
        enroll = Enroll(invite.to_bytes(), identity.public_key, identity.curve_public, self._place.name, proof)
        self._link.send(COORDINATOR, pack(enroll))

    def _take(self, event: LinkEvent) -> Welcome | None:
        match event:
            case Connected(peer) if peer == COORDINATOR:
                self._up, self._why = True, "connected, but no answer"
                self._ask(self._clock.now())
            case Disconnected(peer, reason) if peer == COORDINATOR:
                self._disconnected(reason)
            case Dropped(source, reason) if source == COORDINATOR and reason.startswith("protocol "):
                raise other_protocol(reason)
            case Received(source, _, message) if source == COORDINATOR:
                try:
                    return self._answered(unpack(message))
                except WireError as error:
                    raise RefusedError(
                        f"the coordinator's answer cannot be read: {error.message}",
                        hint="install the same version of wantrain on both sides",
                    ) from None
        return None

    def _answered(self, record: object) -> Welcome | None:
        match record:
            case Enrolled():
                self._place.mark_enrolled()
                self._enrolling = False
                self._connect()
            case Welcome():
                return record
            case Waiting(reason):
                self._in_use, self._why = "", f"it is there and waits: {reason}"
            case Refused(code="invite", reason=reason, hint=hint):
                raise InviteError(reason, hint=hint)
            case Refused(code="identity-in-use", reason=reason):
                # Perhaps this peer's former process, which will count as dead in a moment.
                self._in_use = reason
            case Refused(_, reason, hint):
                raise RefusedError(reason, hint=hint)
        return None

    def _disconnected(self, reason: str) -> None:
        self._up, self._why, self._in_use = False, reason, ""
        if reason.startswith("refused"):
            if not self._enrolling:
                # The coordinator has forgotten us (another database?): the invite may still be good.
                self._enrolling = True
                self._connect()
                return
            self._invite_refused()
        if "another key" in reason:
            raise InviteError(
                f"the coordinator at {self._invite.address} is not the one that this invite is for",
                hint="ask the run's owner for a new invite: the run may have moved or been made anew",
            )

    def _invite_refused(self) -> None:
        invite = self._invite
        invite.check(invite.run, invite.owner_key, int(time.time()))
        raise InviteError(
            f"the coordinator at {invite.address} does not know this invite, or it has expired there",
            hint="ask the run's owner for a new one: wantrain invite run.toml",
        )

    def _unreachable(self, give_up_s: float) -> UnreachableError:
        address = self._invite.address
        return UnreachableError(
            f"no coordinator at {address} for {give_up_s:g} s: {self._why}",
            hint=f"is `wantrain coordinator` running there, and may this machine reach {address}?",
        )
