"""What the coordinator answers `wantrain doctor`: whether an invite is good, and whom its holder would meet."""

from itertools import islice

from wantrain import __version__
from wantrain.config import RunSpec
from wantrain.errors import InviteError, StoreError
from wantrain.peers.codec_choice import codecs_of
from wantrain.peers.coordinator import Coordinator
from wantrain.peers.layout import manifest_bytes
from wantrain.peers.messages import Examine, Examined, Visitor
from wantrain.peers.store import Store
from wantrain.transport.auth import Invite

EVERY_S = 1.0
"""Shortest time between two examinations: each goes to all members, and whoever holds an invite may ask for one."""
PAIRS_TOLD = 16_384
"""Pairs of members without a way to each other in one answer, which has to fit a message."""
VISIT_S = 20
"""How long members let a visitor measure, in seconds."""


def visitor(record: Examine) -> Visitor:
    """What members are told of who asks."""
    return Visitor(record.visitor_key, record.address, VISIT_S)


class Visits:
    """Examinations of one run.

    Args:
        spec: of the run.
        store: knows how often each invite was used.
    """

    def __init__(self, spec: RunSpec, store: Store) -> None:
        self._spec = spec
        self._store = store
        self._next_at = 0.0

    def examine(self, invite: str, record: Examine, core: Coordinator, now: float, now_unix: int) -> Examined | None:
        """The answer; None if it is too soon after the one before: the asker will ask again.

        Args:
            invite: whose key has opened the connection; "" if it was a peer's own.
        """
        if now < self._next_at:
            return None
        self._next_at = now + EVERY_S
        flaw, uses_left = self._flaw(invite, record, now_unix) if invite else ("", 0)
        codecs = codecs_of(self._spec.streams)
        reach, members = core.links.reach, () if flaw else core.membership.roster()
        everybody = [member.peer for member in members]
        apart: dict[str, tuple[str, ...]] = {}
        pairs = ((a, b) for k, a in enumerate(everybody) for b in reach.missing(a, everybody[k + 1 :]))
        for a, b in () if reach.whole else islice(pairs, PAIRS_TOLD):
            apart[a] = (*apart.get(a, ()), b)
        return Examined(
            now_unix=now_unix,
            version=__version__,
            invite=flaw,
            uses_left=uses_left,
            missing_codecs=tuple(sorted(codecs - set(record.codecs))),
            model_bytes=manifest_bytes(core.manifest),
            members=members,
            apart=apart,
        )

    def _flaw(self, ident: str, record: Examine, now_unix: int) -> tuple[str, int]:
        """Why an invite cannot be used, "" if it can; and how often it still may."""
        try:
            invite = Invite.from_bytes(record.invite)
            if invite.ident != ident:
                return "this connection was opened with another invite", 0
            row = self._store.invite_by_curve_key(invite.curve_key_pair()[0])
            left = 0 if row is None else max(0, row.uses - row.used)
            invite.check(self._spec.run, self._spec.owner, now_unix)
        except (InviteError, StoreError) as error:
            return error.message, 0
        return ("" if left else f"it was for {invite.uses} peer{'s' * (invite.uses > 1)}, all used"), left
