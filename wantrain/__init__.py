"""wantrain trains one model from many places over ordinary internet links."""

from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from wantrain.session import Swarm, join

__all__ = ["Swarm", "__version__", "join"]


def __getattr__(name: str) -> object:
    """`join` and `Swarm`, when they are first used: the coordinator and the command line do without torch."""
    if name not in ("Swarm", "join"):
        raise AttributeError(f"module 'wantrain' has no attribute {name!r}")
    from wantrain import session

    return getattr(session, name)
