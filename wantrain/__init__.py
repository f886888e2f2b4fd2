"""wantrain trains one model from many places over ordinary internet links."""

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from wantrain import sim
    from wantrain.session import Swarm, join
    from wantrain.token_file import TokenFile

__all__ = ["Swarm", "TokenFile", "__version__", "join", "sim"]


def __getattr__(name: str) -> object:
    """What needs torch, when it is first used: the coordinator and the command line do without."""
    if name == "TokenFile":
        from wantrain import token_file

        return token_file.TokenFile
    if name == "sim":
        return import_module("wantrain.sim")
    if name not in ("Swarm", "join"):
        raise AttributeError(f"module 'wantrain' has no attribute {name!r}")
    from wantrain import session

    return getattr(session, name)
