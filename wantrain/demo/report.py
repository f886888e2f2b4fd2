"""What a demo run amounts to: figures, verdicts, text and picture, computed from what was recorded. Starts nothing."""

import json
import math
import re
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Json = dict[str, Any]

STALL_S = 60.0
"""A demo run without a commit for this long has failed."""


@dataclass
class Recording:
    """Everything a demo run left behind; times are seconds since its start."""

    settings: Json
    """peers, rounds, every, batch, context, method, codec, seed, lead (the stream whose syncs are the rounds), gossip
    (whether every peer has a model of its own), common (whether trainers' weights are the common ones at the end of the
    run), merged (whether a gossip run ends with an exchange of everybody), ahead (whether trainers go on from weights
    that lack the last exchange) and killed / newcomer: a name or None."""
    spread: float | None = None
    """How far a gossip run's replicas were apart when anybody last knew."""
    samples: list[Json] = field(default_factory=list)
    """One per change of a peer's stats: time_s, peer (name) and the stats."""
    events: list[Json] = field(default_factory=list)
    """Lines of all event files, in order of time, with time_s and from (a process's name)."""
    status: Json = field(default_factory=dict)
    """The last status document."""
    _latest: dict[str, Json] = field(default_factory=dict, repr=False)
    states: dict[str, dict[str, dict[int, str]]] = field(default_factory=lambda: {"chain": {}, "state": {}})
    """Digests seen, by kind, peer's name and log number."""
    losses: Json = field(default_factory=dict)
    """From the comparison: parameters, start, swarm, alone (nats per byte), steps."""
    failure: str = ""
    """Why the run did not finish; "" if it did."""

    def sample(self, time_s: float, status: Json) -> None:
        """Take in one status document."""
        self.status = status
        self.spread = status.get("replica_spread") or self.spread
        for peer in status.get("peers", []):
            name = peer["name"]
            for kind, number, digest in (
                ("chain", peer.get("log_number", -1), peer.get("chain")),
                ("state", peer.get("state_number", -1), peer.get("state_digest")),
            ):
                if digest and number >= 0:
                    self.states[kind].setdefault(name, {})[number] = digest
            entry = {"peer": name, **peer.get("stats", {})}
            last = next((old for old in reversed(self.samples) if old["peer"] == name), {})
            if entry.items() - {"tokens_per_s": 0}.items() and entry != {
                k: v for k, v in last.items() if k != "time_s"
            }:
                self.samples.append({"time_s": round(time_s, 3), **entry})

    @property
    def lead(self) -> str:
        """The stream whose syncs are the rounds."""
        return str(self.settings.get("lead", "param"))

    def live(self) -> list[str]:
        """Names of the peers that were not killed."""
        killed = self.settings.get("killed")
        return [peer["name"] for peer in self.status.get("peers", []) if peer["name"] != killed]

    def of(self, name: str, event: str) -> list[Json]:
        """The events of one kind from one process."""
        return [line for line in self.events if line.get("from") == name and line.get("event") == event]


def ddp_bytes(tokens: float, tokens_per_step: int, peers: int, parameters: int) -> float:
    """Bytes that a peer sends for `tokens` of its own under synchronous data parallel training.

    A ring all-reduce of fp32 gradients in every step sends 2·(M-1)/M·4·N bytes per peer, for M peers and N parameters.
    """
    return tokens / tokens_per_step * 2 * (peers - 1) / peers * 4 * parameters


def pauses(recording: Recording) -> Iterator[tuple[str, int, float]]:
    """(peer, round, seconds) for each time a trainer waited for a sync of the parameters."""
    for line in recording.events:
        if line.get("event") == "granted" and line.get("stream") == recording.lead and line.get("kind") != "start":
            yield line["from"], int(line["index"]), float(line.get("pause_s", 0.0))


def churn(recording: Recording) -> list[Json]:
    """The kill and the join: when, and what each cost the trainers that were there before.

    `longest_pause_s` is the longest wait of an incumbent in the rounds of the event; `usual_pause_s` is the median wait
    in all other rounds; `cost_s` is the difference, at least 0.
    """
    killed, newcomer = recording.settings.get("killed"), recording.settings.get("newcomer")
    waits = [(index, seconds) for name, index, seconds in pauses(recording) if name not in (killed, newcomer)]
    found: list[Json] = []
    for line in recording.events:
        if line.get("from") != "demo" or line.get("event") not in ("killed", "joins"):
            continue
        entry = {"event": line["event"], "peer": line["peer"], "time_s": line["time_s"], "round": line["round"]}
        rounds = {line["round"]}
        if line["event"] == "joins":
            entry |= _arrival(recording, line["peer"])
            if entry["first_round"] is not None:
                rounds = set(range(line["round"], entry["first_round"] + 1))
        within = [seconds for index, seconds in waits if index in rounds]
        others = [seconds for index, seconds in waits if index not in rounds]
        if within and others:
            usual = statistics.median(others)
            entry |= {"longest_pause_s": max(within), "usual_pause_s": usual, "cost_s": max(0.0, max(within) - usual)}
        found.append(entry)
    return found


def _too_late(entry: Json, rounds: int) -> str:
    """If a newcomer's trainer was there too late to contribute, that."""
    ready_at = entry["ready_at"]
    late = ready_at is not None and ready_at >= rounds - 1
    return f": its trainer had the weights after round {ready_at} of {rounds}; give more --rounds" if late else ""


def _arrival(recording: Recording, name: str) -> Json:
    """After which round a newcomer was ready (its trainer had the run's weights), and in which it first contributed."""
    starts = [line for line in recording.of(name, "granted") if line.get("kind") == "start"]
    ready = next((int(line["index"]) for line in starts if line.get("stream") == recording.lead), None)
    ids = {name} | {peer["peer"] for peer in recording.status.get("peers", []) if peer["name"] == name}
    commits = [line for line in recording.events if line.get("event") == "commit" and "contributors" in line]
    commits += recording.status.get("commits", [])
    first = min(
        (_round(recording, line) or math.inf for line in commits if ids & set(line["contributors"])), default=math.inf
    )
    if ready is None or first == math.inf:
        return {"ready_at": ready, "first_round": None, "rounds_to_contribute": None}
    return {"ready_at": ready, "first_round": int(first), "rounds_to_contribute": int(first) - ready}


def _round(recording: Recording, commit: Json) -> int | None:
    """The round that a commit ended, from its fields or the name of its sync "param#7.…"; None for other streams."""
    if "index" in commit:
        return int(commit["index"]) if commit.get("stream", recording.lead) == recording.lead else None
    found = re.match(rf"{re.escape(recording.lead)}#(\d+)", commit.get("sync", ""))
    return int(found[1]) if found else None


def parity(recording: Recording) -> tuple[bool, str]:
    """Whether all live peers hold the same log and, but for gossip, the same model, and the sentence that says so."""
    live, gossip = recording.live(), bool(recording.settings.get("gossip"))
    facts = []
    for kind, what in (("chain", "log"), ("state", "model"))[: 1 if gossip else 2]:
        seen = recording.states[kind]
        for number in sorted({number for digests in seen.values() for number in digests}):
            digests = {name: found[number] for name, found in seen.items() if number in found}
            if len(set(digests.values())) > 1:
                listed = ", ".join(f"{name} {digest[:12]}" for name, digest in digests.items())
                return False, f"the peers' {what} digests differ at commit {number}: {listed}"
        common = set.intersection(*(set(seen.get(name, {})) for name in live)) if live else set()
        if not common:
            return False, f"no commit at which every live peer reported its {what} digest"
        last = max(common)
        head = recording.status.get("log", {}).get("head", 0)
        # Pairs that others still make are of no concern to a peer that has nothing more to exchange.
        if kind == "chain" and not gossip and not all(_reached(recording, name, head) for name in live):
            return False, f"not all live peers reached the last commit: the last common one is {last}"
        facts.append(f"{what} digest {seen[live[0]][last][:12]} at commit {last}")
    sentence = f"equal on {len(live)} live peers: {', '.join(facts)}"
    if gossip:
        spread = recording.spread
        differ = "" if spread is None else f" that differed by {spread:.2g} (standard deviation of a weight)"
        merged = _merged(recording, live) if recording.settings.get("merged") else ""
        sentence += f"; each has weights of its own{differ}{merged}"
    return True, sentence


def _merged(recording: Recording, live: list[str]) -> str:
    """Whom the last exchange of a gossip run has made equal."""
    last = next((line for line in reversed(recording.of("coordinator", "commit")) if "contributors" in line), {})
    equal = [name for name in live if name in last.get("contributors", ())]
    return f"; the last exchange made {len(equal)} of {len(live)} equal"


def _reached(recording: Recording, name: str, head: int) -> bool:
    """Whether a peer has come to the head of the log, or was not there any more when the next line was written.

    Who has missed the last round contributes once more when others may have left already.
    """
    number = max(recording.states["chain"].get(name, {0: ""}))
    left_s = min((e["time_s"] for e in recording.of("coordinator", "left") if e.get("name") == name), default=math.inf)
    after = (e for e in recording.of("coordinator", "commit") if e.get("number") == number + 1)
    return number >= head or left_s <= min((e["time_s"] for e in after), default=-math.inf)


def summarise(recording: Recording) -> Json:
    """The whole result as one JSON document; `problems` lists why the demo failed, empty if it passed."""
    settings, losses = recording.settings, recording.losses
    equal, sentence = parity(recording)
    problems = [recording.failure] if recording.failure else []
    if not equal:
        problems.append(sentence)
    if not recording.failure:
        problems += loss_problems(losses, ahead=bool(settings.get("ahead")))
    happened = churn(recording)
    if not recording.failure:
        problems += [
            f"{entry['peer']} joined and never contributed{_too_late(entry, settings['rounds'])}"
            for entry in happened
            if entry["event"] == "joins" and entry["rounds_to_contribute"] is None
        ]
    per_step = settings["batch"] * settings["context"]
    last = {entry["peer"]: entry for entry in recording.samples}
    traffic = {}
    for name, stats in last.items():
        tokens, sent = stats.get("tokens", 0), stats.get("bytes_sent", 0)
        would = ddp_bytes(tokens, per_step, settings["peers"], losses.get("parameters", 0))
        traffic[name] = {
            "tokens": tokens,
            "bytes_sent": sent,
            "ddp_bytes": round(would),
            "times_less": round(would / sent, 1) if sent else None,
        }
    return {
        "ok": not problems,
        "problems": problems,
        "settings": settings,
        "seconds": max((line["time_s"] for line in recording.events), default=0.0),
        "commits": recording.status.get("log", {}).get("head", 0),
        "losses": losses,
        "traffic": traffic,
        "churn": happened,
        "parity": {"equal": equal, "text": sentence},
    }


def loss_problems(losses: Mapping[str, Any], *, ahead: bool = False) -> list[str]:
    """What is wrong with the held-out losses, as sentences.

    `ahead`: results come a round later, which a run this short does not make up for; it need not beat training alone.
    """
    if not {"start", "swarm", "alone"} <= set(losses):
        return ["the final evaluation is missing"]
    start, swarm, alone = losses["start"], losses["swarm"], losses["alone"]
    found = []
    if not swarm < start:
        found.append(f"the held-out loss did not improve: {start:.3f} at the start, {swarm:.3f} at the end")
    if not swarm < alone and not ahead:
        found.append(f"training together was no better than alone: {swarm:.3f} against {alone:.3f} nats per byte")
    return found


def text(summary: Json) -> str:
    """The summary for people."""
    settings, losses = summary["settings"], summary["losses"]
    lines = []
    if "swarm" in losses:
        lines += [
            "Held-out loss (nats per byte, same held-out files for all)",
            f"  at the start      {losses['start']:.3f}",
            f"  together          {losses['swarm']:.3f}   {settings['peers']} peers, {settings['rounds']} rounds"
            f" of {settings['every']} steps" + ("" if settings.get("common", True) else ", weights of peer-1"),
            f"  one peer alone    {losses['alone']:.3f}   same {losses['steps']} steps, same initial weights and data"
            + (", for comparison only: results come a round later here" if settings.get("ahead") else ""),
        ]
    if losses.get("parameters"):
        lines += [
            f"Bytes sent per peer ({settings['codec']}), against synchronous data parallel for the same tokens",
            "  (fp32 ring all-reduce each step: 2(M-1)/M * 4N bytes,"
            f" M={settings['peers']}, N={losses['parameters']:,})",
            "  (sent: also the run's state, to those who join)",
        ]
        lines += [
            f"  {name:<12} {_megabytes(row['bytes_sent'])} instead of {_megabytes(row['ddp_bytes'])}"
            + (f"   {row['times_less']:.0f} times less" if row["times_less"] else "")
            for name, row in summary["traffic"].items()
        ]
    if summary["churn"]:
        lines.append("Churn")
        lines += [f"  {line}" for entry in summary["churn"] for line in _churn_lines(entry)]
    lines.append(f"Parity: {summary['parity']['text']}")
    lines += [f"FAILED: {problem}" for problem in summary["problems"]] or ["Passed."]
    return "\n".join(lines)


def _churn_lines(entry: Json) -> Iterator[str]:
    what = "killed in the middle of the sync of" if entry["event"] == "killed" else "joins after"
    yield f"{entry['time_s']:.0f} s: {entry['peer']} {what} round {entry['round']}"
    if "cost_s" in entry:
        yield (
            f"  cost the others {entry['cost_s']:.1f} s: longest wait {entry['longest_pause_s']:.1f} s,"
            f" usually {entry['usual_pause_s']:.1f} s"
        )
    if entry["event"] == "joins":
        waited = entry["rounds_to_contribute"]
        plural = "s" if waited != 1 else ""
        yield (
            "  has not contributed"
            if waited is None
            else f"  contributed {waited} round{plural} after its trainer had the weights"
        )


def _megabytes(size_bytes: float) -> str:
    return f"{size_bytes / 1e6:9,.1f} MB"


def write(recording: Recording, folder: Path) -> Json:
    """Write events.jsonl, samples.jsonl and summary.json; the summary."""
    summary = summarise(recording)
    for name, lines in (("events.jsonl", recording.events), ("samples.jsonl", recording.samples)):
        (folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    return summary
