"""The table of failures has no gap: every row is shown by a marked test or a simulated fault, or says why not."""

import ast
from functools import cache
from pathlib import Path

from tests.scenarios import SCENARIOS
from tests.sim.faults import kinds

ROOT = Path(__file__).parents[2]


@cache
def marked_rows() -> dict[int, list[str]]:
    """Rows that tests are marked with, by reading the tests: the marker's argument has to be a plain number there."""
    found: dict[int, list[str]] = {}
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.scenario":
                for argument in node.args:
                    if isinstance(argument, ast.Constant) and isinstance(argument.value, int):
                        found.setdefault(argument.value, []).append(path.name)
    return found


def test_the_rows_are_numbered_without_a_gap() -> None:
    assert list(SCENARIOS) == list(range(1, 25))


def test_every_row_is_shown_or_says_why_not() -> None:
    marked = marked_rows()
    for number, row in SCENARIOS.items():
        shown = bool(row.faults) or number in marked
        assert shown or row.why_not, f"row {number}: a marked test or a simulated fault, or else why_not"


def test_markers_name_rows_of_the_table() -> None:
    assert set(marked_rows()) <= set(SCENARIOS)


def test_every_simulated_fault_belongs_to_a_row_of_the_table() -> None:
    named = {fault for row in SCENARIOS.values() for fault in row.faults}
    assert named == set(kinds()), "name each kind of fault of tests/sim/faults.py in a row of tests/scenarios.py"
