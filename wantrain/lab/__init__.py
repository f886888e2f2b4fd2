"""A network lab: hosts in network namespaces, joined by a switch in user space that shapes every directed pair."""

from wantrain.lab.lab import Lab
from wantrain.lab.namespaces import available
from wantrain.lab.path import PairStats
from wantrain.lab.shape import Shape

__all__ = ["Lab", "PairStats", "Shape", "available"]
