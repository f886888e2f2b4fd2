"""The order of a ring: its slowest link as fast as can be, then its hops as short as can be; pure.

The slowest link of a ring bounds its throughput, so this is the bottleneck travelling salesman problem on a directed
graph. Rates are tried as thresholds by bisection. A ring over the links that reach a threshold is searched exactly up
to EXACT_PEERS (Held and Karp's recursion, J. SIAM 10, 1962), else by patching together the cycles of a perfect matching
of peers to successors (after Karp, SIAM J. Comput. 8, 1979), which may miss a ring where links are scarce.
"""

from collections.abc import Sequence
from math import inf
from typing import TypeAlias

Matrix: TypeAlias = Sequence[Sequence[float]]
"""[from][to]; the diagonal does not count."""

EXACT_PEERS = 8
"""The exact search takes time with 2**peers: under a millisecond per threshold for these."""
POLISHING_ROUNDS = 6
"""Enough for 64 peers; 20 ms in all."""
PIVOTS = 8
"""How many places the patching starts from before it gives a threshold up."""


def ring_order(rates: Matrix, delays: Matrix) -> tuple[int, ...] | None:
    """Peers 0 to n-1 in an order for a ring, starting with 0; None if no ring was found that avoids impossible links.

    Args:
        rates: of each link, in any unit; 0 or less where one cannot reach the other.
        delays: of each link, in any unit; of the rings with the best slowest link, one with a small sum is chosen.
    """
    n = len(rates)
    if n <= 1:
        return tuple(range(n))
    pairs = [(i, j) for i in range(n) for j in range(n) if i != j]
    thresholds = sorted({rates[i][j] for i, j in pairs if rates[i][j] > 0})
    best: list[int] | None = None
    low, high = 0, len(thresholds)  # thresholds[:low] can be done, thresholds[high:] cannot
    while low < high:
        middle = (low + high) // 2
        links = [[j for j in range(n) if j != i and rates[i][j] >= thresholds[middle]] for i in range(n)]
        found = _shortest(links, delays) if n <= EXACT_PEERS else _patched(links)
        if found is None:
            high = middle
        else:
            best, low = found, middle + 1
    if best is None:
        return None
    if n > EXACT_PEERS:
        slowest = min(rates[a][b] for a, b in zip(best, best[1:] + best[:1], strict=True))
        usable = [[delays[i][j] if rates[i][j] >= slowest else inf for j in range(n)] for i in range(n)]
        best = _polished(best, usable)
    start = best.index(0)
    return tuple(best[start:] + best[:start])


def _shortest(links: Sequence[Sequence[int]], delays: Matrix) -> list[int] | None:
    """The ring over these links (for each peer the possible successors) with the smallest sum of delays."""
    n = len(links)
    paths: list[dict[int, tuple[float, int]]] = [{} for _ in range(1 << n)]
    """By the set of peers on a path from 0, and its last one: the least sum, and the last but one."""
    paths[1][0] = (0.0, 0)
    for been in range(1, 1 << n, 2):
        for last, (total, _) in paths[been].items():
            for to in links[last]:
                if not been >> to & 1:
                    there = paths[been | 1 << to]
                    if to not in there or total + delays[last][to] < there[to][0]:
                        there[to] = (total + delays[last][to], last)
    been = (1 << n) - 1
    rings = [(total + delays[last][0], last) for last, (total, _) in paths[been].items() if 0 in links[last]]
    if not rings:
        return None
    order = [min(rings)[1]]
    while order[-1]:
        before = paths[been][order[-1]][1]
        been ^= 1 << order[-1]
        order.append(before)
    return order[::-1]


def _patched(links: Sequence[Sequence[int]]) -> list[int] | None:
    """Some ring over these links, or None: a set of cycles through all peers, joined two by two."""
    n = len(links)
    allowed = [set(possible) for possible in links]
    for pivot in range(1, PIVOTS + 1):
        follower = _matching([_from(possible, (i + pivot) % n) for i, possible in enumerate(links)])
        if follower is None:
            return None  # nor is there a ring
        cycles = _cycles(follower)
        while len(cycles) > 1:
            joint = _joint(follower, allowed, cycles)
            if joint is None:
                break
            a, b = joint
            follower[a], follower[b] = follower[b], follower[a]
            cycles = _cycles(follower)
        if len(cycles) == 1:
            return cycles[0]
    return None


def _from(peers: Sequence[int], first: int) -> list[int]:
    """Ascending `peers`, turned so that they start at `first`."""
    return [peer for peer in peers if peer >= first] + [peer for peer in peers if peer < first]


def _matching(links: Sequence[Sequence[int]]) -> list[int] | None:
    """A successor for each peer, all different; None if there is no such choice (augmenting paths)."""
    taken_by = [-1] * len(links)

    def place(i: int, tried: set[int]) -> bool:
        for j in links[i]:
            if j not in tried:
                tried.add(j)
                if taken_by[j] < 0 or place(taken_by[j], tried):
                    taken_by[j] = i
                    return True
        return False

    if not all(place(i, set()) for i in range(len(links))):
        return None
    follower = [0] * len(links)
    for j, i in enumerate(taken_by):
        follower[i] = j
    return follower


def _cycles(follower: Sequence[int]) -> list[list[int]]:
    cycles: list[list[int]] = []
    left = set(range(len(follower)))
    while left:
        cycle = [min(left)]
        while follower[cycle[-1]] != cycle[0]:
            cycle.append(follower[cycle[-1]])
        left.difference_update(cycle)
        cycles.append(cycle)
    return cycles


def _joint(
    follower: Sequence[int], allowed: Sequence[set[int]], cycles: Sequence[Sequence[int]]
) -> tuple[int, int] | None:
    """Two peers of different cycles that may exchange their successors, which makes the two cycles one."""
    of = {peer: k for k, cycle in enumerate(cycles) for peer in cycle}
    for a, to in enumerate(follower):
        for b in range(a + 1, len(follower)):
            if of[a] != of[b] and follower[b] in allowed[a] and to in allowed[b]:
                return a, b
    return None


def _polished(ring: list[int], delays: Matrix) -> list[int]:
    """The ring with a smaller sum of delays: parts of it are moved or reversed as long as that helps."""
    for _ in range(POLISHING_ROUNDS):
        changed = False
        for _ in ring:
            ring = ring[1:] + ring[:1]
            better = _changed(ring, delays)
            changed = changed or better is not None
            ring = better or ring
        if not changed:
            break
    return ring


def _changed(ring: list[int], delays: Matrix) -> list[int] | None:
    """The best ring that has another link out of ring[0] by one move or reversal, or None if none is better."""
    n, first, second = len(ring), ring[0], ring[1]
    best_gain, best = 1e-9 * delays[first][second], None
    forward = backward = 0.0
    for j in range(1, n):
        last, after = ring[j], ring[(j + 1) % n]
        if j > 1:
            forward += delays[ring[j - 1]][last]
            backward += delays[last][ring[j - 1]]
        if backward == inf:
            break
        old = delays[first][second] + forward + delays[last][after]
        gain = old - delays[first][last] - backward - delays[second][after]
        if gain > best_gain:
            best_gain, best = gain, [first, *ring[j:0:-1], *ring[j + 1 :]]
    for size in (1, 2, 3):
        last, after = ring[size], ring[size + 1]
        saved = delays[first][second] + delays[last][after] - delays[first][after]
        for j in range(size + 1, n):
            a, b = ring[j], ring[(j + 1) % n]
            gain = saved + delays[a][b] - delays[a][second] - delays[last][b]
            if gain > best_gain:
                best_gain = gain
                best = [first, *ring[size + 1 : j + 1], *ring[1 : size + 1], *ring[j + 1 :]]
    return best
