"""How a peer in the status document is told of: whether it takes part, and what it waits for or why it went."""

from collections.abc import Mapping
from typing import Any


def takes_part(peer: Mapping[str, Any]) -> bool:
    """Whether it is in the run, or on its way in."""
    return peer.get("state") in ("joining", "member")


def waits_or_went(peer: Mapping[str, Any]) -> str:
    """For what it waits; why it went, if it takes no part any more."""
    return str((peer.get("waiting") if takes_part(peer) else peer.get("late")) or "")
