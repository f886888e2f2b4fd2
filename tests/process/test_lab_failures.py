"""Rows of the table of failures that need a network: real daemons over links that are cut, slowed and changed."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import Measured
from tests.process.lab_rows import LAB_ROWS, LabRow, Stage, staged
from wantrain.lab import available

pytestmark = pytest.mark.skipif(bool(available()), reason=available())

ROWS = [pytest.param(row, id=row.name, marks=pytest.mark.scenario(row.row)) for row in LAB_ROWS]


@pytest.fixture
def stage(row: LabRow, tmp_path: Path, measured: Measured) -> Iterator[Stage]:
    with staged(row, tmp_path, measured, print) as made:
        yield made


@pytest.mark.parametrize("row", ROWS)
def test_a_run_in_the_lab_survives(row: LabRow, stage: Stage) -> None:
    row.play(stage)
