"""The pair topology as a pure core: a random perfect matching, and the mean of two within each of its pairs.

The matching follows from the plan's seed alone, so that nobody has to agree on it. There is no barrier beyond the pair.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import replace

from wantrain.errors import ConfigError
from wantrain.transport.collective import Plan
from wantrain.transport.direct import Direct
from wantrain.transport.partition import split_chunks


def matching(seed: int, peers: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """Peers in random groups of two, and a last one of one if their number is odd; any order of `peers` gives the same.

    They are sorted by a hash over the seed and their name, which no platform or version computes differently.
    """
    shuffled = sorted(peers, key=lambda peer: (hashlib.sha256(f"{seed} {peer}".encode()).digest(), peer))
    return tuple(tuple(shuffled[k : k + 2]) for k in range(0, len(shuffled), 2))


def pair(me: str, plan: Plan) -> Direct:
    """One attempt within the pair of `me`: the weighted mean of its two inputs; a lone peer's own input, encoded.

    Raises:
        ConfigError: there are receivers; who contributes nothing has nobody to take a mean from.
    """
    if plan.receivers:
        raise ConfigError(
            f"topology 'pair' with receivers {', '.join(plan.receivers)}; allowed are contributors only",
            hint="leave them out of the plan: they keep what they have",
        )
    weight = dict(zip(plan.contributors, plan.weights, strict=True))
    group = next(group for group in matching(plan.seed, plan.contributors) if me in group)
    weights = tuple(weight[peer] for peer in group) if len(group) == 2 else (1.0,)
    shards = split_chunks(sum(plan.shards), [1.0] * len(group))
    return Direct(me, replace(plan, contributors=group, weights=weights, shards=shards))
