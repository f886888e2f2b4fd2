"""docs/api.md is up to date: what it says of names, arguments and errors is written here, from the docstrings.

python -m tests.api            rewrites the generated parts; the rest of the page is prose and stays
"""

import ast
import inspect
import re
import sys
import textwrap
from pathlib import Path
from types import FunctionType
from typing import Any

import wantrain
from wantrain import errors, look, session, sim, token_file, trainer_shell

PAGE = Path(__file__).parents[1] / "docs" / "api.md"
BEGIN, END = "<!-- generated: {} -->", "<!-- end -->"
NOT_FOR_USERS = {"attach", "described", "hook", "own", "streams"}
"""Public names of Swarm that only other modules of the package use."""
_ENTRY = re.compile(r"([*\w]+): (.*)")


def joining() -> str:
    """`join`."""
    return _entry("wantrain.join", session.join)


def swarm() -> str:
    """Every public member of Swarm: attributes, properties, methods."""
    found = [f"| {name} | |\n|---|---|" for name in ("attribute",)]
    rows, methods = [], []
    for name, note in {**_attributes(trainer_shell.TrainerShell), **_attributes(session.Swarm)}.items():
        rows.append(f"| `{name}` | {_one_line(note)} |")
    for name, member in vars(session.Swarm).items():
        if name.startswith("_") or name in NOT_FOR_USERS:
            continue
        if isinstance(member, property):
            rows.append(f"| `{name}` | {_one_line(inspect.getdoc(member) or '')} |")
        elif isinstance(member, FunctionType):
            methods.append(_entry(f"swarm.{name}", member))
    return "\n".join([*found, *sorted(rows), "", "\n\n".join(methods)])


def evaluated() -> str:
    """What `evaluating` gives."""
    fields = [f"| `{name}` | {_one_line(note)} |" for name, note in _attributes(look.Evaluated).items()]
    return "\n".join([_one_line(inspect.getdoc(look.Evaluated) or ""), "", "| field | |", "|---|---|", *fields])


def tokens() -> str:
    """TokenFile."""
    return _entry("wantrain.TokenFile", token_file.TokenFile, inspect.getdoc(token_file.TokenFile) or "")


def simulation() -> str:
    """`wantrain.sim`: each name and what it is."""
    rows = []
    for name in sim.__all__:
        thing = getattr(sim, name)
        note = inspect.getdoc(thing) if isinstance(thing, type | FunctionType) else "What makes a worker's parts."
        rows.append(f"| `{name}` | {_one_line((note or '').split(chr(10) * 2)[0])} |")
    return "\n".join(["| name | |", "|---|---|", *rows])


def failures() -> str:
    """Every error with its exit code and what it derives from."""
    kinds = [thing for thing in vars(errors).values() if inspect.isclass(thing) and issubclass(thing, Exception)]
    rows = []
    for kind in kinds:
        code = getattr(kind, "exit_code", "")
        note = _one_line((inspect.getdoc(kind) or "").split("\n\n")[0])
        rows.append(f"| `{kind.__name__}` | {kind.__base__.__name__} | {code} | {note} |")  # type: ignore[union-attr]
    return "\n".join(["| error | is a | exit code | |", "|---|---|---|---|", *rows])


PARTS = {
    "join": joining,
    "swarm": swarm,
    "evaluated": evaluated,
    "tokens": tokens,
    "sim": simulation,
    "errors": failures,
}


def documented() -> set[str]:
    """Names of the package that the page speaks of."""
    return {name for name in wantrain.__all__ if name != "__version__"}


def _entry(name: str, thing: Any, text: str = "") -> str:
    heading = f"### `{name}`"
    parameters = [p for p in inspect.signature(thing).parameters.values() if p.name != "self"]
    words, named = [], False
    for p in parameters:
        if p.kind is p.KEYWORD_ONLY and not named:
            named = True
            words.append("*")
        default = "" if p.default is p.empty else f"={p.default!r}"
        words.append(("**" if p.kind is p.VAR_KEYWORD else "") + p.name + default)
    signature = f"    {name}({', '.join(words)})"
    return "\n\n".join([heading, signature, _prose(text or inspect.getdoc(thing) or "")])


def _prose(text: str) -> str:
    """A docstring as Markdown: its sections become lists, its indented lines stay code."""
    parts = []
    for paragraph in text.split("\n\n"):
        first, *rest = paragraph.splitlines()
        if first in ("Args:", "Raises:", "Returns:"):
            parts.append(f"{first.removesuffix(':')}:\n\n" + "\n".join(_items(textwrap.dedent("\n".join(rest)))))
        else:
            parts.append(paragraph)
    return "\n\n".join(parts)


def _items(text: str) -> list[str]:
    items: list[str] = []
    for line in text.splitlines():
        found = None if line.startswith(" ") else _ENTRY.fullmatch(line)
        if found:
            items.append(f"* `{found[1]}`: {found[2]}")
        elif items:
            items[-1] += " " + line.strip()
        else:
            items.append(line)
    return items


def _attributes(kind: type) -> dict[str, str]:
    """Public attributes that have a docstring of their own, in the class or its constructor."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0]
    assert isinstance(tree, ast.ClassDef)
    made = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "__init__"]
    found: dict[str, str] = {}
    for body in [tree.body, *(node.body for node in made)]:
        for node, after in zip(body, body[1:], strict=False):
            target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
            name = target.attr if isinstance(target, ast.Attribute) else getattr(target, "id", "_")
            if name.startswith("_") or name in NOT_FOR_USERS or not isinstance(after, ast.Expr):
                continue
            if isinstance(after.value, ast.Constant) and isinstance(after.value.value, str):
                found[name] = after.value.value
    return found


def _one_line(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def written(page: str) -> str:
    """The page with its generated parts made anew."""
    for name, make in PARTS.items():
        begin = BEGIN.format(name)
        assert page.count(begin) == 1, f"docs/api.md has to have {begin!r} once"
        before, rest = page.split(begin)
        page = f"{before}{begin}\n\n{make()}\n\n{END}{rest.split(END, 1)[1]}"
    return page


if __name__ == "__main__":
    old = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(written(old), encoding="utf-8")
    sys.stdout.write(f"{PAGE} {'is up to date' if written(old) == old else 'was rewritten'}\n")
