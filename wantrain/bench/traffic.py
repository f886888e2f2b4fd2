"""What an all-reduce has to move by its topology's formula: bytes for every directed pair of peers; pure.

With U bytes of a whole vector on the way up, D on the way down, and s_k the share of it that peer k owns (all s_k add
up to 1): direct, i to j: U s_j + D s_i. ring, i to i+1: U (1 - s_i) + D (1 - s_(i+1)). In both all N peers together
send (N - 1) (U + D). pair: each of two sends U/2 + D/2 to the other.
"""

from collections.abc import Sequence

from wantrain.errors import ConfigError
from wantrain.transport.pair import matching

Traffic = dict[tuple[str, str], float]
"""Bytes by (from, to); pairs that exchange nothing are left out."""


def traffic(
    topology: str, peers: Sequence[str], shares: Sequence[float], up_bytes: float, down_bytes: float, seed: int = 0
) -> Traffic:
    """Bytes that each peer has to send to each other one.

    Args:
        topology: direct, ring or pair.
        peers: the contributors, in ring order.
        shares: part of the vector that each of them owns; they add up to 1. A pair always halves it.
        up_bytes: size of a whole vector in the codec of the way up.
        down_bytes: the same for the way down.
        seed: of the matching, for pair.

    Raises:
        ConfigError: an unknown topology.
    """
    count = len(peers)
    if topology == "direct":
        moved = {
            (peers[i], peers[j]): up_bytes * shares[j] + down_bytes * shares[i]
            for i in range(count)
            for j in range(count)
            if i != j
        }
    elif topology == "ring":
        moved = {
            (peers[i], peers[(i + 1) % count]): up_bytes * (1 - shares[i]) + down_bytes * (1 - shares[(i + 1) % count])
            for i in range(count)
            if count > 1
        }
    elif topology == "pair":
        groups = [group for group in matching(seed, peers) if len(group) == 2]
        half = (up_bytes + down_bytes) / 2
        moved = {pair: half for a, b in groups for pair in ((a, b), (b, a))}
    else:
        raise ConfigError(f"unknown topology {topology!r}", hint="choose one of direct, ring, pair")
    return {pair: size_bytes for pair, size_bytes in moved.items() if size_bytes > 0}


def group_of(topology: str, peers: Sequence[str], me: str, seed: int = 0) -> tuple[str, ...]:
    """Whose mean `me` gets: everybody's, or that of its pair."""
    if topology != "pair":
        return tuple(peers)
    return next(group for group in matching(seed, peers) if me in group)


def total_bytes(moved: Traffic) -> float:
    """What all peers send together."""
    return sum(moved.values())


def shard_shares(elements: int, bounds: Sequence[tuple[int, int]], shards: Sequence[int]) -> list[float]:
    """Share of the vector in each run of consecutive chunks; equal ones for an empty vector."""
    if not elements:
        return [1 / len(shards)] * len(shards)
    shares, at = [], 0
    for chunks in shards:
        shares.append(sum(stop - start for start, stop in bounds[at : at + chunks]) / elements)
        at += chunks
    return shares
