"""Tables of docs/metrics.md that are written here, from the code; the rest of the page is prose and stays.

python -m tests.pages            rewrites the generated parts
"""

import re
from collections.abc import Callable, Iterable
from pathlib import Path

from wantrain.metrics.families import COORDINATOR, PEER, Family

DOCS = Path(__file__).parents[1] / "docs"
BEGIN, END = "<!-- generated: {} -->", "<!-- end -->"


def _families(families: Iterable[Family]) -> str:
    lines = ["| metric | kind | labels | |", "|---|---|---|---|"]
    lines += [f"| `{f.name}` | {f.kind} | {', '.join(f.labels)} | {f.help} |" for f in families]
    return "\n".join(lines)


PARTS: dict[str, dict[str, Callable[[], str]]] = {
    "metrics.md": {"peer": lambda: _families(PEER), "coordinator": lambda: _families(COORDINATOR)},
}
"""By page and name of the part: what makes it."""


def written(name: str) -> str:
    """A page with its generated parts as they are to be."""
    page = (DOCS / name).read_text(encoding="utf-8")
    for part, make in PARTS[name].items():
        begin = BEGIN.format(part)
        assert begin in page, f"{name} has no {begin}"
        pattern = re.compile(f"{re.escape(begin)}\n.*?{re.escape(END)}", re.DOTALL)
        text = f"{begin}\n{make()}\n{END}"
        page = pattern.sub(lambda _, text=text: text, page)  # type: ignore[misc]
    return page


if __name__ == "__main__":
    for name in PARTS:
        (DOCS / name).write_text(written(name), encoding="utf-8")
