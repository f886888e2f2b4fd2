"""Fragments: which tensors of a model a stream covers, by their names and sizes alone; the table of rules.

A fragment is written `rule`, or `rule:k/n` for the k-th of n, counted from 0, such as `strided:2/4`.

A block is one of several alike that follow each other under one name: `prefix.<number>.` with two tensors or more after
it, whose names and shapes are found again under another number. Where such rows stand in one another (experts in a
layer), the outermost counts. Blocks are numbered in the order of the model's parameters.
"""

import math
from collections.abc import Callable
from functools import lru_cache

from wantrain.errors import ConfigError

Tensors = tuple[tuple[str, tuple[int, ...]], ...]
"""Name and shape of each tensor of a model, in its order."""

_BY_SIZE = 'set split = "balanced" in [method], which goes by sizes only'


@lru_cache(maxsize=16)
def blocks(tensors: Tensors) -> tuple[tuple[int, ...], ...]:
    """The positions of each block's tensors; () if the model has no blocks."""
    places = [_places(name) for name, _ in tensors]
    inside: dict[str, dict[int, set[tuple[str, tuple[int, ...]]]]] = {}
    for (_, shape), found in zip(tensors, places, strict=True):
        for prefix, number, rest in found:
            inside.setdefault(prefix, {}).setdefault(number, set()).add((rest, shape))
    rows = {prefix for prefix, numbers in inside.items() if _alike(list(numbers.values()))}
    members: dict[tuple[str, int], list[int]] = {}
    for position, found in enumerate(places):
        block = next(((prefix, number) for prefix, number, _ in found if prefix in rows), None)
        if block is not None:
            members.setdefault(block, []).append(position)
    return tuple(map(tuple, members.values()))


def _places(name: str) -> list[tuple[str, int, str]]:
    """Every number in a name, the outermost first, with what is before and after it."""
    parts = name.split(".")
    numbers = [k for k, part in enumerate(parts) if part.isascii() and part.isdecimal()]
    return [(".".join(parts[:k]), int(parts[k]), ".".join(parts[k + 1 :])) for k in numbers]


def _alike(members: list[set[tuple[str, tuple[int, ...]]]]) -> bool:
    """Whether two of these have the same two or more tensors in them."""
    seen: list[set[tuple[str, tuple[int, ...]]]] = []
    for member in members:
        if len(member) > 1 and member in seen:
            return True
        seen.append(member)
    return False


def _every(tensors: Tensors, part: int, parts: int) -> list[int]:
    return list(range(len(tensors)))


def _strided(tensors: Tensors, part: int, parts: int) -> list[int]:
    return [position for block in _blocks_for(tensors, parts)[part::parts] for position in block]


def _sequential(tensors: Tensors, part: int, parts: int) -> list[int]:
    rows = _blocks_for(tensors, parts)
    return [position for k, block in enumerate(rows) if k * parts // len(rows) == part for position in block]


def _rest(tensors: Tensors, part: int, parts: int) -> list[int]:
    taken = {position for block in blocks(tensors) for position in block}
    return [position for position in range(len(tensors)) if position not in taken]


def _balanced(tensors: Tensors, part: int, parts: int) -> list[int]:
    """The largest tensor first, each to the fragment that has the least by then (Graham 1969)."""
    if len(tensors) < parts:
        raise ConfigError(
            f"the model has {len(tensors)} tensors, fewer than the {parts} fragments that are wanted",
            hint=f"set fragments to at most {len(tensors)} in [method]",
        )
    sizes = [math.prod(shape) for _, shape in tensors]
    loads, mine = [0] * parts, list[int]()
    for position in sorted(range(len(sizes)), key=lambda k: (-sizes[k], k)):
        # Also a tensor of no size counts for one, so that no fragment stays empty.
        least = loads.index(min(loads))
        loads[least] += max(sizes[position], 1)
        if least == part:
            mine.append(position)
    return mine


def _masked(tensors: Tensors, part: int, parts: int) -> list[int]:
    if (values := sum(math.prod(shape) for _, shape in tensors)) < parts:
        raise ConfigError(
            f"the model has {values} values, fewer than the {parts} parts of the mask",
            hint=f"set parts to at most {values} in [method]",
        )
    return _every(tensors, part, parts)


def _blocks_for(tensors: Tensors, parts: int) -> tuple[tuple[int, ...], ...]:
    found = blocks(tensors)
    if not found:
        raise ConfigError(
            "the model has no blocks: nowhere are there two of the same kind under one name with numbers, such as "
            "layers.0. and layers.1.",
            hint=_BY_SIZE,
        )
    if len(found) < parts:
        raise ConfigError(
            f"the model has {len(found)} blocks, fewer than the {parts} fragments that are wanted",
            hint=f"set fragments to at most {len(found)} in [method], or {_BY_SIZE}",
        )
    return found


FRAGMENTS: dict[str, Callable[[Tensors, int, int], list[int]]] = {
    "all": _every,
    "strided": _strided,
    "sequential": _sequential,
    "balanced": _balanced,
    "rest": _rest,
    "mask": _masked,
}
"""`all`: every tensor. `strided`: block l for l mod n = k. `sequential`: n runs of blocks. `balanced`: whole tensors,
blocks or not, so that all n are about as large. `rest`: what is in no block (embeddings, head, norms). `mask`: of every
tensor the coordinates in part k of n of `wantrain.optimizers.mask`."""


def members(fragment: str, tensors: Tensors) -> tuple[int, ...]:
    """The positions of a fragment's tensors, ascending.

    Raises:
        ConfigError: no such fragment, the model cannot be cut this way, or nothing is left for it.
    """
    name, part, parts = _read(fragment)
    found = FRAGMENTS[name](tensors, part, parts)
    if not found and name != "all":
        raise ConfigError(f"no tensor of the model is in fragment {fragment!r}", hint=_BY_SIZE)
    return tuple(sorted(found))


def mask_of(fragment: str) -> tuple[int, int] | None:
    """Which part of how many, if a fragment takes only a mask's coordinates of its tensors."""
    name, part, parts = _read(fragment)
    return (part, parts) if name == "mask" else None


def _read(fragment: str) -> tuple[str, int, int]:
    name, _, which = fragment.partition(":")
    part, _, parts = which.partition("/")
    numbered = part.isdecimal() and parts.isdecimal() and int(part) < int(parts)
    if name not in FRAGMENTS or numbered == (name in ("all", "rest")) or (which and not numbered):
        raise ConfigError(
            f"unknown fragment {fragment!r}",
            hint="use all, rest, or one of strided, sequential, balanced and mask with its number, as in strided:0/4",
        )
    return name, int(part or 0), int(parts or 1)
