"""docs/examples.md is up to date: changed lines, diffs and commands come from the examples; figures are measured here.

python -m tests.examples            rewrites tables and diffs, and leaves the figures
python -m tests.examples --measure  measures what taking part costs each step as well; takes minutes
"""

import difflib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "scripts" / "examples"
PAGE = ROOT / "docs" / "examples.md"
OVERHEAD = ROOT / "tests" / "process" / "overhead.py"
PARTS = ("examples", "diffs", "figures")
MOST_CHANGED = 10
EVERY, ROUNDS = 40, 3
"""Steps of a round where it is measured, and the rounds after which the scripts end."""
REPEATS = 3
TIMEOUT_S = 300.0


@dataclass(frozen=True, slots=True)
class Example:
    """Two scripts in a folder: plain.py and, with the fewest lines changed, train.py."""

    name: str
    loop: str
    extra: str = ""
    ranks: int = 1
    steps_option: str = "--max-steps"

    def source(self, script: str) -> list[str]:
        return (FOLDER / self.name / script).read_text(encoding="utf-8").splitlines()

    @property
    def command(self) -> str:
        script = f"scripts/examples/{self.name}/train.py"
        if self.ranks > 1:
            return f"wantrain peer 'wantrain://…' -- torchrun --nproc-per-node {self.ranks} {script} --seed 1"
        return f"wantrain local {script} --peers 2 --option every=20 -- --seed {{i}} --out out-{{i}}"


EXAMPLES = (
    Example("nanogpt", "a loop at module level, in the manner of nanoGPT", steps_option="--max-iters"),
    Example("hf-trainer", "`Trainer` of Hugging Face transformers", "hf"),
    Example("lightning", "`Trainer` of Lightning", "lightning"),
    Example("accelerate", "a loop with Hugging Face accelerate", "hf"),
    Example("fsdp2", "a loop with FSDP2 on the ranks of `torchrun`", ranks=2),
)


def changed_lines(before: Sequence[str], after: Sequence[str]) -> int:
    """Lines that were added, removed or replaced; a replaced one counts once."""
    blocks = difflib.SequenceMatcher(None, before, after, autojunk=False).get_opcodes()
    return sum(max(i2 - i1, j2 - j1) for tag, i1, i2, j1, j2 in blocks if tag != "equal")


def examples() -> str:
    """The table of all examples."""
    rows = ["| example | what it shows | changed lines | needs |", "|---|---|---|---|"]
    for example in EXAMPLES:
        count = changed_lines(example.source("plain.py"), example.source("train.py"))
        needs = f"`wantrain[{example.extra}]`" if example.extra else ""
        rows.append(f"| [`{example.name}`](../scripts/examples/{example.name}) | {example.loop} | {count} | {needs} |")
    return "\n".join(rows)


def diffs() -> str:
    """What differs between the two scripts of each example."""
    text = []
    for example in EXAMPLES:
        lines = difflib.unified_diff(
            example.source("plain.py"), example.source("train.py"), "plain.py", "train.py", n=1, lineterm=""
        )
        body = "\n".join(line.rstrip() for line in lines)
        text.append(f"### {example.name}\n\n    {example.command}\n\n```diff\n{body}\n```")
    return "\n\n".join(text)


def written(page: str, **parts: str) -> str:
    """The page with its generated parts as they are now; figures stay unless they are given."""
    for name, text in {"examples": examples(), "diffs": diffs(), **parts}.items():
        begin = f"<!-- generated: {name} -->"
        assert page.count(begin) == 1, name
        before, rest = page.split(begin)
        page = f"{before}{begin}\n{text}\n<!-- end -->{rest.split('<!-- end -->', 1)[1]}"
    return page


# ---- what taking part costs


def measure() -> str:
    """Each example as it is and with wantrain, in turns; the table of it."""
    rows = [
        "| example | step of plain.py | step of train.py | hooks per step | of a step | the step that ends a round |",
        "|---|---|---|---|---|---|",
    ]
    for example in EXAMPLES:
        plain, joined = [], []
        for _ in range(REPEATS):
            plain.append(_run(example, together=False))
            joined.append(_run(example, together=True))
        step, with_step = (median(run["step_ms"] for run in runs) for runs in (plain, joined))
        hooks, ends = (median(run[key] for run in joined) for key in ("hooks_ms", "round_ms"))
        cells = (f"{step:.2f} ms", f"{with_step:.2f} ms", f"{hooks:.3f} ms", f"{hooks / step:.1%}", f"{ends:.2f} ms")
        rows.append(f"| `{example.name}` | " + " | ".join(cells) + " |")
        print(rows[-1], file=sys.stderr)
    return "\n".join(rows)


def _run(example: Example, *, together: bool) -> dict[str, Any]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    with tempfile.TemporaryDirectory(prefix="wantrain-") as place:
        figures = Path(place) / "figures.json"
        script = FOLDER / example.name / ("train.py" if together else "plain.py")
        words = (figures, EVERY if together else 0, script, "--out", Path(place) / "out")
        torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", example.ranks)
        under = torchrun if example.ranks > 1 else ()
        command = [sys.executable, *map(str, (*under, OVERHEAD, *words, example.steps_option, EVERY * ROUNDS))]
        quiet = subprocess.DEVNULL
        subprocess.run(command, env=environment, check=True, timeout=TIMEOUT_S, stdout=quiet, stderr=quiet)
        found: dict[str, Any] = json.loads(figures.read_text())
    return found


def main() -> None:
    page = PAGE.read_text(encoding="utf-8")
    text = written(page, **({"figures": measure()} if sys.argv[1:] == ["--measure"] else {}))
    print(f"{PAGE} {'is up to date' if text == page else 'is written anew'}")
    PAGE.write_text(text, encoding="utf-8")


def commands(page: str) -> list[str]:
    """The commands on the page."""
    return re.findall(r"^    (wantrain .*)$", page, flags=re.MULTILINE)


if __name__ == "__main__":
    main()
