"""docs/examples.md says what the examples are: its table and differences are up to date, and few lines change."""

import py_compile
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.examples import EXAMPLES, FOLDER, MOST_CHANGED, PAGE, Example, changed_lines, commands, written
from wantrain import local_run
from wantrain.cli.main import main


def test_the_page_of_the_examples_is_up_to_date() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert written(page) == page, "run python -m tests.examples and commit docs/examples.md"


def test_every_folder_is_an_example() -> None:
    assert {example.name for example in EXAMPLES} == {path.name for path in FOLDER.iterdir()}


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.name)
def test_few_lines_are_changed(example: Example) -> None:
    before, after = example.source("plain.py"), example.source("train.py")
    assert not any("wantrain" in line for line in before)
    assert any("wantrain" in line for line in after)
    assert 1 <= changed_lines(before, after) <= MOST_CHANGED


def test_changed_lines_are_those_added_removed_and_replaced() -> None:
    before = ["a", "b", "c", "d"]
    assert changed_lines(before, before) == 0
    assert changed_lines(before, ["a", "x", "c", "d"]) == 1
    assert changed_lines(before, ["a", "x", "y", "c"]) == 3
    assert changed_lines(["a"] * 300, ["a"] * 301) == 1


def test_commands_on_the_page_are_commands(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ran: list[local_run.LocalOptions] = []
    monkeypatch.setattr(local_run, "run_local", lambda options: ran.append(options) or 0)  # type: ignore[func-returns-value]
    local = [line for line in commands(PAGE.read_text(encoding="utf-8")) if line.startswith("wantrain local")]
    for line in local:
        result = CliRunner().invoke(main, line.split()[1:])
        assert result.exit_code == 0, result.output
    assert len(ran) == sum(example.ranks == 1 for example in EXAMPLES)
    for options in ran:
        py_compile.compile(str(FOLDER.parents[1] / options.script), str(tmp_path / "x.pyc"), doraise=True)
