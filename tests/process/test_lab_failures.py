"""Rows of the table of failures that need a network: real daemons over links that are cut, slowed and changed."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from tests.conftest import Measured
from tests.process.lab_rows import LAB_ROWS, LabRow, Stage, staged
from wantrain.lab import available

pytestmark = pytest.mark.skipif(bool(available()), reason=available())

ROWS = [pytest.param(row, id=row.name, marks=pytest.mark.scenario(row.row)) for row in LAB_ROWS]


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], Stage]]:
    """The stage, where one play follows the other; a new one after a play that went wrong. At the end all leave."""
    with ExitStack() as stack:
        made: list[Stage] = []

        def ready() -> Stage:
            if not made or made[-1].row:
                stack.close()
                made.append(stack.enter_context(staged(tmp_path_factory.mktemp("stage"))))
            return made[-1]

        yield ready
        if made and not made[-1].row:
            made[-1].leave()


@pytest.mark.parametrize("row", ROWS)
def test_a_run_in_the_lab_survives(row: LabRow, stage: Callable[[], Stage], measured: Measured) -> None:
    on = stage()
    on.measured = measured
    on.begin(row.row)
    row.play(on)
    on.row = 0
