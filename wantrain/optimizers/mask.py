"""Masks of coordinates: the k-th of n parts of a random partition of all coordinates, counted without making it; pure.

The model's coordinates, in its order, are cut into blocks of n. A hash of the block's number says by how much its
positions are turned, and position j of a block that is turned by r is in part (j + r) mod n. So every peer has the same
partition and nothing of it is ever sent.
"""

_MASK = 2**64 - 1
ADD, FIRST, SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
"""Constants of splitmix64 (Steele, Lea and Flood 2014)."""
SHIFT = 33
"""Of the 64 bits of a hash the upper 31 are used: a signed number of 64 bits holds them, too."""


def turned(block: int, parts: int) -> int:
    """By how much a block's positions are turned, 0 … parts - 1."""
    value = (block + ADD) & _MASK
    value = ((value ^ (value >> 30)) * FIRST) & _MASK
    value = ((value ^ (value >> 27)) * SECOND) & _MASK
    return ((value ^ (value >> 31)) >> SHIFT) % parts


def below(part: int, parts: int, stop: int) -> int:
    """How many coordinates of the part are below `stop`."""
    block, left = divmod(stop, parts)
    return block + ((part - turned(block, parts)) % parts < left)


def between(part: int, parts: int, start: int, stop: int) -> int:
    """How many coordinates of the part are in start … stop - 1."""
    return below(part, parts, stop) - below(part, parts, start)
