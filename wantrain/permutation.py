"""The order of a data set in one epoch: a permutation that every peer computes alike, one position at a time."""

import hashlib
import math

ROUNDS = 6
_MASK = 2**64 - 1


class Permutation:
    """A random-looking bijection of 0 … length - 1, without memory of that size.

    An alternating Feistel network over two digits of bases a and b with a·b just above `length`; results beyond the
    length go through it again (cycle walking). Black and Rogaway, "Ciphers with arbitrary finite domains", 2002.
    Meant to shuffle, not to hide.

    Args:
        length: number of samples, 1 … 2**62.
        seed: of the data's order, >= 0.
        epoch: which pass through the data, from 0.
    """

    def __init__(self, length: int, seed: int, epoch: int) -> None:
        assert 1 <= length <= 2**62, length
        self.length = length
        self._a = math.isqrt(length - 1) + 1
        self._b = -(-length // self._a)
        digest = hashlib.shake_256(f"wantrain order {length} {seed} {epoch}".encode()).digest(8 * ROUNDS)
        self._keys = [int.from_bytes(digest[k : k + 8], "little") for k in range(0, len(digest), 8)]

    def index(self, position: int) -> int:
        """The sample at a position of the order."""
        assert 0 <= position < self.length, position
        while True:
            position = self._shuffle(position)
            if position < self.length:
                return position

    def _shuffle(self, position: int) -> int:
        left, right = divmod(position, self._b)
        a, b = self._a, self._b
        for key in self._keys:
            # Right is below b and stays as it is; left, below a, moves by what a hash of right says; then they swap.
            left, right = right, (left + _mixed(right ^ key)) % a
            a, b = b, a
        return left * b + right


def _mixed(value: int) -> int:
    """The finalizer of splitmix64: 64 bits in, 64 well mixed bits out (Steele, Lea and Flood 2014)."""
    value = (value + 0x9E3779B97F4A7C15) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)
