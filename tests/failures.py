"""docs/failures.md: runs the tests that are marked with a row of the table, simulates, and writes what came of it.

scripts/failures                          all marked tests, and 2000 simulated runs
scripts/failures --seeds 0 tests/process  only these tests; figures of all others stay as they were
scripts/failures --render                 only the page, from docs/failures.json and docs/soak.json
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import MEASURED
from tests.process.soak import BLOCK
from tests.scenarios import SCENARIOS
from tests.sim.simulate import plan_of, run_seeds

DOCS = Path(__file__).parents[1] / "docs"
FIGURES, SOAK, PAGE = DOCS / "failures.json", DOCS / "soak.json", DOCS / "failures.md"
PROGRESS_SEEDS = 500

Document = dict[str, Any]
"""`tests`: by node id {rows, outcome, figures}; `simulation`: {seeds, failures, commits, faults}."""


class Recorder:
    """A pytest plugin: which tests carry a row, how they ended, and what they measured."""

    def __init__(self, figures: Path) -> None:
        self.tests: dict[str, Document] = {}
        self.collected: set[str] = set()
        """Node ids of all marked tests that pytest has found."""
        self._figures = figures
        self._read_bytes = 0

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        for item in items:
            rows = sorted({row for mark in item.iter_markers("scenario") for row in mark.args})
            if rows:
                self.collected.add(item.nodeid)
                self.tests[item.nodeid] = {"rows": rows, "outcome": "not run", "figures": []}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        known = self.tests.get(report.nodeid)
        if known is None:
            return
        if report.when == "call" or report.outcome != "passed":
            known["outcome"] = report.outcome
        if report.when == "teardown":
            known["figures"] += self._news()

    def _news(self) -> list[Document]:
        if not self._figures.exists():
            return []
        with self._figures.open(encoding="utf-8") as file:
            file.seek(self._read_bytes)
            lines = file.readlines()
            self._read_bytes = file.tell()
        return [json.loads(line) for line in lines]


def run_tests(arguments: list[str], document: Document) -> int:
    """Run marked tests and take what they say into the document; pytest's exit code."""
    with tempfile.TemporaryDirectory() as folder:
        figures = Path(folder) / "figures.jsonl"
        os.environ[MEASURED] = str(figures)
        recorder = Recorder(figures)
        code = int(pytest.main(["-m", "scenario", *arguments], plugins=[recorder]))
        del os.environ[MEASURED]
    document.setdefault("tests", {}).update(
        {name: t for name, t in recorder.tests.items() if t["outcome"] != "not run"}
    )
    return code


def forget_old(document: Document) -> None:
    """Drop what is said of tests that are there no more."""
    recorder = Recorder(Path(os.devnull))
    pytest.main(["-m", "scenario", "--collect-only", "-qq", "tests"], plugins=[recorder])
    document["tests"] = {name: test for name, test in document["tests"].items() if name in recorder.collected}


def simulate(seeds: int, document: Document) -> int:
    """Simulate these many runs; how many failed."""
    failures = commits = 0
    faults: Counter[str] = Counter()
    for done, outcome in enumerate(run_seeds(range(seeds), workers=os.cpu_count() or 1), start=1):
        commits += outcome.commits
        failures += bool(outcome.failure)
        faults.update({fault.kind for fault in plan_of(outcome.seed).faults})
        if done % PROGRESS_SEEDS == 0:
            print(f"{done} of {seeds} simulated runs, {failures} failures", flush=True)
    document["simulation"] = {"seeds": seeds, "failures": failures, "commits": commits, "faults": dict(faults)}
    return failures


# ---- the page


def page(document: Document, soak: Document | None) -> str:
    """The whole page."""
    simulation = document.get("simulation", {"seeds": 0, "failures": 0, "commits": 0, "faults": {}})
    text = [
        "# Failures",
        "",
        "What can go wrong, what must hold all the same, how it is provoked, and what was measured. Written by",
        f"`scripts/failures`{_when(document)}: do not edit. Figures are from a small shared machine; compare them with",
        "each other.",
        "",
        "* **Simulation**: whole runs on a virtual clock, with the real cores, under faults drawn from a seed",
        "  (`scripts/simulate`). The number says in how many of the simulated runs a fault of the row was planned.",
        f"  {simulation['seeds']} runs, {simulation['commits']} commits; {simulation['failures']} broke a guarantee.",
        "* **Tests** are named by what they check, with their file. *Lab*: hosts in network namespaces with shaped",
        "  links; `sudo scripts/netlab failures 4 5 17` plays these by hand.",
        "",
        "| | what happens | what must hold | simulated | tests |",
        "|---|---|---|---|---|",
    ]
    text += [_row(number, document, simulation["faults"]) for number in SCENARIOS]
    text += ["", "## Measured", "", "| row | | value | by |", "|---|---|---|---|"]
    for number in SCENARIOS:
        for name, test in sorted(document["tests"].items()):
            for figure in test["figures"]:
                if figure["row"] == number:
                    value = f"{figure['value']:.3g} {figure['unit']}".strip()
                    text.append(f"| {number} | {figure['what']} | {value} | {_words(name)} |")
    return "\n".join([*text, *(_soak(soak) if soak else []), ""])


def _when(document: Document) -> str:
    return f" on {document['date']}" if "date" in document else ""


def _row(number: int, document: Document, faults: dict[str, int]) -> str:
    row = SCENARIOS[number]
    simulated = "<br>".join(f"{fault}: {faults.get(fault, 0)}" for fault in row.faults) or "–"
    tests: dict[str, Counter[str]] = {}
    for name, test in sorted(document["tests"].items()):
        if number in test["rows"]:
            tests.setdefault(_words(name), Counter())[test["outcome"]] += 1
    cells = [f"{words}{_outcomes(outcomes)}" for words, outcomes in tests.items()]
    return f"| {number} | {row.happens} | {row.holds} | {simulated} | {'<br>'.join(cells) or row.why_not or '–'} |"


def _outcomes(outcomes: Counter[str]) -> str:
    """Nothing for a single success."""
    if set(outcomes) == {"passed"}:
        return f" ({outcomes['passed']} cases)" if outcomes["passed"] > 1 else ""
    return " **(" + ", ".join(f"{count} {outcome}" for outcome, count in outcomes.items()) + ")**"


def _words(node: str) -> str:
    """A test by what it checks and its file; the lab's plays by their own names."""
    path, _, name = node.partition("::")
    name, _, case = name.partition("[")
    if "test_lab_failures" in path:
        name = f"lab {case.removesuffix(']')}"
    file = f"{Path(path).parent.name}/{Path(path).stem.removeprefix('test_')}"
    return f"{name.removeprefix('test_').replace('_', ' ')} (`{file}`)"


def _soak(soak: Document) -> list[str]:
    most = soak["most"]
    strikes = ", ".join(f"{count} {kind}" for kind, count in sorted(soak["strikes"].items()))
    blocks = ", ".join(f"{block:.2f}" for block in soak["blocks_s"])
    return [
        "",
        "## Soak",
        "",
        f"`scripts/soak --peers {soak['peers']} --seed {soak['seed']}`: real processes over {soak['shape']}, a tiny",
        "model, rounds as short as the machine allows; every few seconds a peer is killed, leaves, is frozen or comes",
        "back, or the coordinator is killed.",
        "",
        "| | |",
        "|---|---|",
        f"| commits | {soak['syncs']} in {soak['seconds']:.0f} s |",
        f"| what happened | {strikes} |",
        f"| attempts that failed | {soak['aborted_attempts']} |",
        f"| times a peer counted as lost | {soak['lost']} |",
        f"| median seconds from commit to commit, by {BLOCK} commits | {blocks} |",
        f"| most resident memory of a process | {most['memory_mb']:.0f} MB |",
        f"| most that a process has grown once warm | {soak['growth_mb']:.1f} MB |",
        f"| growth of the process that lived longest, for 1000 syncs | {soak['growth_mb_per_1000']:.1f} MB |",
        f"| most descriptors of a process | {most['descriptors']} |",
        f"| most files in a peer's home | {most['files']}, {most['home_mb']:.1f} MB |",
        f"| most files of shared memory | {most['segments']} for {soak['peers']} peers |",
        f"| parity at the end | {'yes' if soak['parity'] else 'no'} |",
        "",
        "![Time of a sync, memory and descriptors while peers come and go](img/soak.png)",
    ]


def main() -> int:
    """The command behind scripts/failures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=2000, help="simulated runs; 0: leave those figures (2000)")
    parser.add_argument("--render", action="store_true", help="run nothing, only write the page")
    parser.add_argument("tests", nargs="*", default=[], help="which tests (all that are marked)")
    options = parser.parse_args()
    document: Document = json.loads(FIGURES.read_text(encoding="utf-8")) if FIGURES.exists() else {"tests": {}}
    code = 0
    if not options.render:
        document["date"] = time.strftime("%Y-%m-%d")
        code = run_tests(options.tests or ["tests"], document)
        if options.seeds:
            code = code or simulate(options.seeds, document)
        forget_old(document)
        FIGURES.write_text(json.dumps(document, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    soak = json.loads(SOAK.read_text(encoding="utf-8")) if SOAK.exists() else None
    PAGE.write_text(page(document, soak), encoding="utf-8")
    print(f"{PAGE}: {len(document['tests'])} tests")
    return int(bool(code))


if __name__ == "__main__":
    sys.exit(main())
