"""docs/protocol.md is up to date: what it says of records, limits and state tables is written here, from the code.

python -m tests.protocol            rewrites the generated parts; the rest of the page is prose and stays
"""

import ast
import inspect
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from wantrain.peers import membership as members
from wantrain.peers import messages, rounds, timing
from wantrain.transport import lanes, partition, transfer, wire, zmq_lanes

PAGE = Path(__file__).parents[1] / "docs" / "protocol.md"
BEGIN, END = "<!-- generated: {} -->", "<!-- end -->"
_PLAIN = {str: "str", bytes: "bin", int: "int", float: "float", bool: "bool"}
_POWERS = {2**62: "2^62"}


# ---- records


def records() -> str:
    """All records, by who says them: fields, types, limits, and what they mean."""
    source = inspect.getsource(messages)
    lines = source.splitlines()
    classes = {node.name: node for node in ast.parse(source).body if isinstance(node, ast.ClassDef)}
    text: list[str] = ["### Parts of records", ""]
    section = ""
    for name, node in classes.items():
        above = [line for line in lines[: node.lineno] if line.startswith("# ---- ")]
        if above and above[-1] != section:
            section = above[-1]
            words = section.removeprefix("# ---- ").split(";")[0]
            text += [f"### {words[0].upper()}{words[1:]}", ""]
        text += _record(getattr(messages, name), node)
    return "\n".join(text).rstrip()


def _record(kind: type, node: ast.ClassDef) -> list[str]:
    notes = _notes(node)
    text = [f"**{kind.__name__}**: {_one_line(ast.get_docstring(node) or '')}", ""]
    hints = get_type_hints(kind, include_extras=True)
    if hints:
        text += ["| field | type | |", "|---|---|---|"]
    for entry in fields(kind):
        note = notes.get(entry.name, "")
        if entry.default is not MISSING or entry.default_factory is not MISSING:
            default = entry.default if entry.default_factory is MISSING else entry.default_factory()
            note = f"{note} May be left out: {_value(default)}.".strip()
        text.append(f"| `{entry.name}` | {_type(hints[entry.name])} | {note} |")
    return [*text, ""] if hints else text


def _notes(node: ast.ClassDef) -> dict[str, str]:
    """What stands under each field."""
    notes = {}
    for entry, below in zip(node.body, node.body[1:], strict=False):
        if isinstance(entry, ast.AnnAssign) and isinstance(entry.target, ast.Name) and isinstance(below, ast.Expr):
            notes[entry.target.id] = _one_line(ast.literal_eval(below.value))
    return notes


def _one_line(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("``", "`")


def _value(value: object) -> str:
    return "empty" if value in (b"", (), {}) else repr(value)


def _type(hint: Any) -> str:
    """An annotated type as people write it on the wire: maps, arrays, bin, str, int, float, bool."""
    limits: dict[str, Any] = {}
    while get_origin(hint) is Annotated:
        hint, *notes = get_args(hint)
        for note in notes:
            for limit in getattr(note, "metadata", ()):
                for name in ("min_length", "max_length", "ge", "gt", "le", "pattern"):
                    if getattr(limit, name, None) is not None:
                        limits[name] = getattr(limit, name)
    if isinstance(hint, type) and is_dataclass(hint):
        return hint.__name__
    if get_origin(hint) is tuple:
        return f"array of {_type(get_args(hint)[0])}{_length(limits)}"
    if get_origin(hint) is dict:
        key, value = get_args(hint)
        return f"map of {_type(key)} to {'any value' if value is Any else _type(value)}{_length(limits)}"
    if hint is str and "pattern" in limits:
        return " or ".join(f"`{word}`" for word in str(limits["pattern"]).strip("^$()").split("|"))
    return _PLAIN[hint] + (_length(limits) if hint in (str, bytes) else _range(limits))


def _length(limits: dict[str, Any]) -> str:
    least, most = limits.get("min_length", 0), limits.get("max_length")
    if most is None:
        return ""
    return f", {most} long" if least == most else f", {f'{least} to' if least else 'up to'} {most} long"


def _range(limits: dict[str, Any]) -> str:
    if "ge" not in limits and "gt" not in limits:
        return ""
    least = f"above {limits['gt']}" if "gt" in limits else f"{limits['ge']}"
    most = limits.get("le")
    return f", {least} to {_POWERS.get(most, f'{most:g}')}" if most is not None else f", {least} and more"


# ---- limits and internal messages


def limits() -> str:
    """The numbers that both sides have to agree on, and bounds that a sender has to keep to."""
    named: list[tuple[ModuleType, tuple[str, ...]]] = [
        (wire, ("PROTOCOL_VERSION", "MAX_BUFFERS", "MAX_HEADER_BYTES", "MAX_BUFFER_BYTES", "MAX_KIND_CHARS")),
        (wire, ("MAX_DEPTH", "MAX_ITEMS", "RUN_BYTES")),
        (messages, tuple(name for name in vars(messages) if name.startswith("MAX_") and name != "MAX_BUFFERS")),
        (partition, ("MAX_CHUNK_ELEMENTS", "MIN_CHUNK_ELEMENTS", "CHUNK_ALIGN_ELEMENTS", "AIMED_CHUNKS")),
        (lanes, ("MAX_LANES",)),
        (zmq_lanes, ("SET_BYTES", "MAX_LANE_NUMBER", "MAX_KNOWN_LANES")),
        (transfer, ("FIRST_WINDOW_BYTES", "MIN_WINDOW_BYTES", "MAX_WINDOW_BYTES")),
    ]
    rows = ["| limit | value | |", "|---|---|---|"]
    for module, names in named:
        notes = _module_notes(inspect.getsource(module))
        rows += [f"| `{name}` | {getattr(module, name)} | {notes.get(name, '')} |" for name in names]
    return "\n".join(rows)


def _module_notes(source: str) -> dict[str, str]:
    body = ast.parse(source).body
    notes = {}
    for entry, below in zip(body, body[1:], strict=False):
        if isinstance(entry, ast.Assign) and isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
            for target in entry.targets:
                for name in target.elts if isinstance(target, ast.Tuple) else [target]:
                    if isinstance(name, ast.Name):
                        notes[name.id] = _one_line(str(below.value.value))
    return notes


def internal() -> str:
    """The link's own messages."""
    source = inspect.getsource(zmq_lanes)
    node = next(n for n in ast.parse(source).body if isinstance(n, ast.ClassDef) and n.name == "Kind")
    rows = ["| kind | |", "|---|---|"]
    for entry, below in zip(node.body, node.body[1:], strict=False):
        if isinstance(entry, ast.Assign) and isinstance(below, ast.Expr):
            rows.append(f"| `{ast.literal_eval(entry.value)}` | {_one_line(ast.literal_eval(below.value))} |")
    return "\n".join(rows)


# ---- state tables


ROUND = {
    "gathering": {
        "Reported": "A `ready` line with an input, for this sync: noted. START if now all who are expected are ready."
        " Any other line: ABORT is said again, as the peer has not heard that its attempt is over.",
        "Absent": "What the peer was ready with is forgotten. START, if it was the last to wait for.",
        "Cast": "Who is there, and who of them is late, is judged anew. START, if nobody is late any more.",
        "Seen": "Whether this peer is late is judged anew. START, if nobody is late any more.",
        "Tick": "START without the late ones, if there is a quorum and their grace time is over, or the ceiling "
        "is reached. With none but those whom an earlier attempt left out, START comes later each time, up to that "
        "ceiling.",
    },
    "moving": {
        "Reported": "`done`: when all are, with one digest, the commit is written → *committing*; digests that "
        "differ: ABORT → *gathering* without the minority. `failed`: ABORT → *gathering* without whom it "
        "blames. `moving`: progress is noted, if chunks have come. A line of another attempt: START is "
        "said again.",
        "Absent": "A contributor that is not done has lost its contribution: ABORT → *gathering*. A receiver: START"
        " again.",
        "Cast": "A contributor is gone: ABORT → *gathering*, unless all others are done: then as `done`. A "
        "receiver is gone: the sync goes on without it.",
        "Seen": "Noted.",
        "Tick": "A receiver without progress for the deadline is left behind. Contributors without progress: "
        "ABORT → *gathering* without the one whom most wait for, who sits out the next syncs; if it was a"
        " ring: nobody is left out, and the next attempt is direct.",
    },
    "committing": {
        "Reported": "Nothing.",
        "Absent": "Nothing.",
        "Cast": "Noted.",
        "Seen": "Noted.",
        "Tick": "Nothing.",
        "Persisted": "COMMIT to all; the next index → *gathering*.",
    },
}
"""What each row of the table does, in words."""


def round_table() -> str:
    """The coordinator's phases of a sync: what each event does; what is not listed is impossible.

    Raises:
        ValueError: the words above and the core's table differ.
    """
    named = {(phase, event) for phase, events in ROUND.items() for event in events}
    known = {(phase.value, event.__name__) for phase, event in rounds._TABLE}
    if named != known:
        raise ValueError(f"ROUND and the table of rounds.py differ in {sorted(named ^ known)}")
    text = ["| event | |", "|---|---|"]
    text += [
        f"| `{event.__name__}` | {_one_line(event.__doc__ or '')} |"
        for event in dict.fromkeys(e for _, e in rounds._TABLE)
    ]
    for phase, events in ROUND.items():
        text += ["", f"| in *{phase}* | what happens |", "|---|---|"]
        text += [f"| `{event}` | {words} |" for event, words in events.items()]
    return "\n".join(text)


def membership_table() -> str:
    """What becomes of a peer in each state by each event: found by letting the core itself react."""
    rows = ["| state of the peer | " + " | ".join(words for words, _ in _EVENTS) + " |"]
    rows.append("|---|" + "---|" * len(_EVENTS))
    for state, made in _STATES.items():
        cells = [_outcome(made, act) for _, act in _EVENTS]
        rows.append(f"| {state} | {' | '.join(cells)} |")
    return "\n".join(rows)


_POLICY = timing.Policy()
_HELLO = messages.Hello(wire.PROTOCOL_VERSION, "", b"", "peer", b"boot-one", "", ())


def _report(log_number: int) -> messages.Report:
    values: dict[str, Any] = {
        entry.name: entry.default_factory() if entry.default_factory is not MISSING else entry.default
        for entry in fields(messages.Report)
    }
    values |= {"boot": b"boot-one", "sequence": 1, "log_number": log_number, "chain": b"", "state_number": -1}
    values |= {"state_digest": b"", "trainer": "none", "syncs": (), "suspects": {}, "eta_s": -1.0, "waiting": ""}
    return messages.Report(**(values | {"stats": {}}))


def _heard(log_number: int, *, current: bool) -> members.Heard:
    return members.Heard("peer", _report(log_number), current)


_JOINING = (members.Greeted("peer", _HELLO, b""),)
_MEMBER = (*_JOINING, _heard(0, current=True))
_LATE_S = 2 * _POLICY.suspect_ceiling_s
_STATES: dict[str, tuple[tuple[members.MembershipEvent, ...], bool]] = {
    "joining": (_JOINING, False),
    "member": (_MEMBER, False),
    "lost": (_MEMBER, True),
    "left": ((*_MEMBER, members.Left("peer")), False),
}
"""By which events a peer gets into each state, and whether a long silence follows."""
_OTHER = messages.Hello(wire.PROTOCOL_VERSION, "", b"", "peer", b"boot-two", "", ())
_EVENTS: list[tuple[str, Callable[[float], tuple[members.MembershipEvent, float]]]] = [
    ("Hello of the same process", lambda now: (members.Greeted("peer", _HELLO, b""), now)),
    ("Hello of another process, at once", lambda now: (members.Greeted("peer", _OTHER, b""), now)),
    (
        "Hello of another process, after 2 heartbeats",
        lambda now: (members.Greeted("peer", _OTHER, b""), now + 2 * _POLICY.heartbeat_s),
    ),
    ("Report, not at the head", lambda now: (_heard(0, current=False), now)),
    ("Report, at the head", lambda now: (_heard(0, current=True), now)),
    ("Report, without state", lambda now: (_heard(-1, current=False), now)),
    ("Leave", lambda now: (members.Left("peer"), now)),
    ("its state is not the run's", lambda now: (members.Outdated("peer"), now)),
    ("silence", lambda now: (members.Tick(), now + _LATE_S)),
]


def _outcome(
    made: tuple[tuple[members.MembershipEvent, ...], bool],
    act: Callable[[float], tuple[members.MembershipEvent, float]],
) -> str:
    core, now = members.Membership(_POLICY, 0), 0.0
    for event in made[0]:
        core.handle(event, now)
    if made[1]:
        now = _LATE_S
        core.handle(members.Tick(), now)
    before = core.peers["peer"].state
    event, at = act(now)
    effects = core.handle(event, at)
    after = core.peers["peer"].state
    if any(isinstance(effect, members.IdentityInUse) for effect in effects):
        return "refused"
    gone = any(isinstance(effect, members.Gone) for effect in effects) and after not in ("lost", "left")
    if after == before and not gone:
        return "stays"
    return f"{'lost, then ' * gone}{after}"


GENERATED: dict[str, Callable[[], str]] = {
    "limits": limits,
    "records": records,
    "internal": internal,
    "round": round_table,
    "membership": membership_table,
}


def written(page: str) -> str:
    """The page with its generated parts made anew.

    Raises:
        ValueError: a part has no place in the page, or the page names one that is not known.
    """
    names = set(re.findall(r"<!-- generated: (\w+) -->", page))
    if names != set(GENERATED):
        raise ValueError(f"the page has the parts {sorted(names)}, known are {sorted(GENERATED)}")
    return "".join(_pieces(page))


def _pieces(page: str) -> Iterator[str]:
    for piece in re.split(r"(?=<!-- generated: )", page):
        found = re.match(r"<!-- generated: (\w+) -->", piece)
        if found is None:
            yield piece
            continue
        rest = piece.split(END, 1)[1]
        yield f"{BEGIN.format(found[1])}\n\n{GENERATED[found[1]]()}\n\n{END}{rest}"


def main() -> int:
    """The command behind scripts/protocol."""
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    print(f"{PAGE} is up to date")
    return 0


if __name__ == "__main__":
    sys.exit(main())
