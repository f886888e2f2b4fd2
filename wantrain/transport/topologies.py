"""The table of topologies: every way to do an all-reduce, by name."""

from collections.abc import Callable

from wantrain.errors import ConfigError, ProtocolBug
from wantrain.transport.collective import Collective, Plan
from wantrain.transport.direct import Direct
from wantrain.transport.pair import pair
from wantrain.transport.ring import Ring

TOPOLOGIES: dict[str, Callable[[str, Plan], Collective]] = {"direct": Direct, "ring": Ring, "pair": pair}


def collective(topology: str, me: str, plan: Plan) -> Collective:
    """One attempt of an all-reduce on peer `me`, which is one of the plan's contributors or receivers.

    Raises:
        ConfigError: an unknown topology, or one that cannot carry out the plan.
        ProtocolBug: `me` has no place in the plan.
    """
    if topology not in TOPOLOGIES:
        raise ConfigError(f"unknown topology {topology!r}", hint=f"choose one of {', '.join(TOPOLOGIES)}")
    if me not in (*plan.contributors, *plan.receivers):
        raise ProtocolBug(f"{me!r} takes part in an all-reduce without being in its plan: {plan}")
    return TOPOLOGIES[topology](me, plan)
