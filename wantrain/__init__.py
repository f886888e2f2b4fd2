"""wantrain trains one model from many places over ordinary internet links."""

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from wantrain import errors, sim
    from wantrain.errors import WantrainError
    from wantrain.look import Evaluated
    from wantrain.session import Swarm, join
    from wantrain.token_file import TokenFile

__all__ = ["Evaluated", "Swarm", "TokenFile", "WantrainError", "__version__", "errors", "join", "sim"]

_WHERE = {
    "Evaluated": "wantrain.look",
    "Swarm": "wantrain.session",
    "TokenFile": "wantrain.token_file",
    "WantrainError": "wantrain.errors",
    "join": "wantrain.session",
}


def __getattr__(name: str) -> object:
    """What needs torch, when it is first used: the coordinator and the command line do without."""
    if name in ("errors", "sim"):
        return import_module(f"wantrain.{name}")
    if name not in _WHERE:
        raise AttributeError(f"module 'wantrain' has no attribute {name!r}")
    return getattr(import_module(_WHERE[name]), name)
