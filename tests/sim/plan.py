"""The plan of a simulated run as data: streams, weather, who joins when, and every fault with its time and arguments.

A seed draws a plan; a plan can be written down, changed by hand, shrunk and played again. What a plan leaves open (how
long a message takes, how fast a trainer is) is drawn from its seed while it is played.
"""

import json
import random
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

from tests.sim.network import Weather
from wantrain.optimizers.noloco import NolocoOptions, noloco
from wantrain.optimizers.stream import Stream, Wire
from wantrain.transport.codec.names import AUTO, AUTO_DOWN
from wantrain.transport.zmq_sockets import REDIAL_LAST_S

FAULTY_S = 8.0
"""Virtual seconds in which faults strike."""
LEAST_S = 3.0
"""Least virtual seconds before the faults are over, and AFTER_S at least after the last one has mended itself."""
AFTER_S = 1.0
BACK_S = (0.1, 1.0, 3.0, 7.0)
"""How long what a fault has broken may stay broken."""
MOST_FAULTS = 7
UNEVEN: tuple[dict[str, Any], ...] = (
    {"schedule": "qsr", "schedule_options": (("cap", 6.0), ("growth", 0.02), ("warmup", 3.0))},
    {"schedule": "seconds", "schedule_options": (("round_s", 0.5),)},
    {"schedule": "dynamic"},
    {"schedule_options": (("total", 20.0),)},
)
LATER = ("leave-together", "memory-lost")
"""Kinds of faults that not every seed's choice is made of."""
LATER_SHARE = 0.15
"""Share of the runs that have each of them."""
GOSSIP = 0.2
"""Share of runs whose peers exchange in pairs, each with a state of its own."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that goes wrong. What `peer`, `other` and `amount` mean is up to the kind; see `faults.py`."""

    at_s: float
    kind: str
    peer: int = 0
    """Which of those who are alive then, counted in the order of joining and around."""
    other: int = 0
    """Which of all other machines and the coordinator."""
    back_s: float = 0.0
    amount: int = 0


@dataclass(frozen=True, slots=True)
class Plan:
    """All that is decided about a run before it is played."""

    seed: int
    streams: tuple[Stream, ...]
    weather: Weather
    joins_s: tuple[float, ...]
    """When the first machines join."""
    faults: tuple[Fault, ...]
    late_joins_s: tuple[float, ...] = ()
    """Machines that join when the faults are over, in seconds after that."""
    trial: str = ""
    """What the run has to stand when it has recovered; see `trials.py`."""
    refuse_send: float = 0.0
    """Share of messages for which there is no room."""
    wait_ceiling_s: float | None = None
    """How long trainers wait before they go on alone; None: as long as it takes."""
    outbound: float = 0.0
    """Chance of a peer to be one that can only dial out."""
    flicker: float = 0.0
    """Chance that a peer takes a connection for broken, at any tick."""
    faulty_s: float = FAULTY_S
    redial_s: float = 0.0
    """How long a peer takes at most, when the coordinator is there again, until it tries to reach that."""

    def text(self) -> str:
        """The plan as JSON, one line for each fault."""
        document = asdict(self)
        faults = document.pop("faults")
        lines = ",\n    ".join(json.dumps(fault) for fault in faults)
        return json.dumps(document, indent=2)[:-2] + f',\n  "faults": [\n    {lines}\n  ]\n}}'

    @classmethod
    def from_text(cls, text: str) -> Self:
        """Read what `text` has written."""
        document: dict[str, Any] = json.loads(text)
        document["streams"] = tuple(Stream(**_tuples(stream)) for stream in document["streams"])
        document["weather"] = Weather(**_tuples(document["weather"]))
        document["faults"] = tuple(Fault(**fault) for fault in document["faults"])
        return cls(**_tuples(document))


def _tuples(document: dict[str, Any]) -> dict[str, Any]:
    return {name: _tuple(value) for name, value in document.items()}


def _tuple(value: Any) -> Any:
    return tuple(map(_tuple, value)) if isinstance(value, list) else value


def draw(seed: int, kinds: tuple[str, ...], trials: tuple[str, ...]) -> Plan:
    """The plan of a seed, with faults of these kinds and, in every third seed, one of these trials.

    What was added later is drawn from a generator of its own, so that a seed stays the run that it was.
    """
    rng, later = random.Random(seed), random.Random(f"later {seed}")
    drawn = [
        _fault(rng, tuple(kind for kind in kinds if kind not in LATER)) for _ in range(rng.randint(0, MOST_FAULTS))
    ]
    drawn += [_fault(later, (kind,)) for kind in LATER if kind in kinds and later.random() < LATER_SHARE]
    faults = sorted(drawn, key=lambda f: f.at_s)
    over_s = max((fault.at_s + fault.back_s for fault in faults), default=0.0) + AFTER_S
    return Plan(
        seed=seed,
        streams=_codecs(methods(rng), random.Random(f"codecs {seed}")),
        weather=weather(rng),
        joins_s=tuple(rng.uniform(0.0, 3.0) for _ in range(rng.randint(1, 4))),
        faults=tuple(faults),
        late_joins_s=(rng.uniform(0.0, 5.0),) if rng.random() < 0.1 else (),
        trial=rng.choice(trials) if rng.random() < 1 / 3 else "",
        refuse_send=rng.choice([0.0, 0.0, 0.05]),
        wait_ceiling_s=rng.choice([None, 1.0, 6.0]),
        outbound=rng.choice([0.0, 0.0, 0.4, 0.8]),
        flicker=rng.choice([0.0, 0.0, 0.02]),
        faulty_s=min(max(over_s, LEAST_S), FAULTY_S),
        redial_s=random.Random(f"redial {seed}").choice([0.0, REDIAL_LAST_S]),
    )


def _fault(rng: random.Random, kinds: tuple[str, ...]) -> Fault:
    at_s = round(rng.uniform(0.0, FAULTY_S), 3)
    return Fault(at_s, rng.choice(kinds), rng.randrange(60), rng.randrange(60), rng.choice(BACK_S), rng.randrange(1024))


def methods(rng: random.Random) -> tuple[Stream, ...]:
    """The streams of a run, with a topology drawn for each; where that is direct the average is a robust one."""
    if rng.random() < GOSSIP:
        every = rng.choice([1, 2, 3, 5])
        total = 8 * every if every == 3 else 0  # beyond it every exchange is one of everybody
        return noloco(NolocoOptions(every=every, total=total), Wire("fp32"))
    streams = [replace(stream, topology=rng.choice(["auto", "direct", "ring"])) for stream in _streams(rng)]
    return tuple(replace(s, average="median") if s.topology == "direct" else s for s in streams)


def _codecs(streams: tuple[Stream, ...], rng: random.Random) -> tuple[Stream, ...]:
    """In two of five runs each sync chooses its codec, where there is a choice."""
    if rng.random() >= 0.4:
        return streams
    return tuple(s if s.topology in ("ring", "pair") else replace(s, codec=AUTO, down=AUTO_DOWN) for s in streams)


def _streams(rng: random.Random) -> tuple[Stream, ...]:
    every = rng.choice([1, 2, 3, 5])
    kind = rng.choice(
        ["one", "one", "one", "late-adopt", "delayed", "fragments", "moments", "gradients", "ahead", "uneven"]
    )
    if kind == "fragments":
        return (
            Stream("a", fragment="balanced:0/2", every=every + 1, offset=1),
            Stream(
                "b", fragment="balanced:1/2", every=every + 1, offset=every, delay=rng.choice([0, 1, every]),
                overdue=rng.choice(["wait", "continue"]), adopt="mix",
            ),
        )  # fmt: skip
    if kind == "moments":
        late = rng.choice(["rebase", "adopt"])
        return (
            Stream("param", every=every, late=late),
            Stream("exp_avg", state="exp_avg", every=rng.choice([every, 2 * every]), late=late),
        )
    if kind == "gradients":
        return (Stream("grad", state="grad", every=1), Stream("param", every=4, late="adopt"))
    if kind == "late-adopt":
        return (Stream("param", every=every, late="adopt"),)
    if kind == "ahead":
        answer, late = rng.choice(["delayed", "eager"]), rng.choice(["rebase", "adopt"])
        return (Stream("param", every=every, answer=answer, late=late),)
    if kind == "uneven":
        return (Stream("param", every=every, **rng.choice(UNEVEN)),)
    return (Stream("param", every=every, delay=rng.choice([1, every]) if kind == "delayed" else 0),)


def weather(rng: random.Random) -> Weather:
    """How good the network is."""
    loss = rng.choice([0.0, 0.0, 0.01, 0.1])
    spike = rng.choice([0.0, 0.05, 0.2])
    duplicate = rng.choice([0.0, 0.0, 0.1])
    return Weather((0.001, rng.choice([0.005, 0.05, 0.3])), spike, rng.choice([0.5, 2.0]), loss, duplicate)
