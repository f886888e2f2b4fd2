"""`wantrain bench allreduce`: one all-reduce by several contestants in turn, on this machine or in the network lab."""

import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from wantrain.bench.processes import Popen, Workers, popen_here
from wantrain.bench.raw import available_congestion, default_congestion
from wantrain.bench.traffic import Traffic, shard_shares, total_bytes, traffic
from wantrain.bench.worker import Json, Setup
from wantrain.errors import ConfigError, WantrainError
from wantrain.transport.codec.names import bits, format_of
from wantrain.transport.partition import chunk_bounds, split_chunks

MB = 1_000_000
LOOPBACK = "127.0.0.1"
CONTESTANTS = ("gloo", "raw")
TOPOLOGIES = ("direct", "ring", "pair")
STREAMS = (1, 8)
"""Connections for every pair of peers that the raw sockets try on a shaped link; one on loopback."""
PATIENCE_S = 30.0
"""A contestant whose all-reduces have lasted longer than this in total takes no more turns."""
WORTH_A_TURN = 2.0
"""Raw sockets that took so many times the best ones' time in the turn that does not count take no other."""
AHEAD_S = 0.1
"""How far ahead the moment of a start is told: all have heard of it by then."""
ALLOWED_ERROR = {
    "fp32": 1e-6, "bf16": 0.004, "bf16-planes": 0.004, "int8": 0.02, "int4": 0.15, "e2m1": 0.15, "e3m0": 0.28,
    "rms0.35": 0.15, "rms0.5": 0.2, "rms0.75": 0.3, "rms1": 0.4, "sign": 0.9, "topk": 1.05,
}  # fmt: skip
"""Relative error that one encoding of Gaussian values may add to a block, by format: about 1.4 times the usual."""

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Options:
    """What is measured."""

    peers: int = 2
    size_mb: float = 64.0
    """Size of the fp32 vector in MB (1,000,000 bytes)."""
    codec: str = "int8"
    down: str = ""
    """Codec of the way down; "" for the one that goes with `codec`."""
    topology: str = "direct"
    encrypt: bool = True
    lab: str = ""
    """Shape of the links between hosts in the network lab; "" for loopback."""
    congestion: str = ""
    """Congestion control of the lab's hosts where nobody asks for another, as gloo does not; "" for this machine's."""
    repeat: int = 5
    settle: int = 0
    """All-reduces of wantrain before all others, in which its connections come to the number that they stay at."""
    against: tuple[str, ...] = CONTESTANTS
    timeout_s: float = 120.0
    """Longest that one all-reduce may take."""

    @property
    def elements(self) -> int:
        """Length of the fp32 vector."""
        return max(1, round(self.size_mb * MB / 4))

    @property
    def way_down(self) -> str:
        """Codec of the way down.

        Raises:
            ConfigError: an unknown codec.
        """
        return self.down or format_of(self.codec).down or self.codec

    def check(self) -> None:
        """Raises ConfigError for what cannot be measured."""
        if format_of(self.way_down).error_feedback:
            raise ConfigError(
                f"codec {self.way_down!r} cannot be used on the way down: what it loses is never made up for",
                hint="add --down int8",
            )
        if self.topology not in TOPOLOGIES:
            raise ConfigError(f"unknown topology {self.topology!r}", hint=f"choose one of {', '.join(TOPOLOGIES)}")
        if unknown := [name for name in self.against if name not in CONTESTANTS]:
            raise ConfigError(f"unknown contestant {unknown[0]!r}", hint="use --against gloo,raw, gloo, raw or none")
        if self.congestion and not self.lab:
            raise ConfigError(
                f"--congestion {self.congestion} is for the network lab", hint="add --lab, or leave it out"
            )
        if self.lab and not self.encrypt:
            raise ConfigError(
                "--plain is for loopback only: between hosts everything is encrypted",
                hint="leave out --plain or --lab",
            )


def measure(options: Options, say: Say = lambda line: None) -> Json:
    """Run it; medians over `repeat` all-reduces of each contestant, in turn, after one that does not count.

    Before that come `settle` ones of wantrain. A last one of it, not counted either, shows what its time goes to.

    Returns:
        A JSON document: options, machine, one entry for each contestant, ratios.

    Raises:
        ConfigError: options that cannot be measured.
        WantrainError: a contestant failed, or its result was wrong.
    """
    options.check()
    with _hosts(options) as (addresses, popen), ExitStack() as stack:
        teams = _teams(options, addresses, popen)
        for workers, _ in teams:
            stack.enter_context(workers)
        baselines = _meet([workers for workers, _ in teams], options, say)
        for number in range(options.settle):
            run = _run(teams[0][0], options, number, "wantrain")
            say(f"wantrain: {run['seconds']:.3f} s ({number + 1} of {options.settle} to settle)")
        runs: dict[str, list[Json]] = {}
        for number in range(options.repeat + 1):
            for workers, variants in teams:
                for variant in variants:
                    if _out(variant, variants, runs):
                        continue
                    run = _run(workers, options, options.settle + number, variant, full=number == 0)
                    runs.setdefault(variant, []).append(run)
                    what = f"{number} of {options.repeat}" if number else "not counted"
                    say(f"{variant}: {run['seconds']:.3f} s ({what})")
        watched = _run(teams[0][0], options, options.settle + options.repeat + 1, "wantrain", watch=True)
    return _document(options, runs, watched, baselines["wantrain"])


def _out(variant: str, variants: Sequence[str], runs: dict[str, list[Json]]) -> bool:
    """Whether a variant takes no more turns, as it has shown what it can do."""
    if variant not in runs:
        return False
    best_s = min(runs[other][0]["seconds"] for other in variants if other in runs)
    took_s = sum(run["seconds"] for run in runs[variant])
    return took_s > PATIENCE_S or float(runs[variant][0]["seconds"]) > WORTH_A_TURN * float(best_s)


def machine() -> Json:
    """What it is measured on."""
    return {"cores": os.cpu_count(), "system": f"{platform.system()} {platform.release()}", "cpu": _cpu(),
            "python": platform.python_version()}  # fmt: skip


def expected_traffic(options: Options) -> Traffic:
    """Bytes by pair of peers, "0", "1", …, as the topology's formula has it."""
    from wantrain.bench.swarm import peer_name

    bounds = chunk_bounds(options.elements)
    shares = shard_shares(options.elements, bounds, split_chunks(len(bounds), [1.0] * options.peers))
    up_bytes, down_bytes = (bits(c) * options.elements / 8 for c in (options.codec, options.way_down))
    names = [peer_name(k) for k in range(options.peers)]
    moved = traffic(options.topology, names, shares, up_bytes, down_bytes)
    at = {name: str(k) for k, name in enumerate(names)}
    return {(at[a], at[b]): size for (a, b), size in moved.items()}


# ---- who takes part


@contextmanager
def _hosts(options: Options) -> Iterator[tuple[list[str], Popen]]:
    """The address of each peer's host, and how to start a process there."""
    if not options.lab:
        yield [LOOPBACK] * options.peers, popen_here
        return
    from wantrain.lab import Lab, Shape, available

    if reason := available():
        raise WantrainError(f"the network lab cannot run here: {reason}", hint="leave out --lab")
    with Lab(options.peers, Shape.parse(options.lab), congestion=options.congestion) as lab:
        yield [lab.address(k) for k in range(options.peers)], lab.popen


def _teams(options: Options, addresses: Sequence[str], popen: Popen) -> list[tuple[Workers, list[str]]]:
    """The processes of each contestant, and the variants that they run."""
    moved = [[float(a), float(b), size] for (a, b), size in expected_traffic(options).items()]
    controls = [""]
    if options.lab and "bbr" in available_congestion() and (options.congestion or default_congestion()) != "bbr":
        controls.append("bbr")
    ways = [
        {"name": f"raw, {streams} connection{'s' * (streams > 1)}{', ' * bool(control)}{control}",
         "streams": streams, "congestion": control}
        for streams in (STREAMS if options.lab else STREAMS[:1])
        for control in controls
    ]  # fmt: skip
    teams = []
    for kind in ("wantrain", *[name for name in CONTESTANTS if name in options.against]):
        variants: list[Json] = ways if kind == "raw" else [{"name": kind}]
        setups = [
            Setup(
                kind, k, options.peers, options.elements, options.codec, options.way_down, options.topology,
                options.encrypt, addresses[k], options.timeout_s, moved, variants,
            )
            for k in range(options.peers)
        ]  # fmt: skip
        teams.append((Workers(kind, setups, popen), [variant["name"] for variant in variants]))
    return teams


def _meet(teams: Sequence[Workers], options: Options, say: Say) -> dict[str, int]:
    """Let the peers of each contestant connect; by contestant, the memory of a process that has no vector yet."""
    baselines = {}
    for workers in teams:
        said = workers.hear(options.timeout_s)
        workers.ask(options.timeout_s, do="meet", roster=said)
        baselines[workers.name] = max(answer["baseline_bytes"] for answer in said)
        say(f"{workers.name}: {len(said)} peers are connected")
    return baselines


def _run(
    workers: Workers, options: Options, number: int, variant: str, *, full: bool = False, watch: bool = False
) -> Json:
    """One all-reduce: all begin at a moment that is told before; it lasts until the last peer has its result.

    `full`: compare every value with what it should be; `watch`: find out what the time goes to.
    """
    limit_s = options.timeout_s + 30.0
    workers.ask(limit_s, do="prepare", number=number + 1, variant=variant, watch=watch)
    at = time.monotonic() + AHEAD_S
    ended = workers.ask(limit_s, do="run", at=at)
    checked = workers.ask(limit_s, do="verify", full=full)
    _check(workers.name, options, ended, checked)
    firsts = [answer["first_byte_s"] for answer in ended if answer.get("first_byte_s") is not None]
    errors = [answer["error"] for answer in checked if "error" in answer]
    spent: dict[str, float] = {}
    for answer in checked:
        for what, seconds in answer.get("spent_s", {}).items():
            spent[what] = spent.get(what, 0.0) + seconds
    return {
        "seconds": max(answer["end"] for answer in ended) - at,
        "first_byte_s": median(firsts) if firsts else None,
        "cpu_s": sum(answer["cpu_s"] for answer in checked),
        "sent_bytes": sum(answer.get("sent_bytes", 0) for answer in checked),
        "peak_bytes": max(answer["peak_bytes"] for answer in checked),
        "error": max(errors) if errors else None,
        "spent_s": spent,
        "links": checked[0].get("links", {}),
    }


def _check(name: str, options: Options, ended: Sequence[Json], checked: Sequence[Json]) -> None:
    """Equal digests within a group, and the mean that was to be expected."""
    digests: dict[str, set[str]] = {}
    for answer in ended:
        if "digest" in answer:
            digests.setdefault(str(answer["group"]), set()).add(answer["digest"])
    if any(len(group) > 1 for group in digests.values()):
        raise WantrainError(f"the peers of {name} got different bits: {digests}")
    allowed = 1e-5 if name == "gloo" else allowed_error(options)
    for k, answer in enumerate(checked):
        if "worst_error" in answer and not answer["worst_error"] <= allowed:
            raise WantrainError(
                f"peer {k} of {name} got a wrong result: a block is off by {answer['worst_error']:.3g}, "
                f"allowed is {allowed:.3g}"
            )


def allowed_error(options: Options) -> float:
    """Relative error of the mean that the codecs of both ways explain; every hop of a ring encodes anew."""
    up, down = (ALLOWED_ERROR[name.partition("+")[0]] for name in (options.codec, options.way_down))
    hops = options.peers - 1 if options.topology == "ring" else 1
    return float((hops * up**2 + down**2) ** 0.5)


# ---- what came out


def _document(options: Options, runs: dict[str, list[Json]], watched: Json, baseline_bytes: int) -> Json:
    fp32_bytes = 4.0 * options.elements
    document: Json = {
        "options": {**asdict(options), "down": options.way_down, "against": list(options.against)},
        "machine": machine(),
    }
    results = {name: _summary(entries, fp32_bytes, options) for name, entries in runs.items()}
    own = document["wantrain"] = results.pop("wantrain")
    own["spent_s"], own["links"] = watched["spent_s"], watched["links"]
    own["formula_bytes"] = round(total_bytes(expected_traffic(options)))
    own["tensor_memory_ratio"] = (own["peak_bytes"] - baseline_bytes) / fp32_bytes
    if "gloo" in results:
        document["gloo"] = results.pop("gloo")
    if results:
        best = min(results, key=lambda name: float(results[name]["seconds"]))
        document["raw"] = {"best": best, **results[best], "variants": {n: r["seconds"] for n, r in results.items()}}
    document["ratio"] = {n: document[n]["seconds"] / own["seconds"] for n in CONTESTANTS if n in document}
    return document


def _summary(runs: Sequence[Json], fp32_bytes: float, options: Options) -> Json:
    """Medians; the first turn counts only where there is no other."""
    entries = runs[1:] or runs
    middle: dict[str, Any] = {key: median(e[key] for e in entries) for key in ("seconds", "cpu_s", "sent_bytes")}
    firsts = [entry["first_byte_s"] for entry in entries if entry["first_byte_s"] is not None]
    return {
        "seconds": middle["seconds"],
        "all_seconds": [entry["seconds"] for entry in entries],
        "fp32_bytes_per_s": fp32_bytes / middle["seconds"],
        "cpu_s_per_gb": middle["cpu_s"] / options.peers / (fp32_bytes / 1e9),
        "sent_bytes": round(middle["sent_bytes"]),
        "first_byte_s": median(firsts) if firsts else None,
        "peak_bytes": max(entry["peak_bytes"] for entry in entries),
        "error": runs[0]["error"],
    }


def _cpu() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
        return names[0] if names else platform.machine()
    except OSError:
        return platform.machine()
